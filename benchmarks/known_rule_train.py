"""Trains one cell of the known-rule benchmark, and measures it on the way."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.known_rule_cell import Answers, Cell
from benchmarks.known_rule_data import (
    MAX_LENGTH,
)
from benchmarks.known_rule_measure import Measure
from benchmarks.rules import RULES
from transformers import PrinterCallback, TrainerState

from naysay.config.model import ModelConfig
from naysay.config.training import LoraSettings
from naysay.errors import ConfigError
from naysay.modeling.adapters import lora_config
from naysay.modeling.loading import load_model
from naysay.statistics.estimate import Estimate
from naysay.statistics.paired import bootstrap_mean, clustered_share
from naysay.training.checkpoints import last_complete, remove_incomplete
from naysay.training.config import D2OConfig
from naysay.training.objectives import make_objective
from naysay.training.trainer import D2OTrainer


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
