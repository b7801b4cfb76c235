"""Claim a: what D²O's loss bounds, and in which sense. Everything is enumerated; nothing is sampled."""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from naysay.core.objective import d2o_loss
from naysay.lab.exact import Instance, expected_loss, group_of, limit_loss, random_instance, variance_of_ratio
from naysay.lab.finding import Finding

PUBLISHED = {1: 2.0606, 2: 1.7345, 3: 1.6226, 4: 1.5674, 5: 1.5341, 6: 1.5119}
"""E[L_K] of the example below, computed once by a few lines of numpy that do not use the library."""
PUBLISHED_LIMIT, PUBLISHED_DISTRIBUTIONAL = 1.4032, 0.9920
_SIZES = (1, 2, 3, 4, 5, 6, 8, 11)
_WORLDS, _ANSWERS = 30, 5
_EXACT = torch.float64


def example() -> Instance:
    """Six answers, α = 2, β = 3: the instance whose numbers are published."""
    rng, answers = np.random.default_rng(0), 6
    rows = [rng.normal(size=answers) for _ in range(4)] + [rng.normal(size=answers) * 2]
    policy, negative, positive, sampler, annotator = (
        torch.log_softmax(torch.tensor(row, dtype=_EXACT), dim=-1) for row in rows
    )
    return Instance(policy, negative, positive, sampler, annotator, alpha=2.0, beta=3.0)


def distributional_loss(instance: Instance) -> float:
    """−log σ of the mean margin, means over anchors *and* negatives: pseudo-answers that hold the means."""
    s, mu = instance.sampler.exp(), instance.annotator.exp()
    mean = replace(instance, policy=(mu @ instance.policy)[None], positive=(mu @ instance.positive)[None])
    group = group_of(mean, (s @ instance.policy).reshape(1, 1), (s @ instance.negative).reshape(1, 1))
    return float(d2o_loss(group, alpha=instance.alpha, beta=instance.beta).loss)


def check(seed: int) -> list[Finding]:
    """Findings a1 to a5."""
    generator = torch.Generator().manual_seed(seed)
    worlds = [random_instance(_ANSWERS, generator, alpha=2.0, beta=3.0) for _ in range(_WORLDS)]
    losses_WK = torch.tensor([[expected_loss(world, size) for size in _SIZES] for world in worlds], dtype=_EXACT)
    limits_W = torch.tensor([limit_loss(world) for world in worlds], dtype=_EXACT)
    return [
        _numbers(),
        _order(losses_WK, limits_W),
        _as_a_loss(losses_WK, limits_W),
        _as_a_probability(),
        _gap(worlds[:10]),
    ]


def _numbers() -> Finding:
    instance = example()
    found = {size: expected_loss(instance, size) for size in (*PUBLISHED, 8, 11)}
    limit, distributional = limit_loss(instance), distributional_loss(instance)
    errors = [abs(found[size] - value) for size, value in PUBLISHED.items()]
    errors += [abs(limit - PUBLISHED_LIMIT), abs(distributional - PUBLISHED_DISTRIBUTIONAL)]
    return Finding(
        claim="a1",
        statement="The library's loss reproduces the published E[L_1] ... E[L_6], L_∞ and the distributional loss.",
        holds=max(errors) < 5.1e-5,
        reading=f"largest difference {max(errors):.1e}, which is rounding to 4 digits",
        numbers={
            "anchors": list(found),
            "expected_loss": list(found.values()),
            "limit": limit,
            "distributional": distributional,
            "largest_error": max(errors),
        },
    )


def _order(losses_WK: Tensor, limits_W: Tensor) -> Finding:
    steps_WK = -torch.cat([losses_WK, limits_W[:, None]], dim=1).diff(dim=1)
    return Finding(
        claim="a2",
        statement="E[L_1] ≥ E[L_2] ≥ ... ≥ L_∞: more anchors never raise the expected loss.",
        holds=bool((steps_WK > 0).all()),
        reading=f"strictly decreasing over K = {', '.join(map(str, _SIZES))}, ∞ in {_WORLDS} random worlds",
        numbers={"worlds": _WORLDS, "anchors": list(_SIZES), "smallest_step": float(steps_WK.min())},
    )


def _as_a_loss(losses_WK: Tensor, limits_W: Tensor) -> Finding:
    dpo_W, k11_W = losses_WK[:, 0], losses_WK[:, -1]
    return Finding(
        claim="a3",
        statement="As a loss, D²O upper-bounds the expected DPO loss whose positive comes from the same sampler.",
        holds=bool((k11_W >= dpo_W).all()),
        expected=False,
        reading=f"it is a lower bound: E[L_11] < E[L_1] in {int((k11_W < dpo_W).sum())} of {_WORLDS} worlds. The upper "
        "bound is the preference log-likelihood log σ(m) = −L",
        numbers={
            "worlds_where_lower": int((k11_W < dpo_W).sum()),
            "mean_dpo": float(dpo_W.mean()),
            "mean_d2o_11": float(k11_W.mean()),
            "mean_limit": float(limits_W.mean()),
        },
    )


def _as_a_probability() -> Finding:
    """Two anchors with log-ratios −10 and 0 and a negative at 0, α = β = 1: margins {−10, 0} one by one."""
    zero = torch.zeros(1, dtype=_EXACT)
    instance = Instance(zero, zero, zero, zero, zero, alpha=1.0, beta=1.0)
    ratios = torch.tensor([-10.0, 0.0], dtype=_EXACT)
    single = d2o_loss(group_of(instance, ratios[:, None], torch.zeros(2, 1).double()), alpha=1.0, beta=1.0).margin
    joint = d2o_loss(group_of(instance, ratios[None], torch.zeros(1, 2).double()), alpha=1.0, beta=1.0).margin
    mean_of_probabilities, probability_of_mean = float(single.sigmoid().mean()), float(joint.sigmoid())
    return Finding(
        claim="a4",
        statement="The bound also holds for raw preference probabilities: σ(E m) ≥ E σ(m).",
        holds=probability_of_mean >= mean_of_probabilities,
        expected=False,
        reading=f"margins −10 and 0: E σ = {mean_of_probabilities:.4f} but σ(−5) = {probability_of_mean:.4f}; σ is "
        "convex below 0",
        numbers={"mean_of_probabilities": mean_of_probabilities, "probability_of_mean": probability_of_mean},
    )


def _gap(worlds: list[Instance]) -> Finding:
    """½ σ(M) σ(−M) β² Var (1 − 1/K) with M at each negative, against the exact gap, as β halves."""
    betas, sizes = [0.4, 0.2, 0.1, 0.05], (2, 4, 8, 11)
    errors = {
        size: [max(abs(_gap_error(replace(world, beta=beta), size)) for world in worlds) for beta in betas]
        for size in sizes
    }
    worst = max(errors[size][-1] for size in sizes)
    shrink = min(errors[size][-2] / errors[size][-1] for size in sizes)
    return Finding(
        claim="a5",
        statement="At small β the gap E[L_1] − E[L_K] is ½ σ(M) σ(−M) β² Var[log π/r⁻] (1 − 1/K).",
        holds=worst < 0.1 and shrink > 1.8,
        reading=f"largest relative error {worst:.4f} at β = {betas[-1]}, divided by at least {shrink:.2f} when β "
        "halves; 4 anchors remove 3/4 of the variance, 11 remove 10/11",
        numbers={
            "worlds": len(worlds),
            "beta": betas,
            "relative_error": {str(size): values for size, values in errors.items()},
        },
    )


def _gap_error(instance: Instance, size: int) -> float:
    gap = expected_loss(instance, 1) - expected_loss(instance, size)
    anchor_mean, negative_V = instance.mean_log_ratios()
    margin_V = instance.beta * anchor_mean - instance.alpha * negative_V
    curvature = float(instance.annotator.exp() @ (margin_V.sigmoid() * (-margin_V).sigmoid()))
    predicted = 0.5 * curvature * instance.beta**2 * variance_of_ratio(instance) * (1 - 1 / size)
    return predicted / gap - 1 if gap else math.inf
