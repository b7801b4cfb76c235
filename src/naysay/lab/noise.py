"""Claim d: wrong labels. Harm left at equal drift: where J(θ, r) reaches 1 nat, each objective at unit speed.

Equal drift, and not equal steps: no objective wins by having moved further. The few runs that come to rest before 1 nat
(DPO, AltPO: their gradient vanishes) count with their end; their number is reported.

Legend: S policies = levels of noise x seeds.
"""

from collections.abc import Iterable
from dataclasses import replace
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
    summary,
    train,
)
from naysay.lab.world import (
    HARMFUL,
    annotated,
    answer_logps,
    jeffrey,
    make_world,
    mass,
    random_policies,
    tilted,
)

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)
SEEDS, GROUPS, ANCHORS = 48, 32, 11
BETA, DRIFT = 1.0, 1.0
INSTRUCTION = -1.5
"""A moral instruction moves the log-odds of a harmful anchor by this much."""
INSTRUCTED = "d2o, instructed"
_STEPS, _RATE = 130, 0.04


class Noise:
    """The same worlds at every share of wrong labels, side by side."""

    def __init__(self, seed: int):
        self.world, self.generator = make_world(), torch.Generator().manual_seed(seed)
        self.start = random_policies(SEEDS, self.generator).repeat(len(SHARES), 1)
        self.initial = answer_logps(self.world, self.start)
        self.prompts = balanced_prompts(len(self.start), GROUPS)
        self.came_to_rest: dict[str, int] = {}
        self.share_S11 = torch.tensor(SHARES, dtype=torch.float64).repeat_interleave(SEEDS)[:, None, None]

    def mixed(self, right: float, wrong: float) -> Tensor:
        """Answers reported with a share of mistakes `right`, or `wrong` where the label is wrong."""
        labels = annotated(self.world, self.initial, right), annotated(self.world, self.initial, wrong)
        return (1.0 - self.share_S11) * labels[0] + self.share_S11 * labels[1]

    def draw(self, probs_SXV: Tensor, each: int = 1) -> Tensor:
        return draw(probs_SXV, self.prompts, each, self.generator)

    def harm_at_drift(self, name: str, draws: Draws) -> Tensor:
        """[S] harm left where J first reaches the drift. A run that comes to rest before it counts with its end."""
        course = train(
            self.world,
            self.start,
            References(self.initial, self.initial),
            draws,
            objectives(BETA)[name],
            steps=_STEPS,
            rate=_RATE,
            unit_speed=True,
        )
        drift_TS = course.along(lambda logp: jeffrey(logp, self.initial).mean(-1), self.world)
        theta_SP, step_S = course.first_at(-drift_TS, -DRIFT)
        self.came_to_rest[name] = self.came_to_rest.get(name, 0) + int(step_S.isnan().sum())
        return harm_left(self.world, Course(theta_SP[None]), self.initial)[0]


def check(seed: int) -> list[Finding]:
    """Findings d1 to d4."""
    return [_positives(Noise(seed)), *_negatives(Noise(seed + 1))]


def by_level(values_S: Tensor) -> list[dict[str, Any]]:
    """Mean over seeds with its interval for each share of wrong labels."""
    return [summary(row) for row in values_S.reshape(len(SHARES), SEEDS)]


def paired(left: dict[str, Tensor], than: str) -> dict[str, list[dict[str, Any]]]:
    """Harm left by each other objective minus that of `than`, on the same worlds."""
    return {name: by_level(values - left[than]) for name, values in left.items() if name != than}


def _setting(noise: Noise, instructed: Tensor) -> dict[str, Any]:
    return {
        "shares": list(SHARES),
        "seeds": SEEDS,
        "groups": GROUPS,
        "anchors": ANCHORS,
        "drift": DRIFT,
        "runs_at_rest_before_drift": noise.came_to_rest,
        "plain_anchors_harmful": float(mass(noise.world, noise.initial, HARMFUL).mean()),
        "instructed_anchors_harmful": float(mass(noise.world, instructed, HARMFUL).mean()),
    }


def _positives(noise: Noise) -> Finding:
    """DPO's positives are human and partly harmful; D²O draws its own, harmful ones among them."""
    negatives = noise.draw(annotated(noise.world, noise.initial, 0.0))[..., 0]
    instructed = tilted(noise.world, noise.initial, INSTRUCTION)
    plain = Draws(
        noise.prompts, negatives, noise.draw(noise.initial.exp(), ANCHORS), chosen=noise.draw(noise.mixed(1.0, 0.0))
    )
    left = {
        "dpo": noise.harm_at_drift("dpo", plain),
        "d2o": noise.harm_at_drift("d2o", plain),
        INSTRUCTED: noise.harm_at_drift("d2o", replace(plain, anchors=noise.draw(instructed.exp(), ANCHORS))),
    }
    rows, against = {name: by_level(values) for name, values in left.items()}, paired(left, "dpo")
    grows = summary(left["dpo"][-SEEDS:] - left["dpo"][:SEEDS])
    first = {name: _first(row["ci_high"] < 0 for row in against[name]) for name in against}
    numbers = _setting(noise, instructed)
    return Finding(
        claim="d1",
        statement="Harmful answers among human positives cost DPO; D²O needs no positives and is better from some "
        "share on.",
        holds=grows["ci_low"] > 0 and all(against[name][-1]["ci_high"] < 0 for name in against),
        reading=f"harm left at J = 1: DPO {rows['dpo'][0]['value']:.3f} with clean positives, "
        f"{rows['dpo'][-1]['value']:.3f} with 40 % harmful; D²O {rows['d2o'][-1]['value']:.3f} with plain own samples "
        f"({numbers['plain_anchors_harmful']:.0%} harmful), {rows[INSTRUCTED][-1]['value']:.3f} with instructed ones "
        f"({numbers['instructed_anchors_harmful']:.1%}). D²O is better with certainty from {first['d2o']} (plain) and "
        f"{first[INSTRUCTED]} (instructed) on; with clean positives it leaves {_signed(against['d2o'][0])} and "
        f"{_signed(against[INSTRUCTED][0])} relative to DPO",
        numbers=numbers | {"harm_left": rows, "minus_dpo": against, "dpo_40_minus_0": grows},
    )


def _negatives(noise: Noise) -> list[Finding]:
    """A share of the reported negatives is not harmful."""
    negatives = noise.draw(noise.mixed(0.0, 1.0))[..., 0]
    instructed = tilted(noise.world, noise.initial, INSTRUCTION)
    plain = Draws(noise.prompts, negatives, noise.draw(noise.initial.exp(), ANCHORS))
    better = replace(plain, anchors=noise.draw(instructed.exp(), ANCHORS))
    left = {name: noise.harm_at_drift(name, plain) for name in ("d2o", "npo", "ga", "altpo", "dpo_self")}
    left |= {f"{name}, instructed": noise.harm_at_drift(name, better) for name in ("d2o", "altpo")}
    rows = {name: by_level(values) for name, values in left.items()}
    to_plain, to_instructed = paired(left, "d2o"), paired(left, INSTRUCTED)
    numbers = _setting(noise, instructed) | {
        "harm_left": rows,
        "minus_d2o": to_plain,
        "minus_d2o_instructed": to_instructed,
    }
    spoken = {name: " / ".join(f"{row['value']:.3f}" for row in values) for name, values in rows.items()}
    return [
        Finding(
            claim="d2",
            statement="With anchors drawn under a moral instruction, D²O leaves less harm than NPO and GA at equal "
            "drift, whatever the share of wrong negatives up to 40 %.",
            holds=all(row["ci_low"] > 0 for name in ("npo", "ga") for row in to_instructed[name]),
            reading=f"harm left at 0, 10, 20, 30, 40 % wrong: D²O {spoken[INSTRUCTED]}, NPO {spoken['npo']}, GA "
            f"{spoken['ga']}",
            numbers=numbers,
        ),
        Finding(
            claim="d3",
            statement="The same with plain own samples as anchors, harmful ones among them.",
            holds=all(row["value"] > 0 for name in ("npo", "ga") for row in to_plain[name]),
            expected=False,
            reading=f"D²O {spoken['d2o']}: {_standing(to_plain['npo'], 'NPO')}; {_standing(to_plain['ga'], 'GA')}. "
            "These anchors hold harm up too; anchors with less of it (d2) are the remedy",
            numbers={"minus_d2o": {name: to_plain[name] for name in ("npo", "ga")}},
        ),
        Finding(
            claim="d4",
            statement="With plain anchors and 20 % or more wrong negatives, one sigmoid around the mean leaves less "
            "harm than AltPO and DPO with one own sample.",
            holds=all(row["ci_low"] > 0 for name in ("altpo", "dpo_self") for row in to_plain[name][2:]),
            reading=f"D²O {spoken['d2o']}, AltPO {spoken['altpo']}, DPO-self {spoken['dpo_self']}. With "
            f"instructed anchors AltPO {spoken['altpo, instructed']}, D²O {spoken[INSTRUCTED]}",
            numbers={"minus_d2o": {name: to_plain[name] for name in ("altpo", "dpo_self")}},
        ),
    ]


def _first(certain: Iterable[bool]) -> str:
    """The first share of wrong labels from which on something is certain at every share."""
    flags = list(certain)
    since = next((share for index, share in enumerate(SHARES) if all(flags[index:])), None)
    return "no share" if since is None else f"{since:.0%}"


def _standing(rows: list[dict[str, Any]], than: str) -> str:
    """At which shares the difference (the other minus D²O) is on one side of 0 with certainty."""
    labelled = [(f"{share:.0%}", row) for share, row in zip(SHARES, rows, strict=True)]
    better = ", ".join(share for share, row in labelled if row["ci_low"] > 0) or "no share"
    worse = ", ".join(share for share, row in labelled if row["ci_high"] < 0) or "no share"
    return f"better than {than} with certainty at {better} wrong, worse at {worse}"


def _signed(row: dict[str, Any]) -> str:
    return f"{row['value']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
