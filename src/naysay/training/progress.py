"""A rich progress bar for the Trainer, in place of its own."""

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from naysay.modeling.progress import progress_bar


class TrainingProgress(TrainerCallback):
    """Optimizer steps with rate and time left; `close` removes the bar, also after an exception."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._advance: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        bar = progress_bar("training", state.max_steps, "steps", state.global_step)
        self._advance = self._stack.enter_context(bar)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._advance(1)

    def close(self) -> None:
        self._stack.close()
