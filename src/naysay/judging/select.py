"""Which anchors are trained on, and why the others are not (method.md section 5)."""

from collections.abc import Iterable, Sequence

from naysay.config.anchors import AnchorFilters
from naysay.judging.heuristics import classify, repetition
from naysay.records import Anchor, Negative, Score, Selection

SCORER = "heuristics"
EMPTY, TOO_SHORT, DEGENERATE, REFUSAL, EQUALS_NEGATIVE = (
    "empty",
    "too_short",
    "degenerate",
    "refusal",
    "equals_negative",
)


def score_anchor(anchor: Anchor) -> Score:
    """The offline heuristic's label; the value is the share of repeated word 3-grams."""
    return Score(anchor.anchor_id, SCORER, repetition(anchor.text), classify(anchor.text, anchor.finish).label)


def select_anchors(
    anchors: Sequence[Anchor], negatives: Iterable[Negative], scores: Sequence[Score], filters: AnchorFilters
) -> Selection:
    """Keep the anchors of one prompt that no filter drops. Equal anchors are all kept: their multiplicity counts."""
    rejected = {negative.text.strip() for negative in negatives}
    kept: list[str] = []
    dropped: dict[str, list[str]] = {}
    for anchor, score in zip(anchors, scores, strict=True):
        reason = _reason(anchor, score, rejected, filters)
        if reason is None:
            kept.append(anchor.anchor_id)
        else:
            dropped.setdefault(reason, []).append(anchor.anchor_id)
    return Selection(anchors[0].prompt_id, tuple(kept), {reason: tuple(ids) for reason, ids in dropped.items()})


def _reason(anchor: Anchor, score: Score, rejected: set[str], filters: AnchorFilters) -> str | None:
    text = anchor.text.strip()
    if not text:
        return EMPTY
    if text in rejected:
        return EQUALS_NEGATIVE
    if len(anchor.token_ids) - (anchor.finish == "stop") < filters.min_tokens:
        return TOO_SHORT
    if score.label == "degenerate" or score.value > filters.max_repetition:
        return DEGENERATE
    return REFUSAL if filters.drop_refusals and score.label == "refusal" else None
