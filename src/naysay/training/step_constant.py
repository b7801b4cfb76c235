"""KTO's z₀ and BCO's δ: one number (nats) for all pairs of an optimizer step, a constant of its gradient.

It is a function of the whole optimizer step, over ranks and accumulation, so that no split into batches changes it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from naysay.artifacts.store import read_json, write_json
from naysay.core.groups import D2OTerms
from naysay.training.objectives import Objective

STATE = "naysay_objective.json"
WeightedRow = tuple[int, float]
Measure = Callable[[Sequence[WeightedRow]], Tensor]


class StepConstant:
    """The constant of the step at hand; 0 for objectives that have none.

    δ is the running mean of β r over the negatives of all steps before (0 at the first, where r is 0): the source's
    code also counts the step itself, which would cost a forward more.
    """

    def __init__(self, objective: Objective):
        self.value = 0.0
        self._objective = objective
        self._mean, self._count = 0.0, 0.0
        self._pending = torch.zeros(2)
        self._rows: list[WeightedRow] = []
        self._step: int | None = None

    def expect(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """The batches of the optimizer step that comes next."""
        self._rows = [
            (row, weight)
            for batch in batches
            for row, weight in zip(batch["row"].tolist(), batch["weight"].tolist(), strict=True)
        ]

    def start(self, step: int, measure: Measure, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Set `value` where a new optimizer step begins; `measure` gives [sum of log-ratios, weights] of rows."""
        if step == self._step:
            return
        self._step = step
        if self._objective.needs_mismatched:
            total, weight = reduce_sum(measure(self._rows)).tolist()
            self.value = max(0.0, total / weight) if weight > 0 else 0.0
        elif self._objective.name == "bco_negative":
            total, count = reduce_sum(self._pending).tolist()
            self._pending = torch.zeros(2)
            self._count += count
            self._mean += (total - count * self._mean) / self._count if self._count else 0.0
            self.value = self._mean

    def add(self, terms: D2OTerms, pair_BN: Tensor) -> None:
        """Log-ratios of a micro-batch's pairs, where `pair_BN` holds: they count from the next step on."""
        if self._objective.name == "bco_negative":
            ratios = self._objective.args["beta"] * terms.negative_log_ratio.detach() * pair_BN
            self._pending += torch.stack([ratios.sum(), pair_BN.sum().to(ratios)]).float().cpu()

    def save(self, checkpoint: Path) -> None:
        """Write what a resumed run needs; ranks share what is pending only at the next step."""
        write_json(checkpoint / STATE, {"mean": self._mean, "count": self._count, "pending": self._pending.tolist()})

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint; one without this file had no such state."""
        if (checkpoint / STATE).exists():
            state = read_json(checkpoint / STATE)
            self._mean, self._count = state["mean"], state["count"]
            self._pending = torch.tensor(state["pending"])
