"""Two processes with half the groups each take the same optimizer steps as one process with all of them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from naysay.artifacts.reference_cache import ReferenceCache
from training.distributed_step import SCENARIOS, train, uneven_rows

TESTS = Path(__file__).parents[1]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Results of both ranks by scenario, and the folder in which they worked."""
    folder = tmp_path_factory.mktemp("two")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
        *("--master_addr", "127.0.0.1", "--master_port", str(free_port())),
        *(str(Path(__file__).with_name("distributed_step.py")), str(folder)),
    ]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    results = {
        name: [
            json.loads((folder / f"{name}-{rank}.json").read_text())
            | {"weights": torch.load(folder / f"{name}-{rank}.pt")}
            for rank in (0, 1)
        ]
        for name in SCENARIOS
    }
    return results, folder


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The same of one process."""
    folder = tmp_path_factory.mktemp("one")
    return {name: train(folder, name, ranks=1) for name in SCENARIOS}, folder


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_equal_one_with_twice_the_batch(two_processes, one_process, name):
    ranks, alone = two_processes[0][name], one_process[0][name]
    assert [alone["ranks"], ranks[0]["ranks"]] == [1, 2]
    assert [alone["steps"], ranks[0]["steps"], ranks[1]["steps"]] == [3, 3, 3]
    for key, expected in alone["weights"].items():
        assert torch.equal(ranks[0]["weights"][key], ranks[1]["weights"][key]), key
        # Norms and rotary embeddings work in float32 inside even a float64 model.
        assert torch.allclose(ranks[0]["weights"][key], expected, rtol=1e-5, atol=1e-6), key
    assert alone["moved"] > 1e-3
    for metric in ("loss", "margin", "weight", "anchor_log_ratio", "negative_log_ratio_per_token", "grad_norm"):
        expected = [row[metric] for row in alone["log"]]
        assert [row[metric] for row in ranks[0]["log"]] == pytest.approx(expected, rel=1e-4, abs=1e-6), metric
    assert alone["log"][0]["loss"] != pytest.approx(alone["log"][-1]["loss"], abs=1e-3)


def test_the_data_is_as_uneven_as_it_should_be(two_processes):
    """Otherwise the test above would prove less than it says."""
    first, second = (rank["work"] for rank in two_processes[0]["plain"])
    assert first[0][0] > 0  # rank 1 has no whole micro-batch in the first step, rank 0 has some:
    assert second[0][0] == 0  # so rank 1 idles there with the response that is also a part of its own first group
    assert second[0][1] > 4
    assert first[1][1] > 1
    assert second[1][1] == 0  # and idles in the second step while rank 0 works off its parts
    assert len(uneven_rows()) % 4 == 3


def test_finished_pairs_are_left_out_alike_and_no_rank_waits(two_processes, one_process):
    """That the weights agree is said above; here, that there was something to leave out on both sides."""
    ranks, alone = two_processes[0]["finished"][0]["log"], one_process[0]["finished"]["log"]
    assert [row["finished"] for row in ranks] == [row["finished"] for row in alone] == [0.0, 0.5, 0.0]
    assert 0 < ranks[1]["backward_skipped"] < 0.5
    assert 0 < alone[1]["backward_skipped"] < 0.5


def test_both_ranks_train_against_the_same_references(two_processes, one_process):
    first, second = two_processes[0]["plain"]
    assert first["references"] == second["references"]
    for mine, expected in zip(first["references"], one_process[0]["plain"]["references"], strict=True):
        assert mine == pytest.approx(expected, rel=1e-6)
    folders = (two_processes[1], one_process[1])
    caches = [ReferenceCache(folder / "plain" / "reference_cache", "") for folder in folders]
    stores = [ReferenceCache(cache.folder, next(cache.folder.iterdir()).name) for cache in caches]
    assert stores[0].reference_digest == stores[1].reference_digest
    assert len(stores[0]) == len(stores[1]) > 20


def test_refreshed_anchors_are_the_same_on_both_ranks_and_in_one_process(two_processes, one_process):
    first, second = two_processes[0]["refreshed"]
    alone = one_process[0]["refreshed"]
    as_lists = json.loads(json.dumps(alone["anchors"]))
    assert first["anchors"] == second["anchors"] == as_lists
    assert first["refresh"] == second["refresh"] == alone["refresh"]
    assert alone["refresh"]["rounds"] == 2
    assert min(alone["refresh"].values()) > 0
    for mine, other, expected in zip(first["references"], second["references"], alone["references"], strict=True):
        assert mine == other
        assert mine == pytest.approx(expected, rel=1e-6)
    written = [sorted(p.name for p in (f / "refreshed").glob("anchors-*")) for f in (two_processes[1], one_process[1])]
    assert written == [["anchors-round-1.jsonl", "anchors-round-2.jsonl"]] * 2


def test_dev_prompts_stop_both_ranks_at_the_same_step(two_processes, one_process):
    first, second = two_processes[0]["stopped"]
    alone = one_process[0]["stopped"]
    assert first["dev"] == second["dev"]
    assert [check["step"] for check in alone["dev"]] == [0, 1, 2, 3]
    for mine, expected in zip(first["dev"], alone["dev"], strict=True):
        assert mine == pytest.approx(expected, rel=1e-4, abs=1e-5)
    for _, folder in (two_processes, one_process):
        assert [path.name for path in (folder / "stopped").glob("best-*")] == ["best-0"]
        assert (folder / "stopped" / "best-0" / "adapter_model.safetensors").exists()
