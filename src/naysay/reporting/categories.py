"""What happened to the rejected answers of each category, where the data name categories."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from naysay.records import PromptEvaluation
from naysay.reporting.estimates import MIN_PROMPTS
from naysay.reporting.formatting import MISSING, Style, interval, number
from naysay.reporting.generations import UNJUDGED, Pair
from naysay.reporting.tables import Row, Table
from naysay.statistics import Estimate, bootstrap_mean, bootstrap_ratio_mean, paired_proportion_change, wilson

NO_CATEGORY = "(no category)"
MOST_ROWS = 40
Categories = Mapping[str, Mapping[str, Any]]


def by_category(
    negatives: Iterable[Mapping[str, Any]],
    rows: Iterable[PromptEvaluation],
    pairs: Iterable[Pair],
    *,
    judged: bool,
    samples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Figures of each category that has evaluated rejected answers, the category with the most prompts first.

    Empty where none of them names one. A prompt whose rejected answers have several categories counts for each: with
    those answers in `negative_log_ratio_per_token` and `margin`, as a whole in `separation` and in the harm figures.

    Args:
        negatives: rows of negatives.jsonl, of all splits.
        rows: rows of evaluation_prompts.jsonl.
        pairs: answers before and after, with their outcomes.
        judged: whether these outcomes are a judge's.
        samples, seed: of the bootstrap.
    """
    evaluated = {row.prompt_id: row for row in rows if row.negatives}
    in_data: Counter[str] = Counter()
    of_prompt: dict[str, list[str]] = {}
    for negative in negatives:
        category = negative.get("category") or NO_CATEGORY
        in_data[category] += 1
        if negative["prompt_id"] in evaluated:
            of_prompt.setdefault(negative["prompt_id"], []).append(category)
    # Other numbers of answers: the rows are of other data.
    known = {key: names for key, names in of_prompt.items() if len(names) == len(evaluated[key].negatives)}
    sizes = Counter(category for names in known.values() for category in set(names))
    if set(sizes) <= {NO_CATEGORY}:
        return {}
    answered = [pair for pair in pairs if judged and UNJUDGED not in (pair.base_outcome, pair.tuned_outcome)]
    return {
        category: {
            "negatives": in_data[category],
            "prompts": size,
            **_likelihoods(category, known, evaluated, samples, seed),
            "harmful": _harm([p for p in answered if category in known.get(p.prompt_id, ())]) if judged else None,
        }
        for category, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    }


def category_table(categories: Categories) -> Table | None:
    """The figures of `by_category` as a table; None where there are none."""
    if not categories:
        return None
    judged = any(figures["harmful"] is not None for figures in categories.values())
    headers = ("Category", "Answers", "Prompts", "Log-ratio", "Margin", "Separation")
    shown = list(categories.items())[:MOST_ROWS]
    foot = (
        "Answers: all rejected ones of the category, in training too. The other columns are of held-out prompts, with "
        "95 % intervals over prompts: log-ratio of those answers in nats/token, margin and separation as above. A "
        "prompt whose rejected answers have several categories counts for each. With many categories some intervals "
        "exclude 0 by chance."
    )
    if len(categories) > MOST_ROWS:
        foot += f" {len(categories) - MOST_ROWS} categories with fewer prompts are only in summary.json."
    return Table(
        "Categories of the rejected answers",
        (*headers, "Harmful") if judged else headers,
        [_row(name, figures, judged) for name, figures in shown],
        foot,
    )


def _likelihoods(
    category: str,
    known: Mapping[str, Sequence[str]],
    evaluated: Mapping[str, PromptEvaluation],
    samples: int,
    seed: int,
) -> dict[str, Any]:
    ratios: list[tuple[str, float, int]] = []
    margins: list[tuple[str, float]] = []
    separations = []
    for prompt_id, names in known.items():
        row = evaluated[prompt_id]
        places = [place for place, name in enumerate(names) if name == category]
        ratios += [(prompt_id, *row.negatives[place]) for place in places]
        margins += [(prompt_id, row.margins[place]) for place in places if row.margins]
        if places and row.separation is not None:
            separations.append(row.separation)
    log_ratio = bootstrap_ratio_mean(
        [ratio for _, ratio, _ in ratios],
        [tokens for _, _, tokens in ratios],
        [prompt_id for prompt_id, _, _ in ratios],
        samples=samples,
        seed=seed,
    )
    margin = bootstrap_mean([value for _, value in margins], [key for key, _ in margins], samples=samples, seed=seed)
    separation = bootstrap_mean(separations, samples=samples, seed=seed)
    return {
        "negative_log_ratio_per_token": log_ratio.as_dict(),
        "margin": margin.as_dict(),
        "separation": separation.as_dict(),
    }


def _harm(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Shares of harmful answers, over prompts whose two answers were judged, and the paired change."""
    before, after = ([getattr(pair, f"{side}_outcome") == "harmful" for pair in pairs] for side in ("base", "tuned"))
    found: dict[str, Estimate] = {
        "base": wilson(sum(before), len(pairs)),
        "tuned": wilson(sum(after), len(pairs)),
        "change": paired_proportion_change(before, after),
    }
    return {name: estimate.as_dict() for name, estimate in found.items()}


def _row(name: str, figures: Mapping[str, Any], judged: bool) -> Row:
    cells = [
        f"{figures['negatives']:,}",
        f"{figures['prompts']:,}",
        _cell(figures["negative_log_ratio_per_token"]),
        _cell(figures["margin"], digits=2),
        _cell(figures["separation"]),
    ]
    if judged:
        cells.append(_harm_cell(figures["harmful"]))
    few = f"too few: fewer than {MIN_PROMPTS} prompts"
    return Row(name, tuple(cells), few if figures["prompts"] < MIN_PROMPTS else "")


def _harm_cell(harm: Mapping[str, Any]) -> str:
    before, after, change = (harm[side] for side in ("base", "tuned", "change"))
    if change["value"] is None:
        return MISSING
    shares = f"{number(before['value'], 'percent')} -> {number(after['value'], 'percent')}"
    return f"{shares}\n{number(change['value'], 'points')}\n{interval(change, 'points')}\nn={change['n']}"


def _cell(estimate: Mapping[str, Any], style: Style = "signed", digits: int = 3) -> str:
    return f"{number(estimate['value'], style, digits)}\n{interval(estimate, style, digits)}".rstrip()
