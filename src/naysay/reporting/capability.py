"""The table of what lm-eval measured: each metric of each task before and after, and its paired change."""

from collections.abc import Mapping, Sequence
from typing import Any

from naysay.reporting.formatting import MISSING, number, with_interval
from naysay.reporting.tables import Row, Table

HEADERS = ("Task and metric", "Base", "Tuned", "Change", "n")
MOST_ROWS = 40


def capability_table(capability: Mapping[str, Any] | None, policy: Mapping[str, Any] | None) -> Table | None:
    """The table of the report; None where `naysay capability` was not run, or was run on other weights.

    Args:
        capability: the content of capability.json.
        policy: the digests of the evaluated policies, from evaluation.json.
    """
    if capability is None or not policy or capability["policy"] != policy:
        return None
    rows, settings = capability_rows(capability["scores"]), capability["settings"]
    parts = [
        f"By lm-eval {capability['lm_eval']}, its standard errors in brackets; changes are paired by question, with "
        "95 % intervals."
    ]
    if settings["limit"] is not None:
        parts.append(f"Only the first {settings['limit']} questions of each task.")
    if len(rows) > MOST_ROWS:
        parts.append(f"{len(rows) - MOST_ROWS} more rows are in capability.json.")
    return Table("Capability", HEADERS, rows[:MOST_ROWS], " ".join(parts))


def capability_rows(scores: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row a score, as capability.json has them."""
    return [
        Row(
            _name(score),
            (
                _score(score["base"], score["base_stderr"]),
                _score(score["tuned"], score["tuned_stderr"]),
                with_interval(score["change"]) if score["change"] else MISSING,
                f"{score['change']['n']:,}" if score["change"] else "",
            ),
            {True: "higher is better", False: "lower is better", None: ""}[score["higher_is_better"]],
        )
        for score in scores
    ]


def _name(score: Mapping[str, Any]) -> str:
    name = f"{score['task']}: {score['metric']}"
    return name if score["filter"] == "none" else f"{name} ({score['filter']})"


def _score(value: float, stderr: float | None) -> str:
    return number(value, "plain") if stderr is None else f"{number(value, 'plain')} ({number(stderr, 'plain')})"
