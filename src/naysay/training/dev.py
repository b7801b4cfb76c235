"""What training does to dev prompts: their answers are scored as it goes. No prompt of another split is read."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate.utils import gather_object
from torch import nn

from naysay.artifacts.run_directory import RunDirectory
from naysay.config.run import RunConfig
from naysay.core.prefix import TokenGroup
from naysay.errors import DataError
from naysay.modeling.chat import encode_response
from naysay.modeling.digests import policy_digest
from naysay.modeling.divergence import kl_divergence
from naysay.modeling.forward import token_budget
from naysay.modeling.modes import eval_mode
from naysay.modeling.reference import score_groups, score_now
from naysay.training.data import EncodedGroup, encode_rows
from naysay.training.references import OpenModel
from naysay.training.refresh import interleave
from naysay.training.rows import training_rows

ANCHORS = 4
"""Own samples of a prompt that are scored; the KL is measured on the first."""


@dataclass(frozen=True, slots=True)
class DevState:
    """A policy on dev prompts, compared with the initial policy. Log-ratios are log π / π_initial.

    `loss` is the mean of −log σ(m) and `margin` that of m = β · mean anchor log-ratio − α · rejected log-ratio (nats),
    over pairs of a prompt and a rejected answer. `separation` is the change per token of acceptable minus rejected
    answers, the mean over the `separation_prompts` that have both; `implicit_pair_accuracy` the share of their pairs in
    which the acceptable answer gained on the rejected one. Both are None where no prompt has both. `kl` is
    KL(initial ‖ policy) on anchors. All other figures are log-ratios in nats per token.

    Example: `DevState(0.6, 0.2, 0.01, 24, 0.02, 0.6, 0.01, -0.06, -0.04)`.
    """

    loss: float
    margin: float
    kl: float
    separation_prompts: int
    separation: float | None
    implicit_pair_accuracy: float | None
    anchor_log_ratio_per_token: float
    negative_log_ratio_per_token: float
    acceptable_log_ratio_per_token: float | None


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one answer: its log-ratio (nats) and its number of tokens."""

    log_ratio: float
    tokens: int

    @property
    def per_token(self) -> float:
        return self.log_ratio / self.tokens


@dataclass(frozen=True, slots=True)
class GroupChange:
    """What became of the answers to one prompt; `kl` is (sum in nats, tokens)."""

    anchors: Sequence[Change]
    negatives: Sequence[Change]
    acceptable: Sequence[Change]
    kl: tuple[float, int]


def dev_rows(run: RunDirectory, prompts: int) -> list[dict[str, Any]]:
    """The dev prompts that are looked at, in an order that no file decides; `chosen` are their acceptable answers.

    Raises:
        DataError: no dev prompt has a rejected answer and an anchor.
    """
    rows = training_rows(run, "dev", chosen=True)
    if not rows:
        raise DataError(
            f"{run.selection}: training.early_stopping needs dev prompts, and none has a usable anchor; raise "
            "data.dev_fraction, relax anchors.filters, or leave early stopping off"
        )
    return sorted(rows, key=lambda row: (not row["chosen"], row["prompt_id"]))[:prompts]


class DevProbe:
    """Scores the answers of the same dev prompts each time; with several ranks each takes its share of the prompts.

    Args:
        rows: of `dev_rows`.
        initial: opens the policy as it was before training; its log-probs are cached in the run.
        max_length: longest prompt plus answer in tokens; longer answers are left out.

    Raises:
        DataError: no row fits.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        tokenizer: Any,
        rows: Sequence[Mapping[str, Any]],
        *,
        initial: OpenModel,
        max_length: int,
        rank: int = 0,
        ranks: int = 1,
    ):
        self._config, self._initial, self._ranks = config, initial, ranks
        found, _ = encode_rows(rows, tokenizer, max_length=max_length)
        chosen = {row["prompt_id"]: row["chosen"] for row in rows}
        self.groups = [_Group.of(group, chosen[group.group_id], tokenizer, max_length) for group in found]
        self._mine = self.groups[rank::ranks]
        with initial() as model:
            self._budget = token_budget(config.training.tokens_per_microbatch, next(model.parameters()).device)
            scored = score_groups(
                model,
                tokenizer,
                [group.tokens for group in self._mine],
                cache_root=run.reference_cache,
                tokens_per_microbatch=self._budget,
                head_chunk=config.training.head_chunk,
                description="scoring dev prompts",
                digest=policy_digest(model, tokenizer),
            )
        self._before = [values.logps for values in scored]

    def measure(self, model: nn.Module) -> DevState:
        """The state of the policy as it is now; the model's mode is as it was, afterwards."""
        chunk = self._config.training.head_chunk
        with eval_mode(model):
            now = score_now(model, [g.tokens for g in self._mine], tokens_per_microbatch=self._budget, head_chunk=chunk)
            kl = kl_divergence(
                self._initial,
                lambda: nullcontext(model),
                [(group.prompt_ids, [group.anchors[0]]) for group in self._mine],
                tokens_per_microbatch=self._budget,
                head_chunk=chunk,
                description="KL on dev prompts",
            )
        mine = [
            group.changes(before, after, diverged)
            for group, before, after, diverged in zip(self._mine, self._before, now, kl, strict=True)
        ]
        alpha, beta = self._config.training.margin_weights
        return state_of(mine if self._ranks == 1 else interleave(gather_object([mine])), alpha=alpha, beta=beta)


@dataclass(frozen=True, slots=True)
class _Group:
    prompt_ids: tuple[int, ...]
    anchors: tuple[tuple[int, ...], ...]
    negatives: tuple[tuple[int, ...], ...]
    acceptable: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, group: EncodedGroup, chosen: Sequence[Mapping[str, str]], tokenizer: Any, max_length: int) -> "_Group":
        answers = [tuple(encode_response(tokenizer, a["text"], ended=a["finish"] != "length")) for a in chosen]
        room = max_length - len(group.prompt_ids)
        fitting = dict.fromkeys(ids for ids in answers if len(ids) <= room and ids not in group.negatives)
        return cls(group.prompt_ids, group.anchors[:ANCHORS], group.negatives, tuple(fitting))

    @property
    def tokens(self) -> TokenGroup:
        return self.prompt_ids, list(dict.fromkeys((*self.anchors, *self.negatives, *self.acceptable)))

    def changes(self, before: Sequence[float], now: Sequence[float], kl: tuple[float, int]) -> GroupChange:
        changed = {
            ids: Change(after - was, len(ids))
            for ids, was, after in zip(map(tuple, self.tokens[1]), before, now, strict=True)
        }
        anchors, negatives, acceptable = (
            [changed[ids] for ids in kind] for kind in (self.anchors, self.negatives, self.acceptable)
        )
        return GroupChange(anchors, negatives, acceptable, kl)


def state_of(groups: Sequence[GroupChange], *, alpha: float, beta: float) -> DevState:
    """The figures of all groups together; definitions at `DevState`, the same as the evaluation's."""
    margins = [margin for group in groups for margin in _margins(group, alpha, beta)]
    both = [group for group in groups if group.acceptable]
    gained = [a.per_token > n.per_token for group in both for a in group.acceptable for n in group.negatives]
    return DevState(
        loss=_mean([_softplus(-margin) for margin in margins]),
        margin=_mean(margins),
        kl=sum(group.kl[0] for group in groups) / sum(group.kl[1] for group in groups),
        separation_prompts=len(both),
        separation=_mean([_per_token_mean(g.acceptable) - _per_token_mean(g.negatives) for g in both])
        if both
        else None,
        implicit_pair_accuracy=_mean(gained) if both else None,
        anchor_log_ratio_per_token=_ratio(a for group in groups for a in group.anchors),
        negative_log_ratio_per_token=_ratio(n for group in groups for n in group.negatives),
        acceptable_log_ratio_per_token=_ratio(a for group in both for a in group.acceptable) if both else None,
    )


def _margins(group: GroupChange, alpha: float, beta: float) -> Iterator[float]:
    pull = beta * _mean([anchor.log_ratio for anchor in group.anchors])
    return (pull - alpha * negative.log_ratio for negative in group.negatives)


def _softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def _per_token_mean(answers: Sequence[Change]) -> float:
    return _mean([answer.per_token for answer in answers])


def _ratio(answers: Iterator[Change]) -> float:
    found = list(answers)
    return sum(answer.log_ratio for answer in found) / sum(answer.tokens for answer in found)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
