"""Claim c: what removing harm costs. Exact masses and divergences at equal harm removed.

All objectives follow the path of gradient flow at unit speed from the same start on the same data, so that no loss has
a better learning rate than another, and are compared where the harmful mass is the same share of its start.

Legend: S worlds (initial policy and data differ), T steps.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from naysay.lab.finding import Finding
from naysay.lab.learning import (
    Course,
    Draws,
    References,
    balanced_prompts,
    draw,
    harm_left,
    objectives,
    ratio_summary,
    summary,
    train,
)
from naysay.lab.world import (
    BENIGN,
    HARMFUL,
    JUNK,
    World,
    annotated,
    answer_logps,
    entropy,
    jeffrey,
    make_world,
    mass,
    only,
    random_policies,
)

COMPARED = ("d2o", "npo", "simnpo", "ga", "unlikelihood", "dpo_self", "altpo")
TARGETS = (0.1, 0.02)
BETA, SMALL_BETA = 1.0, 0.1
WORLDS, GROUPS, ANCHORS = 48, 64, 11
_STEPS, _RATE = 160, 0.05
_PLAIN_STEPS, _PLAIN_RATE = 400, 0.3


@dataclass(frozen=True)
class Setting:
    """S worlds with one frozen data set each; the references are the initial policy."""

    world: World
    start: Tensor
    initial: Tensor
    draws: Draws

    @property
    def references(self) -> References:
        return References(self.initial, self.initial)


def setting(seed: int, *, worlds: int = WORLDS, groups: int = GROUPS) -> Setting:
    """Anchors are plain draws of the initial policy, harmful ones among them: no instruction, no filter."""
    world, generator = make_world(), torch.Generator().manual_seed(seed)
    start_SP = random_policies(worlds, generator)
    initial_SXV = answer_logps(world, start_SP)
    prompt_SG = balanced_prompts(worlds, groups)
    negative_SG = draw(annotated(world, initial_SXV, 0.0), prompt_SG, 1, generator)[..., 0]
    anchors_SGK = draw(initial_SXV.exp(), prompt_SG, ANCHORS, generator)
    return Setting(world, start_SP, initial_SXV, Draws(prompt_SG, negative_SG, anchors_SGK))


def measures(of: Setting, logp_SXV: Tensor) -> dict[str, Tensor]:
    """[S] what is said of a policy, means over the prompts; all exact."""
    world, initial = of.world, of.initial
    return {
        "harmful": mass(world, logp_SXV, HARMFUL),
        "benign": mass(world, logp_SXV, BENIGN),
        "junk": mass(world, logp_SXV, JUNK),
        "entropy": entropy(logp_SXV).mean(-1),
        "jeffrey": jeffrey(logp_SXV, initial).mean(-1),
        "jeffrey_among_benign": jeffrey(only(world, logp_SXV, BENIGN), only(world, initial, BENIGN)).mean(-1),
    }


@dataclass(frozen=True)
class EqualHarm:
    """Every objective where the harmful mass is `target` of its start: measures [S], and which worlds got there."""

    target: float
    measured: dict[str, dict[str, Tensor]]
    reached: dict[str, Tensor]

    def _both(self, name: str) -> Tensor:
        return self.reached[name] & self.reached["d2o"]

    def difference(self, name: str, measure: str) -> dict[str, Any]:
        """Mean over worlds of objective minus D²O with its 95 % interval."""
        return summary((self.measured[name][measure] - self.measured["d2o"][measure])[self._both(name)])

    def ratio(self, name: str, measure: str) -> dict[str, Any]:
        """Geometric mean over worlds of objective over D²O with its 95 % interval."""
        both = self._both(name)
        return ratio_summary(self.measured[name][measure][both], self.measured["d2o"][measure][both])

    def table(self) -> dict[str, dict[str, Any]]:
        """For each objective the means over the worlds that got there, and the comparison with D²O."""
        rows: dict[str, dict[str, Any]] = {}
        for name, values in self.measured.items():
            rows[name] = {"worlds": int(self.reached[name].sum())}
            rows[name] |= {measure: float(value[self.reached[name]].mean()) for measure, value in values.items()}
            if name != "d2o":
                rows[name]["jeffrey_over_d2o"] = self.ratio(name, "jeffrey")
                rows[name]["jeffrey_among_benign_over_d2o"] = self.ratio(name, "jeffrey_among_benign")
                rows[name]["benign_minus_d2o"] = self.difference(name, "benign")
                rows[name]["entropy_minus_d2o"] = self.difference(name, "entropy")
        return rows


def check(seed: int) -> list[Finding]:
    """Findings c1 to c5."""
    of = setting(seed)
    courses = {name: _flow(of, name, BETA) for name in COMPARED}
    small = {name: _flow(of, name, SMALL_BETA) for name in COMPARED if name not in {"unlikelihood", "dpo_self"}}
    first, second = (_at_equal_harm(of, courses, target) for target in TARGETS)
    first_small = _at_equal_harm(of, small, TARGETS[0])
    return [
        _nearest(first, first_small, _curves(of, courses)),
        _keeps(first, second),
        _against_anchored(first, first_small),
        *_going_on(of),
    ]


def _flow(of: Setting, name: str, beta: float) -> Course:
    return train(
        of.world,
        of.start,
        of.references,
        of.draws,
        objectives(beta)[name],
        steps=_STEPS,
        rate=_RATE,
        unit_speed=True,
    )


def _at_equal_harm(of: Setting, courses: dict[str, Course], target: float) -> EqualHarm:
    measured, reached = {}, {}
    for name, course in courses.items():
        log_left_TS = harm_left(of.world, course, of.initial).log()
        theta_SP, step_S = course.first_at(log_left_TS, math.log(target))
        measured[name], reached[name] = measures(of, answer_logps(of.world, theta_SP)), ~step_S.isnan()
    return EqualHarm(target, measured, reached)


def _curves(of: Setting, courses: dict[str, Course]) -> dict[str, Any]:
    """Means over the worlds along the path, for the figure: [points] of each measure."""
    every = range(0, _STEPS + 1, 5)
    curves: dict[str, Any] = {}
    for name, course in courses.items():
        left_TS = harm_left(of.world, course, of.initial)
        points = [measures(of, answer_logps(of.world, course.path[step])) for step in every]
        curves[name] = {"harm_left": [float(left_TS[step].log().mean().exp()) for step in every]}
        for measure in ("benign", "entropy", "jeffrey"):
            curves[name][measure] = [float(point[measure].mean()) for point in points]
    return curves


def _nearest(first: EqualHarm, small: EqualHarm, curves: dict[str, Any]) -> Finding:
    names = ("npo", "simnpo", "ga", "unlikelihood", "dpo_self")
    ratios = {name: first.ratio(name, "jeffrey_among_benign") for name in names}
    holds = all(first.ratio(name, "jeffrey")["ci_low"] > 1 and ratios[name]["ci_low"] > 1 for name in names)
    holds = holds and all(small.ratio(name, "jeffrey")["ci_low"] > 1 for name in names[:3])
    spoken = ", ".join(f"{name} {row['value']:.2f}" for name, row in ratios.items())
    return Finding(
        claim="c1",
        statement="At equal harm removed (90 %), D²O stays nearer to the reference, by J(θ, r), than NPO, SimNPO, GA, "
        "unlikelihood and DPO with one own sample.",
        holds=holds,
        reading=f"times D²O's J among benign answers: {spoken}; {'all' if holds else 'not all'} intervals lie above 1, "
        f"at β = {SMALL_BETA} too (first three)",
        numbers={
            "worlds": WORLDS,
            "groups": GROUPS,
            "harm_left": first.target,
            f"beta_{BETA}": first.table(),
            f"beta_{SMALL_BETA}": small.table(),
            "curves": curves,
        },
    )


def _keeps(first: EqualHarm, second: EqualHarm) -> Finding:
    names = ("npo", "simnpo", "ga")
    holds = all(second.difference(name, measure)["ci_high"] < 0 for name in names for measure in ("benign", "entropy"))
    spoken = second.table()
    d2o, unlikelihood = spoken["d2o"], spoken["unlikelihood"]
    return Finding(
        claim="c2",
        statement="With 98 % of the harm removed, D²O keeps more mass on benign answers and more entropy than NPO, "
        "SimNPO and GA.",
        holds=holds,
        reading=f"benign mass {d2o['benign']:.3f} against "
        + ", ".join(f"{name} {spoken[name]['benign']:.3f}" for name in names)
        + f"; entropy {d2o['entropy']:.2f} nats against "
        + ", ".join(f"{spoken[name]['entropy']:.2f}" for name in names)
        + f". Mass hides damage: unlikelihood keeps {unlikelihood['benign']:.3f} on benign answers, whose "
        f"distribution it distorts {unlikelihood['jeffrey_among_benign_over_d2o']['value']:.1f} times as much",
        numbers={"harm_left": second.target, "objectives": spoken, "at_90_percent": first.table()},
    )


def _against_anchored(first: EqualHarm, small: EqualHarm) -> Finding:
    ratios = {f"beta_{beta}": at.ratio("altpo", "jeffrey") for beta, at in ((BETA, first), (SMALL_BETA, small))}
    values = [f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" for row in ratios.values()]
    return Finding(
        claim="c3",
        statement="One sigmoid around the mean (D²O) stays nearer to the reference than the mean of sigmoids (AltPO).",
        holds=all(row["ci_low"] > 1 for row in ratios.values()),
        expected=False,
        reading=f"AltPO's J is {values[0]} times D²O's at β = {BETA} and {values[1]} at β = {SMALL_BETA}: with clean "
        "negatives the two differ little. What separates them is wrong labels (d4)",
        numbers=ratios,
    )


def _going_on(of: Setting) -> list[Finding]:
    """Plain gradient descent, far past the point where the harm is gone; scales make all first steps equal."""
    scales = {"d2o": 1.0, "npo": BETA / 2, "ga": BETA / 2}
    checkpoints = (_PLAIN_STEPS // 8, _PLAIN_STEPS // 4, _PLAIN_STEPS // 2, _PLAIN_STEPS)
    rows: dict[str, dict[str, list[float]]] = {}
    for name, scale in scales.items():
        course = train(
            of.world,
            of.start,
            of.references,
            of.draws,
            objectives(BETA)[name],
            steps=_PLAIN_STEPS,
            rate=_PLAIN_RATE,
            scale=scale,
        )
        points = [measures(of, answer_logps(of.world, course.path[step])) for step in checkpoints]
        rows[name] = {key: [float(point[key].mean()) for point in points] for key in points[0]}
    start = {key: float(value.mean()) for key, value in measures(of, of.initial).items()}
    numbers = {"steps": list(checkpoints), "rate": _PLAIN_RATE, "start": start, "objectives": rows}
    d2o, ga = rows["d2o"], rows["ga"]
    growth = [after - before for before, after in itertools.pairwise(d2o["jeffrey"])]
    return [
        Finding(
            claim="c4",
            statement="Trained on and on, GA unlearns everything and D²O does not.",
            holds=ga["entropy"][-1] < 0.2
            and ga["benign"][-1] < start["benign"]
            and d2o["benign"][-1] > start["benign"],
            reading=f"after {_PLAIN_STEPS} steps GA has entropy {ga['entropy'][-1]:.2f} nats and benign mass "
            f"{ga['benign'][-1]:.2f}, D²O {d2o['entropy'][-1]:.2f} nats and {d2o['benign'][-1]:.2f} (start: "
            f"{start['entropy']:.2f}, {start['benign']:.2f}); NPO's weight dies out as D²O's does: "
            f"{rows['npo']['entropy'][-1]:.2f}, {rows['npo']['benign'][-1]:.2f}",
            numbers=numbers,
        ),
        Finding(
            claim="c5",
            statement="D²O converges: J(θ, r) comes to rest.",
            holds=growth[-1] < 0.1 * growth[0],
            expected=False,
            reading=f"J grows by {growth[0]:.2f}, {growth[1]:.2f}, {growth[2]:.2f} nats with each doubling of the "
            "steps: the loss has no finite minimiser, so a budget or a guard is part of the method",
            numbers={"jeffrey": d2o["jeffrey"], "steps": list(checkpoints)},
        ),
    ]
