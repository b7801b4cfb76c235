"""The cache on disk: what was added is there afterwards, and a damaged file is one line that says what to do."""

import random

import numpy as np
import pytest
import torch

from naysay.artifacts.reference_cache import ReferenceCache
from naysay.errors import ReferenceMismatchError

KEYS = [f"{i:032x}" for i in range(300)]


def filled(root, keys=KEYS):
    cache = ReferenceCache(root, "reference-1")
    for start in range(0, len(keys), 100):
        chosen = keys[start : start + 100]
        cache.add(chosen, [-float(int(key, 16)) - 1 / 3 for key in chosen], [3] * len(chosen))
    return cache


def test_what_was_added_is_read_back_to_the_bit(tmp_path):
    written, read = filled(tmp_path), ReferenceCache(tmp_path, "reference-1")
    assert len(read) == 300
    for key in KEYS:
        assert read[key] == written[key] == (-float(int(key, 16)) - 1 / 3, 3)
    assert "f" * 32 not in read
    assert len(ReferenceCache(tmp_path, "reference-2")) == 0


def test_two_batches_with_the_same_first_key_and_size_are_both_kept(tmp_path):
    """As two ranks write them that have scored the same sequence."""
    for other in (KEYS[1], KEYS[2]):
        ReferenceCache(tmp_path, "reference-1").add([KEYS[0], other], [-1.0, -2.0], [1, 1])
    assert len(ReferenceCache(tmp_path, "reference-1")) == 3


@pytest.mark.parametrize(
    ("keys", "expected"), [(KEYS[:5], 5), (KEYS[:8], 8), (KEYS[:200], 8), ([*KEYS, "e" * 32], 8), (["e" * 32], 0)]
)
def test_one_percent_but_at_least_eight_known_rows_are_audited(tmp_path, keys, expected):
    cache, asked = filled(tmp_path), []

    def rescore(chosen):
        asked.extend(chosen)
        return [cache[key][0] for key in chosen]

    assert cache.audit(keys, rescore, tolerance=0.0) == len(asked) == expected
    assert len(set(asked)) == expected
    assert set(asked) <= set(KEYS)


def test_one_percent_of_many(tmp_path):
    keys = [f"{i:032x}" for i in range(2000)]
    cache = filled(tmp_path, keys)
    assert cache.audit(keys, lambda chosen: [cache[key][0] for key in chosen], tolerance=0.0) == 20


def test_the_audit_chooses_by_its_own_random_stream(tmp_path):
    cache, asked = filled(tmp_path), []

    def rescore(chosen):
        asked.append(list(chosen))
        return [cache[key][0] for key in chosen]

    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    for seed in (0, 0, 1):
        cache.audit(KEYS, rescore, tolerance=0.0, seed=seed)
    assert asked[0] == asked[1] != asked[2]
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("wrong", [0.021, -0.021, float("nan"), float("inf")])
def test_a_disagreement_beyond_the_tolerance_is_an_error(tmp_path, wrong):
    cache = filled(tmp_path)
    cache.audit(KEYS, lambda chosen: [cache[key][0] + 0.019 for key in chosen], tolerance=0.02)
    with pytest.raises(ReferenceMismatchError, match="delete this folder"):
        cache.audit(KEYS, lambda chosen: [cache[key][0] + wrong for key in chosen], tolerance=0.02)


@pytest.mark.parametrize("content", [b"", b"nonsense", None], ids=["empty", "nonsense", "cut"])
def test_a_damaged_file_is_one_line_with_its_name(tmp_path, content):
    path = next(filled(tmp_path).folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ReferenceMismatchError) as caught:
        ReferenceCache(tmp_path, "reference-1")
    message = str(caught.value)
    assert message.startswith(f"{path}: damaged")
    assert message.endswith("delete it and run the same command again")
    assert "\n" not in message
    path.unlink()
    assert len(ReferenceCache(tmp_path, "reference-1")) == 200
