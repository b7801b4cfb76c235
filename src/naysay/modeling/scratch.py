"""Memory for what lives no longer than a function: the same again at each call, where an allocator would give some
that is not in the processor's caches, or new from the system, page by page."""

import threading

import torch
from torch import Tensor


class Scratch(threading.local):
    """As many tensors as are asked for by number, one set for each thread, as large as the largest that was asked for.
    A CPU's only: elsewhere torch's own allocator keeps memory. Nothing may be kept of what it gives, and nobody may ask
    for a number that is in use.

    Example: with `scratch = Scratch()` once, `torch.mul(a, b, out=scratch.like(a, 0))` at each call.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[int, torch.dtype], Tensor] = {}

    def like(self, states: Tensor, number: int) -> Tensor:
        """Of this shape and type, contiguous, with anything in it."""
        if states.device.type != "cpu":
            return torch.empty_like(states, memory_format=torch.contiguous_format)
        key = number, states.dtype
        held = self._held.get(key)
        if held is None or held.numel() < states.numel():
            with torch.inference_mode(mode=False):  # else it could not be written to outside again
                held = self._held[key] = torch.empty(states.numel(), dtype=states.dtype)
        return held[: states.numel()].view(states.shape)
