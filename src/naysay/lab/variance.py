"""Claim e: what more anchors buy: variance of the gradient (exact) and steps to remove harm (over seeds).

Legend: V answers, K anchors, M sets of anchors, R = M*V pairs of a set and a negative, S worlds, G groups.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from naysay.core.groups import GroupLogps
from naysay.core.objective import d2o_loss
from naysay.lab.exact import anchor_sets, set_probabilities
from naysay.lab.finding import Finding
from naysay.lab.learning import Course, Draws, References, balanced_prompts, draw, harm_left, objectives, summary, train
from naysay.lab.world import annotated, answer_logps, make_world, random_policies

SIZES = (1, 2, 4, 8, 11, 16, 32)
TARGET = 0.1
BETA = 1.0
WORLDS, GROUPS = 32, 4
_ANSWERS, _POLICIES, _EXACT_BETAS = 4, 10, (0.1, 0.02)
_STEPS, _RATE = 220, 0.3


def check(seed: int) -> list[Finding]:
    """Findings e1 to e3."""
    return [_variance(seed), *_steps(seed)]


def gradient_variance(logits_V: Tensor, reference_V: Tensor, negatives_V: Tensor, size: int, *, beta: float) -> float:
    """Trace of the covariance of the library's gradient over anchors (from the reference) and the negative. Exact.

    Gradients with respect to the logits of a tabular policy; α = β. `size` 0 stands for infinitely many anchors.
    """
    logp_V = F.log_softmax(logits_V, dim=-1)
    answers = len(logits_V)
    if size:
        index_MK, log_orders_M = anchor_sets(answers, size)
        probability_M = set_probabilities(reference_V, index_MK, log_orders_M)
        index_RK = index_MK.repeat_interleave(answers, 0)
    else:
        probability_M, index_RK = torch.ones(1, dtype=torch.float64), None
    probability_R = (probability_M[:, None] * negatives_V.exp()).flatten()
    negative_R1 = torch.arange(answers).repeat(len(probability_M))[:, None]
    gradient_RV = _gradients(logp_V, reference_V, index_RK, negative_R1, beta)
    mean_V = probability_R @ gradient_RV
    return float(probability_R @ (gradient_RV - mean_V).square().sum(1))


def _gradients(
    logp_V: Tensor, reference_V: Tensor, index_RK: Tensor | None, negative_R1: Tensor, beta: float
) -> Tensor:
    """[R, V] gradient of each pair's loss with respect to the logits: dL/dlog π times (one-hot − π).

    Without indices, one pseudo-anchor holds the reference's means, as with infinitely many anchors.
    """
    rows, share_V = len(negative_R1), reference_V.exp()
    if index_RK is None:
        anchors_RK, ref_RK = ((share_V @ x).expand(rows, 1) for x in (logp_V, reference_V))
    else:
        anchors_RK, ref_RK = logp_V[index_RK], reference_V[index_RK]
    anchors_RK, negatives_R1 = anchors_RK.clone().requires_grad_(), logp_V[negative_R1].requires_grad_()
    group = GroupLogps(
        anchors=anchors_RK,
        ref_anchors=ref_RK,
        anchor_mask=torch.ones_like(anchors_RK, dtype=torch.bool),
        negatives=negatives_R1,
        ref_negatives=reference_V[negative_R1],
        negative_mask=torch.ones_like(negatives_R1, dtype=torch.bool),
    )
    loss = d2o_loss(group, alpha=beta, beta=beta).loss.sum()
    to_anchors_RK, to_negatives_R1 = torch.autograd.grad(loss, (anchors_RK, negatives_R1))
    if index_RK is None:
        pulled_RV = to_anchors_RK * share_V
    else:
        pulled_RV = torch.zeros(rows, len(logp_V), dtype=logp_V.dtype).scatter_add(1, index_RK, to_anchors_RK)
    pulled_RV = pulled_RV.scatter_add(1, negative_R1, to_negatives_R1)
    return pulled_RV - pulled_RV.sum(1, keepdim=True) * logp_V.exp()


def _variance(seed: int) -> Finding:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(_POLICIES, 3, _ANSWERS, generator=generator, dtype=torch.float64)
    tables = {beta: _table(rows, beta) for beta in _EXACT_BETAS}
    off = {}
    for beta, table_PK in tables.items():
        anchor_part_PK = table_PK[:, :-1] - table_PK[:, -1:]
        law_PK = anchor_part_PK * torch.tensor(SIZES) / anchor_part_PK[:, :1]
        off[beta] = float((law_PK - 1).abs().max())
    large, small = (off[beta] for beta in _EXACT_BETAS)
    default = tables[_EXACT_BETAS[0]]
    relative = (default / default[:, -1:]).mean(0).tolist()
    return Finding(
        claim="e1",
        statement="The variance of the gradient falls with K; the anchors' part goes as 1/K, to leading order in β.",
        holds=all(bool((table.diff(dim=1) < 0).all()) for table in tables.values()) and small < 0.3 * large < 0.1,
        reading=f"K times the anchors' part is constant within {large:.1%} at β = 0.1 and {small:.1%} at β = 0.02. In "
        f"units of what negatives alone cause the variance is {relative[0]:.2f} at K = 1, {relative[2]:.2f} at 4, "
        f"{relative[4]:.2f} at 11, {relative[6]:.2f} at 32",
        numbers={
            "anchors": list(SIZES),
            "beta": _EXACT_BETAS[0],
            "variance_over_floor_mean": relative[:-1],
            "largest_departure_from_1_over_k": {str(beta): value for beta, value in off.items()},
        },
    )


def _table(rows: Tensor, beta: float) -> Tensor:
    """[P, K+1] variances of each policy for all K, the last column without any variance of anchors."""
    logits_PV, references_PV, negatives_PV = rows[:, 0], F.log_softmax(rows[:, 1], -1), F.log_softmax(rows[:, 2], -1)
    table = [
        [gradient_variance(*instance, size, beta=beta) for size in (*SIZES, 0)]
        for instance in zip(logits_PV, references_PV, negatives_PV, strict=True)
    ]
    return torch.tensor(table, dtype=torch.float64)


def _steps(seed: int) -> list[Finding]:
    """Few groups a step, negatives and anchors drawn anew from the annotator and the frozen reference each time."""
    courses = {size: _course(seed, size) for size in (0, *SIZES)}
    world, start = make_world(), _starts(seed)
    initial = answer_logps(world, start)
    steps, rough = {}, {}
    for size, course in courses.items():
        _, step_S = course.first_at(harm_left(world, course, initial), TARGET)
        steps[size] = step_S.nan_to_num(nan=_STEPS)
        net_S = (course.path[-1] - course.path[0]).norm(dim=-1)
        rough[size] = course.path.diff(dim=0).norm(dim=-1).sum(0) / net_S
    saved = {size: summary(steps[1] - steps[size]) for size in SIZES[1:]}
    after_4 = summary(steps[4] - steps[32])
    against_npo = summary(steps[11] - steps[0])
    rows = {size: summary(values) for size, values in steps.items()}
    numbers: dict[str, Any] = {
        "worlds": WORLDS,
        "groups_a_step": GROUPS,
        "beta": BETA,
        "harm_left": TARGET,
        "anchors": list(SIZES),
        "steps": [rows[size] for size in SIZES],
        "steps_npo": rows[0],
        "steps_saved_over_k1": {str(size): row for size, row in saved.items()},
        "path_over_distance": [summary(rough[size]) for size in SIZES],
        "path_over_distance_npo": summary(rough[0]),
    }
    spoken = ", ".join(f"{rows[size]['value']:.0f}" for size in SIZES)
    bent = ", ".join(f"{float(rough[size].mean()):.1f}" for size in SIZES)
    return [
        Finding(
            claim="e2",
            statement="More anchors mean fewer steps to 90 % removed and a straighter path, most of it by K = 4.",
            holds=all(row["ci_low"] > 0 for row in saved.values()) and after_4["value"] < 0.25 * saved[32]["value"],
            reading=f"steps at K = 1, 2, 4, 8, 11, 16, 32: {spoken}; length of the path over its distance: {bent}",
            numbers=numbers,
        ),
        Finding(
            claim="e3",
            statement="D²O needs fewer steps than NPO at the same learning rate and an equal first step.",
            holds=against_npo["ci_high"] < 0,
            expected=False,
            reading=f"K = 11 takes {rows[11]['value']:.0f} steps, NPO {rows[0]['value']:.0f}: anchors hold back as "
            "well as steer. What they buy is less damage a unit of harm (c1), not speed",
            numbers={"steps_d2o_minus_npo": against_npo},
        ),
    ]


def _starts(seed: int) -> Tensor:
    return random_policies(WORLDS, torch.Generator().manual_seed(seed))


def _course(seed: int, size: int) -> Course:
    """Training with K anchors; K = 0 is NPO at the scale that makes it D²O with β = 0 on the anchors' side."""
    world, start = make_world(), _starts(seed)
    initial = answer_logps(world, start)
    labels, prompts = annotated(world, initial, 0.0), balanced_prompts(WORLDS, GROUPS)
    for_negatives, for_anchors = (torch.Generator().manual_seed(seed + offset) for offset in (1, 2))

    def draws(_: Tensor) -> Draws:
        negatives = draw(labels, prompts, 1, for_negatives)[..., 0]
        return Draws(prompts, negatives, draw(initial.exp(), prompts, max(size, 1), for_anchors))

    return train(
        world,
        start,
        References(initial, initial),
        draws,
        objectives(BETA)["d2o" if size else "npo"],
        steps=_STEPS,
        rate=_RATE,
        scale=1.0 if size else BETA / 2,
    )
