"""`sample_anchors`: the library's way to what `naysay sample` and `naysay score` do on a run directory."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from naysay.artifacts.digests import digest_json
from naysay.config.anchors import MORAL_INSTRUCTIONS
from naysay.config.load import parse_config
from naysay.errors import ConfigError, DataError
from naysay.generation.anchors import all_slots, draw_anchors
from naysay.generation.hf import HFSampler
from naysay.judging.select import score_anchor, select_anchors
from naysay.records import Negative, Prompt


def sample_anchors(
    rows: Sequence[Mapping[str, Any]],
    *,
    model: Any,
    processing_class: Any,
    k: int = 11,
    temperature: float = 0.7,
    top_k: int = 50,
    top_p: float = 0.9,
    max_new_tokens: int = 128,
    instructions: Sequence[str] = MORAL_INSTRUCTIONS,
    seed: int = 0,
    batch_size: int = 256,
    max_length: int = 1024,
) -> list[dict[str, Any]]:
    """The rows with a column `anchors`: K responses (token ids) that `model` itself gives to each prompt.

    They are drawn under one of `instructions` and meant to be trained on under the bare prompt. Empty and repetitive
    responses, and those equal to a rejected answer of their row, are left out, so a row may get fewer than K.

    Args:
        rows: with `prompt` (text or messages) and `rejected` (text, or a list).
        model: the initial policy, a transformers causal LM.
        processing_class: its tokenizer, with a chat template.

    Raises:
        DataError: a row without a prompt.
        ConfigError: an impossible setting.
    """
    if isinstance(instructions, str):
        raise ConfigError("sample_anchors: instructions: expected a list of texts, found one; put it into a list")
    prompts = [_prompt(index, row) for index, row in enumerate(rows)]
    values = {
        "k": k,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "instructions": tuple(instructions),
    }
    config = parse_config({"anchors": values}, "sample_anchors").anchors
    unique = list({prompt.prompt_id: prompt for prompt in prompts}.values())
    with tempfile.TemporaryDirectory() as parts:
        anchors, _ = draw_anchors(
            HFSampler(model, processing_class, "in memory"),
            processing_class,
            all_slots(unique, k),
            config,
            run_seed=seed,
            batch_size=batch_size,
            parts=Path(parts),
            max_length=max_length,
        )
    of_prompt = {prompt.prompt_id: anchors[i * k : (i + 1) * k] for i, prompt in enumerate(unique)}
    result = []
    for row, prompt in zip(rows, prompts, strict=True):
        mine = of_prompt[prompt.prompt_id]
        selection = select_anchors(mine, _negatives(row, prompt), [score_anchor(a) for a in mine], config.filters)
        kept = [list(anchor.token_ids) for anchor in mine if anchor.anchor_id in selection.kept]
        result.append({**row, "anchors": kept})
    return result


def _prompt(index: int, row: Mapping[str, Any]) -> Prompt:
    prompt = row.get("prompt")
    if not prompt:
        raise DataError(f"row {index}: expected a column 'prompt', found {sorted(row)}; give a text or messages")
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    return Prompt(f"p-{digest_json([dict(message) for message in messages])[:16]}", messages, f"row {index}", "train")


def _negatives(row: Mapping[str, Any], prompt: Prompt) -> list[Negative]:
    rejected = row.get("rejected") or []
    texts = [rejected] if isinstance(rejected, str | Mapping) else rejected
    texts = [text["text"] if isinstance(text, Mapping) else text for text in texts]
    return [Negative(str(i), prompt.prompt_id, text) for i, text in enumerate(texts) if isinstance(text, str)]
