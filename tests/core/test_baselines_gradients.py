"""The baselines against the oracles in plain floats: values, gradients, masks, invariances, on ragged random groups."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.baseline_oracles import CASES, Case, Sample, random_sample
from naysay.core.baselines import llmu_loss
from naysay.core.groups import Answers, GroupLogps

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def pairs_of(sample):
    return [tuple(place) for place in sample.group.negative_mask.nonzero().tolist()]


@every_case
@given(seed=st.integers(0, 10_000), K=st.integers(1, 5), N=st.integers(1, 3), C=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_the_loss_is_the_oracles(case: Case, seed, K, N, C):
    sample = random_sample(seed, K=K, N=N, C=C)
    terms = case.terms(sample)
    for b, n in pairs_of(sample):
        assert terms.loss[b, n].item() == pytest.approx(case.expected(sample.pair(b, n)).loss, rel=1e-12, abs=1e-12)


@every_case
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_gradient_is_the_closed_form(case: Case, seed):
    """d loss / d log-prob of everything that a pair may depend on; 0 in other groups and masked places."""
    sample = random_sample(seed)
    terms = case.terms(sample)
    masks = {
        "anchors": sample.group.anchor_mask,
        "negative": sample.group.negative_mask,
        "chosen": sample.chosen.mask,
        "unrelated": sample.unrelated.mask,
        "unlikelihood": sample.group.negative_mask,
    }
    for b, n in pairs_of(sample):
        found = case.expected(sample.pair(b, n))
        gradients = torch.autograd.grad(
            terms.loss[b, n],
            list(sample.leaves.values()),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for (name, leaf), gradient in zip(sample.leaves.items(), gradients, strict=True):
            expected = torch.zeros_like(leaf)
            derivative = getattr(found, name)
            if name in ("negative", "unlikelihood"):
                expected[b, n] = derivative
            elif derivative:
                expected[b, masks[name][b]] = torch.tensor(derivative, dtype=torch.float64)
            assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-12), name


@every_case
def test_gradcheck(case: Case):
    sample = random_sample(3, B=2, K=2, N=2, C=2, ragged=False)
    group, chosen, unrelated = sample.group, sample.chosen, sample.unrelated

    def loss(anchors, negatives, chosen_logps, unrelated_logps, sums):
        return case.terms(
            Sample(
                group=replace(group, anchors=anchors, negatives=negatives),
                chosen=replace(chosen, logps=chosen_logps),
                unrelated=replace(unrelated, logps=unrelated_logps),
                negative_tokens=sample.negative_tokens,
                negative_unlikelihood=sums,
            )
        ).loss

    assert torch.autograd.gradcheck(loss, tuple(sample.leaves.values()))


@every_case
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_weight_is_the_share_of_the_largest_gradient(case: Case, seed):
    """|d loss / d negative| of a pair (or, for SFT, by the chosen answer) over the largest that the pair can have."""
    if case.name in ("ga", "unlikelihood", "llmu", "pmpo_negative", "sft_chosen"):
        largest = None  # never saturates
    else:
        largest = {
            "npo": lambda pair, args: 2.0,
            "simnpo": lambda pair, args: 2 / pair.tokens,
            "kto_negative": lambda pair, args: args["lambda_u"] * args["beta"] / 4,
            "bco_negative": lambda pair, args: args["beta"],
            "ulma_negative": lambda pair, args: args["beta"],
            "altpo": lambda pair, args: 2.0,
            "dpo_self": lambda pair, args: args["beta"],
            "dpo": lambda pair, args: args["beta"],
            "ipo": None,
            "slic": lambda pair, args: 1.0,
            "simpo": lambda pair, args: args["beta"] / pair.tokens,
        }[case.name]
    sample = random_sample(seed)
    terms = case.terms(sample)
    assert not terms.weight.requires_grad
    for b, n in pairs_of(sample):
        pair, weight = sample.pair(b, n), terms.weight[b, n].item()
        if case.name == "ipo":  # a parabola: 1 from the start of training (gap 0) outwards, 0 at its minimum
            half = 1 / (2 * case.args["tau"])
            expected = sum(min(1.0, abs(r - pair.r - half) / half) for r in pair.r_chosen) / len(pair.r_chosen)
        else:
            expected = 1.0 if largest is None else abs(case.expected(pair).negative) / largest(pair, case.args)
        assert weight == pytest.approx(expected, rel=1e-9, abs=1e-12)


@every_case
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_margin_grows_as_the_loss_falls(case: Case, seed):
    sample = random_sample(seed, C=1, K=1)
    terms = case.terms(sample)
    for b, n in pairs_of(sample):
        negatives, sums = sample.group.negatives.detach().clone(), sample.negative_unlikelihood.detach().clone()
        negatives[b, n] -= 0.01
        sums[b, n] += 0.01
        lower = Sample(
            group=replace(sample.group, negatives=negatives),
            chosen=sample.chosen,
            unrelated=sample.unrelated,
            negative_tokens=sample.negative_tokens,
            negative_unlikelihood=sums,
        )
        after = case.terms(lower)
        if case.name == "sft_chosen":
            assert after.margin[b, n] == terms.margin[b, n]
        else:
            assert after.margin[b, n] > terms.margin[b, n]
        if case.name not in ("sft_chosen", "slic", "ipo"):
            assert after.loss[b, n] < terms.loss[b, n]


def with_poison(sample, poison):
    """The sample with `poison` in every masked place, log-probs as leaves."""

    def fill(values, mask):
        filled = torch.where(mask, values.detach(), torch.tensor(poison, dtype=torch.float64))
        return filled.requires_grad_() if values.requires_grad else filled

    group, negative = sample.group, sample.group.negative_mask
    return Sample(
        group=GroupLogps(
            anchors=fill(group.anchors, group.anchor_mask),
            ref_anchors=fill(group.ref_anchors, group.anchor_mask),
            anchor_mask=group.anchor_mask,
            negatives=fill(group.negatives, negative),
            ref_negatives=fill(group.ref_negatives, negative),
            negative_mask=negative,
        ),
        chosen=filled_answers(sample.chosen, fill),
        unrelated=filled_answers(sample.unrelated, fill),
        negative_tokens=fill(sample.negative_tokens, negative),
        negative_unlikelihood=fill(sample.negative_unlikelihood, negative),
    )


def filled_answers(answers, fill):
    mask = answers.mask
    return Answers(fill(answers.logps, mask), fill(answers.ref_logps, mask), mask, fill(answers.tokens, mask))


@every_case
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30, 0.0])
def test_masked_places_reach_neither_value_nor_gradient(case: Case, poison):
    sample = with_poison(random_sample(0), poison)
    masks = [sample.group.anchor_mask, sample.group.negative_mask, sample.chosen.mask, sample.unrelated.mask]
    assert all(not mask.all() for mask in masks)
    terms = case.terms(sample)
    clean = case.terms(with_poison(sample, 1.0))
    invalid = ~sample.group.negative_mask
    for field in ("loss", "margin", "weight", "negative_log_ratio", "anchor_log_ratio"):
        assert torch.equal(getattr(terms, field), getattr(clean, field)), field
        mask = sample.group.anchor_mask if field == "anchor_log_ratio" else ~invalid
        assert getattr(terms, field)[~mask].abs().sum().item() == 0, field
    terms.loss.sum().backward()
    for (name, leaf), mask in zip(sample.leaves.items(), [*masks, sample.group.negative_mask], strict=True):
        if leaf.grad is not None:
            assert torch.isfinite(leaf.grad).all(), name
            assert leaf.grad[~mask].abs().sum().item() == 0, name


@every_case
def test_masked_answers_are_as_if_they_were_not_there(case: Case):
    sample = random_sample(7)
    loss = case.terms(sample).loss
    for b in range(len(loss)):
        group, negative, anchor = sample.group, sample.group.negative_mask[b], sample.group.anchor_mask[b]
        alone = Sample(
            group=GroupLogps(
                anchors=group.anchors[b][None, anchor],
                ref_anchors=group.ref_anchors[b][None, anchor],
                anchor_mask=anchor[None, anchor],
                negatives=group.negatives[b][None, negative],
                ref_negatives=group.ref_negatives[b][None, negative],
                negative_mask=negative[None, negative],
            ),
            chosen=answers_alone(sample.chosen, b),
            unrelated=answers_alone(sample.unrelated, b),
            negative_tokens=sample.negative_tokens[b][None, negative],
            negative_unlikelihood=sample.negative_unlikelihood[b][None, negative],
        )
        assert torch.allclose(case.terms(alone).loss[0], loss[b][negative], rtol=1e-12, atol=1e-12)


def answers_alone(answers, b):
    mask = answers.mask[b]
    return Answers(
        *(value[b][None, mask] for value in (answers.logps, answers.ref_logps, answers.mask, answers.tokens))
    )


@every_case
@given(seed=st.integers(0, 10_000), anchors=st.permutations(range(4)), chosen=st.permutations(range(3)))
@settings(max_examples=10, deadline=None)
def test_the_order_of_answers_changes_nothing(case: Case, seed, anchors, chosen):
    """But for DPO-self, which reads the first anchor."""
    if case.name == "dpo_self":
        anchors = [0, 1, 2, 3]
    sample = random_sample(seed, K=4, C=3, ragged=case.name != "dpo_self")
    group = sample.group
    shuffled = Sample(
        group=GroupLogps(
            anchors=group.anchors[:, anchors],
            ref_anchors=group.ref_anchors[:, anchors],
            anchor_mask=group.anchor_mask[:, anchors],
            negatives=group.negatives,
            ref_negatives=group.ref_negatives,
            negative_mask=group.negative_mask,
        ),
        chosen=answers_in_order(sample.chosen, chosen),
        unrelated=answers_in_order(sample.unrelated, chosen),
        negative_tokens=sample.negative_tokens,
        negative_unlikelihood=sample.negative_unlikelihood,
    )
    assert torch.allclose(case.terms(shuffled).loss, case.terms(sample).loss, rtol=1e-12, atol=1e-12)


def answers_in_order(answers, order):
    values = (answers.logps, answers.ref_logps, answers.mask, answers.tokens)
    return Answers(*(value[:, order] for value in values))


@every_case
def test_the_loss_has_the_precision_of_the_policy(case: Case):
    """Cached references are float64; they must not turn a float32 step into a float64 one."""
    sample = random_sample(0)
    single = Sample(
        group=replace(sample.group, anchors=sample.group.anchors.float(), negatives=sample.group.negatives.float()),
        chosen=replace(sample.chosen, logps=sample.chosen.logps.float(), tokens=sample.chosen.tokens.float()),
        unrelated=replace(sample.unrelated, logps=sample.unrelated.logps.float()),
        negative_tokens=sample.negative_tokens.float(),
        negative_unlikelihood=sample.negative_unlikelihood.float(),
    )
    terms = case.terms(single)
    assert {value.dtype for value in vars(terms).values()} == {torch.float32}
    assert torch.allclose(terms.loss.double(), case.terms(sample).loss, rtol=1e-5, atol=1e-5)


def test_llmu_on_normal_data_is_the_kl_on_its_anchors():
    """A group without a negative is normal data; its term stands in the first column, for its anchors alone."""
    anchors = torch.tensor([[-9.0, -7.0, math.nan]], dtype=torch.float64, requires_grad=True)
    negatives = torch.tensor([[math.nan, math.nan]], dtype=torch.float64, requires_grad=True)
    ref_anchors = torch.tensor([[-10.0, -10.0, math.nan]], dtype=torch.float64)
    group = GroupLogps(
        anchors, ref_anchors, torch.tensor([[True, True, False]]), negatives, negatives.detach(), ~negatives.isnan()
    )
    unrelated = torch.full((1, 1), math.nan, dtype=torch.float64)
    answers = Answers(unrelated, unrelated, torch.tensor([[False]]), unrelated)
    terms = llmu_loss(group, answers, forget=0.5, mismatch=2.0, normal=3.0)
    # 3 · −(1 + 3) / 2
    assert terms.loss.tolist() == [[-6.0, 0.0]]
    assert terms.weight.tolist() == [[0.0, 0.0]]
    slopes = torch.autograd.grad(terms.loss.sum(), [anchors, negatives], allow_unused=True, materialize_grads=True)
    assert [slope.tolist() for slope in slopes] == [[[-1.5, -1.5, 0.0]], [[0.0, 0.0]]]


def test_llmu_keeps_normal_data_and_pairs_apart():
    """In one batch: anchors of a group with negatives are not read, and normal data reads nothing else."""
    sample = random_sample(11, B=3, ragged=False)
    sample.group.negative_mask[1] = False
    sample.unrelated.mask[1] = False
    loss = llmu_loss(sample.group, sample.unrelated, forget=0.5, mismatch=2.0, normal=3.0).loss
    assert loss[1, 1:].abs().sum().item() == 0
    ratio = (sample.group.anchors - sample.group.ref_anchors)[1]
    assert loss[1, 0].item() == pytest.approx(-3.0 * ratio.mean().item(), abs=1e-12)
    anchors, negatives, unrelated = torch.autograd.grad(
        loss.sum(), [sample.group.anchors, sample.group.negatives, sample.unrelated.logps]
    )
    assert anchors[[0, 2]].abs().sum().item() == 0
    assert torch.allclose(anchors[1], torch.tensor(-3.0 / 4, dtype=torch.float64))
    assert negatives[1].abs().sum().item() == 0
    assert unrelated[1].abs().sum().item() == 0
    # Every pair carries the cross-entropy of its prompt's unrelated answers: 3 negatives, 2 answers.
    assert torch.allclose(unrelated[[0, 2]], torch.tensor(-2.0 * 3 / 2, dtype=torch.float64))
