"""Anchors: answers of a policy to each prompt, drawn under an instruction, trained on under the bare prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from naysay.artifacts.digests import digest_ids, digest_text
from naysay.config.anchors import REVISE_INSTRUCTIONS, AnchorsConfig
from naysay.errors import DataError
from naysay.generation.plan import draw, plan_batches, plan_digest
from naysay.generation.sampler import Request, Response, Sampler, SamplingSettings
from naysay.generation.seeds import row_seed
from naysay.modeling.chat import decode_response, encode_prompt, with_instruction
from naysay.records import Anchor, Message, Negative, Prompt

Slot = tuple[Prompt, int]
"""Which anchor of which prompt."""
Rejected = Mapping[str, Sequence[Negative]]
"""The negatives of each prompt id."""

ANCHORS_PER_INSTRUCTION = 4
"""Neighbouring anchors of a prompt share an instruction, so that their prompt is computed once."""


def instruction_of(instructions: Sequence[str], run_seed: int, prompt_id: str, index: int, round: int) -> str:
    """The instruction that an anchor is drawn under; depends on nothing but the arguments."""
    block_seed = row_seed(run_seed, f"{prompt_id}/instruction", index // ANCHORS_PER_INSTRUCTION, round)
    return instructions[block_seed % len(instructions)]


def instruction_id(text: str) -> str:
    """Short content id of an instruction; `bare` where there is none."""
    return f"i-{digest_text(text)[:8]}" if text else "bare"


def anchor_request(
    tokenizer: Any, slot: Slot, config: AnchorsConfig, rejected: Rejected, *, run_seed: int, round: int
) -> tuple[list[Message], str]:
    """(the conversation that an anchor is drawn under, the id of its instruction); depends on the arguments alone.

    Raises:
        DataError: `mode: revise`, and the prompt has no rejected answer to show.
    """
    prompt, index = slot
    if config.mode == "plain":
        return list(prompt.messages), instruction_id("")
    wordings = config.instructions if config.mode == "instruct" else REVISE_INSTRUCTIONS
    instruction = instruction_of(wordings, run_seed, prompt.prompt_id, index, round)
    if config.mode == "instruct":
        return with_instruction(tokenizer, prompt.messages, instruction), instruction_id(instruction)
    negatives = rejected.get(prompt.prompt_id)
    if not negatives:
        raise DataError(f"prompt {prompt.prompt_id}: anchors.mode revise needs a rejected answer to show, found none")
    shown = negatives[(index // ANCHORS_PER_INSTRUCTION) % len(negatives)].text
    *before, last = prompt.messages
    request = f"{instruction}\n\nRequest: {last['content']}\n\nRejected reply: {shown}\n\nNew reply:"
    return [*before, {**last, "content": request}], instruction_id(instruction)


def all_slots(prompts: Sequence[Prompt], k: int) -> list[Slot]:
    """K anchors of every prompt."""
    return [(prompt, index) for prompt in prompts for index in range(k)]


def draw_anchors(
    sampler: Sampler,
    tokenizer: Any,
    slots: Sequence[Slot],
    config: AnchorsConfig,
    *,
    run_seed: int,
    batch_size: int,
    parts: Path,
    max_length: int,
    rejected: Rejected | None = None,
    round: int = 0,
) -> tuple[list[Anchor], dict[str, Any]]:
    """Draw one anchor a slot, resumable below `parts`, and describe the batch plan.

    An anchor is at most `config.max_new_tokens` long, and short enough that the bare prompt plus the anchor fits
    into `max_length`.
    """
    rows = list(slots)
    seeds = [row_seed(run_seed, prompt.prompt_id, index, round) for prompt, index in rows]
    asked = [anchor_request(tokenizer, s, config, rejected or {}, run_seed=run_seed, round=round) for s in rows]
    requests = [
        Request(tuple(encode_prompt(tokenizer, messages)), seed)
        for (messages, _), seed in zip(asked, seeds, strict=True)
    ]
    room = {p.prompt_id: max_length - len(encode_prompt(tokenizer, p.messages)) for p, index in rows}
    settings = SamplingSettings(config.temperature, config.top_k, config.top_p, config.max_new_tokens)

    def to_row(i: int, response: Response) -> dict[str, Any]:
        prompt, index = rows[i]
        kept = response.token_ids[: max(room[prompt.prompt_id], 0)]
        anchor = Anchor(
            anchor_id=f"y-{digest_text(prompt.prompt_id, str(index), str(round), digest_ids(kept))[:16]}",
            prompt_id=prompt.prompt_id,
            index=index,
            round=round,
            token_ids=kept,
            token_logprobs=response.token_logprobs[: len(kept)],
            text=decode_response(tokenizer, kept),
            finish=response.finish if len(kept) == len(response.token_ids) else "length",
            instruction_id=asked[i][1],
            seed=seeds[i],
            policy_digest=sampler.policy_digest,
            sampler=sampler.name,
        )
        return asdict(anchor)

    drawn = draw(
        sampler,
        requests,
        settings,
        batch_size=batch_size,
        parts=parts,
        description="sampling anchors",
        to_row=to_row,
    )
    anchors = [Anchor(**row | {name: tuple(row[name]) for name in ("token_ids", "token_logprobs")}) for row in drawn]
    plan = {
        "digest": plan_digest(requests, settings, batch_size),
        "batches": len(plan_batches(requests, batch_size)),
        "batch_size": batch_size,
    }
    return anchors, plan
