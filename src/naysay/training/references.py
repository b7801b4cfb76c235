"""Fills the groups with reference log-probs: r⁻ under the anchors, r⁺ under the negatives."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from naysay.modeling.digests import policy_digest
from naysay.modeling.reference import score_groups
from naysay.training.data import EncodedGroup, with_references

OpenModel = Callable[[], AbstractContextManager[nn.Module]]


@dataclass(frozen=True)
class Reference:
    """A frozen policy: how to get at it for scoring, and its digest."""

    digest: str
    open: OpenModel

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any) -> "Reference":
        return cls(policy_digest(model, tokenizer), lambda: nullcontext(model))


@dataclass(frozen=True)
class ReferencePair:
    """The two roles of Eq. 3: `negative` is r⁻ (under the anchors), `positive` is r⁺ (under the negatives)."""

    negative: Reference
    positive: Reference

    @property
    def digests(self) -> dict[str, str]:
        return {"negative": self.negative.digest, "positive": self.positive.digest}


def add_reference_logps(
    groups: Sequence[EncodedGroup],
    references: ReferencePair,
    tokenizer: Any,
    *,
    cache_root: Path,
    tokens_per_microbatch: int,
    head_chunk: int | None,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> list[EncodedGroup]:
    """The groups with `ref_anchors`, `ref_negatives` and `ref_others` (sums in nats), from the cache where they are
    known. Others are scored as what they stand beside: chosen answers under r⁻ like anchors, other prompts' negatives
    under r⁺.

    Where both roles are the same policy, each prompt is computed once for all its answers. With several ranks each
    scores its share of the batches, and after `barrier` all read the whole.
    """

    def score(reference: Reference, token_groups: list[Any]) -> list[dict[tuple[int, ...], float]]:
        settings = {
            "cache_root": cache_root,
            "tokens_per_microbatch": tokens_per_microbatch,
            "head_chunk": head_chunk,
            "digest": reference.digest,
        }
        with reference.open() as model:
            if world_size > 1:
                score_groups(model, tokenizer, token_groups, shard=(rank, world_size), **settings)
                barrier()
            scored = score_groups(model, tokenizer, token_groups, **settings)
        return [
            dict(zip(map(tuple, answers), values.logps, strict=True))
            for (_, answers), values in zip(token_groups, scored, strict=True)
        ]

    def tokens(answers: Callable[[EncodedGroup], Iterable[tuple[int, ...]]]) -> list[Any]:
        return [(group.prompt_ids, list(dict.fromkeys(answers(group)))) for group in groups]

    if references.negative.digest == references.positive.digest:
        under_negative = under_positive = score(
            references.negative, tokens(lambda group: (*group.anchors, *group.negatives, *group.others))
        )
    else:
        under_negative = score(
            references.negative, tokens(lambda g: (*g.anchors, *(() if g.others_fixed else g.others)))
        )
        under_positive = score(
            references.positive, tokens(lambda g: (*g.negatives, *(g.others if g.others_fixed else ())))
        )
    return [
        with_references(
            group,
            [minus[ids] for ids in group.anchors],
            [plus[ids] for ids in group.negatives],
            [(plus if group.others_fixed else minus)[ids] for ids in group.others],
        )
        for group, minus, plus in zip(groups, under_negative, under_positive, strict=True)
    ]
