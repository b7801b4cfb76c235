"""The table "What would change the verdict": every condition of every rule, the measured value, how far away."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from naysay.reporting.estimates import MIN_PROMPTS, Estimate, unchanged
from naysay.reporting.formatting import MISSING, Style, interval, number
from naysay.reporting.rules import Condition, Label, Rule
from naysay.reporting.tables import Row, Table

NAMES: Mapping[Label, str] = {
    "stopped": "Stopped by the guard",
    "collapsed": "Collapsed",
    "more_harmful": "More harmful",
    "drifted": "Drifted",
    "over_refusal": "Over-refusal",
    "separated": "Separated",
    "moved_without_separation": "Moved without separation",
    "no_evidence": "No evidence",
}
MOST_PROMPTS = 1_000_000
"""More than this are not counted: no data set would settle it."""


def what_would_change(rules: Sequence[Rule], label: Label) -> Table:
    """The rules in their order (`verdict.rules`), each with its conditions; `label` is the verdict's."""
    rows = []
    for place, rule in enumerate(rules):
        rows.append(Row(f"{place}. {NAMES[rule.label]}", ("", "", "", _state(rule, label)), _needs(rule)))
        rows += [_row(condition) for condition in rule.conditions]
    foot = (
        "The first rule that applies gives the verdict. An interval narrows with the square root of the number of "
        "prompts; how many would be needed assumes that the value stays where it is, which it need not."
    )
    return Table("What would change the verdict", ("Rule", "Asks", "Measured", "n", "Holds"), rows, foot)


def checks(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """The same for summary.json: one entry for each condition."""
    return [
        {
            "rule": rule.label,
            "name": condition.name,
            "asks": condition.asks,
            "estimate": None if condition.estimate is None else dict(condition.estimate),
            "holds": condition.holds,
            "distance": distance(condition),
        }
        for rule in rules
        for condition in rule.conditions
    ]


def distance(condition: Condition) -> str:
    """How far the measure is from where the condition would turn over, in words."""
    if condition.test == "event":
        return ""
    estimate = condition.estimate
    if estimate is None:
        return "not measured: supports no claim"
    if condition.test == "enough_prompts":
        spare = estimate["n"] - MIN_PROMPTS
        if spare < 0:
            return f"{-spare} {'prompt is' if spare == -1 else 'prompts are'} missing"
        return f"{spare} more than asked" if spare else "just enough"
    if condition.test in ("above_bound", "share", "below_share"):
        return _from_bound(condition, estimate)
    return _from_zero(estimate, condition.style, condition.digits)


def prompts_needed(estimate: Estimate) -> int | None:
    """How many prompts would make the interval exclude 0 if the value stayed and half widths shrink with 1/sqrt(n).

    None where it does so already, or no number would: the value is 0 (or float noise) or there is no interval.
    """
    value, low, high, n = (estimate[key] for key in ("value", "ci_low", "ci_high", "n"))
    if low is None or high is None or unchanged(estimate) or low > 0.0 or high < 0.0:
        return None
    half = value - low if value > 0.0 else high - value
    return max(math.floor(n * (half / abs(value)) ** 2), n) + 1


def _state(rule: Rule, label: Label) -> str:
    if rule.label == label:
        return "gave the verdict"
    return "applies" if rule.applies else "no"


def _needs(rule: Rule) -> str:
    if not rule.conditions:
        return "no judge of harm was asked" if rule.label == "more_harmful" else "everything else"
    if len(rule.conditions) == 1:
        return ""
    return "any of these" if rule.needs == "any" else "all of these"


def _row(condition: Condition) -> Row:
    estimate = condition.estimate
    if condition.test == "event":
        measured, n = "", ""
    elif estimate is None:
        measured, n = MISSING, "0"
    else:
        value = number(estimate["value"], condition.style, condition.digits)
        measured = f"{value}\n{interval(estimate, condition.style, condition.digits)}".rstrip()
        n = str(estimate["n"])
    name = condition.name[:1].upper() + condition.name[1:]
    return Row(name, (condition.asks, measured, n, "yes" if condition.holds else "no"), distance(condition), 1)


def _from_zero(estimate: Estimate, style: Style, digits: int) -> str:
    value, low, high, n = (estimate[key] for key in ("value", "ci_low", "ci_high", "n"))
    if low is None or high is None:
        return f"n={n} is too few for an interval"
    if value and unchanged(estimate):
        return "unchanged: the value is float noise"
    if low > 0.0:
        return f"the lower end is {_length(low, style, digits)} above 0"
    if high < 0.0:
        return f"the upper end is {_length(high, style, digits)} below 0"
    needed = prompts_needed(estimate)
    half = _length(value - low if value > 0.0 else high - value, style, digits)
    text = f"contains 0: with n={n} the interval reaches {half} from the value towards 0"
    if needed is None:
        return f"{text}; the value is 0"
    about = f"about {needed:,}" if needed <= MOST_PROMPTS else f"more than {MOST_PROMPTS:,}"
    side = "above" if value > 0.0 else "below"
    return f"{text}; to lie {side} 0, {about} prompts would be needed"


def _from_bound(condition: Condition, estimate: Estimate) -> str:
    value, bound, high = estimate["value"], condition.bound, estimate["ci_high"]
    gap = _length(value - bound, condition.style, condition.digits)
    shown = number(bound, "percent") if condition.style == "percent" else f"{bound:.2f}"
    if value < bound or (value == bound and condition.test == "above_bound"):
        text = f"{gap} below {shown}" if value < bound else f"at {shown}"
        reaches = high is not None and high > bound
        return f"{text}; its interval reaches above it" if reaches else text
    text = f"{gap} above {shown}"
    if condition.before is not None and value <= condition.before["value"]:
        return f"{text}, but not more than before ({number(condition.before['value'], condition.style)})"
    return text


def _length(value: float, style: Style, digits: int) -> str:
    """A distance, without a sign: of two shares in points."""
    unit: Style = "plain" if style == "signed" else "points" if style == "percent" else style
    return number(abs(value), unit, digits).removeprefix("+")
