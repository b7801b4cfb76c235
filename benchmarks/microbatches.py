"""How many tokens to put into one forward and backward: tokens/s against the number of groups computed together.

python benchmarks/microbatches.py            # the embedded model with LoRA, about 2 minutes on 2 cores
"""

import argparse
import statistics
import time

import torch

from naysay.config.model import ModelConfig
from naysay.config.training import LoraSettings
from naysay.modeling.adapters import add_adapter, lora_config
from naysay.modeling.forward import enable_group_forward, response_logps
from naysay.modeling.loading import load_model

PROMPT, ANSWERS, LENGTH = 50, 8, 47


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    model = add_adapter(load_model(ModelConfig()), lora_config(LoraSettings()))
    enable_group_forward(model)
    model.train()
    step(model, 1)
    tokens = PROMPT + ANSWERS * LENGTH
    for count in arguments.groups:
        seconds = statistics.median(step(model, count) for _ in range(arguments.repeats))
        print(f"{count} groups, {count * tokens} tokens: {count * tokens / seconds:.0f} tokens/s", flush=True)


def step(model: torch.nn.Module, count: int) -> float:
    """Seconds of one forward and backward of `count` groups of random tokens."""
    groups = [
        (torch.randint(49_000, (PROMPT,)).tolist(), torch.randint(49_000, (ANSWERS, LENGTH)).tolist())
        for _ in range(count)
    ]
    start = time.perf_counter()
    response_logps(model, groups, head_chunk=None).sum().backward()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
