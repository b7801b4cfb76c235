"""One random stream a row: its seed says everything, and a longer stream begins with the shorter one."""

import hashlib

import numpy as np
import pytest

from naysay.generation.seeds import row_seed, uniforms


def test_a_seed_depends_on_run_seed_prompt_index_and_round_only():
    seeds = {
        row_seed(run_seed, prompt_id, index, turn)
        for run_seed in (0, 1)
        for prompt_id in ("p-1", "p-2", "p-11")
        for index in range(12)
        for turn in (-1, 0, 1)
    }
    assert len(seeds) == 2 * 3 * 12 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_seed_is_the_documented_function():
    """Another value here is another set of anchors for every run that anyone has ever made."""
    expected = int.from_bytes(hashlib.sha256(b"7/p-3f2a/4/0").digest()[:8], "big") >> 1
    assert row_seed(7, "p-3f2a", 4) == expected == row_seed(7, "p-3f2a", 4, round=0)


@pytest.mark.parametrize("seed", [0, 1, row_seed(0, "p", 0), 2**63 - 1])
def test_a_value_depends_on_seed_and_step_only(seed):
    whole = uniforms(seed, 100)
    for steps in (1, 2, 3, 7, 64, 99):
        assert np.array_equal(whole[:steps], uniforms(seed, steps))
    assert whole.min() >= 0
    assert whole.max() < 1


def test_the_streams_are_uniform_and_uncorrelated():
    draws = np.stack([uniforms(row_seed(0, "p", index), 8) for index in range(4000)])
    # Mean 1/2 and standard deviation 1/sqrt(12): the error of a mean over 4000 is 0.0046.
    assert np.abs(draws.mean(0) - 0.5).max() < 0.02
    assert np.abs(draws.std(0) - 12**-0.5).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(8)).max() < 0.08


def test_drawing_leaves_the_global_state_alone():
    state = np.random.get_state()[1].copy()
    uniforms(5, 1000)
    assert np.array_equal(state, np.random.get_state()[1])
