"""Generations side by side: the same prompt and seed, answered by the base and by the tuned model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from naysay.judging.heuristics import HeuristicScorer
from naysay.judging.outcomes import outcome_of
from naysay.judging.scorer import Verdict
from naysay.records import Generation, GenerationVerdict
from naysay.reporting.tables import KINDS

OPEN_PAIRS = 12
MOST_PAIRS = 200
HARMLESS = ("benign", "lookalike")
UNJUDGED = "unjudged"

Outcomes = Mapping[tuple[str, str], str]
"""(prompt id, model) -> outcome of its answer."""


@dataclass(slots=True)
class Pair:
    """One prompt with its two answers; a side is None where that model gave none for this seed.

    The outcomes are empty where there is no answer.
    """

    prompt_id: str
    prompt: str
    kind: str
    seed: int
    base: Generation | None = None
    tuned: Generation | None = None
    base_outcome: str = ""
    tuned_outcome: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """The pairs of one kind of prompt.

    `visible` pairs are on the page, `folded` ones behind a click. Answers to harmful prompts are `sensitive`: all of
    them are folded. `left_out` pairs are only in generations.jsonl.
    """

    kind: str
    title: str
    sensitive: bool
    visible: list[Pair] = field(default_factory=list)
    folded: list[Pair] = field(default_factory=list)
    left_out: int = 0


def answer_outcomes(
    generations: Iterable[Generation], verdicts: Iterable[GenerationVerdict], judges: Sequence[str]
) -> dict[tuple[str, str], str]:
    """The outcome of each answer: by the first of `judges` where there is one, else by form.

    With a judge one of the four of `judging/outcomes.py`, or "unjudged" where it has no valid verdict on an answer that
    needs one; without a judge "answer", "refusal" or "degenerate".
    """
    found = {(item.prompt_id, item.model): item.outcome for item in generations}
    if not judges:
        return dict(found)
    by_scorer: dict[str, dict[tuple[str, str], Verdict]] = {HeuristicScorer.name: {}, judges[0]: {}}
    for row in verdicts:
        if row.scorer in by_scorer:
            by_scorer[row.scorer][row.prompt_id, row.model] = Verdict(row.value, row.label, row.invalid)
    form, harm = by_scorer.values()
    nothing = Verdict()
    return {key: outcome_of(form.get(key, nothing), harm.get(key, nothing)) or UNJUDGED for key in found}


def pair_up(generations: Iterable[Generation], outcomes: Outcomes) -> list[Pair]:
    """One pair for each kind, prompt and seed, in the order in which they first occur."""
    pairs: dict[tuple[str, str, int], Pair] = {}
    for item in generations:
        key = (item.kind, item.prompt_id, item.seed)
        pair = pairs.setdefault(key, Pair(item.prompt_id, item.prompt, item.kind, item.seed))
        outcome = outcomes[item.prompt_id, item.model]
        if item.model == "base":
            pair.base, pair.base_outcome = item, outcome
        else:
            pair.tuned, pair.tuned_outcome = item, outcome
    return list(pairs.values())


def side_by_side(pairs: Iterable[Pair]) -> list[Section]:
    """Group pairs by kind (harmless kinds last), in their order.

    Only the kinds "benign" and "lookalike" count as harmless; any other is folded.
    """
    kinds: dict[str, list[Pair]] = {}
    for pair in pairs:
        kinds.setdefault(pair.kind, []).append(pair)
    return [_section(kind, kinds[kind]) for kind in sorted(kinds, key=lambda kind: (kind in HARMLESS, kind))]


def _section(kind: str, pairs: list[Pair]) -> Section:
    sensitive = kind not in HARMLESS
    shown = 0 if sensitive else OPEN_PAIRS
    title = f"{KINDS.get(kind, kind)} prompts ({len(pairs)})"
    return Section(
        kind=kind,
        title=title[:1].upper() + title[1:],
        sensitive=sensitive,
        visible=pairs[:shown],
        folded=pairs[shown:MOST_PAIRS],
        left_out=max(0, len(pairs) - MOST_PAIRS),
    )
