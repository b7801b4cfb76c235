"""Models and log-probs as anyone would get them with transformers alone: the oracle of these tests."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def plain_logp(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Sum of log-probs (nats) by one ordinary forward, in the way that anyone would write it."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].float()
    logps = logits.log_softmax(-1)
    return sum(logps[len(prompt) + i - 1, token].item() for i, token in enumerate(answer))
