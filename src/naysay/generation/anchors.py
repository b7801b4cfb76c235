"""Anchors: K answers of the initial policy to each prompt, drawn under a moral instruction (method.md section 5)."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from naysay.artifacts.digests import digest_ids, digest_text
from naysay.config.anchors import AnchorsConfig
from naysay.generation.plan import draw, plan_batches, plan_digest
from naysay.generation.sampler import Request, Response, Sampler, SamplingSettings
from naysay.generation.seeds import row_seed
from naysay.modeling.chat import decode_response, encode_prompt, with_instruction
from naysay.records import Anchor, Prompt

ANCHORS_PER_INSTRUCTION = 4
"""Neighbouring anchors of a prompt share an instruction, so that their prompt is computed once."""


def instruction_of(instructions: Sequence[str], run_seed: int, prompt_id: str, index: int, round: int) -> str:
    """The instruction that an anchor is drawn under; depends on nothing but the arguments."""
    block_seed = row_seed(run_seed, f"{prompt_id}/instruction", index // ANCHORS_PER_INSTRUCTION, round)
    return instructions[block_seed % len(instructions)]


def instruction_id(text: str) -> str:
    """Short content id of an instruction; `bare` where there is none."""
    return f"i-{digest_text(text)[:8]}" if text else "bare"


def draw_anchors(
    sampler: Sampler,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: AnchorsConfig,
    *,
    run_seed: int,
    batch_size: int,
    parts: Path,
    max_length: int,
    round: int = 0,
) -> tuple[list[Anchor], dict[str, Any]]:
    """Draw K anchors a prompt, resumable below `parts`, and describe the batch plan.

    An anchor is at most `config.max_new_tokens` long, and short enough that the bare prompt plus the anchor fits
    into `max_length`.
    """
    rows = [(prompt, index) for prompt in prompts for index in range(config.k)]
    seeds = [row_seed(run_seed, prompt.prompt_id, index, round) for prompt, index in rows]
    instructions = [instruction_of(config.instructions, run_seed, p.prompt_id, index, round) for p, index in rows]
    requests = []
    for (prompt, _), seed, instruction in zip(rows, seeds, instructions, strict=True):
        messages = with_instruction(tokenizer, prompt.messages, instruction)
        requests.append(Request(tuple(encode_prompt(tokenizer, messages)), seed))
    room = {prompt.prompt_id: max_length - len(encode_prompt(tokenizer, prompt.messages)) for prompt in prompts}
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
            instruction_id=instruction_id(instructions[i]),
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
