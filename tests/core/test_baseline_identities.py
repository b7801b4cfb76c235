"""What ties D²O and the baselines together: identities, limits and inequalities between the library's own functions."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from core.baseline_oracles import random_sample
from naysay.core import baselines
from naysay.core.groups import Answers, GroupLogps
from naysay.core.objective import d2o_loss

weights = st.floats(0.01, 3.0)
seeds = st.integers(0, 100_000)


def assert_close(first, second, *, tolerance=1e-11):
    assert first.shape == second.shape
    assert torch.allclose(first, second, rtol=tolerance, atol=tolerance), (first, second)


def gradients(loss, group):
    """d Σ loss / d (anchors, negatives)."""
    leaves = [group.anchors, group.negatives]
    return torch.autograd.grad(loss.sum(), leaves, allow_unused=True, materialize_grads=True)


def fixed(negatives, ref_negatives):
    """A group with one anchor that nothing is asked of."""
    anchor = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    return GroupLogps(
        anchor, anchor.detach(), torch.tensor([[True]]), negatives, ref_negatives, torch.ones_like(negatives).bool()
    )


def answers(logps, ref_logps, mask=None):
    """Chosen answers of one token each."""
    mask = torch.ones_like(logps, dtype=torch.bool) if mask is None else mask
    return Answers(logps, ref_logps, mask, torch.ones_like(logps.detach()))


# D²O at its edges


@given(seed=seeds, alpha=weights)
@settings(max_examples=30, deadline=None)
def test_d2o_without_anchors_is_npo(seed, alpha):
    group = random_sample(seed).group
    d2o, npo = d2o_loss(group, alpha=alpha, beta=0.0), baselines.npo_loss(group, beta=alpha)
    assert_close(d2o.loss, alpha / 2 * npo.loss)
    assert_close(d2o.margin, npo.margin)
    assert_close(d2o.weight, npo.weight)
    for first, second in zip(gradients(d2o.loss, group), gradients(alpha / 2 * npo.loss, group), strict=True):
        assert_close(first, second)


@given(seed=seeds, beta=weights)
@settings(max_examples=30, deadline=None)
def test_d2o_with_one_anchor_and_equal_weights_is_dpo_with_it_as_the_chosen_answer(seed, beta):
    group = random_sample(seed, K=1).group
    d2o = d2o_loss(group, alpha=beta, beta=beta)
    dpo = baselines.dpo_loss(group, answers(group.anchors, group.ref_anchors), beta=beta)
    assert_close(d2o.loss, dpo.loss)
    assert_close(d2o.weight, dpo.weight)
    for first, second in zip(gradients(d2o.loss, group), gradients(dpo.loss, group), strict=True):
        assert_close(first, second)
    assert_close(d2o.loss, baselines.dpo_self_loss(group, beta=beta).loss)


def test_dpo_with_several_anchors_as_chosen_answers_is_not_d2o():
    """So that the identity above says something about K = 1."""
    group = random_sample(0, ragged=False).group
    dpo = baselines.dpo_loss(group, answers(group.anchors, group.ref_anchors), beta=0.7)
    assert (dpo.loss - d2o_loss(group, alpha=0.7, beta=0.7).loss).min() > 0.005


@given(seed=seeds, beta=weights, K=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_altpo_is_never_below_d2o(seed, beta, K):
    """(β/2)·AltPO ≥ D²O: a mean of convex values against the value at the mean; equal where the anchors agree."""
    group = random_sample(seed, K=K).group
    altpo = beta / 2 * baselines.altpo_loss(group, beta=beta).loss
    d2o = d2o_loss(group, alpha=beta, beta=beta).loss
    assert (altpo - d2o).min() >= -1e-12
    one = (group.anchor_mask.sum(1) == 1)[:, None].expand_as(d2o)
    assert_close(altpo[one], d2o[one])


def test_altpo_of_equal_anchors_is_d2o():
    group = random_sample(4, K=1, ragged=False).group
    copies = replace(group, **{n: getattr(group, n).repeat(1, 5) for n in ("anchors", "ref_anchors", "anchor_mask")})
    assert_close(0.35 * baselines.altpo_loss(copies, beta=0.7).loss, d2o_loss(group, alpha=0.7, beta=0.7).loss)


def test_the_gap_between_altpo_and_d2o_is_half_the_variance_of_the_margin():
    """method.md section 4: ½ σ(m) σ(−m) β² Var[r(y_i)], to leading order in β."""
    group, beta = random_sample(2, ragged=False).group, 1e-3
    d2o = d2o_loss(group, alpha=beta, beta=beta)
    gap = beta / 2 * baselines.altpo_loss(group, beta=beta).loss - d2o.loss
    variance = (group.anchors - group.ref_anchors).var(1, correction=0, keepdim=True)
    m = d2o.margin
    assert torch.allclose(gap, 0.5 * torch.sigmoid(m) * torch.sigmoid(-m) * beta**2 * variance, rtol=0.02, atol=0)


def test_altpo_of_one_anchor_is_dpo_up_to_scale():
    group = random_sample(9, K=1).group
    assert_close(0.3 / 2 * baselines.altpo_loss(group, beta=0.3).loss, baselines.dpo_self_loss(group, beta=0.3).loss)


@given(seed=seeds, alpha=st.floats(0.1, 2), beta=st.floats(0.1, 2))
@settings(max_examples=30, deadline=None)
def test_small_weights_are_gradient_ascent_plus_sft_on_anchors(seed, alpha, beta):
    """α, β → 0: ½ (α·GA + β·SFT) + a constant, in value and in gradient."""
    sample, scale = random_sample(seed), 1e-6
    group = sample.group
    d2o = (
        d2o_loss(group, alpha=scale * alpha, beta=scale * beta).loss - math.log(2) * group.negative_mask.double()
    ) / scale
    ga = baselines.ga_loss(group).loss
    sft = baselines.sft_chosen_loss(group, answers(group.anchors, group.ref_anchors, group.anchor_mask)).loss
    limit = (alpha * ga + beta * sft) / 2
    # The constant is what the references give.
    at_references = replace(group, anchors=group.ref_anchors, negatives=group.ref_negatives)
    constant_ga = baselines.ga_loss(at_references).loss
    constant_sft = baselines.sft_chosen_loss(
        at_references, answers(group.ref_anchors, group.ref_anchors, group.anchor_mask)
    ).loss
    assert_close(d2o, limit - (alpha * constant_ga + beta * constant_sft) / 2, tolerance=1e-4)
    for first, second in zip(gradients(d2o, group), gradients(limit, group), strict=True):
        assert_close(first, second, tolerance=1e-4)


def test_small_weights_are_pmpo():
    """The same limit once more: PMPO's gradient is twice D²O's at α → 0, β = α·β_PMPO."""
    group, alpha, beta = random_sample(6).group, 1e-7, 0.8
    d2o = gradients(d2o_loss(group, alpha=alpha, beta=alpha * beta).loss * 2 / alpha, group)
    pmpo = gradients(baselines.pmpo_negative_loss(group, beta=beta).loss, group)
    for first, second in zip(d2o, pmpo, strict=True):
        assert_close(first, second, tolerance=1e-5)


# Negatives only


def test_npo_tends_to_gradient_ascent():
    """β → 0: NPO − (2/β) log 2 → r(y_l), so its gradient tends to GA's."""
    group, beta = random_sample(3).group, 1e-7
    npo = baselines.npo_loss(group, beta=beta).loss
    _, slope = gradients(npo, group)
    _, ascent = gradients(baselines.ga_loss(group).loss, group)
    assert_close(slope, ascent, tolerance=1e-6)
    ratio = baselines.npo_loss(group, beta=beta).negative_log_ratio
    assert_close(npo - 2 / beta * math.log(2) * group.negative_mask.double(), ratio, tolerance=1e-5)


@given(seed=seeds, beta=weights)
@settings(max_examples=30, deadline=None)
def test_ulma_and_bco_without_an_offset_are_npo(seed, beta):
    group = random_sample(seed).group
    npo = beta / 2 * baselines.npo_loss(group, beta=beta).loss
    assert_close(baselines.ulma_negative_loss(group, beta=beta, c=0.0).loss, npo)
    assert_close(baselines.bco_negative_loss(group, beta=beta, delta=0.0).loss, npo)


@given(seed=seeds, beta=weights, offset=st.floats(-2, 2))
@settings(max_examples=30, deadline=None)
def test_ulmas_constant_is_minus_bcos_delta(seed, beta, offset):
    group = random_sample(seed).group
    ulma = baselines.ulma_negative_loss(group, beta=beta, c=offset)
    bco = baselines.bco_negative_loss(group, beta=beta, delta=-offset)
    assert_close(ulma.loss, bco.loss)
    assert_close(ulma.margin, bco.margin)


@given(seed=seeds, beta=weights, delta=st.floats(-1, 3))
@settings(max_examples=30, deadline=None)
def test_simnpo_is_the_public_form(seed, beta, delta):
    """−(2/β) log σ(β (NLL/|y| − δ)) with γ = β δ."""
    sample = random_sample(seed, ragged=False)
    nll = -sample.group.negatives
    public = -2 / beta * F.logsigmoid(beta * (nll / sample.negative_tokens - delta))
    assert_close(
        baselines.simnpo_loss(sample.group, sample.negative_tokens, beta=beta, gamma=beta * delta).loss, public
    )


@given(seed=seeds, beta=weights)
@settings(max_examples=30, deadline=None)
def test_simnpo_is_npo_without_a_reference_at_beta_over_the_length(seed, beta):
    sample = random_sample(seed, B=1, N=1, ragged=False)
    tokens = sample.negative_tokens.item()
    free = replace(sample.group, ref_negatives=torch.zeros_like(sample.group.ref_negatives))
    simnpo = baselines.simnpo_loss(sample.group, sample.negative_tokens, beta=beta, gamma=0.0)
    npo = baselines.npo_loss(free, beta=beta / tokens)
    assert_close(simnpo.loss, npo.loss / tokens)
    assert_close(simnpo.margin, npo.margin)


@given(seed=seeds, z0=st.floats(0, 3), beta=weights)
@settings(max_examples=30, deadline=None)
def test_kto_is_the_probability_of_what_bco_takes_the_logarithm_of(seed, z0, beta):
    """KTO: λ(1 − σ(β z₀ − β r)); BCO: −log σ(δ − β r). With δ = β z₀, KTO/λ = 1 − exp(−BCO)."""
    group = random_sample(seed).group
    kto = baselines.kto_negative_loss(group, beta=beta, lambda_u=1.3, z0=z0).loss
    bco = baselines.bco_negative_loss(group, beta=beta, delta=beta * z0).loss
    assert_close(kto, 1.3 * (1 - torch.exp(-bco)))


def test_ktos_gradient_vanishes_on_both_sides_and_is_largest_at_z0():
    """λ β σ(1 − σ): a negative that is already far below z₀, or still far above, is left alone."""
    negatives = torch.tensor([[-200.0, -10.5, -9.5, -8.5, 200.0]], dtype=torch.float64, requires_grad=True)
    group = fixed(negatives, torch.full_like(negatives, -10.0))
    _, slope = gradients(baselines.kto_negative_loss(group, beta=0.4, lambda_u=2.0, z0=0.5).loss, group)
    assert slope.argmax().item() == 2
    assert slope[0, 2].item() == pytest.approx(2.0 * 0.4 / 4, abs=1e-12)
    assert slope[0, 1].item() == pytest.approx(slope[0, 3].item(), abs=1e-12)
    assert slope[0, [0, 4]].max().item() < 1e-12
    _, npo = gradients(baselines.npo_loss(group, beta=0.4).loss, group)
    assert npo[0, 4].item() == pytest.approx(2.0, abs=1e-12)


def test_unlikelihood_from_log_probs():
    """−Σ_t log(1 − π_t); its gradient by the log-prob of a token is the odds π/(1 − π)."""
    token_logps = torch.tensor([-0.1, -2.0, -7.0], dtype=torch.float64, requires_grad=True)
    sums = torch.log1p(-token_logps.exp()).sum()[None, None]
    group = fixed(token_logps.sum()[None, None].detach(), torch.ones(1, 1, dtype=torch.float64))
    loss = baselines.unlikelihood_loss(group, sums).loss.sum()
    by_hand = -(math.log(1 - math.exp(-0.1)) + math.log(1 - math.exp(-2)) + math.log(1 - math.exp(-7)))
    assert loss.item() == pytest.approx(by_hand, abs=1e-12)
    (slope,) = torch.autograd.grad(loss, token_logps)
    odds = token_logps.exp() / (1 - token_logps.exp())
    assert_close(slope, odds.detach())


def test_unlikelihood_of_improbable_tokens_is_the_sum_of_their_probabilities():
    sample = random_sample(1, ragged=False)
    logp = torch.full_like(sample.group.negatives, -16.0)
    loss = baselines.unlikelihood_loss(sample.group, torch.log1p(-logp.exp())).loss
    assert torch.allclose(loss, logp.exp(), rtol=1e-6)


def test_llmu_of_one_term_is_that_term():
    sample = random_sample(8)
    group, unrelated = sample.group, sample.unrelated
    alone = baselines.llmu_loss(group, unrelated, forget=0.7, mismatch=0.0, normal=0.0)
    assert_close(alone.loss, 0.7 * baselines.ga_loss(group).loss)
    sft = baselines.sft_chosen_loss(group, unrelated).loss
    assert_close(baselines.llmu_loss(group, unrelated, forget=0.0, mismatch=0.7, normal=0.0).loss, 0.7 * sft)
    # Normal data: the KL of PMPO, without its negative.
    nothing, first = torch.zeros_like(group.negative_mask), torch.zeros_like(group.negative_mask)
    first[:, 0] = True
    normal = replace(group, negative_mask=nothing)
    zero = replace(group, negatives=torch.zeros_like(group.negatives), negative_mask=first)
    pmpo = baselines.pmpo_negative_loss(zero, beta=0.7).loss
    assert_close(baselines.llmu_loss(normal, unrelated, forget=1.0, mismatch=1.0, normal=0.7).loss, pmpo)


# With chosen answers


@given(seed=seeds, beta=weights)
@settings(max_examples=30, deadline=None)
def test_dpo_self_is_dpo_with_the_first_valid_anchor_as_the_chosen_answer(seed, beta):
    group = random_sample(seed).group
    first = group.anchor_mask.int().argmax(1, keepdim=True)
    chosen = answers(group.anchors.gather(1, first), group.ref_anchors.gather(1, first))
    dpo, found = baselines.dpo_loss(group, chosen, beta=beta), baselines.dpo_self_loss(group, beta=beta)
    assert_close(found.loss, dpo.loss)
    assert_close(found.margin, dpo.margin)
    for one, other in zip(gradients(found.loss, group), gradients(dpo.loss, group), strict=True):
        assert_close(one, other)


def test_simpo_of_one_token_answers_without_a_margin_is_dpo_without_a_reference():
    sample = random_sample(5)
    group, chosen = sample.group, answers(sample.chosen.logps, sample.chosen.ref_logps, sample.chosen.mask)
    ones = torch.ones_like(sample.negative_tokens)
    free = replace(group, ref_negatives=torch.zeros_like(group.ref_negatives))
    dpo = baselines.dpo_loss(free, replace(chosen, ref_logps=torch.zeros_like(chosen.ref_logps)), beta=0.7)
    assert_close(baselines.simpo_loss(group, chosen, ones, beta=0.7, gamma=0.0).loss, dpo.loss)


def test_simpos_margin_is_a_handicap_of_gamma():
    """γ asks for a larger reward gap: equal to lowering the chosen answer's reward by γ."""
    sample = random_sample(5)
    handicap = replace(sample.chosen, logps=sample.chosen.logps - 0.6 / 1.5 * sample.chosen.tokens)
    plain = baselines.simpo_loss(sample.group, handicap, sample.negative_tokens, beta=1.5, gamma=0.0)
    asked = baselines.simpo_loss(sample.group, sample.chosen, sample.negative_tokens, beta=1.5, gamma=0.6)
    assert_close(asked.loss, plain.loss)
    eased = baselines.simpo_loss(sample.group, sample.chosen, sample.negative_tokens, beta=1.5, gamma=0.0)
    pairs = sample.group.negative_mask
    assert torch.all(asked.loss[pairs] > eased.loss[pairs])


@given(tau=st.floats(0.05, 5))
@settings(max_examples=30, deadline=None)
def test_ipo_has_its_minimum_0_at_a_gap_of_half_over_tau(tau):
    """DPO has none: it pushes on for ever."""
    negatives = torch.tensor([[-12.0]], dtype=torch.float64, requires_grad=True)
    group = fixed(negatives, negatives.detach() + 1.0)  # r(y_l) = −1

    def loss_and_slope(gap):
        chosen = answers(torch.tensor([[gap - 1.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
        terms = baselines.ipo_loss(group, chosen, tau=tau)
        return terms.loss.item(), gradients(terms.loss, group)[1].item()

    at = 1 / (2 * tau)
    assert loss_and_slope(at) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert loss_and_slope(at + 0.5) == pytest.approx((0.25, -1.0), abs=1e-9)
    assert loss_and_slope(at - 0.5) == pytest.approx((0.25, 1.0), abs=1e-9)


def test_ipo_at_large_tau_asks_for_no_gap():
    sample = random_sample(12, C=1)
    gap = baselines.dpo_loss(sample.group, sample.chosen, beta=1.0).margin
    assert_close(baselines.ipo_loss(sample.group, sample.chosen, tau=1e9).loss, gap**2, tolerance=1e-6)


def test_slic_beyond_its_hinge_is_sft_and_within_it_gradient_ascent_too():
    sample = random_sample(10)
    group, chosen = sample.group, sample.chosen
    sft = baselines.sft_chosen_loss(group, chosen).loss
    assert_close(baselines.slic_loss(group, chosen, delta=-100.0, lambda_sft=0.4).loss, 0.4 * sft)
    within = baselines.slic_loss(group, chosen, delta=100.0, lambda_sft=0.4).loss
    assert_close(within, (baselines.ga_loss(group).loss + 1.4 * sft + 100.0) * group.negative_mask)


def test_several_chosen_answers_are_the_mean_over_each_alone():
    sample = random_sample(13, C=3, ragged=False)
    alone = [Answers(*(value[:, c : c + 1] for value in vars(sample.chosen).values())) for c in range(3)]
    for call in (
        lambda chosen: baselines.dpo_loss(sample.group, chosen, beta=0.7).loss,
        lambda chosen: baselines.ipo_loss(sample.group, chosen, tau=0.7).loss,
        lambda chosen: baselines.slic_loss(sample.group, chosen, delta=0.7, lambda_sft=0.2).loss,
        lambda chosen: baselines.simpo_loss(sample.group, chosen, sample.negative_tokens, beta=0.7, gamma=0.2).loss,
        lambda chosen: baselines.sft_chosen_loss(sample.group, chosen).loss,
    ):
        assert_close(call(sample.chosen), sum(map(call, alone)) / 3)
