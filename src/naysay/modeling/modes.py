"""Training and evaluation mode of a model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside, the former mode afterwards."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


class TrainingMode:
    """`model.train()` before each step, at the price of asking where nothing is to be set.

    `train()` visits all modules and sets their flag anew, though only something between the steps can have changed it.
    The flag of the model alone does not tell: under a new adapter the layers of a loaded model are still in eval mode.

    Example: `mode = TrainingMode()` once, `mode.set(model)` before each step.
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._modules: list[nn.Module] = []

    def set(self, model: nn.Module) -> None:
        if model is not self._model:
            self._model, self._modules = model, list(model.modules())
        if not all(module.training for module in self._modules):
            model.train()
