"""What training says of itself at each step. The names of the metrics live here and nowhere else."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from naysay.core.groups import D2OTerms, GroupLogps

# In nats unless said otherwise; means over the pairs (anchors) of the step.
MARGIN = "margin"
WEIGHT = "weight"
ANCHOR_LOG_RATIO = "anchor_log_ratio"
ANCHOR_LOG_RATIO_PER_TOKEN = "anchor_log_ratio_per_token"
NEGATIVE_LOG_RATIO = "negative_log_ratio"
NEGATIVE_LOG_RATIO_PER_TOKEN = "negative_log_ratio_per_token"
# Shares, 0 to 1: of pairs below `skip_weight_below`, and of backward passes that were left out.
FINISHED = "finished"
BACKWARD_SKIPPED = "backward_skipped"
TOKENS_PER_SECOND = "tokens_per_second"

_SUMS = (
    "pairs",
    "margin",
    "weight",
    "anchors",
    "anchor_ratio",
    "anchor_tokens",
    "negative_ratio",
    "negative_tokens",
    "tokens",
    "finished",
    "passes",
    "passes_skipped",
)


class StepMetrics:
    """Sums over all micro-batches and optimizer steps since the last log; one reduction over ranks when read."""

    def __init__(self, skip_weight_below: float = 0.0) -> None:
        self._finished_below = skip_weight_below
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64)
        self._started: float | None = None

    def start(self) -> None:
        """Call at the start of a training step: time between steps (saving, evaluation) does not count."""
        if self._started is None:
            self._started = time.perf_counter()

    def add(
        self,
        terms: D2OTerms,
        group: GroupLogps,
        anchor_tokens: Tensor,
        negative_tokens: Tensor,
        computed_tokens: int,
    ) -> None:
        """Add a micro-batch; token counts are [B, K] and [B, N]."""
        pair = group.negative_mask
        # A group without negatives is normal data: its answers are not anchors.
        anchor = group.anchor_mask & pair.any(1, keepdim=True)
        values = [
            pair.sum(),
            (terms.margin * pair).sum(),
            (terms.weight * pair).sum(),
            anchor.sum(),
            (terms.anchor_log_ratio * anchor).sum(),
            (anchor_tokens * anchor).sum(),
            (terms.negative_log_ratio * pair).sum(),
            (negative_tokens * pair).sum(),
            torch.tensor(float(computed_tokens), device=pair.device),
            ((terms.weight < self._finished_below) * pair).sum(),
        ]
        self._sums[: len(values)] += torch.stack([value.detach().double() for value in values]).cpu()

    def add_pass(self, *, skipped: bool) -> None:
        """Add a backward pass: of a micro-batch, or of a part of a group in two passes."""
        self._sums[-2:] += torch.tensor([1.0, float(skipped)])

    def flush(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means since the last flush over all ranks, then start anew. `reduce_sum` adds a tensor up over the ranks."""
        seconds = time.perf_counter() - self._started if self._started is not None else 0.0
        sums = dict(zip(_SUMS, reduce_sum(self._sums).tolist(), strict=True))
        self._sums = torch.zeros_like(self._sums)
        self._started = None
        if sums["pairs"] == 0:
            return {}
        return {
            MARGIN: sums["margin"] / sums["pairs"],
            WEIGHT: sums["weight"] / sums["pairs"],
            ANCHOR_LOG_RATIO: sums["anchor_ratio"] / sums["anchors"],
            ANCHOR_LOG_RATIO_PER_TOKEN: sums["anchor_ratio"] / sums["anchor_tokens"],
            NEGATIVE_LOG_RATIO: sums["negative_ratio"] / sums["pairs"],
            NEGATIVE_LOG_RATIO_PER_TOKEN: sums["negative_ratio"] / sums["negative_tokens"],
            FINISHED: sums["finished"] / sums["pairs"],
            BACKWARD_SKIPPED: sums["passes_skipped"] / sums["passes"],
            TOKENS_PER_SECOND: sums["tokens"] / seconds if seconds > 0 else 0.0,
        }
