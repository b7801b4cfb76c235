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


def set_training(model: nn.Module) -> None:
    """`model.train()`, where anything in it is in eval mode: to ask is much cheaper than to set every flag anew.

    The flag of the model alone does not tell: under a new adapter the layers of a loaded model are still in eval mode.
    """
    # Not `modules()`, a generator within a generator for each level: this is asked at each step.
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if not module.training:
            model.train()
            return
        waiting.extend(module.children())
