"""Stage `train`: reference log-probs, D²O, then an adapter (or a model) that plain peft and transformers load."""

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import explain_storage_errors, write_directory_atomic, write_jsonl
from naysay.config.anchors import SCHEDULE_KEYS
from naysay.config.model import ModelConfig
from naysay.config.objectives import D2OTraining, TrainingConfig
from naysay.config.run import RunConfig
from naysay.errors import DataError, NonFiniteLossError
from naysay.modeling.adapters import INITIAL, load_reference, lora_config
from naysay.modeling.chat import template_file
from naysay.modeling.loading import context_length, load_model, load_tokenizer, resolve
from naysay.training.checkpoints import last_complete, remove_incomplete
from naysay.training.config import D2OConfig
from naysay.training.dev import DevProbe, dev_rows
from naysay.training.early_stopping import BestWeights, EarlyStopping
from naysay.training.guard import STEP_FILE, CollapseGuard, GoodWeights
from naysay.training.probe import Probe
from naysay.training.progress import TrainingProgress
from naysay.training.references import Reference
from naysay.training.refresh import AnchorSchedule, AnchorSource, frozen_initial
from naysay.training.rows import files, normal_file, normal_rows, training_rows
from naysay.training.trainer import D2OTrainer

logger = logging.getLogger(__name__)

VERSION = 3
GROUPS = "groups.jsonl"
_METRICS = (
    "loss",
    "margin",
    "weight",
    "anchor_log_ratio",
    "anchor_log_ratio_per_token",
    "negative_log_ratio",
    "negative_log_ratio_per_token",
    "grad_norm",
    "learning_rate",
    "finished",
    "backward_skipped",
    "tokens_per_second",
)


def settings(config: RunConfig) -> dict[str, Any]:
    training = config.training.model_dump(mode="json")
    if config.training.method == "full":
        training.pop("lora")
    if not config.training.early_stopping.enabled:
        training.pop("early_stopping")
    training["seed"] = _seed(config)
    online = config.anchors.schedule == "online"
    redrawn = {name: getattr(config, name).model_dump(mode="json") for name in ("anchors", "sampling")}
    return {
        **({**redrawn, "seed": config.seed} if online else {}),
        **({"anchors": {"acceptable_share": share}} if (share := config.anchors.acceptable_share) else {}),
        "model": config.model.model_dump(mode="json"),
        "references": config.references.model_dump(mode="json"),
        "training": training,
        "guard": config.guard.model_dump(mode="json"),
    }


def inputs(config: RunConfig, run: RunDirectory) -> dict[str, Path]:
    training = config.training
    acceptable = training.needs_chosen or training.needs_normal or training.early_stopping.enabled
    found = {
        **files(run, acceptable=acceptable or config.anchors.acceptable_share > 0.0),
        "model": resolve(config.model.name, config.model.revision),
        **template_file(config.model),
    }
    for role in ("positive", "negative"):
        name = getattr(config.references, role)
        if name != INITIAL:
            found[f"references.{role}"] = resolve(name)
    return found


def outputs(config: RunConfig, run: RunDirectory) -> list[Path]:
    folder, config_file = (
        (run.adapter, "adapter_config.json") if config.training.method == "lora" else (run.model, "config.json")
    )
    # The model card is the report's, which knows the evaluation.
    files = {folder / config_file, *(path for path in folder.glob("*") if path.name != "README.md")}
    guard = [run.guard] if config.guard.enabled else []
    dev = [run.dev] if config.training.early_stopping.enabled else []
    return [*sorted(files), run.metrics, run.train / GROUPS, normal_file(run), *guard, *dev]


def run(config: RunConfig, run: RunDirectory, *, anchor_source: AnchorSource | None = None) -> dict[str, Any]:
    """Train, going on from the last complete checkpoint of a killed run.

    Where the collapse guard stops it, the weights of its last check that held are the result, and guard.json says why;
    else, with early stopping, those of the best check on dev prompts.

    Args:
        config: the whole configuration.
        run: where the records and the checkpoints are.
        anchor_source: redraws anchors where `anchors.schedule` is online.

    Raises:
        DataError: no group with a negative and an anchor, or none of the dev split for early stopping.
        ModelError: the model, a reference or the settings cannot be used.
        NonFiniteLossError: stopped before the optimizer step, and the guard is off.
    """
    rows = training_rows(
        run, "train", chosen=config.training.needs_chosen, acceptable_share=config.anchors.acceptable_share
    )
    if not rows:
        raise DataError(
            f"{run.selection}: no training prompt has a usable anchor; lower anchors.temperature, raise "
            "anchors.max_new_tokens, or relax anchors.filters"
        )
    stopping = config.training.early_stopping
    looked_at = dev_rows(run, stopping.prompts) if stopping.enabled else []
    normal = normal_rows(run) if config.training.needs_normal else None
    arguments = _arguments(config, run)
    tokenizer = load_tokenizer(config.model)
    model = load_model(config.model)
    if config.training.method == "full" and model.dtype in (torch.bfloat16, torch.float16):
        logger.warning(
            "training.method=full in %s: steps below its precision are lost; set model.dtype=float32 to keep them",
            str(model.dtype).removeprefix("torch."),
        )
    with explain_storage_errors(run.train):
        trainer = D2OTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=lora_config(config.training.lora) if config.training.method == "lora" else None,
            normal_dataset=normal,
            anchor_source=anchor_source,
            anchor_schedule=AnchorSchedule(*(getattr(config.anchors, name) for name in SCHEDULE_KEYS)),
            reference_positive=_reference(config.references.positive, config.model, model, tokenizer),
            reference_negative=_reference(config.references.negative, config.model, model, tokenizer),
        )
        groups = list(_group_rows(trainer, rows))
        write_jsonl(run.train / GROUPS, groups)
        write_jsonl(normal_file(run), ({"prompt_id": row["prompt_id"]} for row in normal or ()))
        guard = _guard(trainer, config, run, tokenizer, rows) if config.guard.enabled else None
        early = _early_stopping(trainer, config, run, tokenizer, looked_at) if stopping.enabled else None
        _train(trainer, run, guard, early)
        history = [row for row in trainer.state.log_history if "loss" in row]
        write_jsonl(run.metrics, [{name: row.get(name) for name in ("step", "epoch", *_METRICS)} for row in history])
        folder = run.adapter if config.training.method == "lora" else run.model
        kept = _kept(run, guard, early)
        if kept is None:
            write_directory_atomic(folder, lambda temporary: _save(trainer, temporary))
        else:
            write_directory_atomic(folder, lambda temporary: _copy(kept, temporary))
    counts = _counts(trainer, rows, groups)
    if guard is not None and guard.stop is not None:
        return {**counts, "guard": asdict(guard.stop)}
    return counts if early is None else {**counts, "early_stopping": early.result}


def _arguments(config: RunConfig, run: RunDirectory) -> D2OConfig:
    training = config.training
    return D2OConfig(
        **{
            "output_dir": str(run.train),
            **_objective(training),
            "max_length": config.model.max_length,
            "tokens_per_microbatch": training.tokens_per_microbatch,
            "head_chunk": training.head_chunk,
            "reference_cache_dir": str(run.reference_cache),
            "learning_rate": training.learning_rate,
            "lr_scheduler_type": training.lr_scheduler_type,
            "warmup_steps": training.warmup_steps,
            "weight_decay": training.weight_decay,
            "max_grad_norm": training.max_grad_norm,
            "num_train_epochs": training.epochs,
            "max_steps": training.max_steps or -1,
            "per_device_train_batch_size": training.groups_per_step,
            "activation_checkpointing": training.gradient_checkpointing,
            "save_strategy": "steps",
            "save_steps": training.save_steps,
            "save_total_limit": 2,
            "logging_steps": 1,
            "seed": _seed(config),
            "disable_tqdm": True,
            "use_cpu": config.model.device == "cpu",
            "dataloader_pin_memory": False,
        }
        | training.trainer_args
    )


def _seed(config: RunConfig) -> int:
    return config.seed if config.training.seed is None else config.training.seed


def _objective(training: TrainingConfig) -> dict[str, Any]:
    if isinstance(training, D2OTraining):
        below = training.skip_weight_below
        return {"objective": training.objective, **training.objective_args, "skip_weight_below": below}
    return {"objective": training.objective, "objective_args": training.objective_args}


def _reference(name: str, policy: ModelConfig, model: Any, tokenizer: Any) -> Reference | None:
    if name == INITIAL:
        return None
    return Reference.of(load_reference(name, policy, model), tokenizer)


def _guard(
    trainer: D2OTrainer, config: RunConfig, run: RunDirectory, tokenizer: Any, rows: Sequence[dict[str, Any]]
) -> CollapseGuard:
    probe = Probe(run, config, tokenizer, rows, context=context_length(trainer.model))
    return CollapseGuard(
        measure=lambda: probe.measure(trainer.model),
        weights=GoodWeights(_good(run), lambda temporary: _save(trainer, temporary)),
        config=config.guard,
        log=run.guard,
    )


def _early_stopping(
    trainer: D2OTrainer, config: RunConfig, run: RunDirectory, tokenizer: Any, rows: Sequence[dict[str, Any]]
) -> EarlyStopping:
    initial = frozen_initial(trainer.model, adapter_is_new=config.training.method == "lora")
    probe = DevProbe(run, config, tokenizer, rows, initial=initial, max_length=trainer.max_length)
    return EarlyStopping(
        measure=lambda: probe.measure(trainer.model),
        weights=BestWeights(run.train, lambda temporary: _save(trainer, temporary)),
        settings=config.training.early_stopping,
        log=run.dev,
    )


def _kept(run: RunDirectory, guard: CollapseGuard | None, early: EarlyStopping | None) -> Path | None:
    """The weights that are the result; None = as they are at the end of the training."""
    if guard is not None and guard.stop is not None:
        return _good(run)
    return None if early is None else early.best


def _good(run: RunDirectory) -> Path:
    """The weights of the guard's last check that held."""
    return run.train / "good"


def _train(trainer: D2OTrainer, run: RunDirectory, guard: CollapseGuard | None, early: EarlyStopping | None) -> None:
    trainer.remove_callback(_printer())
    remove_incomplete(run.train)
    found = last_complete(run.train)
    for callback in (guard, early):
        if callback is not None:
            trainer.add_callback(callback)
    try:
        with _progress(trainer):
            trainer.train(resume_from_checkpoint=str(found) if found else None)
    except NonFiniteLossError as error:
        if guard is None:
            raise
        guard.not_finite(error, trainer.state.global_step)


@contextmanager
def _progress(trainer: D2OTrainer) -> Iterator[None]:
    callback = TrainingProgress()
    trainer.add_callback(callback)
    try:
        yield
    finally:
        callback.close()


def _printer() -> type:
    from transformers import PrinterCallback

    return PrinterCallback


def _save(trainer: D2OTrainer, folder: Path) -> None:
    for adapter in getattr(trainer.model, "peft_config", {}).values():
        if isinstance(adapter.target_modules, set):  # written as it is, in an order that differs from run to run
            adapter.target_modules = sorted(adapter.target_modules)
    trainer.save_model(str(folder))
    # The report writes the model card, with the evaluation in it; checkpoints keep the trainer's arguments.
    for name in ("README.md", "training_args.bin"):
        (folder / name).unlink(missing_ok=True)


def _copy(good: Path, folder: Path) -> None:
    shutil.copytree(good, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(STEP_FILE))


def _group_rows(trainer: D2OTrainer, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each group as training begins, with its log-probs under the references (sums in nats). `anchors` are own samples;
    accepted answers that stand among them (`anchors.acceptable_share`) are counted apart, each once."""
    samples = {row["prompt_id"]: [tuple(ids) for ids in row["own"]] for row in rows}
    for group in trainer.train_dataset.groups:
        reference = dict(zip(group.anchors, group.ref_anchors, strict=True))
        drawn = samples[group.group_id]
        accepted = reference.keys() - set(drawn)
        share = sum(ids in accepted for ids in group.anchors) / len(group.anchors)
        # An objective may read fewer of them than were drawn, but never more: repeats are weight.
        own = [ids for ids in drawn if ids in reference][: round(len(group.anchors) * (1 - share))]
        yield {
            "prompt_id": group.group_id,
            "prompt_tokens": len(group.prompt_ids),
            "anchors": len(own),
            "anchor_tokens": sum(map(len, own)),
            "anchor_ref_logp": sum(reference[ids] for ids in own),
            "accepted": len(accepted),
            "accepted_share": share,
            "accepted_tokens": sum(map(len, accepted)),
            "negatives": len(group.negatives),
            "negative_tokens": sum(map(len, group.negatives)),
            "negative_ref_logp": sum(group.ref_negatives),
            "other_tokens": sum(map(len, group.others)),
        }


def _counts(
    trainer: D2OTrainer, rows: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    encoded = trainer.encoding_counts["train"]
    accepted = sum(group["accepted"] for group in groups)
    share = sum(group["accepted_share"] for group in groups) / len(groups)
    args = trainer.args
    seen = trainer.state.global_step * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    beyond = max(encoded.groups - seen, 0)
    return {
        "groups": {
            "in": encoded.rows,
            "trained": encoded.groups - beyond,
            **({"not_reached": beyond} if beyond else {}),
        },
        "dropped": dict(sorted(encoded.dropped.items())),
        "negatives": encoded.negatives,
        "anchors": sum(group["anchors"] for group in groups),
        **({"accepted": accepted, "accepted_share": round(share, 4)} if accepted else {}),
        "steps": trainer.state.global_step,
        **({"refreshed": trainer.anchor_buffer.counts} if trainer.anchor_buffer is not None else {}),
        "finish": {
            "anchors": dict(Counter(finish for row in rows for finish in row["anchor_finish"])),
            "negatives": dict(Counter(answer["finish"] for row in rows for answer in row["rejected"])),
        },
        "references": trainer.reference_digests,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    }
