"""Sampling K answers to each prompt: naysay beside `generate(num_return_sequences=K)` of transformers.

Both draw from the same distribution (temperature 0.7, top-k 50, top-p 0.9). The rival gets the number of prompts a call
that was found fastest for it (`tune_generate`); naysay its defaults, through the batches that a run would plan.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.steppers import matmul_rate

from naysay.artifacts.store import read_json, write_json
from naysay.config.model import ModelConfig
from naysay.config.sampling import SamplingConfig
from naysay.generation.hf import HFSampler
from naysay.generation.plan import plan_batches
from naysay.generation.sampler import Request, SamplingSettings
from naysay.generation.seeds import row_seed
from naysay.modeling.loading import load_model, load_tokenizer

K, PROMPT_TOKENS, NEW_TOKENS = 11, 128, 48
SETTINGS = SamplingSettings(temperature=0.7, top_k=50, top_p=0.9, max_new_tokens=NEW_TOKENS)
NAME = f"sample K={K}, P={PROMPT_TOKENS}, R={NEW_TOKENS}"
TARGET = 2.2
PROMPTS = 32
PROMPTS_A_TURN = 16
PEER_PROMPTS = (1, 2, 4, 8, 32)

Prompt = tuple[int, ...]
Timed = tuple[int, float]
"""Tokens, and the seconds that they took."""


def random_prompts(count: int) -> list[Prompt]:
    """Prompts of random tokens: the same ones every time, and the first of more are those of fewer."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40_000, (count, PROMPT_TOKENS), generator=generator)
    return [tuple(row) for row in ids.tolist()]


def requests_of(prompts: Sequence[Prompt]) -> list[Request]:
    """K requests a prompt."""
    return [Request(prompt, row_seed(0, str(i), j)) for i, prompt in enumerate(prompts) for j in range(K)]


def sampling(peer_settings: Path, *, quick: bool, threads: int) -> list[dict[str, Any]]:
    """32 prompts in turns: 16 of them by naysay, then by `generate` in calls of the size that suits it.
    A ratio is of neighbours in time. With `quick` one turn of 4."""
    torch.set_num_threads(threads)
    model, sampler = load_both()
    prompts = random_prompts(4 if quick else PROMPTS)
    batch = min(peer_prompts(peer_settings), len(prompts))
    size = max(PROMPTS_A_TURN, batch)
    turns, rates = [], []
    for start in range(0, len(prompts), size):
        mine = prompts[start : start + size]
        rates.append(matmul_rate(threads))
        turns.append((timed(draw, sampler, mine), timed(generate, model, mine, batch)))
    return [_result(model, turns, rates, prompts=len(prompts), batch=batch)]


def _result(
    model: Any,
    turns: Sequence[tuple[Timed, Timed]],
    rates: Sequence[float],
    *,
    prompts: int,
    batch: int,
) -> dict[str, Any]:
    ratios = [(mine[0] / mine[1]) / (other[0] / other[1]) for mine, other in turns]
    mine, other = (sum(tokens for tokens, _ in side) / sum(s for _, s in side) for side in zip(*turns, strict=True))
    rate, ratio = statistics.median(rates), statistics.median(ratios)
    seconds = sum(mine[1] for mine, _ in turns)
    share = needed_flops(model, prompts, sum(mine[0] for mine, _ in turns)) / seconds / rate
    text = (
        f"{NAME}, {prompts} prompts: {mine:.0f} tokens/s; generate(num_return_sequences={K}), {batch} prompts a call, "
        f"{other:.0f}: {ratio:.2f}x [{min(ratios):.2f}, {max(ratios):.2f}] (target {TARGET:g}x"
        f"{'' if ratio >= TARGET else ', NOT MET'}); {100 * share:.0f} % of the measured {rate / 1e9:.0f} GFLOP/s"
    )
    return {
        "case": NAME,
        "prompts": prompts,
        "prompts_a_turn": min(prompts, max(PROMPTS_A_TURN, batch)),
        "generate_prompts_a_call": batch,
        "target": TARGET,
        "ratio": ratio,
        "ratio_range": [min(ratios), max(ratios)],
        "tokens_per_second": [mine, other],
        "tokens_and_seconds": turns,
        "matmul_gflop_per_second": rate / 1e9,
        "share_of_matmul_rate": share,
        "text": text,
    }


def load_both() -> tuple[Any, HFSampler]:
    """The embedded model and our sampler on it, after a first call of each."""
    model, tokenizer = load_model(ModelConfig()), load_tokenizer(ModelConfig())
    sampler = HFSampler(model, tokenizer, "initial")
    draw(sampler, random_prompts(1))
    generate(model, random_prompts(1), 1)
    return model, sampler


def draw(sampler: HFSampler, prompts: Sequence[Prompt], batch_size: int | None = None) -> int:
    """Tokens that naysay drew, batch by batch as it plans them."""
    requests = requests_of(prompts)
    batches = plan_batches(requests, batch_size or SamplingConfig().batch_size)
    drawn = (sampler.sample([requests[i] for i in batch], SETTINGS) for batch in batches)
    return sum(len(response.token_ids) for responses in drawn for response in responses)


@torch.inference_mode()
def generate(model: Any, prompts: Sequence[Prompt], batch: int) -> int:
    """Tokens that the library's `generate` drew, `batch` prompts a call; what follows an end of text does not count."""
    made = 0
    for start in range(0, len(prompts), batch):
        ids = torch.tensor(prompts[start : start + batch], device=model.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=SETTINGS.temperature,
            top_k=SETTINGS.top_k,
            top_p=SETTINGS.top_p,
            max_new_tokens=NEW_TOKENS,
            num_return_sequences=K,
        )
        new = out[:, ids.shape[1] :]
        ended = (new == model.generation_config.eos_token_id).cumsum(1) > 0
        made += int((~ended).sum() + ended.any(1).sum())
    return made


def timed(run: Callable[..., int], *arguments: Any) -> Timed:
    started = time.perf_counter()
    tokens = run(*arguments)
    return tokens, time.perf_counter() - started


def needed_flops(model: Any, prompts: int, tokens: int) -> float:
    """Floating-point operations that these tokens cannot do without: 2N for each of a prompt, once, and for each drawn
    one; the head for drawn ones; attention over allowed pairs."""
    config = model.config
    body = sum(m.weight.numel() for m in model.base_model.modules() if isinstance(m, torch.nn.Linear))
    head = config.vocab_size * config.hidden_size
    pairs = prompts * PROMPT_TOKENS * (PROMPT_TOKENS + 1) / 2 + tokens * (PROMPT_TOKENS + (NEW_TOKENS + 1) / 2)
    attention = 4 * pairs * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return 2.0 * body * (prompts * PROMPT_TOKENS + tokens) + 2.0 * head * tokens + attention


def tune_generate(peer_settings: Path, threads: int) -> None:
    """Find the number of prompts a call with which `generate` draws fastest, and keep it with what was measured."""
    torch.set_num_threads(threads)
    model, _ = load_both()
    known = read_json(peer_settings) if peer_settings.exists() else {}
    rates: dict[str, float] = {}
    for batch in PEER_PROMPTS:
        tokens, seconds = timed(generate, model, random_prompts(max(batch, 4)), batch)
        rates[str(batch)] = tokens / seconds
        print(f"generate, {NAME}, {batch} prompts a call: {rates[str(batch)]:.0f} tokens/s", flush=True)
    best = max(rates, key=lambda name: rates[name])
    known[NAME] = {"prompts_a_call": int(best), "tokens_per_second_by_prompts_a_call": rates}
    write_json(peer_settings, known)


def peer_prompts(peer_settings: Path) -> int:
    """The number of prompts a call that was found fastest for `generate`; 2 where none was searched."""
    known = read_json(peer_settings) if peer_settings.exists() else {}
    return int(known.get(NAME, {}).get("prompts_a_call", 2))
