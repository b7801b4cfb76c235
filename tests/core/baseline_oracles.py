"""Every baseline once more, for one pair and in plain Python floats: loss and derivatives, each written out by hand.

Nothing here is shared with the library: no torch, no masks, no broadcasting. Log-probs are sums in nats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from naysay.core import baselines
from naysay.core.groups import Answers, D2OTerms, GroupLogps


@dataclass(frozen=True)
class Pair:
    """A prompt with one negative and only what is valid of the rest: (log-prob, its reference) of each answer.

    Example: `Pair(anchors=[(-9.0, -10.0)], negative=-15.0, ref_negative=-20.0, tokens=5.0, unlikelihood=-3.0,
    chosen=[(-6.0, -8.0)], chosen_tokens=[4.0], unrelated=[-12.0])`.
    """

    anchors: list[tuple[float, float]]
    negative: float
    ref_negative: float
    tokens: float
    unlikelihood: float
    chosen: list[tuple[float, float]]
    chosen_tokens: list[float]
    unrelated: list[float]

    @property
    def r(self) -> float:
        return self.negative - self.ref_negative

    @property
    def r_anchors(self) -> list[float]:
        return [logp - ref for logp, ref in self.anchors]

    @property
    def r_chosen(self) -> list[float]:
        return [logp - ref for logp, ref in self.chosen]


@dataclass(frozen=True)
class Found:
    """Loss of a pair, and its derivatives with respect to log-probs under the policy (empty: all 0)."""

    loss: float
    negative: float = 0.0
    anchors: tuple[float, ...] = ()
    chosen: tuple[float, ...] = ()
    unrelated: tuple[float, ...] = ()
    unlikelihood: float = 0.0


def sigma(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def cost(m: float) -> float:
    """−log σ(m)."""
    return math.log1p(math.exp(-m))


def ga(pair: Pair) -> Found:
    return Found(pair.negative, negative=1.0)


def npo(pair: Pair, beta: float) -> Found:
    return Found(2 / beta * cost(-beta * pair.r), negative=2 * sigma(beta * pair.r))


def simnpo(pair: Pair, beta: float, gamma: float) -> Found:
    m = -beta * pair.negative / pair.tokens - gamma
    return Found(2 / beta * cost(m), negative=2 / pair.tokens * sigma(-m))


def unlikelihood(pair: Pair) -> Found:
    return Found(-pair.unlikelihood, unlikelihood=-1.0)


def llmu(pair: Pair, forget: float, mismatch: float, normal: float) -> Found:
    """Of a group that has negatives; `normal` is not read."""
    count = len(pair.unrelated)
    cross_entropy = -sum(pair.unrelated) / count if count else 0.0
    return Found(
        forget * pair.negative + mismatch * cross_entropy,
        negative=forget,
        unrelated=tuple([-mismatch / count] * count if count else ()),
    )


def kto_negative(pair: Pair, beta: float, lambda_u: float, z0: float) -> Found:
    value = sigma(beta * (z0 - pair.r))
    return Found(lambda_u * (1 - value), negative=lambda_u * beta * value * (1 - value))


def bco_negative(pair: Pair, beta: float, delta: float) -> Found:
    m = -(beta * pair.r - delta)
    return Found(cost(m), negative=beta * sigma(-m))


def ulma_negative(pair: Pair, beta: float, c: float) -> Found:
    m = -beta * pair.r - c
    return Found(cost(m), negative=beta * sigma(-m))


def altpo(pair: Pair, beta: float) -> Found:
    margins = [beta * r - beta * pair.r for r in pair.r_anchors]
    K = len(margins)
    return Found(
        sum(2 / beta * cost(m) for m in margins) / K,
        negative=sum(2 * sigma(-m) for m in margins) / K,
        anchors=tuple(-2 * sigma(-m) / K for m in margins),
    )


def pmpo_negative(pair: Pair, beta: float) -> Found:
    K = len(pair.anchors)
    kl = sum(ref - logp for logp, ref in pair.anchors) / K
    return Found(pair.negative + beta * kl, negative=1.0, anchors=tuple([-beta / K] * K))


def dpo_self(pair: Pair, beta: float) -> Found:
    m = beta * pair.r_anchors[0] - beta * pair.r
    rest = [0.0] * (len(pair.anchors) - 1)
    return Found(cost(m), negative=beta * sigma(-m), anchors=(-beta * sigma(-m), *rest))


def dpo(pair: Pair, beta: float) -> Found:
    return _mean([(cost(m), beta * sigma(-m), -beta * sigma(-m)) for m in (beta * (r - pair.r) for r in pair.r_chosen)])


def ipo(pair: Pair, tau: float) -> Found:
    distances = [r - pair.r - 1 / (2 * tau) for r in pair.r_chosen]
    return _mean([(d**2, -2 * d, 2 * d) for d in distances])


def slic(pair: Pair, delta: float, lambda_sft: float) -> Found:
    parts = []
    for logp, _ in pair.chosen:
        hinge = delta - logp + pair.negative
        inside = float(hinge > 0)
        parts.append((max(0.0, hinge) - lambda_sft * logp, inside, -inside - lambda_sft))
    return _mean(parts)


def simpo(pair: Pair, beta: float, gamma: float) -> Found:
    parts = []
    for (logp, _), tokens in zip(pair.chosen, pair.chosen_tokens, strict=True):
        m = beta / tokens * logp - beta / pair.tokens * pair.negative - gamma
        parts.append((cost(m), beta / pair.tokens * sigma(-m), -beta / tokens * sigma(-m)))
    return _mean(parts)


def sft_chosen(pair: Pair) -> Found:
    return _mean([(-logp, 0.0, -1.0) for logp, _ in pair.chosen])


def _mean(parts: list[tuple[float, float, float]]) -> Found:
    """Mean over the chosen answers of (loss, derivative by the negative, derivative by that chosen answer)."""
    count = len(parts)
    loss, negative, _ = (sum(column) / count for column in zip(*parts, strict=True))
    return Found(loss, negative=negative, chosen=tuple(chosen / count for _, _, chosen in parts))


@dataclass(frozen=True)
class Sample:
    """Everything that a baseline may read, of a batch of groups."""

    group: GroupLogps
    chosen: Answers
    unrelated: Answers
    negative_tokens: torch.Tensor
    negative_unlikelihood: torch.Tensor

    def pair(self, b: int, n: int) -> Pair:
        """One pair of the batch, as the oracles want it."""
        group, chosen, unrelated = self.group, self.chosen, self.unrelated
        anchor, picked = group.anchor_mask[b], chosen.mask[b]
        return Pair(
            anchors=_both(group.anchors[b][anchor], group.ref_anchors[b][anchor]),
            negative=group.negatives[b, n].item(),
            ref_negative=group.ref_negatives[b, n].item(),
            tokens=self.negative_tokens[b, n].item(),
            unlikelihood=self.negative_unlikelihood[b, n].item(),
            chosen=_both(chosen.logps[b][picked], chosen.ref_logps[b][picked]),
            chosen_tokens=chosen.tokens[b][picked].tolist(),
            unrelated=unrelated.logps[b][unrelated.mask[b]].tolist(),
        )

    @property
    def leaves(self) -> dict[str, torch.Tensor]:
        """The log-probs under the policy, by the names of `Found`'s derivatives."""
        return {
            "anchors": self.group.anchors,
            "negative": self.group.negatives,
            "chosen": self.chosen.logps,
            "unrelated": self.unrelated.logps,
            "unlikelihood": self.negative_unlikelihood,
        }


def _both(logps: torch.Tensor, refs: torch.Tensor) -> list[tuple[float, float]]:
    return list(zip(logps.tolist(), refs.tolist(), strict=True))


def random_sample(seed: int = 0, *, B: int = 4, K: int = 4, N: int = 3, C: int = 2, ragged: bool = True) -> Sample:
    """Random groups in float64. Ragged ones have masks of every kind, but keep a valid answer of each; what is masked
    is NaN. Token counts are floats; nothing makes log-probs agree with them."""
    rng = np.random.default_rng(seed)

    def mask(width: int) -> torch.Tensor:
        drawn = torch.as_tensor(rng.random((B, width)) < (0.6 if ragged else 2.0))
        drawn[torch.arange(B), torch.as_tensor(rng.integers(0, width, B))] = True
        return drawn

    def values(place: torch.Tensor, low: float, high: float) -> torch.Tensor:
        drawn = torch.as_tensor(rng.uniform(low, high, tuple(place.shape)))
        return torch.where(place, drawn, float("nan")).requires_grad_()

    def tokens(place: torch.Tensor) -> torch.Tensor:
        drawn = torch.as_tensor(rng.integers(1, 9, tuple(place.shape)), dtype=torch.float64)
        return torch.where(place, drawn, float("nan"))

    anchor, negative, chosen, unrelated = mask(K), mask(N), mask(C), mask(C)
    group = GroupLogps(
        anchors=values(anchor, -14, -6),
        ref_anchors=values(anchor, -14, -6).detach(),
        anchor_mask=anchor,
        negatives=values(negative, -14, -6),
        ref_negatives=values(negative, -14, -6).detach(),
        negative_mask=negative,
    )
    others = [
        Answers(values(place, -14, -6), values(place, -14, -6).detach(), place, tokens(place))
        for place in (chosen, unrelated)
    ]
    return Sample(group, others[0], others[1], tokens(negative), values(negative, -5, -0.1))


@dataclass(frozen=True)
class Case:
    """A baseline with parameters: the library's function and the oracle's."""

    name: str
    args: dict[str, float]
    call: Callable[[Sample, dict[str, float]], D2OTerms]
    oracle: Callable[..., Found]

    def terms(self, sample: Sample) -> D2OTerms:
        return self.call(sample, self.args)

    def expected(self, pair: Pair) -> Found:
        return self.oracle(pair, **self.args)


def _only_group(function: Any) -> Any:
    return lambda sample, args: function(sample.group, **args)


def _with_chosen(function: Any) -> Any:
    return lambda sample, args: function(sample.group, sample.chosen, **args)


CASES = [
    Case("ga", {}, _only_group(baselines.ga_loss), ga),
    Case("npo", {"beta": 0.3}, _only_group(baselines.npo_loss), npo),
    Case(
        "simnpo",
        {"beta": 1.5, "gamma": 0.7},
        lambda s, args: baselines.simnpo_loss(s.group, s.negative_tokens, **args),
        simnpo,
    ),
    Case(
        "unlikelihood",
        {},
        lambda s, args: baselines.unlikelihood_loss(s.group, s.negative_unlikelihood, **args),
        unlikelihood,
    ),
    Case(
        "llmu",
        {"forget": 0.5, "mismatch": 2.0, "normal": 3.0},
        lambda s, args: baselines.llmu_loss(s.group, s.unrelated, **args),
        llmu,
    ),
    Case(
        "kto_negative",
        {"beta": 0.4, "lambda_u": 1.5, "z0": 0.6},
        _only_group(baselines.kto_negative_loss),
        kto_negative,
    ),
    Case("bco_negative", {"beta": 0.4, "delta": 0.8}, _only_group(baselines.bco_negative_loss), bco_negative),
    Case("ulma_negative", {"beta": 0.4, "c": 0.9}, _only_group(baselines.ulma_negative_loss), ulma_negative),
    Case("altpo", {"beta": 0.6}, _only_group(baselines.altpo_loss), altpo),
    Case("pmpo_negative", {"beta": 0.6}, _only_group(baselines.pmpo_negative_loss), pmpo_negative),
    Case("dpo_self", {"beta": 0.6}, _only_group(baselines.dpo_self_loss), dpo_self),
    Case("dpo", {"beta": 0.6}, _with_chosen(baselines.dpo_loss), dpo),
    Case("ipo", {"tau": 0.2}, _with_chosen(baselines.ipo_loss), ipo),
    Case("slic", {"delta": 1.2, "lambda_sft": 0.3}, _with_chosen(baselines.slic_loss), slic),
    Case(
        "simpo",
        {"beta": 1.5, "gamma": 0.7},
        lambda s, args: baselines.simpo_loss(s.group, s.chosen, s.negative_tokens, **args),
        simpo,
    ),
    Case("sft_chosen", {}, _with_chosen(baselines.sft_chosen_loss), sft_chosen),
]
