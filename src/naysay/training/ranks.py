"""What the ranks of a training tell each other, and when they have to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

_REPLICATED = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}
"""Each rank holds all weights, so that nothing is exchanged but the gradients, in the last backward of a step."""


@dataclass(frozen=True)
class Ranks:
    """All processes of a training, seen from one of them; with one process nothing is exchanged."""

    accelerator: Accelerator

    @property
    def count(self) -> int:
        return self.accelerator.num_processes

    def most(self, *counts: int) -> list[int]:
        """The largest of each count over the ranks."""
        if self.count == 1:
            return list(counts)
        gathered: Any = self.accelerator.gather(torch.tensor([counts], device=self.accelerator.device))
        return gathered.amax(0).tolist()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the ranks, on the CPU; with one process `value` itself."""
        if self.count == 1:
            return value
        # float32: some backends have no float64.
        summed: Any = self.accelerator.reduce(value.to(self.accelerator.device, torch.float32), reduction="sum")
        return summed.cpu()

    @contextmanager
    def synchronised(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """Gradients travel between ranks only with the last backward of the optimizer step."""
        state = self.accelerator.gradient_state
        if last or not state.sync_gradients:
            yield
            return
        state._set_sync_gradients(False)
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(True)

    def can_leave_out(self, *, last: bool) -> bool:
        """Whether a rank may leave out a pass that adds nothing to the gradient.

        Not the last one of an optimizer step: it carries the gradients between ranks, and makes them 0 rather than
        absent where nothing else was run, so that the optimizer does the same however the step was split. And none
        where weights are spread over ranks: there every pass gathers them.
        """
        if last and self.accelerator.gradient_state.sync_gradients:
            return False
        return self.accelerator.distributed_type in _REPLICATED
