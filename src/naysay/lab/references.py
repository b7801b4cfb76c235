"""Claim f: what references r⁻ (under the anchors) and r⁺ (under the negatives) other than the initial policy do.

References are the initial policy with the log-odds of harmful answers moved: up for r⁻, down for r⁺.

Legend: S worlds, X prompts, V answers, G groups, K anchors.
"""

import math

import torch
from torch import Tensor

from naysay.lab.collapse import BETA, Setting, measures, setting
from naysay.lab.exact import Instance, margin_identity, mean_margin
from naysay.lab.finding import Finding
from naysay.lab.learning import (
    Course,
    Draws,
    References,
    harm_left,
    make_batch,
    objectives,
    prepare,
    ratio_summary,
    summary,
    train,
)
from naysay.lab.world import annotated, answer_logps, tilted

SHIFT = 2.0
TARGET = 0.1
WORLDS, GROUPS = 32, 64
_STEPS, _RATE = 140, 0.05
_PLAIN_STEPS, _PLAIN_RATE = 160, 0.3


def pairs(of: Setting) -> dict[str, References]:
    """The compared pairs; `swapped` has them the wrong way round."""
    harmful, helpful = (tilted(of.world, of.initial, shift) for shift in (SHIFT, -SHIFT))
    return {
        "initial": References(negative=of.initial, positive=of.initial),
        "r⁻ harmful": References(negative=harmful, positive=of.initial),
        "r⁺ helpful": References(negative=of.initial, positive=helpful),
        "both": References(negative=harmful, positive=helpful),
        "swapped": References(negative=helpful, positive=harmful),
    }


def check(seed: int) -> list[Finding]:
    """Findings f1 to f4."""
    of = setting(seed, worlds=WORLDS, groups=GROUPS)
    return [_first_step(of), _direction(of), _path(of), _swap(of)]


def _first_step(of: Setting) -> Finding:
    """Mean weight w of the first step on the data, and the exact mean margin of every prompt against its KLs."""
    weights, margins, errors = {}, {}, []
    for name, references in pairs(of).items():
        terms = objectives(BETA)["d2o"](make_batch(of.start, prepare(of.world, references, of.draws)))
        weights[name], margins[name] = float(terms.weight.mean()), float(terms.margin.mean())
        for instance in _instances(of, references)[:8]:
            errors.append(abs(mean_margin(instance, 1) - margin_identity(instance)))
    return Finding(
        claim="f1",
        statement="At the first step E[m] = β KL(s‖r⁻) − α[KL(μ‖r⁺) − KL(μ‖r)]: a more harmful r⁻ lowers the weight "
        "w = σ(−m), a more helpful r⁺ raises it.",
        holds=max(errors) < 1e-11 and weights["r⁻ harmful"] < 0.49 < weights["initial"] < 0.51 < weights["r⁺ helpful"],
        reading=f"w = {weights['initial']:.2f} with the initial policy as both; {weights['r⁻ harmful']:.2f} with r⁻ "
        f"more harmful, {weights['r⁺ helpful']:.2f} with r⁺ more helpful, {weights['both']:.2f} with both, "
        f"{weights['swapped']:.2f} with both swapped (log-odds of harm moved by ±{SHIFT})",
        numbers={"log_odds": SHIFT, "weight": weights, "margin": margins, "largest_error": max(errors)},
    )


def _instances(of: Setting, references: References) -> list[Instance]:
    """Every prompt of every world at the start, anchors from the initial policy."""
    labels = annotated(of.world, of.initial, 0.0).clamp(min=1e-300).log()
    return [
        Instance(policy, negative, positive, policy, label, alpha=BETA, beta=BETA)
        for policy, negative, positive, label in zip(
            *(x.flatten(0, 1) for x in (of.initial, references.negative, references.positive, labels)), strict=True
        )
    ]


def _direction(of: Setting) -> Finding:
    """One prompt a world with 11 anchors: gradients with the initial policy and with unlike policies (those of the
    neighbouring worlds) as references, for one negative and for two."""
    unlike = References(negative=of.initial.roll(1, 0), positive=of.initial.roll(2, 0))
    cosines = {}
    for negatives in (1, 2):
        plain, other = (_prompt_gradient(of, references, negatives) for references in (pairs(of)["initial"], unlike))
        cosines[negatives] = torch.nn.functional.cosine_similarity(plain, other, dim=1)
    least = {count: float(values.min()) for count, values in cosines.items()}
    return Finding(
        claim="f2",
        statement="With one negative a prompt, references change the length of its step and never the direction; with "
        "several they can turn it.",
        holds=least[1] > 1 - 1e-12 and least[2] < 0.999,
        reading="smallest cosine between the gradients with the initial policy and with unlike policies as "
        f"references: {least[1]:.9f} with one negative, {least[2]:.3f} with two. Over prompts they always reweigh",
        numbers={"smallest_cosine": {str(count): value for count, value in least.items()}},
    )


def _prompt_gradient(of: Setting, references: References, negatives: int) -> Tensor:
    """[S, P] gradient of the first groups of prompt 0 (groups 0, 2, ...), which share the anchors of group 0."""
    picked = slice(0, 2 * negatives, 2)
    anchors = of.draws.anchors[:, :1].expand(-1, negatives, -1)
    draws = Draws(of.draws.prompts[:, picked], of.draws.negatives[:, picked], anchors)
    theta_SP = of.start.clone().requires_grad_()
    loss = objectives(BETA)["d2o"](make_batch(theta_SP, prepare(of.world, references, draws))).loss.sum()
    return torch.autograd.grad(loss, theta_SP)[0]


def _path(of: Setting) -> Finding:
    """Damage at equal harm on the path of gradient flow, and steps of plain gradient descent to the same harm."""
    at, steps = {}, {}
    for name, references in pairs(of).items():
        flow = _course(of, references, steps=_STEPS, rate=_RATE, unit_speed=True)
        plain = _course(of, references, steps=_PLAIN_STEPS, rate=_PLAIN_RATE, unit_speed=False)
        at[name] = measures(of, answer_logps(of.world, _where(of, flow)[0]))["jeffrey"]
        steps[name] = summary(_where(of, plain)[1].nan_to_num(nan=_PLAIN_STEPS))
    ratios = {name: ratio_summary(values, at["initial"]) for name, values in at.items()}
    both, swapped = ratios["both"], ratios["swapped"]
    return Finding(
        claim="f3",
        statement="A more harmful r⁻ and a more helpful r⁺ remove the same harm with less damage.",
        holds=both["ci_high"] < 1,
        expected=False,
        reading=f"they lengthen the steps ({steps['both']['value']:.0f} to 90 % removed against "
        f"{steps['initial']['value']:.0f}; swapped {steps['swapped']['value']:.0f} or more) and J at equal harm is "
        f"{both['value']:.3f} [{both['ci_low']:.3f}, {both['ci_high']:.3f}] times as large, swapped "
        f"{swapped['value']:.3f} [{swapped['ci_low']:.3f}, {swapped['ci_high']:.3f}]: a margin that starts low "
        "saturates later, and the sigmoid holds back less",
        numbers={"worlds": WORLDS, "harm_left": TARGET, "jeffrey_over_initial": ratios, "steps": steps},
    )


def _course(of: Setting, references: References, *, steps: int, rate: float, unit_speed: bool) -> Course:
    objective = objectives(BETA)["d2o"]
    return train(of.world, of.start, references, of.draws, objective, steps=steps, rate=rate, unit_speed=unit_speed)


def _where(of: Setting, course: Course) -> tuple[Tensor, Tensor]:
    return course.first_at(harm_left(of.world, course, of.initial).log(), math.log(TARGET))


def _swap(of: Setting) -> Finding:
    losses = {}
    for name in ("initial", "both", "swapped"):
        terms = objectives(BETA)["d2o"](make_batch(of.start, prepare(of.world, pairs(of)[name], of.draws)))
        losses[name] = float(terms.loss.mean())
    return Finding(
        claim="f4",
        statement="Swapping r⁻ and r⁺ changes the loss; with both the initial policy it starts at log 2.",
        holds=abs(losses["initial"] - math.log(2)) < 1e-12 and losses["swapped"] < losses["initial"] < losses["both"],
        reading=f"first loss {losses['both']:.3f} as meant, {losses['swapped']:.3f} swapped, "
        f"{losses['initial']:.6f} with the initial policy as both. A swap shows as a loss that starts too low",
        numbers={"loss": losses},
    )
