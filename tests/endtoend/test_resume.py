"""Killed or interrupted anywhere, the same command ends with the same bits as a run that nobody disturbed."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, read_jsonl
from naysay.generation.hf import HFSampler
from naysay.training.trainer import D2OTrainer

WEIGHTS = "adapter_model.safetensors"
# Slow enough that a signal arrives while there is work left.
DRIVER = """
    import signal, sys, time
    import torch
    from naysay.generation.hf import HFSampler
    from naysay.training.trainer import D2OTrainer
    from naysay.cli.main import main

    torch.set_num_threads(1)
    # A test run in the background (nohup, &) ignores SIGINT, and its children inherit that; a terminal does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def slowed(work):
        def slow(*args, **kwargs):
            time.sleep(0.3)
            return work(*args, **kwargs)
        return slow

    HFSampler.sample = slowed(HFSampler.sample)
    D2OTrainer.training_step = slowed(D2OTrainer.training_step)
    sys.exit(main(sys.argv[1:]))
"""


def same_results(run: RunDirectory, other: RunDirectory) -> None:
    """Bitwise: the anchors, the adapter, the generations; and every number of the evaluation."""
    assert run.anchors.read_bytes() == other.anchors.read_bytes()
    assert (run.adapter / WEIGHTS).read_bytes() == (other.adapter / WEIGHTS).read_bytes()
    assert run.generations.read_bytes() == other.generations.read_bytes()
    assert read_json(run.evaluation) == read_json(other.evaluation)
    mine, others = ([(row["step"], row["loss"]) for row in read_jsonl(item.metrics)] for item in (run, other))
    assert mine == others


def start(naysay: Any, out: str) -> subprocess.Popen[str]:
    script = naysay.folder / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    return subprocess.Popen(
        [sys.executable, str(script), *naysay.command(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parts(run: RunDirectory) -> list[Path]:
    return sorted(run.sampling_parts.glob("part-*.jsonl"))


def checkpoints(run: RunDirectory) -> list[Path]:
    return sorted(run.train.glob("checkpoint-*/naysay_references.json"))


def test_kill_9_while_sampling(naysay, finished):
    run = naysay.run("a")
    with start(naysay, "a") as process:
        wait_for(process, lambda: len(parts(run)) >= 1)
        process.kill()
    drawn = {path: path.stat().st_mtime_ns for path in parts(run)}
    assert 1 <= len(drawn) < 4
    assert not run.anchors.exists()
    assert naysay(*naysay.command("a")) == 0, naysay.err
    assert drawn == {path: path.stat().st_mtime_ns for path in drawn}
    same_results(run, finished)


def test_kill_9_while_training(naysay, finished):
    run = naysay.do("a", stage="ingest")
    for stage in ("sample", "score"):
        assert naysay(stage, "--out", run.path) == 0
    with start(naysay, "a") as process:
        wait_for(process, lambda: len(checkpoints(run)) >= 1)
        process.kill()
    assert not run.adapter.exists()
    assert checkpoints(run)[-1].parent.name != "checkpoint-4"
    assert naysay(*naysay.command("a")) == 0, naysay.err
    assert [line.split()[1:4] for line in naysay.err.splitlines()[:3]] == [["up", "to", "date"]] * 3
    same_results(run, finished)


def test_ctrl_c_in_a_terminal(naysay, finished):
    run = naysay.run("a")
    with start(naysay, "a") as process:
        wait_for(process, lambda: len(checkpoints(run)) >= 1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "naysay: interrupted; run the same command again to continue"
    assert "Traceback" not in error
    assert naysay(*naysay.command("a")) == 0, naysay.err
    same_results(run, finished)


class Stop:
    """Raises on the n-th call of a method, before (or after) it has done its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, error: BaseException):
        self.calls = 0
        work = getattr(owner, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == call:
                raise error
            return work(*args, **kwargs)

        monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize(
    ("owner", "name", "call", "stage"),
    [
        (HFSampler, "sample", 3, "sample"),
        (D2OTrainer, "training_step", 1, "train"),
        (D2OTrainer, "training_step", 3, "train"),
        (D2OTrainer, "save_model", 3, "train"),  # in the middle of a checkpoint
        (HFSampler, "sample", 6, "evaluate"),  # the base model's answers are there, the tuned model's are not
    ],
)
def test_interrupted_inside_a_stage(naysay, finished, monkeypatch, owner, name, call, stage):
    with monkeypatch.context() as patch:
        Stop(patch, owner, name, call, KeyboardInterrupt())
        assert naysay(*naysay.command("a")) == 130
    assert naysay.err.splitlines()[-1] == "naysay: interrupted; run the same command again to continue"
    run = naysay.run("a")
    assert not run.manifest_path(stage).exists()
    assert naysay(*naysay.command("a")) == 0, naysay.err
    same_results(run, finished)


def test_a_resumed_run_draws_and_trains_only_what_is_left(naysay, monkeypatch):
    with monkeypatch.context() as patch:
        Stop(patch, HFSampler, "sample", 3, KeyboardInterrupt())
        assert naysay(*naysay.command("a")) == 130
    with monkeypatch.context() as patch:
        sampled = Stop(patch, HFSampler, "sample", 0, KeyboardInterrupt())
        Stop(patch, D2OTrainer, "training_step", 3, KeyboardInterrupt())
        assert naysay(*naysay.command("a")) == 130
    assert sampled.calls == 2 + 2  # the anchors that were left, and the guard's probe before steps 1 and 3
    with monkeypatch.context() as patch:
        trained = Stop(patch, D2OTrainer, "training_step", 0, KeyboardInterrupt())
        assert naysay(*naysay.command("a")) == 0
    assert trained.calls == 2


def finished_files(run: RunDirectory) -> dict[str, bytes]:
    """Outputs of the stages that are done, and the partial work that a resumed run goes on from."""
    kept = {}
    for path in (*run.path.glob("manifests/*.json"), *parts(run)):
        if path.name.endswith(".partial.json"):
            continue
        kept[str(path)] = path.read_bytes()
        if path.parent.name == "manifests":
            outputs = [run.path / name for name in read_json(path)["outputs"]]
            kept |= {str(output): output.read_bytes() for output in outputs if output.is_file()}
    return kept


@pytest.mark.parametrize("write", [2, 9, 13, 15, 17, 26, 40])
def test_a_full_disk_loses_nothing(naysay, finished, monkeypatch, write):
    """The n-th write of the run's own files finds no space."""
    real, calls, before = os.fsync, 0, {}
    run = naysay.run("a")

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == write:
            before.update(finished_files(run))
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("naysay.artifacts.store.os.fsync", fsync)
        error = naysay.refused(*naysay.command("a"))
    assert "the disk is full; free some space and run the same command again, nothing is lost" in error
    assert str(run.path) in error
    assert before == {name: Path(name).read_bytes() for name in before}
    assert list(run.path.rglob("*.tmp")) == []
    assert naysay(*naysay.command("a")) == 0, naysay.err
    same_results(run, finished)


def test_a_full_disk_in_a_checkpoint_of_the_trainer_loses_nothing(naysay, finished, monkeypatch):
    """torch writes the optimizer's state itself and says what the operating system said."""

    def save(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "optimizer.pt")

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", save)
        error = naysay.refused(*naysay.command("a"))
    assert "the disk is full" in error
    assert naysay(*naysay.command("a")) == 0, naysay.err
    same_results(naysay.run("a"), finished)


def test_a_moved_run_is_still_up_to_date(naysay):
    run = naysay.do("a")
    moved = shutil.move(run.path, naysay.folder / "b")
    assert naysay("report", "--out", moved) == 0
    assert "up to date" in naysay.err
