"""The evaluation prompt by prompt: what a comparison of two runs pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

from naysay.evaluation.likelihood import HeldoutGroup, Scores, separation
from naysay.records import Generation, PromptEvaluation

KLValues = Mapping[str, Mapping[str, tuple[float, int]]]
"""Direction -> prompt id -> (sum in nats, tokens)."""


def prompt_rows(
    heldout: Sequence[HeldoutGroup],
    benign: Sequence[tuple[str, Scores]],
    kl: KLValues,
    generations: Sequence[Generation],
    kinds: Mapping[str, str],
    *,
    alpha: float,
    beta: float,
) -> list[PromptEvaluation]:
    """One row for each prompt of `kinds` (prompt id -> kind), in its order.

    Args:
        benign: (prompt id, scores) of each acceptable answer to a benign prompt.
        alpha, beta: of the margin.
    """
    values: dict[str, dict[str, Any]] = {prompt_id: {} for prompt_id in kinds}
    for group in heldout:
        values[group.prompt_id] |= _heldout(group, alpha, beta)
    scored: dict[str, list[Scores]] = {}
    for prompt_id, scores in benign:
        scored.setdefault(prompt_id, []).append(scores)
    for prompt_id, answers in scored.items():
        values[prompt_id] |= _sums("acceptable", answers)
    for direction, by_prompt in kl.items():
        for prompt_id, value in by_prompt.items():
            values[prompt_id][f"kl_{direction}"] = value
    for generation in generations:
        values[generation.prompt_id][f"outcome_{generation.model}"] = generation.outcome
    return [PromptEvaluation(prompt_id, kinds[prompt_id], **fields) for prompt_id, fields in values.items()]


def _heldout(group: HeldoutGroup, alpha: float, beta: float) -> dict[str, Any]:
    return {
        "margins": tuple(group.margins(alpha=alpha, beta=beta)) if group.anchors else (),
        "separation": separation(group) if group.pairs else None,
        "pairs_right_base": tuple(group.pairs_right("base")),
        "pairs_right_tuned": tuple(group.pairs_right("tuned")),
        "negatives": tuple((scores.log_ratio, scores.tokens) for scores in group.negatives),
        **_sums("negative", group.negatives),
        **_sums("anchor", group.anchors),
        **_sums("acceptable", group.acceptable),
    }


def _sums(kind: str, answers: Sequence[Scores]) -> dict[str, Any]:
    return {
        f"{kind}_log_ratio": sum((s.log_ratio for s in answers), 0.0),
        f"{kind}_tokens": sum(s.tokens for s in answers),
    }
