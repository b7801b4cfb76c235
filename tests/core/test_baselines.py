"""The baselines: hand-worked values, the start of training, the direction, what is missing."""

import inspect
import math
from dataclasses import replace

import pytest
import torch

from core.baseline_oracles import CASES, Case, Sample, random_sample
from naysay.core import baselines
from naysay.core.groups import Answers, GroupLogps
from naysay.errors import DataError

E = math.e


def tensor(values):
    return torch.tensor([values], dtype=torch.float64)


def true(*shape):
    return torch.ones(*shape, dtype=torch.bool)


HAND = Sample(
    # Log-ratios: anchors +1 and +3 nats, negative +5 nats (5 tokens), chosen +2 nats (4 tokens).
    group=GroupLogps(
        tensor([-9.0, -7.0]), tensor([-10.0, -10.0]), true(1, 2), tensor([-15.0]), tensor([-20.0]), true(1, 1)
    ),
    chosen=Answers(tensor([-6.0]), tensor([-8.0]), true(1, 1), tensor([4.0])),
    unrelated=Answers(tensor([-8.0, -12.0]), tensor([-1.0, -1.0]), true(1, 2), tensor([3.0, 3.0])),
    negative_tokens=tensor([5.0]),
    # Three tokens of probability 0.5, 0.9 and 0.2.
    negative_unlikelihood=tensor([math.log(0.5) + math.log(0.1) + math.log(0.8)]),
)

# Each: loss, margin, weight.
BY_HAND = {
    "ga": (lambda: baselines.ga_loss(HAND.group), -15.0, 15.0, 1.0),
    # −0.5 · 5 = −2.5
    "npo": (lambda: baselines.npo_loss(HAND.group, beta=0.5), 4 * math.log(1 + E**2.5), -2.5, 1 / (1 + E**-2.5)),
    # −15 nats in 5 tokens: −2 · −3 − 1 = 5
    "simnpo": (
        lambda: baselines.simnpo_loss(HAND.group, HAND.negative_tokens, beta=2.0, gamma=1.0),
        math.log(1 + E**-5),
        5.0,
        1 / (1 + E**5),
    ),
    # 0.5 · 0.1 · 0.8 = 0.04
    "unlikelihood": (
        lambda: baselines.unlikelihood_loss(HAND.group, HAND.negative_unlikelihood),
        -math.log(0.04),
        math.log(0.04),
        1.0,
    ),
    # 0.5 · −15 + 2 · (8 + 12) / 2
    "llmu": (
        lambda: baselines.llmu_loss(HAND.group, HAND.unrelated, forget=0.5, mismatch=2.0, normal=100.0),
        12.5,
        7.5,
        1.0,
    ),
    # 0.2 · (0.5 − 5) = −0.9; the weight is σ(m) σ(−m) over its largest value 1/4.
    "kto_negative": (
        lambda: baselines.kto_negative_loss(HAND.group, beta=0.2, lambda_u=1.5, z0=0.5),
        1.5 / (1 + E**-0.9),
        -0.9,
        4 / ((1 + E**0.9) * (1 + E**-0.9)),
    ),
    # −(0.2 · 5 − 0.4) = −0.6
    "bco_negative": (
        lambda: baselines.bco_negative_loss(HAND.group, beta=0.2, delta=0.4),
        math.log(1 + E**0.6),
        -0.6,
        1 / (1 + E**-0.6),
    ),
    # −0.2 · 5 − 0.3 = −1.3
    "ulma_negative": (
        lambda: baselines.ulma_negative_loss(HAND.group, beta=0.2, c=0.3),
        math.log(1 + E**1.3),
        -1.3,
        1 / (1 + E**-1.3),
    ),
    # 0.5 · (1 − 5) = −2 and 0.5 · (3 − 5) = −1
    "altpo": (
        lambda: baselines.altpo_loss(HAND.group, beta=0.5),
        (4 * math.log(1 + E**2) + 4 * math.log(1 + E)) / 2,
        -1.5,
        (1 / (1 + E**-2) + 1 / (1 + E**-1)) / 2,
    ),
    # −15 + 0.5 · −(1 + 3) / 2
    "pmpo_negative": (lambda: baselines.pmpo_negative_loss(HAND.group, beta=0.5), -16.0, 15.0, 1.0),
    # 0.5 · (1 − 5) = −2
    "dpo_self": (lambda: baselines.dpo_self_loss(HAND.group, beta=0.5), math.log(1 + E**2), -2.0, 1 / (1 + E**-2)),
    # 0.5 · (2 − 5) = −1.5
    "dpo": (
        lambda: baselines.dpo_loss(HAND.group, HAND.chosen, beta=0.5),
        math.log(1 + E**1.5),
        -1.5,
        1 / (1 + E**-1.5),
    ),
    # 2 − 5 − 1 / (2 · 0.25) = −5; beyond its own start the gradient grows, the weight stays 1
    "ipo": (lambda: baselines.ipo_loss(HAND.group, HAND.chosen, tau=0.25), 25.0, -3.0, 1.0),
    # −6 + 15 = 9 < 10, so the hinge holds: 10 − 9 + 0.5 · 6
    "slic": (lambda: baselines.slic_loss(HAND.group, HAND.chosen, delta=10.0, lambda_sft=0.5), 4.0, 9.0, 1.0),
    # 9 > 1: only 0.5 · 6 is left
    "slic, beyond the hinge": (
        lambda: baselines.slic_loss(HAND.group, HAND.chosen, delta=1.0, lambda_sft=0.5),
        3.0,
        9.0,
        0.0,
    ),
    # 2 · −6/4 − 2 · −15/5 − 0.5 = 2.5
    "simpo": (
        lambda: baselines.simpo_loss(HAND.group, HAND.chosen, HAND.negative_tokens, beta=2.0, gamma=0.5),
        math.log(1 + E**-2.5),
        2.5,
        1 / (1 + E**2.5),
    ),
    "sft_chosen": (lambda: baselines.sft_chosen_loss(HAND.group, HAND.chosen), 6.0, -6.0, 1.0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_hand_worked_value(name):
    call, loss, margin, weight = BY_HAND[name]
    terms = call()
    assert terms.loss.item() == pytest.approx(loss, abs=1e-12)
    assert terms.margin.item() == pytest.approx(margin, abs=1e-12)
    assert terms.weight.item() == pytest.approx(weight, abs=1e-12)
    assert terms.anchor_log_ratio.tolist() == [[1.0, 3.0]]
    assert terms.negative_log_ratio.tolist() == [[5.0]]


def test_every_baseline_is_tested():
    functions = {name for name, _ in inspect.getmembers(baselines, inspect.isfunction) if name.endswith("_loss")}
    assert functions == {f"{case.name}_loss" for case in CASES}
    assert functions == {f"{name}_loss" for name in BY_HAND if "," not in name}


def at_the_references(seed=0):
    sample = random_sample(seed)
    group, chosen = sample.group, sample.chosen
    return Sample(
        group=GroupLogps(
            anchors=group.ref_anchors.requires_grad_(),
            ref_anchors=group.ref_anchors.detach(),
            anchor_mask=group.anchor_mask,
            negatives=group.ref_negatives.requires_grad_(),
            ref_negatives=group.ref_negatives.detach(),
            negative_mask=group.negative_mask,
        ),
        chosen=Answers(chosen.ref_logps.requires_grad_(), chosen.ref_logps.detach(), chosen.mask, chosen.tokens),
        unrelated=sample.unrelated,
        negative_tokens=sample.negative_tokens,
        negative_unlikelihood=sample.negative_unlikelihood,
    )


@pytest.mark.parametrize(
    ("call", "loss", "slope"),
    [
        (lambda s: baselines.npo_loss(s.group, beta=0.3), 2 / 0.3 * math.log(2), 1.0),
        (lambda s: baselines.altpo_loss(s.group, beta=0.3), 2 / 0.3 * math.log(2), 1.0),
        (lambda s: baselines.dpo_self_loss(s.group, beta=0.3), math.log(2), 0.15),
        (lambda s: baselines.dpo_loss(s.group, s.chosen, beta=0.3), math.log(2), 0.15),
        (lambda s: baselines.ipo_loss(s.group, s.chosen, tau=0.2), 1 / (2 * 0.2) ** 2, 5.0),
        (lambda s: baselines.kto_negative_loss(s.group, beta=0.3, lambda_u=1.4, z0=0.0), 0.7, 1.4 * 0.3 / 4),
        (lambda s: baselines.bco_negative_loss(s.group, beta=0.3, delta=0.0), math.log(2), 0.15),
        (lambda s: baselines.ulma_negative_loss(s.group, beta=0.3, c=0.0), math.log(2), 0.15),
    ],
    ids=["npo", "altpo", "dpo_self", "dpo", "ipo", "kto_negative", "bco_negative", "ulma_negative"],
)
def test_at_the_references_loss_and_slope_are_known_whatever_the_data(call, loss, slope):
    sample = at_the_references()
    terms = call(sample)
    pairs = sample.group.negative_mask
    assert torch.allclose(terms.loss[pairs], torch.tensor(loss, dtype=torch.float64), atol=1e-12)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), sample.group.negatives)
    assert torch.allclose(gradient[pairs], torch.tensor(slope, dtype=torch.float64), atol=1e-12)


def test_at_the_references_a_kl_is_0():
    sample = at_the_references()
    logp = torch.where(sample.group.negative_mask, sample.group.negatives, 0.0)
    assert torch.allclose(baselines.pmpo_negative_loss(sample.group, beta=7.0).loss, logp, atol=1e-12)
    normal = replace(sample.group, negative_mask=torch.zeros_like(sample.group.negative_mask))
    terms = baselines.llmu_loss(normal, sample.unrelated, forget=1.0, mismatch=1.0, normal=7.0)
    assert terms.loss.tolist() == torch.zeros_like(terms.loss).tolist()


def policy_sample(logits):
    """One prompt, one-token answers under a softmax over 6 tokens: 0 and 1 are anchors, 2 the negative, 3 chosen,
    4 unrelated. The reference is where the logits started."""
    logp, start = logits.log_softmax(0)[None], logits.detach().log_softmax(0)[None]
    one = torch.ones(1, 1, dtype=torch.float64)
    return Sample(
        group=GroupLogps(logp[:, :2], start[:, :2], true(1, 2), logp[:, 2:3], start[:, 2:3], true(1, 1)),
        chosen=Answers(logp[:, 3:4], start[:, 3:4], true(1, 1), one),
        unrelated=Answers(logp[:, 4:5], start[:, 4:5], true(1, 1), one),
        negative_tokens=one,
        negative_unlikelihood=torch.log1p(-logp[:, 2:3].exp()),
    )


READS_ANCHORS = {"altpo", "pmpo_negative"}
READS_CHOSEN = {"dpo", "ipo", "slic", "simpo", "sft_chosen"}
# Without cross-entropy on another answer, which by itself may lift the negative too: one softmax is shared.
WITHOUT_CROSS_ENTROPY = {
    "llmu": {"forget": 0.5, "mismatch": 0.0, "normal": 0.0},
    "slic": {"delta": 9.0, "lambda_sft": 0.0},
}


@pytest.mark.parametrize("case", [case for case in CASES if case.name != "sft_chosen"], ids=lambda case: case.name)
@pytest.mark.parametrize("seed", range(3))
def test_a_step_down_the_loss_lowers_the_negative(case: Case, seed):
    change = change_in_one_step(replace(case, args=WITHOUT_CROSS_ENTROPY.get(case.name, case.args)), seed)
    assert change[2] < -1e-5
    if case.name in READS_ANCHORS:
        assert change[:2].min() > change[5] + 1e-5


@pytest.mark.parametrize(
    ("name", "answer"),
    [*((name, 3) for name in sorted(READS_CHOSEN)), ("dpo_self", 0), ("llmu", 4)],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_step_down_the_loss_raises_its_positive_most(name, answer, seed):
    (case,) = (case for case in CASES if case.name == name)
    if name == "llmu":
        case = replace(case, args={"forget": 0.0, "mismatch": 2.0, "normal": 0.0})
    change = change_in_one_step(case, seed)
    assert change[answer] > 1e-5
    assert change[answer] == change.max()


def change_in_one_step(case, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(case.terms(policy_sample(logits)).loss.sum(), logits)
    return (logits.detach() - 0.05 * gradient).log_softmax(0) - logits.detach().log_softmax(0)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: baselines.altpo_loss(s.group, beta=0.1),
        lambda s: baselines.pmpo_negative_loss(s.group, beta=0.1),
        lambda s: baselines.dpo_self_loss(s.group, beta=0.1),
    ],
    ids=["altpo", "pmpo_negative", "dpo_self"],
)
def test_an_objective_on_anchors_refuses_a_group_without_one(call):
    sample = random_sample(B=3)
    without = sample.group.anchor_mask.clone()
    without[1] = False
    group = replace(sample.group, anchor_mask=without)
    with pytest.raises(DataError, match="group 1 has no valid anchor"):
        call(replace(sample, group=group))


@pytest.mark.parametrize("case", [case for case in CASES if case.name in READS_CHOSEN], ids=lambda case: case.name)
def test_an_objective_on_chosen_answers_refuses_a_group_without_one(case: Case):
    sample = random_sample(B=3)
    without = sample.chosen.mask.clone()
    without[2] = False
    chosen = replace(sample.chosen, mask=without)
    with pytest.raises(DataError, match="group 2 has no chosen answer"):
        case.terms(replace(sample, chosen=chosen))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_padding_group_needs_nothing_and_costs_nothing(case: Case):
    """A group in which everything is masked, as it pads a batch."""
    sample = random_sample(B=2)
    group, chosen, unrelated = sample.group, sample.chosen, sample.unrelated
    for mask in (group.anchor_mask, group.negative_mask, chosen.mask, unrelated.mask):
        mask[1] = False
    terms = case.terms(sample)
    assert terms.loss[1].abs().max().item() == 0
    assert torch.isfinite(terms.loss).all()


def test_what_reads_no_anchors_or_chosen_answers_does_without():
    sample = random_sample(B=2)
    sample.group.anchor_mask[:] = False
    sample.chosen.mask[:] = False
    free = {"ga", "npo", "simnpo", "unlikelihood", "llmu", "kto_negative", "bco_negative", "ulma_negative"}
    for case in CASES:
        if case.name in free:
            expected = case.terms(random_sample(B=2)).loss
            assert torch.equal(case.terms(sample).loss, expected), case.name
