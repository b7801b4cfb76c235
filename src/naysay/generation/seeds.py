"""One counter-based random stream a row, so that a response does not depend on who else is in its batch."""

import hashlib

import numpy as np


def row_seed(run_seed: int, prompt_id: str, index: int, round: int = 0) -> int:
    """Seed (63 bits) of one response; a function of these four values and nothing else."""
    text = f"{run_seed}/{prompt_id}/{index}/{round}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def uniforms(seed: int, steps: int) -> np.ndarray:
    """[steps] uniforms in [0, 1): value t depends on (seed, t) only (Philox is counter-based)."""
    return np.random.Generator(np.random.Philox(key=seed)).random(steps)
