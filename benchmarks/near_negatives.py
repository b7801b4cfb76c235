"""Keep the rejected answers that surprise the model least: does a filter by distribution gap help against style?

    naysay ingest rejected.jsonl --out runs/pool
    python -m benchmarks.near_negatives runs/pool near.jsonl --keep 48
    naysay align near.jsonl --out runs/near

Reads what `naysay ingest` left in a run directory and writes the same rows with their splits, of the training prompts
only the `--keep` ones whose rejected answers have the smallest -log pi per token under the initial policy.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_records, write_jsonl
from naysay.config.model import ModelConfig
from naysay.errors import InputNotFoundError, NaysayError
from naysay.modeling.chat import encode_prompt, encode_response
from naysay.modeling.forward import enable_group_forward, response_logps
from naysay.modeling.loading import load_model, load_tokenizer
from naysay.modeling.progress import progress_bar
from naysay.records import Acceptable, Negative, Prompt


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the rows, and say how surprising the kept and the dropped answers are."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.near_negatives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="a run directory with the records of `naysay ingest`")
    parser.add_argument("out", type=Path, help="a .jsonl file for `naysay align`")
    parser.add_argument("--keep", type=int, required=True, help="training prompts that stay")
    parser.add_argument("--model", default=ModelConfig().name)
    given = parser.parse_args(arguments)
    try:
        run = RunDirectory(given.run)
        if not run.negatives.is_file():
            raise InputNotFoundError(f"{run.negatives}: expected records, found none; run `naysay ingest` first")
        prompts = [p for p in read_records(run.prompts, Prompt) if p.split != "benign"]
        rejected, acceptable = _by_prompt(run.negatives, Negative), _by_prompt(run.acceptable, Acceptable)
        surprise = surprises(prompts, rejected, ModelConfig(name=given.model))
    except NaysayError as error:
        print(f"near_negatives: {error}", file=sys.stderr)
        return error.exit_code
    kept = sorted(surprise, key=surprise.__getitem__)[: given.keep]
    rows = [
        {
            "prompt": list(prompt.messages),
            "completion": answer.text,
            "label": isinstance(answer, Acceptable),
            "finish": answer.finish,
            "split": prompt.split,
        }
        for prompt in prompts
        if prompt.split != "train" or prompt.prompt_id in set(kept)
        for answer in (*rejected[prompt.prompt_id], *acceptable[prompt.prompt_id])
    ]
    write_jsonl(given.out, rows)
    dropped = [value for name, value in surprise.items() if name not in set(kept)]
    print(
        f"{given.out}: kept {len(kept)} training prompts ({_mean([surprise[name] for name in kept])} nats/token), "
        f"dropped {len(dropped)} ({_mean(dropped)})"
    )
    return 0


@torch.inference_mode()
def surprises(prompts: Sequence[Prompt], rejected: dict[str, list[Any]], config: ModelConfig) -> dict[str, float]:
    """-log pi per token of the rejected answers of each training prompt, in nats."""
    model, tokenizer = load_model(config).eval(), load_tokenizer(config)
    enable_group_forward(model)
    training, found = [p for p in prompts if p.split == "train"], {}
    with progress_bar("scoring rejected answers", len(training), "prompts") as advance:
        for prompt in training:
            answers = rejected[prompt.prompt_id]
            ids = [encode_response(tokenizer, answer.text, ended=answer.finish == "stop") for answer in answers]
            logps = response_logps(model, [(encode_prompt(tokenizer, prompt.messages), ids)], head_chunk=1024)
            found[prompt.prompt_id] = -float(logps.double().sum()) / sum(map(len, ids))
            advance(1)
    return found


def _by_prompt(path: Path, kind: type) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for answer in read_records(path, kind):
        found[answer.prompt_id].append(answer)
    return found


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}" if values else "-"


if __name__ == "__main__":
    sys.exit(main())
