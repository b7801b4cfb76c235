"""Stage `sample`: draws K anchors for every prompt that has a negative, in all splits, so that runs that are evaluated
on different ones share it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_records, write_records
from naysay.config.anchors import SCHEDULE_KEYS
from naysay.config.run import RunConfig
from naysay.errors import DataError
from naysay.generation.anchors import all_slots, draw_anchors
from naysay.generation.hf import HFSampler
from naysay.modeling.chat import template_file
from naysay.modeling.digests import policy_digest
from naysay.modeling.loading import load_model, load_tokenizer, refuse_dropout, resolve
from naysay.records import Anchor, Negative, Prompt

VERSION = 3


def settings(config: RunConfig) -> dict[str, Any]:
    anchors = config.anchors.model_dump(mode="json")
    for name in ("filters", "schedule", "acceptable_share", *SCHEDULE_KEYS):  # read by other stages
        anchors.pop(name)
    return {
        "seed": config.seed,
        "model": config.model.model_dump(mode="json"),
        "anchors": anchors,
        "sampling": config.sampling.model_dump(mode="json"),
    }


def inputs(config: RunConfig, run: RunDirectory) -> dict[str, Path]:
    return {
        "prompts": run.prompts,
        "negatives": run.negatives,
        "model": resolve(config.model.name, config.model.revision),
        **template_file(config.model),
    }


def outputs(config: RunConfig, run: RunDirectory) -> list[Path]:
    return [run.anchors]


def run(config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Draw the anchors, batch by batch; batches that a killed run left are read, not drawn again.

    Raises:
        DataError: no prompt has a negative.
        ModelError: the model cannot be used, or could not be trained afterwards (dropout above 0).
    """
    rejected: dict[str, list[Negative]] = {}
    for negative in read_records(run.negatives, Negative):
        rejected.setdefault(negative.prompt_id, []).append(negative)
    prompts = [prompt for prompt in read_records(run.prompts, Prompt) if prompt.prompt_id in rejected]
    if not prompts:
        raise DataError(f"{run.prompts}: no prompt with a rejected answer to sample for; check the input file")
    tokenizer = load_tokenizer(config.model)
    model = load_model(config.model)
    refuse_dropout(model)  # training would refuse it, minutes of sampling later
    sampler = HFSampler(model, tokenizer, policy_digest(model, tokenizer))
    anchors, plan = draw_anchors(
        sampler,
        tokenizer,
        all_slots(prompts, config.anchors.k),
        config.anchors,
        run_seed=config.seed,
        batch_size=config.sampling.batch_size,
        parts=run.sampling_parts,
        max_length=config.model.max_length,
        rejected=rejected,
    )
    write_records(run.anchors, anchors)
    return _counts(prompts, anchors) | {"batch_plan": plan}


def _counts(prompts: Sequence[Prompt], anchors: Sequence[Anchor]) -> dict[str, Any]:
    texts = {(anchor.prompt_id, anchor.token_ids) for anchor in anchors}
    return {
        "prompts": dict(Counter(prompt.split for prompt in prompts)),
        "anchors": len(anchors),
        "duplicates": len(anchors) - len(texts),
        "tokens": sum(len(anchor.token_ids) for anchor in anchors),
        "finish": dict(Counter(anchor.finish for anchor in anchors)),
        "by_instruction": dict(sorted(Counter(anchor.instruction_id for anchor in anchors).items())),
    }
