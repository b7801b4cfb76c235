"""On one CUDA device: naysay beside TRL and `generate`, in bfloat16, on models of known shapes with random weights.

    python -m benchmarks.gpu                              # all of it, ten minutes or so on an H200
    python -m benchmarks.gpu --shapes llama-3.2-1b        # one model alone

What is timed is as in `benchmarks.run`, of several groups a step, as many as a GPU is busy with. TRL gets the batch
size that is fastest for it, searched here; memory is what tensors took at most.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.machine import scoring_of
from benchmarks.random_models import byte_tokenizer, random_model
from benchmarks.run import Race, ask, race, worker
from benchmarks.sampling import PROMPT_TOKENS, K, draw, generate, random_prompts, timed
from benchmarks.steppers import Case, gpu_matmul_rate

from naysay.artifacts.manifest import environment
from naysay.artifacts.store import write_json
from naysay.errors import InputNotFoundError, NaysayError
from naysay.generation.hf import HFSampler


@dataclass(frozen=True)
class Asked:
    """A case, and the pairs a batch that TRL is tried with (none: the rival is each answer with its own prompt)."""

    case: Case
    batches: tuple[int, ...] = ()


STEPS = {
    "llama-3.2-1b": (
        Asked(Case(128, 64, 11, groups=16), (16, 32, 64, 128, 176)),
        Asked(Case(512, 64, 8, groups=8), (8, 16, 32, 64)),
        Asked(Case(16, 64, 8, groups=16)),
        Asked(Case(128, 64, 11), (11,)),
    ),
    "llama-2-7b": (Asked(Case(128, 64, 11, groups=4), (4, 8, 16, 32, 44)),),
}
SAMPLED = ("llama-3.2-1b", (32, 256))
"""A shape, and numbers of prompts."""
PROMPTS_A_CALL = (32, 64, 128, 256)
"""Of `generate`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a line for each measurement and write them below --out."""
    given = _parse(arguments)
    try:
        if not torch.cuda.is_available():
            raise InputNotFoundError("expected a CUDA device, found none; on a CPU run python -m benchmarks.run")
        results: dict[str, Any] = {
            "benchmark": "performance on a GPU",
            "called_as": f"python -m benchmarks.gpu {' '.join(sys.argv[1:])}".strip(),
            "device": torch.cuda.get_device_name(),
            "environment": environment(),
            "step": [],
        }
        for shape in given.shapes:
            for step in steps(shape, given.repeats):
                results["step"].append(step)
                write_json(given.out, results)  # what was measured is kept, whatever happens to the rest
            if shape == SAMPLED[0]:
                results |= inference(shape, given.repeats)
                torch.cuda.empty_cache()  # the next model's processes need the room
        write_json(given.out, results)
    except NaysayError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return error.exit_code
    print(f"written: {given.out}")
    return 0


def inference(shape: str, repeats: int) -> dict[str, Any]:
    """Scoring and sampling with a model of this shape."""
    model, case = random_model(shape, dtype=torch.bfloat16, device="cuda"), Case(128, 64, 11, groups=16, shape=shape)
    found = {
        "score": scoring_of(model, byte_tokenizer(), case, repeats=repeats),
        "sample": [sampling(model, prompts, repeats) for prompts in SAMPLED[1]],
    }
    for line in (*found["score"], *found["sample"]):
        print(line["text"], flush=True)
    return found


def steps(shape: str, repeats: int) -> Iterator[dict[str, Any]]:
    """The races of a shape."""
    rate = partial(gpu_matmul_rate, shape)
    for asked in STEPS[shape]:
        case = Case(**{**vars(asked.case), "shape": shape})
        rival = f"trl:{fastest(case, asked.batches)}" if asked.batches else "unshared"
        yield race(Race(case, rival), repeats, 1, rate=rate)


def fastest(case: Case, batches: Sequence[int]) -> int:
    """The pairs a batch with which TRL's step, the better of two, is fastest: more and more of them, until it is slower
    or does not fit.

    Raises:
        InputNotFoundError: none could be taken, e.g. for want of TRL.
    """
    seconds: dict[int, float] = {}
    for batch in batches:
        try:
            with worker(f"trl:{batch}", case, 1) as peer:
                seconds[batch] = min(ask(peer)["seconds"] for _ in range(2))
        except InputNotFoundError as error:
            if "OutOfMemoryError" not in str(error):
                raise
            print(f"trl, {case.name}, {batch} pairs a batch: does not fit", flush=True)
            break
        print(f"trl, {case.name}, {batch} pairs a batch: {seconds[batch]:.3g} s", flush=True)
        if seconds[batch] > min(seconds.values()):
            break
    if not seconds:
        raise InputNotFoundError(f"TRL fits {case.name} with none of {batches} pairs a batch; measure on a larger GPU")
    return min(seconds, key=lambda batch: seconds[batch])


def sampling(model: Any, prompts: int, repeats: int) -> dict[str, Any]:
    """K answers to each of so many prompts, all planned together, beside `generate` with the prompts a call that suit
    it best of `PROMPTS_A_CALL`."""
    asked = random_prompts(prompts)
    sampler = HFSampler(model, byte_tokenizer(), "initial")
    draw(sampler, asked[:2])
    generate(model, asked[:2], 2)
    tried = {batch: timed(generate, model, asked, batch) for batch in PROMPTS_A_CALL if batch <= prompts}
    best = max(tried, key=lambda batch: tried[batch][0] / tried[batch][1])
    turns = [
        (timed(draw, sampler, asked, prompts * K), timed(generate, model, asked, best)) for _ in range(max(2, repeats))
    ]
    rates = [[tokens / seconds for tokens, seconds in turn] for turn in turns]
    mine, other = (statistics.median(side) for side in zip(*rates, strict=True))
    ratios = [a / b for a, b in rates]
    text = (
        f"sample K={K}, P={PROMPT_TOKENS}, {prompts} prompts: {mine:,.0f} tokens/s; generate, {best} prompts a call, "
        f"{other:,.0f}: {statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"
    )
    return {
        "prompts": prompts,
        "generate_prompts_a_call": best,
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "tokens_per_second": [mine, other],
        "generate_tokens_and_seconds": {str(batch): list(of) for batch, of in tried.items()},
        "text": text,
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/performance-gpu.json"))
    parser.add_argument("--shapes", type=lambda text: _shapes(text, parser), default=tuple(STEPS))
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args(arguments)


def _shapes(text: str, parser: argparse.ArgumentParser) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(STEPS):
        parser.error(f"--shapes: no shape {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
