"""What the performance benchmark measures beside the training step: scoring, and starting up."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.steppers import Case, groups_of, wait

from naysay.config.model import ModelConfig
from naysay.modeling.forward import token_budget
from naysay.modeling.loading import load_model, load_tokenizer
from naysay.modeling.reference import score_groups


def scoring(*, quick: bool, repeats: int, threads: int) -> list[dict[str, Any]]:
    """Reference log-probs of a group through the cache's path, against a bare forward over as many tokens."""
    torch.set_num_threads(threads)
    model, tokenizer = load_model(ModelConfig()).eval(), load_tokenizer(ModelConfig())
    return scoring_of(model, tokenizer, Case(128, 64, 3 if quick else 11), repeats=repeats)


def scoring_of(model: Any, tokenizer: Any, case: Case, *, repeats: int) -> list[dict[str, Any]]:
    """As `scoring`, of any model and case."""
    groups, device = groups_of(case), model.device
    ids = torch.tensor(
        [[*prompt, *(token for answer in answers for token in answer)] for prompt, answers in groups], device=device
    )

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            score_groups(
                model,
                tokenizer,
                groups,
                cache_root=Path(folder),
                tokens_per_microbatch=token_budget(None, device),
                head_chunk=None,
                digest="benchmark",
            )
        return case.tokens

    @torch.inference_mode()
    def bare() -> float:
        model(input_ids=ids, use_cache=False)
        wait(device)
        return case.tokens

    @torch.inference_mode()
    def without_head() -> float:
        model.base_model(input_ids=ids, use_cache=False)
        wait(device)
        return case.tokens

    results, rows = [], "one row" if case.groups == 1 else f"{case.groups} rows"
    for name, rival, target in (("the bare model", bare, 0.9), ("the same without its head", without_head, None)):
        ratio, spread, rates = _in_turn(ours, rival, repeats)
        aim = "" if target is None else f" (target {target}x{'' if ratio >= target else ', NOT MET'})"
        text = (
            f"score {case.name}: {rates[0]:.0f} tokens/s; {name} on {rows} of as many tokens {rates[1]:.0f}: "
            f"{ratio:.2f}x [{spread[0]:.2f}, {spread[1]:.2f}]{aim}"
        )
        results.append(
            {"rival": name, "target": target, "ratio": ratio, "ratio_range": spread}
            | {"case": case.name, "tokens_per_second": rates, "text": text}
        )
    return results


def commands(*, quick: bool, repeats: int, threads: int) -> list[dict[str, Any]]:
    """Seconds of `naysay --help`, as a whole process."""
    command = [sys.executable, "-m", "naysay", "--help"]
    seconds = []
    for _ in range(1 + max(repeats, 3)):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds[1:])
    text = f"command naysay --help: {median:.2f} s (target 0.4 s{'' if median <= 0.4 else ', NOT MET'})"
    return [{"seconds": median, "range": [min(seconds[1:]), max(seconds[1:])], "text": text}]


def _in_turn(
    ours: Callable[[], float], theirs: Callable[[], float], repeats: int
) -> tuple[float, list[float], list[float]]:
    """(median ratio of tokens/s, its range, median tokens/s of both); each takes one turn that is not counted."""
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 1):
        for side, run in enumerate((ours, theirs)):
            started = time.perf_counter()
            tokens = run()
            if number > 0:
                rates[side].append(tokens / (time.perf_counter() - started))
    ratios = [a / b for a, b in zip(*rates, strict=True)]
    return statistics.median(ratios), [min(ratios), max(ratios)], [statistics.median(side) for side in rates]
