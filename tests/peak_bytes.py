"""How much memory a piece of work needs beside its model, counted in bytes of tensors and not in time or pages."""

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of live storages that operations made beside those of the model, and remembers the most."""

    def __init__(self, model):
        super().__init__()
        self.live, self.peak = 0, 0
        self.known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in self.known:
                self._add(value.untyped_storage())
        return out

    def _add(self, storage):
        size, key = storage.nbytes(), storage._cdata
        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key, size):
        self.known.discard(key)
        self.live -= size
