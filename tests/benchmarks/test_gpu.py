"""The GPU benchmark, without one: how the rival's batch is searched, and what is said where there is no device."""

from contextlib import nullcontext

import pytest
import torch
from benchmarks.steppers import Case

from benchmarks import gpu
from naysay.errors import InputNotFoundError

CASE = Case(5, 3, 2, shape="llama-3.2-1b")


def search(monkeypatch, seconds):
    """The batch that is found, and those that were tried; None = does not fit."""
    tried = []

    def ask(name):
        batch = int(name.removeprefix("trl:"))
        tried.append(batch)
        if seconds[batch] is None:
            raise InputNotFoundError(f"{name}: OutOfMemoryError: CUDA out of memory")
        return {"seconds": seconds[batch]}

    monkeypatch.setattr(gpu, "worker", lambda name, case, threads: nullcontext(name))
    monkeypatch.setattr(gpu, "ask", ask)
    return gpu.fastest(CASE, tuple(seconds)), list(dict.fromkeys(tried))


def test_larger_batches_are_tried_until_one_is_slower(monkeypatch):
    assert search(monkeypatch, {4: 3.0, 8: 2.0, 16: 2.5, 32: 1.0}) == (8, [4, 8, 16])
    assert search(monkeypatch, {4: 3.0, 8: 2.0}) == (8, [4, 8])


def test_or_until_one_does_not_fit(monkeypatch):
    assert search(monkeypatch, {4: 3.0, 8: None, 16: 1.0}) == (4, [4, 8])
    with pytest.raises(InputNotFoundError, match="with none of"):
        search(monkeypatch, {4: None})


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a CUDA device")
def test_without_a_device_it_says_what_to_run(capsys):
    assert gpu.main([]) != 0
    assert "expected a CUDA device, found none; on a CPU run python -m benchmarks.run" in capsys.readouterr().err
