"""Early stopping: the rule and the figures by hand; when it looks, what it keeps, what it reads."""

import math
from contextlib import nullcontext
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from conftest import make_model, make_tokenizer
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, write_records
from naysay.config.load import parse_config
from naysay.config.training import EarlyStoppingSettings
from naysay.errors import ConfigError, DataError, RunDirectoryError
from naysay.records import Acceptable, Anchor, Negative, Prompt, Selection
from naysay.training.dev import Change, DevProbe, DevState, GroupChange, dev_rows, state_of
from naysay.training.early_stopping import BestWeights, EarlyStopping, Finding, find_best

BEFORE = DevState(
    loss=math.log(2),
    margin=0.0,
    kl=0.0,
    separation_prompts=8,
    separation=0.0,
    implicit_pair_accuracy=0.5,
    anchor_log_ratio_per_token=0.0,
    negative_log_ratio_per_token=0.0,
    acceptable_log_ratio_per_token=0.0,
)
RULE = EarlyStoppingSettings(enabled=True, every=2, patience=2, min_improvement=0.1, max_kl=0.1)


def checks(values, *, kl=None, criterion="separation", prompts=8):
    kl = kl or [0.0] * len(values)
    return [
        {"step": 2 * i, **asdict(replace(BEFORE, separation_prompts=prompts, kl=drift, **{criterion: value}))}
        for i, (value, drift) in enumerate(zip(values, kl, strict=True))
    ]


@pytest.mark.parametrize(
    ("separation", "best", "stops"),
    [
        ([0.0], 0, False),
        ([0.0, 0.01, 0.02, 0.03], 6, False),
        ([0.0, 0.02, 0.02], 2, False),
        ([0.0, 0.02, 0.0219, 0.01], 2, True),  # less than a tenth more is no improvement
        ([0.0, 0.02, 0.01, 0.0221, 0.0], 6, False),
        ([0.0, -0.01, -0.02], 0, True),
        ([0.0, math.nan, math.nan], 0, True),
    ],
)
def test_the_best_separation_and_when_it_no_longer_improves(separation, best, stops):
    found = find_best(checks(separation), RULE)
    assert (found.criterion, found.best_step) == ("separation", best)
    assert found.reason == (f"dev separation had not improved since step {best}" if stops else "")


def test_with_fewer_than_eight_prompts_the_loss_decides():
    values = [0.7, 0.6, 0.55, 0.5, 0.56]
    found = find_best(checks(values, criterion="loss", prompts=7), RULE)
    assert found == Finding("loss", 6, "")  # 0.55 is no tenth less than 0.6, 0.5 is
    assert find_best(checks([*values, 0.57], criterion="loss", prompts=7), RULE).reason.startswith("dev loss had not")


@pytest.mark.parametrize("drift", [0.101, math.nan])
def test_a_policy_that_moved_too_far_is_never_the_best(drift):
    found = find_best(checks([0.0, 0.02, 0.5], kl=[0.0, 0.1, drift]), RULE)
    assert found.best_step == 2
    assert found.reason == f"KL on dev anchors was {drift:.3f} nats/token, above 0.1"


def test_the_figures_by_hand():
    groups = [
        GroupChange(
            [Change(2.0, 10), Change(4.0, 10)], [Change(-6.0, 4), Change(3.0, 6)], [Change(-1.0, 5)], (0.5, 10)
        ),
        GroupChange([Change(1.0, 20)], [Change(-2.0, 10)], [], (0.1, 20)),
    ]
    found = state_of(groups, alpha=0.2, beta=0.1)
    margins = [0.3 + 1.2, 0.3 - 0.6, 0.1 + 0.4]
    assert found.margin == pytest.approx(sum(margins) / 3)
    assert found.loss == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins) / 3)
    assert found.kl == pytest.approx(0.6 / 30)
    assert found.separation_prompts == 1
    assert found.separation == pytest.approx(-0.2 - (-1.5 + 0.5) / 2)
    assert found.implicit_pair_accuracy == 0.5
    assert found.anchor_log_ratio_per_token == pytest.approx(7.0 / 40)
    assert found.negative_log_ratio_per_token == pytest.approx(-5.0 / 20)
    assert found.acceptable_log_ratio_per_token == pytest.approx(-0.2)
    without = state_of(groups[1:], alpha=0.2, beta=0.1)
    assert (without.separation, without.acceptable_log_ratio_per_token, without.separation_prompts) == (None, None, 0)


def stopping(tmp_path, separations):
    """The callback with given measurements, and the weights that it 'trains': the number of the step."""
    state = SimpleNamespace(global_step=0, max_steps=0)
    measured = iter(replace(BEFORE, separation=value) for value in separations)

    def save(folder):
        (folder / "weights").write_text(str(state.global_step))

    weights = BestWeights(tmp_path, save)
    return EarlyStopping(lambda: next(measured), weights, RULE, tmp_path / "dev.json"), state


def go(callback, state, steps, *, first=0, save_every=100, stop_at=None):
    state.global_step, state.max_steps = first, steps
    control = SimpleNamespace(should_training_stop=False, should_save=False)
    callback.on_train_begin(None, state, control)
    while state.global_step not in {steps, stop_at} and not control.should_training_stop:
        state.global_step += 1
        control.should_save = state.global_step % save_every == 0
        callback.on_step_end(None, state, control)
        if control.should_save:
            callback.on_save(None, state, control)
    return control


def kept(tmp_path):
    return {path.name: (path / "weights").read_text() for path in tmp_path.glob("best-*")}


def test_it_stops_and_the_best_weights_are_there(tmp_path):
    callback, state = stopping(tmp_path, [0.0, 0.01, 0.02, 0.02, 0.01])
    assert go(callback, state, 20, save_every=8).should_training_stop
    assert state.global_step == 8
    assert kept(tmp_path) == {"best-4": "4"}
    assert callback.best == tmp_path / "best-4"
    assert callback.result == {
        "criterion": "separation",
        "best_step": 4,
        "last_step": 8,
        "checks": 5,
        "stopped": True,
        "said": "stopped early at step 8: dev separation had not improved since step 4; the weights are those of step "
        "4, the best by dev separation",
    }
    log = read_json(tmp_path / "dev.json")
    assert [check["step"] for check in log["checks"]] == [0, 2, 4, 6, 8]
    assert (log["best_step"], log["settings"]["patience"]) == (4, 2)


def test_no_checkpoint_of_the_step_at_which_it_stops(tmp_path):
    callback, state = stopping(tmp_path, [0.0, -0.01, -0.02])
    control = go(callback, state, 20, save_every=4)
    assert (state.global_step, control.should_save) == (4, False)
    assert "the weights are those of step 0 (untrained: dev prompts gained nothing)" in callback.result["said"]


def test_the_last_step_is_looked_at_and_a_used_up_budget_is_said(tmp_path):
    callback, state = stopping(tmp_path, [0.0, 0.01, 0.02])
    assert not go(callback, state, 3).should_training_stop
    assert callback.result["said"] == "not stopped early; the weights are those of step 3, the best by dev separation"
    assert kept(tmp_path) == {"best-3": "3"}


def test_a_killed_training_goes_on_with_the_best_weights_of_its_checkpoint(tmp_path):
    values = [0.0, 0.01, 0.02, 0.03]
    callback, state = stopping(tmp_path, values)
    go(callback, state, 20, save_every=3, stop_at=7)  # the checkpoint is of step 6, its best check too
    go(*stopping(tmp_path / "b", [0.0, 0.03, 0.01, 0.04, 0.05]), 20, save_every=3, stop_at=8)
    assert kept(tmp_path / "b") == {"best-6": "6", "best-8": "8"}
    # Killed: from the checkpoint of step 6, with other measurements than the first time.
    resumed, state = stopping(tmp_path / "b", [0.01, 0.02])
    assert go(resumed, state, 20, first=6).should_training_stop
    assert state.global_step == 10
    assert kept(tmp_path / "b") == {"best-6": "6"}
    assert [check["step"] for check in read_json(tmp_path / "b" / "dev.json")["checks"]] == [0, 2, 4, 6, 8, 10]


def test_a_training_that_begins_anew_forgets_the_checks(tmp_path):
    go(*stopping(tmp_path, [0.0, 0.01, 0.02]), 20, stop_at=4)
    go(*stopping(tmp_path, [0.0, 0.005]), 20, stop_at=2)
    assert [check["separation"] for check in read_json(tmp_path / "dev.json")["checks"]] == [0.0, 0.005]
    assert kept(tmp_path) == {"best-2": "2"}


def test_weights_that_are_gone_are_an_error_at_the_start(tmp_path):
    go(*stopping(tmp_path, [0.0, 0.01]), 20, stop_at=2)
    (tmp_path / "best-2" / "weights").unlink()
    (tmp_path / "best-2").rmdir()
    with pytest.raises(RunDirectoryError, match="best-2: expected the weights of the best check on dev prompts"):
        go(*stopping(tmp_path, []), 20, first=2)


def test_a_config_without_dev_prompts_is_refused():
    with pytest.raises(ConfigError, match=r"needs dev prompts, and data\.limit\.dev is 0"):
        parse_config({"training": {"early_stopping": {"enabled": True}}, "data": {"limit": {"dev": 0}}}, "test")


def write_run(path, *, heldout="No.", acceptable=True):
    """Three dev prompts, two held-out ones, one to train on, each with an answer of every kind."""
    run = RunDirectory(path)
    splits = {"p3": "dev", "p1": "dev", "p2": "dev", "p4": "heldout", "p5": "heldout", "p6": "train"}
    write_records(run.prompts, [Prompt(n, ({"role": "user", "content": n},), "data", s) for n, s in splits.items()])
    text = {name: heldout if split == "heldout" else f"never {name}" for name, split in splits.items()}
    write_records(run.negatives, [Negative(f"n-{name}", name, text[name]) for name in splits])
    liked = [name for name in splits if name != "p1"] if acceptable else []
    write_records(run.acceptable, [Acceptable(f"a-{name}", name, f"gladly {text[name]}") for name in liked])
    anchors = [
        Anchor(
            anchor_id=f"k-{name}", prompt_id=name, index=0, round=0, token_ids=tuple(text[name].encode()),
            token_logprobs=(), text=text[name], finish="length", instruction_id="bare", seed=0, policy_digest="",
            sampler="fake",
        )
        for name in splits
    ]  # fmt: skip
    write_records(run.anchors, anchors)
    write_records(run.selection, [Selection(name, (f"k-{name}",), {}) for name in splits])
    return run


def test_which_dev_prompts_are_looked_at(tmp_path):
    run = write_run(tmp_path)
    assert [row["prompt_id"] for row in dev_rows(run, 2)] == ["p2", "p3"]
    assert [row["prompt_id"] for row in dev_rows(run, 9)] == ["p2", "p3", "p1"]
    write_records(run.selection, [])
    with pytest.raises(DataError, match=r"early_stopping needs dev prompts, and none has a usable anchor"):
        dev_rows(run, 9)


def test_other_splits_are_never_read(tmp_path):
    """Whatever held-out answers say, dev figures are the same bits; and they are the figures of the dev answers."""
    tokenizer, config = make_tokenizer(), parse_config({}, "test")
    initial, policy = make_model(seed=0), make_model(seed=1)
    found = []
    for name, heldout in (("a", "No."), ("b", "something else entirely")):
        run = write_run(tmp_path / name, heldout=heldout)
        rows = dev_rows(run, 9)
        assert {row["prompt_id"] for row in rows} == {"p1", "p2", "p3"}
        probe = DevProbe(
            run, config, tokenizer, rows, initial=lambda: nullcontext(initial), max_length=256
        )  # fmt: skip
        same = probe.measure(initial)
        assert same.margin == pytest.approx(0.0, abs=1e-5)
        assert same.kl == pytest.approx(0.0, abs=1e-6)
        found.append(probe.measure(policy))
    assert found[0] == found[1]
    assert found[0].separation_prompts == 2
    # Of one answer, from the models' own forward.
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "p1"}], add_generation_prompt=True)["input_ids"]
    answer = list(b"never p1")
    ratios = []
    for model in (policy, initial):
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([[*ids, *answer]])).logits.log_softmax(-1)[0]
        ratios.append(sum(logps[len(ids) - 1 + i, token].item() for i, token in enumerate(answer)))
    (group,) = [group for group in probe.groups if not group.acceptable]
    assert group.anchors == (tuple(answer),)
    only = DevProbe(
        run, config, tokenizer, [row for row in rows if row["prompt_id"] == "p1"],
        initial=lambda: nullcontext(initial), max_length=256,
    )  # fmt: skip
    assert only.measure(policy).anchor_log_ratio_per_token == pytest.approx((ratios[0] - ratios[1]) / 8, abs=1e-4)
