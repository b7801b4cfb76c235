"""Pairs whose weight is below `skip_weight_below` get no gradient, and passes without a gradient no backward."""

import pytest
import torch

from conftest import make_model, make_tokenizer
from naysay.core.groups import D2OTerms
from naysay.errors import ConfigError
from naysay.training.config import D2OConfig
from naysay.training.step import micro_loss
from naysay.training.trainer import D2OTrainer

ALPHA = 10.0
DONE = 60.0
"""Nats by which a reference is moved to finish its pair: its weight is then σ(−600) = 0."""
SPLITS = pytest.mark.parametrize("budget", [100_000, 60, 20], ids=["joint", "micro-batches", "two-pass"])


class Kept(D2OTrainer):
    """Counts the forwards that have a graph, and keeps the gradients of the step."""

    forwards = 0

    def _logps(self, model, groups):
        self.forwards += torch.is_grad_enabled()
        return super()._logps(model, groups)

    def _clip_grad_norm(self, model):
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return torch.tensor(1.0)

    @property
    def logged(self):
        return next(row for row in self.state.log_history if "margin" in row)


def step(path, rows, *, moved=None, **changes):
    """One optimizer step that changes nothing; `moved` adds nats to the reference of a (group, negative)."""
    trainer = Kept(
        model=make_model(dtype=torch.float64),
        args=D2OConfig(
            output_dir=str(path),
            alpha=ALPHA,
            per_device_train_batch_size=6,
            max_steps=1,
            learning_rate=1e-12,
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            **changes,
        ),
        train_dataset=rows,
        processing_class=make_tokenizer(),
    )
    for (index, place), nats in (moved or {}).items():
        group = trainer.train_dataset.groups[index]
        references = tuple(logp + nats * (i == place) for i, logp in enumerate(group.ref_negatives))
        object.__setattr__(group, "ref_negatives", references)
    trainer.train()
    return trainer


def norm(gradients):
    return float(torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt())


def distance(found, expected, factor=1.0):
    assert found.gradients.keys() == expected.gradients.keys()
    return norm({name: found.gradients[name] - factor * expected.gradients[name] for name in expected.gradients})


@SPLITS
def test_at_0_every_pair_has_its_gradient(tmp_path, rows, budget):
    exact = step(tmp_path / "a", rows, skip_weight_below=0.0)
    found = step(tmp_path / "b", rows, tokens_per_microbatch=budget)
    assert norm(exact.gradients) > 1
    assert distance(found, exact) <= 1e-5 * norm(exact.gradients)
    assert found.logged["finished"] == found.logged["backward_skipped"] == 0


@SPLITS
def test_a_finished_pair_adds_nothing_and_counts_in_the_denominator(tmp_path, rows, budget):
    """Groups 0 and 4 are finished, and one of two negatives of group 1: 3 pairs of 7."""
    found = step(tmp_path / "a", rows, moved={(0, 0): DONE, (4, 0): DONE, (1, 1): DONE}, tokens_per_microbatch=budget)
    others = [rows[1] | {"rejected": rows[1]["rejected"][0]}, rows[2], rows[3], rows[5]]
    expected = step(tmp_path / "b", others)
    assert distance(found, expected, 4 / 7) <= 1e-5 * norm(expected.gradients)
    assert found.logged["finished"] == pytest.approx(3 / 7)
    assert found.logged["weight"] == pytest.approx(0.5 * 4 / 7)


def test_parts_of_finished_groups_are_not_computed_again(tmp_path, rows):
    """With one answer in each part, pass 2 of groups 0 and 4 is left out, forward and backward."""
    whole = step(tmp_path / "a", rows, tokens_per_microbatch=16)
    found = step(tmp_path / "b", rows, moved={(0, 0): DONE, (4, 0): DONE}, tokens_per_microbatch=16)
    left_out = whole.forwards - found.forwards
    parts = sum(len(rows[i]["anchors"]) + 1 for i in (0, 4))
    assert left_out in {parts, parts - 1}  # the last part of a step is always run, and may be one of these
    assert found.logged["backward_skipped"] == pytest.approx(left_out / whole.forwards)


@SPLITS
def test_a_step_of_finished_pairs_leaves_zeros_for_the_optimizer(tmp_path, rows, budget):
    """Zeros and not nothing, however it is split: AdamW then goes on by its momentum in each case."""
    pairs = [(i, place) for i, row in enumerate(rows) for place in range(2 if i == 1 else 1)]
    found = step(tmp_path, rows, moved=dict.fromkeys(pairs, DONE), tokens_per_microbatch=budget)
    assert len(found.gradients) == len(list(found.model.parameters()))
    assert norm(found.gradients) == 0
    assert found.logged["finished"] == 1
    assert (found.logged["backward_skipped"] > 0.5) == (budget < 100_000)


def test_the_gradient_changes_by_no_more_than_the_documented_bound(tmp_path, rows):
    """t · F / P · max ‖g_p‖, with ‖g_p‖ from steps on one pair alone, whose gradient is g_p / 2."""
    pairs = [rows[0], rows[3], rows[4], rows[5]]
    norms = [2 * norm(step(tmp_path / str(i), [row]).gradients) for i, row in enumerate(pairs)]
    moved = {(0, 0): 4.1 / ALPHA, (2, 0): 5.0 / ALPHA}  # weights 0.0163 and 0.0067
    exact = step(tmp_path / "exact", pairs, moved=moved, skip_weight_below=0.0)
    found = step(tmp_path / "found", pairs, moved=moved, skip_weight_below=0.02)
    assert found.logged["finished"] == 0.5
    assert 0.005 * min(norms) / 4 < distance(found, exact) <= 0.02 * 2 / 4 * max(norms)


def test_a_weight_that_is_not_a_number_is_not_finished():
    nan = torch.tensor([[float("nan"), 0.0]], requires_grad=True)
    terms = D2OTerms(nan * 1.0, nan.detach(), nan.detach(), torch.zeros(1, 1), torch.zeros(1, 2))
    loss = micro_loss(terms, skip_weight_below=1e-4)
    assert loss.has_gradient
    assert loss.total.isnan()


@pytest.mark.parametrize("value", [-0.1, 0.5])
def test_a_threshold_that_would_finish_new_pairs_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match=r"skip_weight_below is .* less than 0\.5, the weight of a new pair"):
        D2OConfig(output_dir=str(tmp_path), skip_weight_below=value)


def test_other_objectives_do_not_have_it(tmp_path):
    args = D2OConfig(output_dir=str(tmp_path), objective="npo")
    assert args.make_objective().skip_weight_below == 0
    with pytest.raises(ConfigError, match="skip_weight_below is not read by objective 'npo'; leave it out"):
        D2OConfig(output_dir=str(tmp_path), objective="npo", skip_weight_below=0.01)
