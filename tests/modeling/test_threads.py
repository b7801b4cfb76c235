"""Threads that other processes leave no cores to are said, and only they."""

import pytest

from naysay.modeling import threads
from naysay.modeling.threads import CoreUse, crowded_cores, crowding


@pytest.mark.parametrize(
    ("count", "cores", "busy", "advised"),
    [
        (2, 2, 0.0, None),
        (2, 2, 0.4, None),  # noise
        (2, 2, 1.0, 1),
        (2, 2, 2.0, 1),  # one thread in any case
        (8, 16, 7.0, None),
        (16, 16, 4.0, 12),
        (1, 2, 2.0, None),  # one thread waits for nobody
    ],
)
def test_threads_without_a_core_of_their_own_are_said(count, cores, busy, advised):
    line = crowding(count, CoreUse(cores, busy))
    if advised is None:
        assert line is None
        return
    assert line is not None
    assert line.startswith(f"{count} compute threads, but other processes use {busy:.1f} of {cores} cores: ")
    assert f"set OMP_NUM_THREADS={advised} " in line


@pytest.fixture
def busy(monkeypatch):
    """Two threads on two cores, one of which is busy; nothing is measured."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "measure_core_use", lambda: CoreUse(2, 1.0))


@pytest.mark.usefixtures("busy")
def test_the_number_of_threads_that_someone_chose_is_left_alone(monkeypatch):
    assert "2 compute threads" in str(crowded_cores())
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert crowded_cores() is None


def test_one_thread_is_not_measured(monkeypatch):
    monkeypatch.setattr(threads, "measure_core_use", lambda: pytest.fail("measured"))
    assert crowded_cores() is None  # tests run with one


def test_the_measured_use_is_within_the_cores():
    use = threads.measure_core_use()
    assert use.cores >= 1
    assert 0.0 <= use.busy <= use.cores


def test_where_cores_are_offline_nothing_is_said_of_the_others(monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: {0, 5}, raising=False)
    monkeypatch.setattr(threads.sys, "platform", "linux")
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda percpu: [100.0] * 4)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: None)
    assert threads.measure_core_use() == CoreUse(2, 0.0)
