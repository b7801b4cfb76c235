"""One cell of the known-rule benchmark: a rule, an objective, a learning rate and a seed; trained, and measured on the
way. A finished cell is one JSON file; a killed one goes on from its last checkpoint."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.known_rule_data import (
    EVALUATION_ROUND,
    MAX_LENGTH,
    TRAINING_ROUND,
    DataSettings,
    OwnAnswer,
    draw_own,
    heldout_pairs,
    prompt_ids,
    revised_answers,
    reworded_answers,
    training_rows,
)
from benchmarks.rule_prompts import RulePrompt, Split, prompts_of_split
from benchmarks.rules import RULES
from transformers import PrinterCallback, TrainerCallback, TrainerState

from naysay.artifacts.digests import digest_json
from naysay.artifacts.store import read_json, write_json
from naysay.config.model import ModelConfig
from naysay.config.training import LoraSettings
from naysay.core.prefix import TokenGroup, group_length, plan_microbatches
from naysay.errors import ConfigError
from naysay.evaluation.likelihood import HeldoutGroup, Scores, heldout_metrics
from naysay.generation.hf import HFSampler
from naysay.judging.heuristics import classify
from naysay.modeling.adapters import BaseAndTuned, lora_config
from naysay.modeling.chat import decode_response, encode_response
from naysay.modeling.divergence import OpenPolicy, kl_divergence
from naysay.modeling.forward import eval_mode, response_logps
from naysay.modeling.loading import load_model
from naysay.statistics.estimate import Estimate
from naysay.statistics.intervals import wilson
from naysay.statistics.paired import bootstrap_mean, bootstrap_ratio_mean, clustered_share, paired_proportion_change
from naysay.training.checkpoints import last_complete, remove_incomplete
from naysay.training.config import D2OConfig
from naysay.training.objectives import make_objective
from naysay.training.trainer import D2OTrainer

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


def train_cell(cell: Cell, work: Path, answers: Answers) -> dict[str, Any]:
    """Train the cell's adapter and measure it every `eval_every` steps and at the end."""
    started = time.perf_counter()
    tokenizer = answers.tokenizer
    needs = make_objective(cell.objective.name, cell.objective.args)
    if needs.needs_normal:
        raise ConfigError(f"objective {cell.objective.name!r} needs normal data, which this benchmark has not")
    prompts, drawn = answers.training(cell.rule, cell.data, cell.seed)
    rows, counts = answers.rows(cell, prompts, drawn, with_chosen=needs.needs_chosen)
    if not rows:
        raise ConfigError(f"rule {cell.rule!r}: none of {counts['prompts']} prompts has a row; draw more answers")
    measure = Measure(cell, work, answers)
    remove_incomplete(work)
    trainer = D2OTrainer(
        model=load_model(ModelConfig(name=cell.model)),
        args=_arguments(cell, work, answers.folder.parent / "reference_cache" / cell.rule),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(LoraSettings()),
        callbacks=[measure],
    )
    trainer.remove_callback(PrinterCallback)
    measure.at(0, trainer.model)
    history = _train(trainer, cell, work)
    labelled = [
        (p.prompt_id, RULES[cell.rule].violates(a.text))
        for p, mine in zip(prompts, drawn, strict=True)
        for a in mine[: cell.data.labelled]
    ]
    return {
        "data_counts": counts,
        "encoding_dropped": trainer.encoding_counts["train"].dropped,
        "base_rate_train": clustered_share([bad for _, bad in labelled], [prompt for prompt, _ in labelled]).as_dict(),
        "style_gap": _style_gap(trainer.train_dataset.groups).as_dict(),
        "points": measure.points(),
        "training": [entry for entry in history if "loss" in entry],
        "seconds": {"last_session": round(time.perf_counter() - started, 1), "evaluation": round(measure.seconds, 1)},
    }


def _train(trainer: D2OTrainer, cell: Cell, work: Path) -> list[dict[str, Any]]:
    """Train, or go on from the last checkpoint; the log of all steps."""
    checkpoint = last_complete(work)
    if checkpoint is not None and checkpoint.name == f"checkpoint-{cell.steps}":
        return TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).log_history
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer.state.log_history


def _arguments(cell: Cell, work: Path, cache: Path) -> D2OConfig:
    return D2OConfig(
        output_dir=str(work),
        max_steps=cell.steps,
        per_device_train_batch_size=cell.groups_per_step,
        learning_rate=cell.learning_rate,
        lr_scheduler_type="constant",
        seed=cell.seed,
        max_length=MAX_LENGTH,
        save_strategy="steps",
        save_steps=cell.eval_every,
        save_total_limit=1,
        disable_tqdm=True,
        logging_strategy="steps",
        dataloader_pin_memory=torch.cuda.is_available(),
        reference_cache_dir=str(cache),
        **cell.objective.config_fields(),
    )


def _style_gap(groups: Sequence[Any]) -> Estimate:
    """Nats per token of the negatives minus that of the anchors of the same prompt, under the reference."""

    def surprise(logps: Sequence[float], answers: Sequence[Sequence[int]]) -> float:
        return -sum(logps) / sum(map(len, answers))

    return bootstrap_mean(
        [surprise(g.ref_negatives, g.negatives) - surprise(g.ref_anchors, g.anchors) for g in groups if g.negatives]
    )


class Measure(TrainerCallback):
    """What an adapter does to held-out answers: the rule, the other rules, KL both ways, length, degeneration."""

    def __init__(self, cell: Cell, work: Path, answers: Answers):
        self.cell, self.work, self.tokenizer, self.seconds = cell, work, answers.tokenizer, 0.0
        self.prompts = prompts_of_split(cell.rule, cell.split)[: cell.prompts]
        length = cell.data.max_new_tokens
        self.base = [mine[0] for mine in answers.evaluation(self.prompts, 1, length, cell.seed)]
        self.pairs: list[tuple[str, Any, Any]] = []
        self._pair_base: list[list[float]] | None = None
        if cell.pair_prompts:
            several = answers.evaluation(self.prompts[: cell.pair_prompts], PAIR_DRAWS, length, cell.seed)
            self.pairs = heldout_pairs(cell.rule, several, cell.data.negatives)

    def points(self) -> list[dict[str, Any]]:
        """What was measured, by step."""
        return sorted((read_json(path) for path in self.work.glob("point-*.json")), key=lambda point: point["step"])

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the step's own log, so that its rate does not count the measuring, and before its checkpoint."""
        step = state.global_step
        if step % self.cell.eval_every == 0 or step == state.max_steps:
            self.at(step, kwargs["model"])

    def at(self, step: int, model: Any) -> None:
        """Measure and save the point, unless it was measured before the run was interrupted."""
        path = self.work / f"point-{step}.json"
        if path.exists():
            return
        started = time.perf_counter()
        with eval_mode(model):
            policies = BaseAndTuned(None, model)
            tuned = self.base if step == 0 else self._answers(step, model)
            point = {"step": step, **rates(self.cell.rule, self.base, tuned)}
            if step > 0:
                point |= self._divergences(policies, tuned) | self._separation(policies)
        point["seconds"] = round(time.perf_counter() - started, 1)
        self.seconds += point["seconds"]
        write_json(path, point)
        kl = "" if step == 0 else f", KL {point['kl_base_tuned']['value']:.3f} {point['kl_tuned_base']['value']:.3f}"
        print(f"  step {step}: violation {point['violation']['value']:.3f}{kl} ({point['seconds']} s)", flush=True)

    def _answers(self, step: int, model: Any) -> list[OwnAnswer]:
        drawn = draw_own(
            HFSampler(model, self.tokenizer, f"step {step}"),
            self.tokenizer,
            self.prompts,
            1,
            max_new_tokens=self.cell.data.max_new_tokens,
            seed=self.cell.seed,
            round=EVALUATION_ROUND,
            folder=self.work / f"answers-{step}",
            description=f"answers after step {step}",
        )
        return [mine[0] for mine in drawn]

    def _divergences(self, policies: BaseAndTuned, tuned: Sequence[OwnAnswer]) -> dict[str, Any]:
        count = self.cell.kl_prompts
        forward = self._kl(policies.base, policies.tuned, self.base[:count])
        backward = self._kl(policies.tuned, policies.base, tuned[:count])
        good = [not RULES[self.cell.rule].violates(answer.text) for answer in self.base[:count]]
        return {
            "kl_base_tuned": _mean_kl(forward),
            "kl_tuned_base": _mean_kl(backward),
            "kl_base_tuned_acceptable": _mean_kl([value for value, keep in zip(forward, good, strict=True) if keep]),
        }

    def _kl(self, p: OpenPolicy, q: OpenPolicy, answers: Sequence[OwnAnswer]) -> list[tuple[float, int]]:
        groups: list[TokenGroup] = [
            (prompt_ids(self.tokenizer, prompt), [answer.token_ids])
            for prompt, answer in zip(self.prompts, answers, strict=False)
        ]
        return kl_divergence(
            p, q, groups, tokens_per_microbatch=BUDGET, head_chunk=HEAD_CHUNK, description="KL divergence"
        )

    def _separation(self, policies: BaseAndTuned) -> dict[str, Any]:
        """Log-prob changes of acceptable and of violating answers in the style of the negatives."""
        if not self.pairs:
            return {}
        ids = {prompt.prompt_id: prompt_ids(self.tokenizer, prompt) for prompt in self.prompts}
        groups: list[TokenGroup] = [
            (ids[prompt], [self._ids(good), self._ids(bad)]) for prompt, good, bad in self.pairs
        ]
        if self._pair_base is None:
            self._pair_base = _logps(policies.base, groups)
        scored = zip(self.pairs, groups, self._pair_base, _logps(policies.tuned, groups), strict=True)
        heldout = [
            HeldoutGroup(
                prompt_id=prompt,
                anchors=[],
                negatives=[Scores(before[1], after[1], len(answers[1]))],
                acceptable=[Scores(before[0], after[0], len(answers[0]))],
                ref_anchors=[],
                ref_negatives=[before[1]],
            )
            for (prompt, _, _), (_, answers), before, after in scored
        ]
        found = heldout_metrics(heldout, alpha=0.1, beta=0.1, samples=2000, seed=0)
        names = ("negative_log_ratio_per_token", "acceptable_log_ratio_per_token", "separation")
        return {"pairs": {name: found[name].as_dict() for name in (*names, "implicit_pair_accuracy")}}

    def _ids(self, answer: Any) -> list[int]:
        if isinstance(answer, dict):
            return encode_response(self.tokenizer, answer["text"], ended=answer["finish"] == "stop")
        return answer


def rates(rule: str, base: Sequence[OwnAnswer], tuned: Sequence[OwnAnswer]) -> dict[str, Any]:
    """Shares of answers that break each rule, before and after on the same prompts with the same seeds; length; end;
    degeneration. `violation` and `change` are of the rule that was trained, the rest stands under `others`."""

    def one(name: str) -> dict[str, Any]:
        before, after = ([RULES[name].violates(answer.text) for answer in kind] for kind in (base, tuned))
        return {
            "rate": wilson(sum(after), len(after)).as_dict(),
            "change": paired_proportion_change(before, after).as_dict(),
        }

    lengths = [np.array([len(answer.token_ids) for answer in kind], dtype=float) for kind in (base, tuned)]
    mine = one(rule)
    degenerate = [classify(answer.text, answer.finish).label == "degenerate" for answer in tuned]
    return {
        "violation": mine["rate"],
        "change": mine["change"],
        "others": {name: one(name) for name in RULES if name != rule},
        "tokens": float(lengths[1].mean()),
        "tokens_change": bootstrap_mean(lengths[1] - lengths[0]).as_dict(),
        "stopped": sum(answer.finish == "stop" for answer in tuned) / len(tuned),
        "degenerate": wilson(sum(degenerate), len(degenerate)).as_dict(),
    }


def _mean_kl(values: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Nats per token over prompts, with a bootstrap interval."""
    return bootstrap_ratio_mean([nats for nats, _ in values], [tokens for _, tokens in values]).as_dict()


@torch.inference_mode()
def _logps(open_policy: OpenPolicy, groups: Sequence[TokenGroup]) -> list[list[float]]:
    """Log-probs (sums, nats) of the answers of each group."""
    result: list[list[float]] = [[] for _ in groups]
    with open_policy() as model:
        for batch in plan_microbatches([group_length(group) for group in groups], BUDGET):
            members = [groups[i] for i in batch]
            values = iter(response_logps(model, members, head_chunk=HEAD_CHUNK).double().tolist())
            for i, (_, answers) in zip(batch, members, strict=True):
                result[i] = [next(values) for _ in answers]
    return result
