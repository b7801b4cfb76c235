"""Reference log-probs on disk, keyed by content, audited on load.

One folder a reference digest (weights, adapter, tokenizer, template, dtype, version of the scoring code); in it one
safetensors file for each batch that was scored, so that a killed run loses at most a batch.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from naysay.artifacts.digests import digest_text
from naysay.artifacts.store import write_atomic
from naysay.errors import ReferenceMismatchError

AUDIT_SHARE = 0.01
AUDIT_MINIMUM = 8
Rescore = Callable[[Sequence[str]], Sequence[float]]


class ReferenceCache:
    """sequence digest -> (log-prob: sum in nats, tokens) under one reference.

    Example:
        cache = ReferenceCache(run.reference_cache, reference_digest)
        cache.add(["3f..."], [-41.2], [17])
        cache["3f..."]  # (-41.2, 17)
    """

    def __init__(self, root: Path, reference_digest: str):
        self.folder = root / reference_digest
        self.reference_digest = reference_digest
        self._values: dict[str, tuple[float, int]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            self._load(path)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> tuple[float, int]:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def add(self, keys: Sequence[str], logps: Sequence[float], tokens: Sequence[int]) -> None:
        """Keep a scored batch: on disk first, then in memory."""
        tensors = {
            "keys": np.array([list(bytes.fromhex(key)) for key in keys], dtype=np.uint8),
            "logps": np.array(logps, dtype=np.float64),
            "tokens": np.array(tokens, dtype=np.int32),
        }
        # Named by content, so that ranks and restarted runs cannot overwrite each other's batches.
        path = self.folder / f"{digest_text(*keys)}.safetensors"
        write_atomic(path, lambda temporary: save_file(tensors, temporary))
        self._values.update(zip(keys, zip(map(float, logps), map(int, tokens), strict=True), strict=True))

    def audit(self, keys: Sequence[str], rescore: Rescore, *, tolerance: float, seed: int = 0) -> int:
        """Compute a random 1 % (at least 8) of cached rows again; they must agree within `tolerance` nats.

        Uses its own random stream: the global one is not touched. Returns how many rows were compared.

        Raises:
            ReferenceMismatchError: a row disagrees.
        """
        known = sorted(key for key in set(keys) if key in self._values)
        if not known:
            return 0
        count = min(len(known), max(AUDIT_MINIMUM, round(AUDIT_SHARE * len(known))))
        chosen = random.Random(seed).sample(known, count)
        for key, found in zip(chosen, rescore(chosen), strict=True):
            expected = self._values[key][0]
            if not abs(expected - found) <= tolerance:
                raise ReferenceMismatchError(
                    f"{self.folder}: cached log-prob of sequence {key[:12]} is {expected:.4f} nats, but the reference "
                    f"gives {found:.4f}; delete this folder and run the same command again"
                )
        return count

    def _load(self, path: Path) -> None:
        try:
            tensors = load_file(path)
            keys = [bytes(row).hex() for row in tensors["keys"]]
            values = zip(tensors["logps"].tolist(), tensors["tokens"].tolist(), strict=True)
            self._values.update(zip(keys, values, strict=True))
        except (SafetensorError, KeyError, ValueError) as error:
            raise ReferenceMismatchError(
                f"{path}: damaged ({error}); delete it and run the same command again"
            ) from error
