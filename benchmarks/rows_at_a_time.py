"""How many rows to draw together: sampled tokens/s against the rows that are computed at a time.

python benchmarks/rows_at_a_time.py          # the embedded model, 11 answers of 48 tokens a prompt, 1 minute on 2 cores
"""

import argparse
import os
import time

import torch
from benchmarks.sampling import NEW_TOKENS, SETTINGS, K, random_prompts, requests_of

from naysay.config.model import ModelConfig
from naysay.generation.hf import HFSampler
from naysay.modeling.loading import load_model, load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[11, 22, 44, 88, 132, 176])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(ModelConfig()), load_tokenizer(ModelConfig())
    HFSampler(model, tokenizer, "initial").sample(requests_of(random_prompts(1)), SETTINGS)  # warms up, and is checked
    for rows in arguments.rows:
        requests = requests_of(random_prompts(-(-rows // K)))[:rows]
        sampler = HFSampler(model, tokenizer, "initial", rows_at_a_time=rows)
        started = time.perf_counter()
        tokens = sum(len(response.token_ids) for response in sampler.sample(requests, SETTINGS))
        print(
            f"{rows} rows of at most {NEW_TOKENS} tokens: {tokens / (time.perf_counter() - started):.0f} tokens/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
