"""The first figures of the page: what style cannot fake."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from naysay.reporting.estimates import estimate_at, may_be_zero
from naysay.reporting.formatting import interval, number, with_interval
from naysay.reporting.verdict_line import NO_CHANGE, split_name


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure in large letters: what it is, the value, and below it the interval and what it means."""

    name: str
    value: str
    detail: str
    note: str


def headline_figures(evaluation: Mapping[str, Any]) -> list[Figure]:
    """Separation, and pairs ranked right before and after; none where no held-out prompt has both kinds of answers.

    Both compare acceptable with rejected answers to the same prompt, so that what all of them share, their writer's
    style, cancels.
    """
    separation = estimate_at(evaluation, "heldout", "separation")
    if separation is None:
        return []
    detail = f"nats/token {interval(separation)}, n={separation['n']} {split_name(evaluation)} prompts"
    figures = [
        Figure(
            "Separation",
            number(separation["value"]),
            _marked(detail, separation),
            "What acceptable answers gained on rejected ones of the same prompts. Above 0 is good.",
        )
    ]
    base, tuned, change = (
        estimate_at(evaluation, "heldout", f"pair_accuracy_{side}") for side in ("base", "tuned", "change")
    )
    if base is not None and tuned is not None:
        before, after = number(base["value"], "percent"), number(tuned["value"], "percent")
        detail = (
            f"{interval(base, 'percent')} -> {interval(tuned, 'percent')}, change {with_interval(change, 'points')}, "
            f"n={tuned['n']} {split_name(evaluation)} prompts"
        )
        note = "Pairs in which the model gives the acceptable answer more log-probability per token. More is good."
        figures.append(Figure("Pairs ranked right", f"{before} -> {after}", _marked(detail, change), note))
    return figures


def _marked(detail: str, estimate: Mapping[str, Any] | None) -> str:
    return f"{detail}: {NO_CHANGE}" if may_be_zero(estimate) else detail
