"""One cell of the known-rule benchmark: a rule, an objective, a learning rate and a seed; and the answers it needs. A
finished cell is one JSON file; a killed one goes on from its last checkpoint."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.known_rule_data import (
    EVALUATION_ROUND,
    TRAINING_ROUND,
    DataSettings,
    OwnAnswer,
    draw_own,
    revised_answers,
    reworded_answers,
    training_rows,
)
from benchmarks.rule_prompts import RulePrompt, Split, prompts_of_split
from benchmarks.rules import RULES

from naysay.artifacts.digests import digest_json
from naysay.artifacts.store import read_json, write_json
from naysay.config.model import ModelConfig
from naysay.generation.hf import HFSampler
from naysay.modeling.chat import decode_response

VERSION = 1
"""Raise it when a change makes saved cells worthless."""

HEAD_CHUNK, BUDGET, PAIR_DRAWS = 1024, 1024, 4


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective with the parameters that differ from its defaults.

    Example: `ObjectiveSpec("d2o", {"beta": 0.3}).label == "d2o:beta=0.3"`.
    """

    name: str
    args: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return ":".join([self.name, *(f"{key}={value:g}" for key, value in self.args.items())])

    def config_fields(self) -> dict[str, Any]:
        """Fields of D2OConfig that choose it."""
        if self.name == "d2o":
            return dict(self.args)
        return {"objective": self.name, "objective_args": dict(self.args)}


@dataclass(frozen=True)
class Cell:
    """What decides a cell's result, beside the code and the model."""

    rule: str
    objective: ObjectiveSpec
    learning_rate: float
    seed: int
    steps: int = 18
    groups_per_step: int = 8
    eval_every: int = 6
    split: Split = "heldout"
    prompts: int = 96
    kl_prompts: int = 32
    pair_prompts: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    model: str = ModelConfig().name

    @property
    def key(self) -> str:
        """File name: readable, and different wherever anything differs."""
        label = self.objective.label.replace(":", "_").replace("=", "")
        return f"{self.rule}-{label}-lr{self.learning_rate:g}-seed{self.seed}-{self.digest[:8]}"

    @property
    def digest(self) -> str:
        return digest_json([VERSION, asdict(self)])


def saved(cell: Cell, out: Path) -> dict[str, Any] | None:
    """The result of a cell that was finished before, None where it was not."""
    path = out / "cells" / f"{cell.key}.json"
    return read_json(path) if path.exists() else None


def run_cell(cell: Cell, out: Path, compute: Callable[[Cell, Path], dict[str, Any]]) -> tuple[dict[str, Any], bool]:
    """(result, whether it was computed now). A finished cell is read; its working folder goes when it is finished."""
    known = saved(cell, out)
    if known is not None:
        return known, False
    work = out / "cells" / cell.key
    work.mkdir(parents=True, exist_ok=True)
    result = {"key": cell.key, "label": cell.objective.label, **asdict(cell), **compute(cell, work)}
    write_json(out / "cells" / f"{cell.key}.json", result)
    for checkpoint in work.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return read_json(out / "cells" / f"{cell.key}.json"), True


class Answers:
    """Own answers of the initial policy, drawn when they are first asked for and kept below `out/answers`."""

    def __init__(self, model: Any, tokenizer: Any, out: Path):
        self.sampler, self.tokenizer, self.folder = HFSampler(model, tokenizer, "initial"), tokenizer, out / "answers"

    def training(self, rule: str, settings: DataSettings, seed: int) -> tuple[list[RulePrompt], list[list[OwnAnswer]]]:
        """Training prompts and their `draws` answers."""
        prompts = prompts_of_split(rule, "train")[: settings.train_prompts]
        return prompts, self._draw(prompts, settings.draws, settings.max_new_tokens, seed, TRAINING_ROUND)

    def evaluation(self, prompts: Sequence[RulePrompt], draws: int, length: int, seed: int) -> list[list[OwnAnswer]]:
        """Answers to prompts of an evaluation split, before training."""
        return self._draw(prompts, draws, length, seed, EVALUATION_ROUND)

    def rows(
        self, cell: Cell, prompts: Sequence[RulePrompt], drawn: Sequence[Sequence[OwnAnswer]], *, with_chosen: bool
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Training rows and their counts; `anchors: revise` draws them now."""
        settings, rule, seed = cell.data, cell.rule, cell.seed
        if settings.negatives == "reworded":
            return self._reworded(cell, prompts, drawn, with_chosen=with_chosen)
        if settings.anchors != "revise":
            return training_rows(rule, prompts, drawn, settings, seed=seed, with_chosen=with_chosen)
        rejected, _ = training_rows(rule, prompts, drawn, replace(settings, anchors="unfiltered"), seed=seed)
        revised = revised_answers(self.sampler, self.tokenizer, rejected, settings, seed, self.folder / rule)
        kept = [(p, mine) for p, mine in zip(prompts, drawn, strict=True) if p.prompt_id in revised]
        rows, counts = training_rows(
            rule, *zip(*kept, strict=True), settings, seed=seed, with_chosen=with_chosen, revised=revised
        )
        skipped = len(prompts) - len(kept)
        return rows, counts | {"prompts": len(prompts), "without_violation": counts["without_violation"] + skipped}

    def _reworded(
        self, cell: Cell, prompts: Sequence[RulePrompt], drawn: Sequence[Sequence[OwnAnswer]], *, with_chosen: bool
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Rows whose rejected answers, another writer's, are said in the model's own words; with `anchors: reworded`
        its own samples went the same way."""
        same_way = cell.data.anchors == "reworded"
        source = replace(cell.data, negatives="rewritten", anchors="unfiltered" if same_way else cell.data.anchors)
        rows, counts = self.rows(replace(cell, data=source), prompts, drawn, with_chosen=with_chosen)
        for column in ("rejected", "anchors") if same_way else ("rejected",):
            said = reworded_answers(
                self.sampler, self.tokenizer, rows, column, cell.data, cell.seed, self.folder / cell.rule
            )
            rows = [{**row, column: answers} for row, answers in zip(rows, said, strict=True)]
        result = [row for row in rows if row["rejected"] and row["anchors"]]
        texts = [decode_response(self.tokenizer, ids) for row in result for ids in row["rejected"]]
        lost = sum(not RULES[cell.rule].violates(text) for text in texts)
        counts |= {"rows": len(result), "negatives": len(texts), "mislabelled": lost}
        return result, counts | {"without_violation": counts["without_violation"] + len(rows) - len(result)}

    def _draw(
        self, prompts: Sequence[RulePrompt], draws: int, length: int, seed: int, round: int
    ) -> list[list[OwnAnswer]]:
        rule = prompts[0].rule
        return draw_own(
            self.sampler,
            self.tokenizer,
            prompts,
            draws,
            max_new_tokens=length,
            seed=seed,
            round=round,
            folder=self.folder / rule,
            description=f"own answers, {rule}",
        )
