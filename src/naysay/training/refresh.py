"""Refreshed anchors: from time to time a part of them is redrawn from the policy that is trained.

What is drawn, and which draws are good enough to train on, is an `AnchorSource`'s affair: sampling and judging are not
training's. Rounds are training's own output, `anchors-round-N.jsonl` beside the checkpoints: a resumed run reads those
up to its checkpoint and draws the later ones again.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from accelerate import DistributedType
from accelerate.utils import gather_object
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from naysay.artifacts.store import read_jsonl, write_jsonl
from naysay.errors import ConfigError
from naysay.modeling.modes import eval_mode
from naysay.records import Anchor
from naysay.training.data import EncodedGroup
from naysay.training.objectives import Objective
from naysay.training.preparation import Preparation, output_dir
from naysay.training.references import OpenModel, Reference

PREFIX = "anchors-round-"
Slot = tuple[str, int]
"""(group id, place among the group's anchors)."""


class AnchorSource(Protocol):
    """Draws anchors from a policy as it is now."""

    def draw(self, model: nn.Module, slots: Sequence[Slot], round: int) -> list[Anchor | None]:
        """One anchor for each slot; None where what was drawn is not to be trained on."""
        ...


@dataclass(frozen=True)
class AnchorSchedule:
    """When anchors are redrawn. Example: `AnchorSchedule(warmup_steps=4, refresh_every=4, refresh_fraction=0.25)`.

    Raises:
        ConfigError: an impossible value.
    """

    warmup_steps: int = 4
    refresh_every: int = 4
    refresh_fraction: float = 0.25

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or self.refresh_every < 1 or not 0.0 < self.refresh_fraction <= 1.0:
            raise ConfigError(
                f"{self}: expected warmup_steps >= 0, refresh_every >= 1 and 0 < refresh_fraction <= 1; change it"
            )

    def round_after(self, step: int) -> int | None:
        """The round (1, 2, ...) that is drawn after this optimizer step; None where none is."""
        since = step - self.warmup_steps
        return since // self.refresh_every + 1 if step > 0 and since >= 0 and since % self.refresh_every == 0 else None


ScoreAnchors = Callable[[Sequence[tuple[tuple[int, ...], list[tuple[int, ...]]]]], list[dict[tuple[int, ...], float]]]


class AnchorBuffer:
    """The anchors of all groups, and what a refresh does to them."""

    def __init__(
        self,
        groups: list[EncodedGroup],
        schedule: AnchorSchedule,
        folder: Path,
        *,
        draw: Callable[[Sequence[Slot], int], list[Anchor | None]],
        score: ScoreAnchors,
        writes: bool = True,
    ):
        self.groups, self.schedule, self.folder = groups, schedule, folder
        self._draw, self._score, self._writes = draw, score, writes
        self._at = {group.group_id: i for i, group in enumerate(groups)}
        self._round_of = {(group.group_id, i): 0 for group in groups for i in range(len(group.anchors))}
        self.counts = {"rounds": 0, "redrawn": 0, "kept_old": 0}

    def refresh(self, step: int) -> None:
        """Redraw the oldest slots after an optimizer step, where the schedule says so."""
        number = self.schedule.round_after(step)
        if number is None:
            return
        slots = self.oldest(number)
        drawn = self._draw(slots, number)
        found: dict[str, list[tuple[int, ...]]] = {}
        for (group_id, _), anchor in zip(slots, drawn, strict=True):
            if anchor is not None:
                found.setdefault(group_id, []).append(anchor.token_ids)
        names = list(found)
        asked = [(self.groups[self._at[name]].prompt_ids, list(dict.fromkeys(found[name]))) for name in names]
        scored = dict(zip(names, self._score(asked), strict=True))
        rows = [
            {
                "step": step,
                "group_id": group_id,
                "place": place,
                "anchor": None if anchor is None else asdict(anchor),
                "ref_logp": None if anchor is None else scored[group_id][anchor.token_ids],
            }
            for (group_id, place), anchor in zip(slots, drawn, strict=True)
        ]
        if self._writes:
            write_jsonl(self._path(number), rows)
        self._apply(rows, number)

    def oldest(self, round: int) -> list[Slot]:
        """The share of all slots that was redrawn longest ago; among equals in an order that the round decides."""
        count = max(1, round_half_up(self.schedule.refresh_fraction * len(self._round_of)))

        def order(slot: Slot) -> tuple[int, bytes]:
            return self._round_of[slot], hashlib.sha256(f"{round}/{slot[0]}/{slot[1]}".encode()).digest()

        return sorted(self._round_of, key=order)[:count]

    def restore(self, step: int) -> None:
        """Bring the anchors to where they stood after `step`: read the rounds up to it, remove the later ones."""
        for path in sorted(self.folder.glob(f"{PREFIX}*.jsonl"), key=_round_of_file):
            rows = list(read_jsonl(path))
            if rows[0]["step"] <= step:
                self._apply(rows, _round_of_file(path))
            elif self._writes:
                path.unlink()

    def _apply(self, rows: Sequence[dict[str, Any]], round: int) -> None:
        for row in rows:
            slot = (row["group_id"], row["place"])
            # A slot whose draw was refused keeps its anchor and goes to the end of the queue as well.
            self._round_of[slot] = round
            if row["anchor"] is None:
                self.counts["kept_old"] += 1
                continue
            self.counts["redrawn"] += 1
            index, place = self._at[slot[0]], slot[1]
            group = self.groups[index]
            anchors, refs = list(group.anchors), list(group.ref_anchors)
            anchors[place], refs[place] = tuple(row["anchor"]["token_ids"]), row["ref_logp"]
            self.groups[index] = replace(group, anchors=tuple(anchors), ref_anchors=tuple(refs))
        self.counts["rounds"] += 1

    def _path(self, round: int) -> Path:
        return self.folder / f"{PREFIX}{round}.jsonl"


def make_buffer(
    groups: list[EncodedGroup],
    source: AnchorSource,
    schedule: AnchorSchedule,
    *,
    policy: nn.Module,
    negative: Reference,
    preparation: Preparation,
) -> AnchorBuffer:
    """The buffer of a training: ranks draw each their share of a round, and all hold the whole."""
    args = preparation.args
    rank, world = args.process_index, args.world_size

    def draw(slots: Sequence[Slot], round: int) -> list[Anchor | None]:
        with eval_mode(policy):
            mine = source.draw(policy, slots[rank::world], round)
        return mine if world == 1 else interleave(gather_object([mine]))

    return AnchorBuffer(
        groups,
        schedule,
        output_dir(args),
        draw=draw,
        score=lambda asked: preparation.score(negative, asked),
        writes=args.should_save,
    )


class RefreshAnchors(TrainerCallback):
    """Calls the buffer at the right moments: before a checkpoint of the same step is written."""

    def __init__(self, buffer: AnchorBuffer):
        self.buffer = buffer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.buffer.restore(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step < state.max_steps:
            self.buffer.refresh(state.global_step)


def check_refreshable(objective: Objective, distributed: DistributedType) -> None:
    """Whether anchors can be redrawn in this training.

    Raises:
        ConfigError: the objective reads no anchors, or the weights are spread over ranks.
    """
    if objective.anchors_read == "none":
        raise ConfigError(
            f"refreshed anchors: objective {objective.name!r} reads no anchors; use anchors.schedule: offline"
        )
    if distributed in {DistributedType.FSDP, DistributedType.DEEPSPEED}:
        raise ConfigError(
            f"refreshed anchors: sampling from weights that {distributed.value} spreads over ranks is not supported; "
            "use DDP, or anchors.schedule: offline"
        )


def interleave(shares: Sequence[Sequence[Any]]) -> list[Any]:
    """What `items[rank::world]` of all ranks came from."""
    world = len(shares)
    return [shares[i % world][i // world] for i in range(sum(map(len, shares)))]


def round_half_up(value: float) -> int:
    return int(value + 0.5)


def frozen_initial(model: nn.Module, *, adapter_is_new: bool) -> OpenModel:
    """How to get at the initial policy while `model` is trained.

    Where the adapter is new, it is the model without it; else a copy, which costs the memory of the weights.
    """
    if adapter_is_new and isinstance(model, PeftModel):
        return lambda: _without_adapter(model)
    copy = deepcopy(model).eval().requires_grad_(False)
    return lambda: nullcontext(copy)


def lasting(reference: Reference, initial: Reference, opened: OpenModel) -> Reference:
    """A reference that can still be opened while the policy is trained."""
    return Reference(initial.digest, opened) if reference is initial else reference


@contextmanager
def _without_adapter(model: PeftModel) -> Iterator[nn.Module]:
    with model.disable_adapter():
        yield model


def _round_of_file(path: Path) -> int:
    return int(path.stem.removeprefix(PREFIX))
