"""Claim b, in training: anchors redrawn from the current policy at every step remove the anchor.

Plain gradient descent at equal first steps; anchors are drawn anew at every step in all runs, from the frozen
reference, from the current policy, or half from each, so that only *where* they come from differs.

Legend: S worlds, G groups, K anchors.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from naysay.lab.collapse import ANCHORS, BETA, Setting, measures, setting
from naysay.lab.finding import Finding
from naysay.lab.learning import Course, Draws, draw, harm_left, objectives, ratio_summary, summary, train
from naysay.lab.world import answer_logps

TARGET = 0.1
WORLDS, GROUPS = 32, 64
_STEPS, _RATE = 200, 0.15
_DAMAGE = "jeffrey_among_benign"
_SHARES = {"frozen": 1.0, "half frozen": 0.5, "on-policy": 0.0}


def check(seed: int) -> list[Finding]:
    """Finding b6."""
    of = setting(seed, worlds=WORLDS, groups=GROUPS)
    courses = {name: _run(of, "d2o", _redrawn(of, share, seed), 1.0) for name, share in _SHARES.items()}
    courses["npo"] = _run(of, "npo", of.draws, BETA / 2)
    at = {name: _at_target(of, course) for name, course in courses.items()}
    ratios = {name: ratio_summary(at["npo"][_DAMAGE], at[name][_DAMAGE]) for name in _SHARES}
    steps = {name: summary(row["steps"]) for name, row in at.items()}
    on, frozen = ratios["on-policy"], ratios["frozen"]
    saved = math.log(frozen["value"])
    kept = math.log(on["value"]) / saved if saved else math.inf
    return [
        Finding(
            claim="b6",
            statement="In training, strictly on-policy anchors turn D²O into NPO: at equal harm removed the benign "
            "answers are as distorted as NPO's.",
            holds=frozen["ci_low"] > 1.1 and on["ci_high"] < 1.05 and kept < 0.25,
            reading=f"NPO's J among benign answers at 90 % removed is {frozen['value']:.3f} times that of frozen "
            f"anchors, {ratios['half frozen']['value']:.3f} of half frozen ones, {on['value']:.3f} "
            f"[{on['ci_low']:.3f}, {on['ci_high']:.3f}] of on-policy ones. These only brake (steps to 90 %: NPO "
            f"{steps['npo']['value']:.0f}, frozen {steps['frozen']['value']:.0f}, on-policy "
            f"{steps['on-policy']['value']:.0f}), through w",
            numbers={
                "worlds": WORLDS,
                "groups": GROUPS,
                "anchors": ANCHORS,
                "beta": BETA,
                "harm_left": TARGET,
                "npo_jeffrey_among_benign_over": ratios,
                "share_of_the_log_ratio_kept": kept,
                "steps": steps,
                "jeffrey_among_benign": {name: float(row[_DAMAGE].mean()) for name, row in at.items()},
            },
        )
    ]


def _redrawn(of: Setting, share: float, seed: int) -> Callable[[Tensor], Draws]:
    """Data whose anchors are drawn at every step: this share of the K from the frozen reference, the rest on-policy."""
    generator = torch.Generator().manual_seed(seed)
    frozen = math.ceil(share * ANCHORS)

    def draws(theta_SP: Tensor) -> Draws:
        current_SXV = answer_logps(of.world, theta_SP).exp()
        parts = [(of.initial.exp(), frozen), (current_SXV, ANCHORS - frozen)]
        anchors = [draw(probs, of.draws.prompts, count, generator) for probs, count in parts if count]
        return Draws(of.draws.prompts, of.draws.negatives, torch.cat(anchors, dim=-1))

    return draws


def _run(of: Setting, name: str, draws: Draws | Callable[[Tensor], Draws], scale: float) -> Course:
    return train(
        of.world, of.start, of.references, draws, objectives(BETA)[name], steps=_STEPS, rate=_RATE, scale=scale
    )


def _at_target(of: Setting, course: Course) -> dict[str, Tensor]:
    theta_SP, step_S = course.first_at(harm_left(of.world, course, of.initial).log(), math.log(TARGET))
    return {"steps": step_S.nan_to_num(nan=_STEPS), **measures(of, answer_logps(of.world, theta_SP))}
