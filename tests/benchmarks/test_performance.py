"""The performance benchmark: rivals compute one gradient, FLOPs are counted by hand, ratios are of paired steps."""

import multiprocessing
import threading
from contextlib import nullcontext
from dataclasses import asdict, replace

import pytest
import torch
from benchmarks.random_models import SHAPES, random_model
from benchmarks.switches import SWITCHES

from benchmarks import run, steppers
from conftest import make_model, make_tokenizer
from naysay.config.model import ModelConfig
from naysay.core import products
from naysay.errors import InputNotFoundError
from naysay.modeling import branch_attention, branch_flash, forward

CASE = steppers.Case(prompt=5, answer=3, k=2)


@pytest.fixture
def tiny(monkeypatch):
    """Every implementation trains a copy of one random model; its gradients are kept."""
    models = []

    def load(config):
        assert config == ModelConfig()
        models.append(make_model())
        return models[-1]

    monkeypatch.setattr(steppers, "load_model", load)
    monkeypatch.setattr(steppers, "load_tokenizer", lambda config: make_tokenizer())
    group = ([5, 9, 11, 3, 8], [[7, 6, 4], [1, 2, 3], [9, 9, 4]])
    monkeypatch.setattr(steppers, "groups_of", lambda case: [group] * case.groups)
    return models


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_rivals_compute_the_gradient_of_the_same_group(tiny):
    found = []
    names = ("naysay", "unshared", "one at a time", "pairs", "naysay, checkpointing", "naysay, 8 tokens")
    for name in names:
        torch.manual_seed(0)
        steppers.make_step(name, CASE)()
        found.append(gradients(tiny[-1]))
    assert len(found[0]) > 10
    # The trainer's weight is sigma(-margin), which is not 1/2 away from the reference; the direction is the same.
    ours = torch.cat([g.flatten() for g in found[0].values()])
    for other in found[1:]:
        theirs = torch.cat([g.flatten() for g in other.values()])
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.9999
    assert torch.allclose(
        torch.cat([g.flatten() for g in found[1].values()]),
        torch.cat([g.flatten() for g in found[2].values()]),
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="no implementation 'nothing'"):
        steppers.make_step("nothing", CASE)


@pytest.mark.parametrize("name", ["naysay", "unshared", "one at a time", "pairs"])
def test_groups_of_one_step_add_up_and_the_first_pass_is_a_part_of_it(tiny, name):
    def of(case, take):
        torch.manual_seed(0)
        take(steppers.make_step(name, case))
        return torch.cat([g.flatten() for g in gradients(tiny[-1]).values()])

    once = of(CASE, lambda step: step())
    twice = of(replace(CASE, groups=2), lambda step: step())
    # The trainer's is the mean over pairs, the others' a sum.
    assert torch.allclose(twice, once if name == "naysay" else 2 * once, rtol=1e-4, atol=1e-6)
    first = of(CASE, lambda step: step.warm_up())
    alone = len(steppers.make_step(name, CASE).passes) == 1
    assert alone == torch.allclose(first, once, rtol=1e-4, atol=1e-6)
    assert alone == (name in {"naysay", "unshared"})


def test_random_models_have_the_published_number_of_weights():
    counted = {
        shape: sum(p.numel() for p in random_model(shape, dtype=torch.bfloat16, device="meta").parameters())
        for shape in SHAPES
    }
    assert counted == {"smollm2-135m": 134_515_008, "llama-3.2-1b": 1_235_814_400, "llama-2-7b": 6_738_415_616}


def test_cases_with_several_groups_are_counted_as_such():
    one, four = (steppers.Case(20, 7, 3, groups=n, shape="llama-3.2-1b") for n in (1, 4))
    assert four.tokens == 4 * one.tokens
    assert steppers.needed_flops(four) == {name: 4 * value for name, value in steppers.needed_flops(one).items()}
    assert steppers.groups_of(four)[0] == steppers.groups_of(one)[0]
    assert four.name == "llama-3.2-1b, P=20, R=7, K=3, 4 groups"


def count_calls(monkeypatch, module, name):
    """A list that grows with each call of the function."""
    calls = []
    function = getattr(module, name)

    def counted(*args, **kwargs):
        calls.append(name)
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


@pytest.mark.parametrize("name", list(SWITCHES))
def test_a_step_without_one_of_its_measures_has_the_same_gradient(tiny, name, monkeypatch):
    torch.manual_seed(0)
    steppers.make_step("naysay", CASE)()
    places = [
        (forward, "_candidates"),
        (forward, "_frozen_linear"),
        (forward, "_BINDERS"),
        (forward, "bind_decoder_layers"),
        (branch_attention, "_flash_covers"),
        (products, "_ONEDNN"),
    ]
    calls = count_calls(monkeypatch, branch_flash, "_flash")
    before = [getattr(module, attribute) for module, attribute in places]
    for (module, attribute), value in zip(places, before, strict=True):  # put back at the end of the test
        monkeypatch.setattr(module, attribute, value)
    torch.manual_seed(0)
    steppers.make_step(f"without {name}", CASE)()
    after = [getattr(module, attribute) for module, attribute in places]
    changed = sum(one is not other for one, other in zip(before, after, strict=True))
    assert changed == (2 if "any of these" in name or "keys gathered" in name else 1)
    assert bool(calls) == (not name.startswith(("flash kernels", "attention over allowed pairs")))
    ours, theirs = map(gradients, tiny)
    for parameter, gradient in ours.items():
        assert torch.allclose(theirs[parameter], gradient, rtol=1e-3, atol=1e-6), parameter


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_trl_steps_through_the_pairs_of_the_group(tiny):
    pytest.importorskip("trl", reason="TRL is not installed; pip install -c constraints.txt -e '.[parity]'")
    torch.manual_seed(0)
    steppers.make_step("trl:2", CASE)()
    assert len(gradients(tiny[-1])) > 10


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such token"), r"^trl:2: ValueError: no such token$"),
        (ModuleNotFoundError("No module named 'trl'"), r"^trl:2: ModuleNotFoundError: .*; pip install .*parity"),
    ],
)
def test_a_step_that_fails_is_told_to_the_parent_with_the_name_of_who_took_it(error, told, monkeypatch):
    def failing():
        raise error

    monkeypatch.setattr(steppers, "make_step", lambda implementation, case: failing)
    here, there = multiprocessing.Pipe()
    child = threading.Thread(target=steppers.serve, args=(there, "trl:2", CASE, torch.get_num_threads()))
    child.start()
    run._received(here)
    with pytest.raises(InputNotFoundError, match=told):
        run.ask(here)
    child.join(timeout=10)
    assert not child.is_alive()


def test_flops_by_hand(tiny):
    steppers._matrices.cache_clear()
    model = make_model()
    body = sum(p.numel() for name, p in model.named_parameters() if "proj" in name)
    found = steppers.needed_flops(CASE)
    assert CASE.tokens == 5 + 3 * 2
    assert found["body"] == 4 * body * 11
    assert found["head"] == 4 * 259 * 32 * 9
    # Allowed pairs: 15 of the prompt, and of the two tokens that are read of each answer 2 x 5 to the prompt and 3 to
    # themselves.
    assert found["attention"] == 12 * (15 + 3 * (10 + 3)) * 32 * 2
    ends = [sum(p.shape) for name, p in model.named_parameters() if "proj" in name]
    assert steppers.adapter_flops(CASE) == 6 * 16 * sum(ends) * 11


def test_a_race_reports_paired_ratios_and_whether_the_target_is_met(monkeypatch, capsys):
    steps = {
        "naysay": iter([(0.5, 100), (1.5, 110), (2.0, 120), (2.0, 90)]),  # before and after the rival's
        "one at a time": iter([(4.0, 300), (6.0, 400)]),
    }

    monkeypatch.setattr(run, "started", lambda name, case, threads: nullcontext(name))
    monkeypatch.setattr(run, "ready", lambda connection: None)
    monkeypatch.setattr(run, "ask", lambda name: dict(zip(("seconds", "peak_bytes"), next(steps[name]), strict=True)))
    monkeypatch.setattr(run, "matmul_rate", lambda threads: 1e9)
    monkeypatch.setattr(run, "needed_flops", lambda case: {"body": 7.5e8})
    monkeypatch.setattr(run, "adapter_flops", lambda case: 7.5e7)
    found = run.race(run.Race(CASE, "one at a time", at_least=3.6, memory_at_most=0.3), repeats=2, threads=1)
    assert found["ratio"] == 3.5
    assert found["ratio_range"] == [3.0, 4.0]
    assert found["memory_ratio"] == 0.3
    assert found["share_of_matmul_rate"] == pytest.approx(0.4375)
    assert found["share_with_the_adapter"] == pytest.approx(1.1 * 0.4375)
    assert found["share_range"] == pytest.approx([0.375, 1.5])
    assert not found["met"]
    assert found["memory_met"]
    line = capsys.readouterr().out
    assert "3.50x [3.00, 4.00], target 3.6x NOT MET; " in line
    assert "(0.30x, target 0.3x)" in line


def test_where_axes_meet_is_measured_once(monkeypatch):
    asked = []

    def ask(started):
        asked.append(started)
        # The second step is the faster one.
        return {"seconds": 100.0 - len(asked), "peak_bytes": len(asked)}

    monkeypatch.setattr(run, "worker", lambda name, case, threads, warm: nullcontext((name, case)))
    monkeypatch.setattr(run, "ask", ask)
    monkeypatch.setattr(run, "needed_flops", lambda case: {"body": 1e9})
    found = run.sizes(quick=False, threads=1)
    assert len(asked) == 2 * len(set(asked))
    points = {(p["axis"], *(p["case"][n] for n in ("prompt", "answer", "k", "vocabulary")), p["ours"]) for p in found}
    assert len(points) == len(found)
    centre = [point["seconds"] for point in found if point["case"] == asdict(run.CENTRE)]
    assert len(centre) == 4
    assert len(set(centre)) == 1
    assert (100.0 - centre[0]) % 2 == 0
    assert {point["peak_gb"] * 1e9 % 2 for point in found} == {0}
    # A group above the budget is measured in parts too.
    assert ("K", 128, 64, 32, 49152, "naysay, 2048 tokens") in points


def test_a_batch_that_does_not_fit_ends_the_search(monkeypatch, tmp_path):
    seconds = {"trl:1": 3.0, "trl:2": 2.0}

    def ask(name):
        if name not in seconds:
            raise EOFError
        return {"seconds": seconds[name]}

    monkeypatch.setattr(run, "PEER_SETTINGS", tmp_path / "peer.json")
    monkeypatch.setattr(run, "worker", lambda name, case, threads: nullcontext(name))
    monkeypatch.setattr(run, "ask", ask)
    case = steppers.Case(5, 3, 8)
    run.tune_peer([run.Race(case, "trl")], threads=1)
    assert run.peer_batch(case) == 2
    assert run.read_json(run.PEER_SETTINGS)[case.name]["does_not_fit"] == [4]


def test_wrong_sections_are_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["--sections", "step,speed"])
    assert "no section speed; there are step, parts, size, score, sample, ingest, command" in capsys.readouterr().err


def test_the_peer_gets_the_batch_size_that_was_found_for_it(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "PEER_SETTINGS", tmp_path / "peer.json")
    assert run.peer_batch(CASE) == 2
    seconds = iter([3.0, 2.0, 9.0, 1.0])  # two steps of each

    class Fake:
        def __enter__(self):
            return None

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(run, "worker", lambda name, case, threads: Fake())
    monkeypatch.setattr(run, "ask", lambda connection: {"seconds": next(seconds)})
    run.tune_peer([run.Race(CASE, "trl", 1.0), run.Race(CASE, "one at a time", 1.0)], threads=1)
    assert run.peer_batch(CASE) == 2


def test_races_of_one_case_share_a_worker_of_ours(monkeypatch):
    started = []

    def race(one, turns, threads, ours):
        return one.rival, turns, ours

    monkeypatch.setattr(
        run, "worker", lambda name, case, threads: nullcontext(started.append(case.name) or len(started))
    )
    monkeypatch.setattr(run, "race", race)
    found = run.steps(run.RACES, 3, threads=1)
    assert started == list(dict.fromkeys(one.case.name for one in run.RACES))
    # TRL's steps are long: two turns at most, one where no target is.
    assert [turns for _, turns, _ in found] == [3, 3, 2, 2, 1, 3]
    assert [ours for *_, ours in found] == [1, 2, 2, 3, 3, 4]


def test_the_share_of_a_case_is_the_median_over_its_races(capsys):
    def of(case, target, *shares):
        return {
            "case": case,
            "target": target,
            "shares": list(shares),
            "share_of_matmul_rate": 0.5,
            "share_with_the_adapter": 0.55,
        }

    first, second, third = run.shares_by_case(
        [of("a", None, 0.5, 0.59), of("b", 2.0, 0.62, 0.58, 0.7), of("a", 3.0, 0.58), of("c", None, 0.1)]
    )
    assert (first["share"], first["met"], first["target"]) == (0.58, False, 0.6)
    assert first["with_the_adapter"] == pytest.approx(1.1 * 0.58)
    assert (second["share"], second["met"], second["target"]) == (0.62, True, 0.6)
    assert (third["share"], third["met"], third["target"]) == (0.1, True, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "step a: 58 % (target 60 % NOT MET) of the measured matmul rate, the median of 3 steps [50, 59]; 64 % with the "
        "adapter's own operations"
    )
