"""Which learning rate an objective is compared with: one rule for all, on the dev split."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_DEGENERATE_RISE = 0.05
"""Share of generations: a rate whose degenerate answers rose by more is not taken."""

KL_GROWTH = 2.0
"""KL to base is taken to grow with this power of the steps: it is quadratic in how far the weights went, and early on
they go about as far in each step. Measured for twice the steps in the ten known-rule cells of docs/lab_notes.md: x 2.7
to x 7.6, median x 4.6."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A learning rate and what a run with half the budget gave on the dev split.

    Nats per token, but `margin` (nats) and `degenerate_rise` (share of generations). `kl` is the larger of both
    directions. None where it was not measured; `diverged` says why a run has no figures at all.
    """

    learning_rate: float
    separation: float | None = None
    margin: float | None = None
    kl: float | None = None
    degenerate_rise: float | None = None
    diverged: str = ""

    @classmethod
    def of(cls, learning_rate: float, evaluation: Mapping[str, Any]) -> "Candidate":
        """Read from the content of evaluation.json."""
        found = [evaluation["kl"][direction]["value"] for direction in ("base_to_tuned", "tuned_to_base")]
        return cls(
            learning_rate,
            separation=evaluation["heldout"]["separation"]["value"],
            margin=evaluation["heldout"]["margin"]["value"],
            kl=None if None in found else max(found),
            degenerate_rise=evaluation["generations"]["change"]["degenerate"]["value"],
        )

    def qualifies(self, kl_bound: float, budget_ratio: float) -> bool:
        """The policy is whole, and is expected to be near the base still when it has had the whole budget."""
        return (
            self.kl is not None
            and self.kl * budget_ratio**KL_GROWTH <= kl_bound
            and self.degenerate_rise is not None
            and self.degenerate_rise <= MOST_DEGENERATE_RISE
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The rate, why it, and whether it is the smallest or the largest that was tried."""

    learning_rate: float
    reason: str
    at_edge: bool


def choose(candidates: Sequence[Candidate], kl_bound: float, budget_ratio: float) -> Choice | None:
    """The rule, the same for every objective.

    Among the rates that qualify (KL to base, the larger way, at most `kl_bound` when it is extrapolated to the whole
    budget, `budget_ratio` times the candidates'; degenerate share up by at most 5 points) the largest separation, where
    the split has acceptable answers, else the largest margin: the fall of the rejected answers' log-prob relative to
    the anchors'. Where none qualifies, the smallest KL. Of exactly equal ones the smaller rate. None where every run
    diverged.
    """
    alive = [candidate for candidate in candidates if not candidate.diverged]
    if not alive:
        return None
    passing = [candidate for candidate in alive if candidate.qualifies(kl_bound, budget_ratio)]
    if not passing:
        best = min(alive, key=lambda c: (math.inf if c.kl is None else c.kl, c.learning_rate))
        reason = (
            "smallest rate: no KL to base could be measured"
            if best.kl is None
            else f"smallest KL to base ({best.kl:.3f} nats/token): no rate is within the bounds"
        )
    else:
        name = "separation" if any(c.separation is not None for c in passing) else "margin"
        best = max(passing, key=lambda c: (_or_lowest(getattr(c, name)), -c.learning_rate))
        value, unit = getattr(best, name), "nats/token" if name == "separation" else "nats"
        shown = "not measured" if value is None else f"{value:+.3f} {unit}"
        reason = f"largest dev {name} ({shown}) of the {len(passing)} of {len(candidates)} rates within the bounds"
    rates = [candidate.learning_rate for candidate in candidates]
    edge = len(rates) > 1 and best.learning_rate in {min(rates), max(rates)}
    return Choice(best.learning_rate, reason, edge)


def _or_lowest(value: float | None) -> float:
    return -math.inf if value is None else value
