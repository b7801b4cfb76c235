"""Generations side by side: the same prompt and seed, answered by the base and by the tuned model."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from naysay.records import Generation
from naysay.reporting.tables import KINDS

OPEN_PAIRS = 12
MOST_PAIRS = 200
_HARMLESS = ("benign", "lookalike")


@dataclass(slots=True)
class Pair:
    """One prompt with its two answers; a side is None where that model gave none for this seed."""

    prompt: str
    seed: int
    base: Generation | None = None
    tuned: Generation | None = None


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


def side_by_side(generations: Iterable[Generation]) -> list[Section]:
    """Group answers by kind (harmless kinds last) and pair them by prompt and seed, in their order in the file.

    Only the kinds "benign" and "lookalike" count as harmless; any other is folded.
    """
    kinds: dict[str, dict[tuple[str, int], Pair]] = {}
    for item in generations:
        pairs = kinds.setdefault(item.kind, {})
        pair = pairs.setdefault((item.prompt_id, item.seed), Pair(item.prompt, item.seed))
        if item.model == "base":
            pair.base = item
        else:
            pair.tuned = item
    order = sorted(kinds, key=lambda kind: (kind in _HARMLESS, kind))
    return [_section(kind, list(kinds[kind].values())) for kind in order]


def _section(kind: str, pairs: list[Pair]) -> Section:
    sensitive = kind not in _HARMLESS
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
