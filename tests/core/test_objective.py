"""The objective: a hand-worked value, limits, invariances, gradients, and the mistakes seen in public code."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from naysay.core.groups import GroupLogps
from naysay.core.objective import d2o_loss
from naysay.errors import DataError


def group(
    anchors, negatives, ref_anchors=None, ref_negatives=None, anchor_mask=None, negative_mask=None, dtype=torch.float64
):
    anchors, negatives = torch.as_tensor(anchors, dtype=dtype), torch.as_tensor(negatives, dtype=dtype)
    ref_anchors = torch.zeros_like(anchors) if ref_anchors is None else torch.as_tensor(ref_anchors, dtype=dtype)
    ref_negatives = (
        torch.zeros_like(negatives) if ref_negatives is None else torch.as_tensor(ref_negatives, dtype=dtype)
    )
    return GroupLogps(
        anchors=anchors,
        ref_anchors=ref_anchors,
        anchor_mask=torch.ones_like(anchors, dtype=torch.bool) if anchor_mask is None else torch.as_tensor(anchor_mask),
        negatives=negatives,
        ref_negatives=ref_negatives,
        negative_mask=torch.ones_like(negatives, dtype=torch.bool)
        if negative_mask is None
        else torch.as_tensor(negative_mask),
    )


def random_group(seed=0, B=3, K=4, N=2):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: -20 + 5 * torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return group(draw(B, K), draw(B, N), draw(B, K), draw(B, N))


def test_hand_worked_value():
    # anchors: +1 and +3 nats (mean 2), negative: +5 nats; β = 0.5, α = 0.1: m = 0.5*2 − 0.1*5 = 0.5
    terms = d2o_loss(group([[-9.0, -7.0]], [[-15.0]], [[-10.0, -10.0]], [[-20.0]]), alpha=0.1, beta=0.5)
    assert terms.margin.item() == pytest.approx(0.5, abs=1e-12)
    assert terms.loss.item() == pytest.approx(0.47407698418010663, abs=1e-12)  # log(1 + e^-0.5)
    assert terms.weight.item() == pytest.approx(0.3775406687981454, abs=1e-12)  # 1 / (1 + e^0.5)
    assert terms.anchor_log_ratio.tolist() == [[1.0, 3.0]]
    assert terms.negative_log_ratio.tolist() == [[5.0]]


@given(K=st.integers(1, 16), alpha=st.floats(0, 5), beta=st.floats(0, 5), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_log_2_at_the_references(K, alpha, beta, seed):
    sample = random_group(seed, K=K)
    at_start = group(sample.anchors, sample.negatives, sample.anchors, sample.negatives)
    terms = d2o_loss(at_start, alpha=alpha, beta=beta)
    assert torch.all((terms.loss - math.log(2)).abs() < 1e-12)
    assert torch.all(terms.weight == 0.5)


def test_k_is_divided_once():
    # Twice the anchors with equal log-ratios leave the margin as it is; a second division by K would halve it.
    one = d2o_loss(group([[3.0]], [[1.0]]), alpha=0.1, beta=0.1)
    eleven = d2o_loss(group([[3.0] * 11], [[1.0]]), alpha=0.1, beta=0.1)
    assert eleven.margin.item() == pytest.approx(one.margin.item(), abs=1e-12)
    assert one.margin.item() == pytest.approx(0.1 * 3 - 0.1 * 1, abs=1e-12)


def test_one_sigmoid_around_the_mean():
    terms = d2o_loss(group([[4.0, -4.0]], [[0.0]]), alpha=1.0, beta=1.0)
    assert terms.loss.item() == pytest.approx(math.log(2), abs=1e-12)
    mean_of_sigmoids = (np.logaddexp(0, -4.0) + np.logaddexp(0, 4.0)) / 2
    assert mean_of_sigmoids > terms.loss.item() + 1


def test_a_better_negative_costs_more_and_a_better_anchor_less():
    base = d2o_loss(group([[0.0]], [[0.0]]), alpha=0.1, beta=0.1).loss.item()
    assert d2o_loss(group([[0.0]], [[1.0]]), alpha=0.1, beta=0.1).loss.item() > base
    assert d2o_loss(group([[1.0]], [[0.0]]), alpha=0.1, beta=0.1).loss.item() < base


def test_crossed_references_cannot_be_swapped():
    r_minus, r_plus = torch.tensor([[-3.0]], dtype=torch.float64), torch.tensor([[-7.0]], dtype=torch.float64)
    right = d2o_loss(group([[-5.0]], [[-5.0]], r_minus, r_plus), alpha=0.1, beta=0.1)
    swapped = d2o_loss(group([[-5.0]], [[-5.0]], r_plus, r_minus), alpha=0.1, beta=0.1)
    assert right.margin.item() == pytest.approx(0.1 * (-2) - 0.1 * 2, abs=1e-12)
    assert swapped.margin.item() == pytest.approx(-right.margin.item(), abs=1e-12)
    assert abs(right.loss.item() - swapped.loss.item()) > 0.1


def test_gradient_is_eq_4():
    anchors = torch.tensor([[-4.0, -6.0, -5.0]], dtype=torch.float64, requires_grad=True)
    negatives = torch.tensor([[-3.0, -9.0]], dtype=torch.float64, requires_grad=True)
    sample = group(anchors, negatives, [[-5.0, -5.0, -5.0]], [[-5.0, -5.0]])
    terms = d2o_loss(sample, alpha=0.3, beta=0.7)
    terms.loss.sum().backward()
    w = torch.sigmoid(-terms.margin).detach()
    assert torch.allclose(anchors.grad, -w.sum() * 0.7 / 3 * torch.ones(1, 3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(negatives.grad, 0.3 * w, atol=1e-12)
    assert torch.allclose(terms.weight, w, atol=1e-12)
    assert not terms.weight.requires_grad


def test_gradcheck():
    sample = random_group(B=2, K=3, N=2)

    def loss(anchors, negatives):
        return d2o_loss(group(anchors, negatives, sample.ref_anchors, sample.ref_negatives), alpha=0.1, beta=0.2).loss

    inputs = (sample.anchors.clone().requires_grad_(), sample.negatives.clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@given(seed=st.integers(0, 10_000), permutation=st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_permuting_anchors_changes_nothing(seed, permutation):
    sample = random_group(seed)
    order = list(permutation)
    shuffled = group(sample.anchors[:, order], sample.negatives, sample.ref_anchors[:, order], sample.ref_negatives)
    first, second = d2o_loss(sample, alpha=0.1, beta=0.1), d2o_loss(shuffled, alpha=0.1, beta=0.1)
    assert torch.allclose(first.loss, second.loss, atol=1e-12)


def test_k_copies_of_an_anchor_are_one_anchor():
    one = d2o_loss(group([[2.5]], [[1.0]]), alpha=0.2, beta=0.3)
    copies = d2o_loss(group([[2.5] * 7], [[1.0]]), alpha=0.2, beta=0.3)
    assert copies.loss.item() == pytest.approx(one.loss.item(), abs=1e-12)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_masked_places_reach_neither_value_nor_gradient(poison):
    anchors = torch.tensor([[1.0, poison]], dtype=torch.float64, requires_grad=True)
    negatives = torch.tensor([[2.0, poison]], dtype=torch.float64, requires_grad=True)
    masked = group(anchors, negatives, [[0.0, poison]], [[0.0, poison]], [[True, False]], [[True, False]])
    terms = d2o_loss(masked, alpha=0.1, beta=0.1)
    expected = d2o_loss(group([[1.0]], [[2.0]]), alpha=0.1, beta=0.1)
    assert terms.loss[0, 0].item() == pytest.approx(expected.loss.item(), abs=1e-12)
    assert [terms.loss[0, 1].item(), terms.weight[0, 1].item(), terms.margin[0, 1].item()] == [0, 0, 0]
    terms.loss.sum().backward()
    assert [anchors.grad[0, 1].item(), negatives.grad[0, 1].item()] == [0, 0]
    assert torch.isfinite(anchors.grad).all()
    assert torch.isfinite(negatives.grad).all()


def test_a_group_without_a_valid_anchor_raises():
    with pytest.raises(DataError, match="group 1 has no valid anchor"):
        d2o_loss(group([[1.0], [1.0]], [[1.0], [1.0]], anchor_mask=[[True], [False]]), alpha=0.1, beta=0.1)


def test_each_negative_has_its_own_sigmoid():
    both = d2o_loss(group([[1.0, 2.0]], [[3.0, -4.0]]), alpha=0.5, beta=0.5)
    for n, value in enumerate([3.0, -4.0]):
        alone = d2o_loss(group([[1.0, 2.0]], [[value]]), alpha=0.5, beta=0.5)
        assert both.loss[0, n].item() == pytest.approx(alone.loss.item(), abs=1e-12)


# Identities of method.md section 7


def test_without_anchors_it_is_npo():
    sample = random_group()
    alpha = 0.3
    npo = -(2 / alpha) * F.logsigmoid(-alpha * (sample.negatives - sample.ref_negatives))
    assert torch.allclose(d2o_loss(sample, alpha=alpha, beta=0.0).loss, alpha / 2 * npo, atol=1e-12)


def test_one_anchor_and_equal_weights_are_dpo():
    sample = random_group(K=1, N=1)
    beta = 0.17
    chosen, rejected = sample.anchors - sample.ref_anchors, sample.negatives - sample.ref_negatives
    dpo = -F.logsigmoid(beta * (chosen - rejected))
    assert torch.allclose(d2o_loss(sample, alpha=beta, beta=beta).loss, dpo, atol=1e-12)


def test_altpo_is_the_mean_outside_and_never_smaller():
    sample = random_group(B=20, K=6, N=1)
    beta = 0.5
    ratio = sample.anchors - sample.ref_anchors - (sample.negatives - sample.ref_negatives)
    altpo = (-(2 / beta) * F.logsigmoid(beta * ratio)).mean(1, keepdim=True)
    d2o = d2o_loss(sample, alpha=beta, beta=beta).loss
    assert torch.all(beta / 2 * altpo >= d2o - 1e-12)
    assert (beta / 2 * altpo - d2o).max() > 0.01


def test_small_weights_are_gradient_ascent_plus_sft():
    anchors = torch.tensor([[-4.0, -6.0]], dtype=torch.float64, requires_grad=True)
    negatives = torch.tensor([[-3.0]], dtype=torch.float64, requires_grad=True)
    alpha, beta = 2e-6, 1e-6
    d2o_loss(group(anchors, negatives, [[-5.0, -5.0]], [[-5.0]]), alpha=alpha, beta=beta).loss.sum().backward()
    assert torch.allclose(negatives.grad, torch.full_like(negatives, alpha / 2), rtol=1e-5)
    assert torch.allclose(anchors.grad, torch.full_like(anchors, -beta / 2 / 2), rtol=1e-5)


def test_expected_loss_decreases_in_k_to_the_published_check():
    """method.md section 8, computed with the library's own loss over every tuple of anchors."""
    rng = np.random.default_rng(0)
    V = 6
    softmax = lambda z: np.exp(z - z.max()) / np.exp(z - z.max()).sum()  # noqa: E731
    theta = rng.normal(size=V)
    r_minus, r_plus, sampler = (softmax(rng.normal(size=V)) for _ in range(3))
    mu = softmax(rng.normal(size=V) * 2)
    logp = np.log(softmax(theta))

    def expected_loss(K):
        tuples = list(itertools.product(range(V), repeat=K))
        index = torch.tensor(tuples)
        probability = torch.tensor(np.prod(sampler[np.array(tuples)], axis=1))
        terms = d2o_loss(
            group(
                torch.tensor(logp)[index],
                torch.tensor(np.tile(logp, (len(tuples), 1))),
                torch.tensor(np.log(r_minus))[index],
                torch.tensor(np.tile(np.log(r_plus), (len(tuples), 1))),
            ),
            alpha=2.0,
            beta=3.0,
        )
        return float((probability[:, None] * terms.loss * torch.tensor(mu)).sum())

    found = [expected_loss(K) for K in range(1, 7)]
    assert found == pytest.approx([2.0606, 1.7345, 1.6226, 1.5674, 1.5341, 1.5119], abs=5e-5)
    assert all(first > second for first, second in itertools.pairwise(found))
