"""What log-probs of given answers say: did the rejected ones fall, and the acceptable ones of the same source not?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from naysay.core.prefix import TokenGroup
from naysay.statistics.estimate import Estimate
from naysay.statistics.paired import bootstrap_mean, bootstrap_ratio_mean, clustered_share, paired_proportion_change


@dataclass(frozen=True)
class Scores:
    """Log-probs of one answer (sums, nats) before and after training, its number of tokens, and whose answer it is."""

    base: float
    tuned: float
    tokens: int
    source: str = ""
    """The provenance that the data name; empty where they name none."""

    @property
    def log_ratio(self) -> float:
        return self.tuned - self.base

    @property
    def change_per_token(self) -> float:
        return self.log_ratio / self.tokens


@dataclass(frozen=True)
class HeldoutGroup:
    """A held-out prompt: its anchors, negatives and acceptable answers, scored; reference log-probs for the margin."""

    prompt_id: str
    anchors: Sequence[Scores]
    negatives: Sequence[Scores]
    acceptable: Sequence[Scores]
    ref_anchors: Sequence[float]
    ref_negatives: Sequence[float]
    end_log_ratios: Sequence[float] = ()
    """Change of log π(end of turn) behind each answer that ended by itself, in nats."""

    def margins(self, *, alpha: float, beta: float) -> list[float]:
        """Margin (nats) of each pair under the tuned policy, as in training."""
        anchors = sum(s.tuned - r for s, r in zip(self.anchors, self.ref_anchors, strict=True)) / len(self.anchors)
        return [beta * anchors - alpha * (s.tuned - r) for s, r in zip(self.negatives, self.ref_negatives, strict=True)]

    @property
    def pairs(self) -> list[tuple[Scores, Scores]]:
        """(acceptable, rejected) answers that are compared: all but those that are known to be of different sources."""
        return [
            (a, n)
            for a in self.acceptable
            for n in self.negatives
            if a.source == n.source or not (a.source and n.source)
        ]

    def pairs_right(self, policy: Literal["base", "tuned"]) -> list[bool]:
        """For each of `pairs`: does the policy give the acceptable answer more log-prob per token?"""
        return [getattr(a, policy) / a.tokens > getattr(n, policy) / n.tokens for a, n in self.pairs]


def heldout_metrics(
    groups: Sequence[HeldoutGroup], *, alpha: float, beta: float, samples: int, seed: int
) -> dict[str, Estimate]:
    """Estimates over prompts; where a prompt has several answers they are clustered.

    `separation` is the change of log-prob per token of acceptable minus rejected answers of the same prompt, on
    prompts that have both: above 0 = acceptable answers gained on rejected ones. Answers that are known to be of
    different sources are not compared: their difference would be that of two styles.
    """

    def over(values: dict[str, list[float]]) -> Estimate:
        flat = [(key, value) for key, items in values.items() for value in items]
        return bootstrap_mean([value for _, value in flat], [key for key, _ in flat], samples=samples, seed=seed)

    def per_token(kind: str) -> Estimate:
        scored = [(g.prompt_id, s) for g in groups for s in getattr(g, kind)]
        return bootstrap_ratio_mean(
            [s.log_ratio for _, s in scored],
            [s.tokens for _, s in scored],
            [prompt for prompt, _ in scored],
            samples=samples,
            seed=seed,
        )

    with_anchor = [g for g in groups if g.anchors and g.negatives]
    both = [g for g in groups if g.pairs]
    return {
        "margin": over({g.prompt_id: g.margins(alpha=alpha, beta=beta) for g in with_anchor}),
        "negative_log_ratio": over({g.prompt_id: [s.log_ratio for s in g.negatives] for g in groups}),
        "negative_log_ratio_per_token": per_token("negatives"),
        "anchor_log_ratio_per_token": per_token("anchors"),
        "acceptable_log_ratio_per_token": per_token("acceptable"),
        "end_of_turn_log_ratio": over({g.prompt_id: list(g.end_log_ratios) for g in groups}),
        "separation": over({g.prompt_id: [separation(g)] for g in both}),
        **_pair_metrics(both),
    }


def separation(group: HeldoutGroup) -> float:
    """Change per token (nats) of the acceptable minus that of the rejected answer: mean over the pairs of a prompt."""
    return sum(a.change_per_token - n.change_per_token for a, n in group.pairs) / len(group.pairs)


def source_counts(groups: Sequence[HeldoutGroup]) -> dict[str, int]:
    """Held-out prompts with acceptable and rejected answers, by what is known of where these come from.

    `same`: of every pair that is compared; `unknown`: of some pair it is not; `different`: no pair is of one source, so
    that the prompt is left out of all comparisons of the two.
    """
    both = [g for g in groups if g.negatives and g.acceptable]
    known = [all(a.source and n.source for a, n in g.pairs) for g in both if g.pairs]
    return {"same": sum(known), "unknown": len(known) - sum(known), "different": len(both) - len(known)}


def _pair_metrics(groups: Sequence[HeldoutGroup]) -> dict[str, Estimate]:
    """Pairs (acceptable, rejected) of the same prompt: ranked right by log-prob per token before and after, and
    `implicit_pair_accuracy`: the acceptable answer gained more per token than the rejected one."""
    before = [right for g in groups for right in g.pairs_right("base")]
    after = [right for g in groups for right in g.pairs_right("tuned")]
    pairs = [(g.prompt_id, a, n) for g in groups for a, n in g.pairs]
    gained = [a.change_per_token > n.change_per_token for _, a, n in pairs]
    clusters = [prompt for prompt, _, _ in pairs]
    return {
        "pair_accuracy_base": clustered_share(before, clusters),
        "pair_accuracy_tuned": clustered_share(after, clusters),
        "pair_accuracy_change": paired_proportion_change(before, after, clusters),
        "implicit_pair_accuracy": clustered_share(gained, clusters),
    }


def nats_per_token(answers: Sequence[tuple[str, Scores]], *, samples: int, seed: int) -> dict[str, Estimate]:
    """−log-prob per token of given answers before, after, and the paired change (above 0 = less likely now)."""
    tokens, clusters = [s.tokens for _, s in answers], [prompt for prompt, _ in answers]

    def mean(values: Sequence[float]) -> Estimate:
        return bootstrap_ratio_mean(values, tokens, clusters, samples=samples, seed=seed)

    return {
        "nats_per_token_base": mean([-s.base for _, s in answers]),
        "nats_per_token_tuned": mean([-s.tuned for _, s in answers]),
        "nats_per_token_change": mean([-s.log_ratio for _, s in answers]),
    }


def group_of(prompt_ids: Sequence[int], *answers: Sequence[Sequence[int]]) -> TokenGroup:
    """One group of all answers of a prompt, duplicates once."""
    return list(prompt_ids), list(dict.fromkeys(tuple(ids) for kind in answers for ids in kind))
