"""The fixed probe of the collapse guard: harmless prompts to answer, and anchors whose likelihood is watched."""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_records
from naysay.config.run import RunConfig
from naysay.core.logprobs import logp_and_entropy
from naysay.core.prefix import TokenGroup, group_length, plan_microbatches
from naysay.errors import ConfigError, NonFiniteLogitsError
from naysay.generation.hf import HFSampler
from naysay.generation.sampler import Request, SamplingSettings
from naysay.generation.seeds import row_seed
from naysay.judging.heuristics import classify
from naysay.modeling.chat import decode_response, encode_prompt
from naysay.modeling.forward import (
    enable_group_forward,
    head_tokens,
    hidden_at_scored,
    lay_out,
    lm_head,
    one_at_a_time_logits,
    token_budget,
)
from naysay.modeling.modes import eval_mode
from naysay.records import Prompt
from naysay.training.guard import ProbeState

PROBE_ROUND = -2
"""Of the seeds: no anchor and no generation of the evaluation has them."""
TEMPERATURE, TOP_K, TOP_P = 0.7, 50, 0.9
"""How the probe's answers are drawn, always with the same seeds."""


class Probe:
    """Measures a policy on the same prompts, seeds and anchors each time.

    Args:
        rows: rows of `training_rows`; the first own anchor of the first few is watched.
        context: tokens that the model takes at most (None = any number). What does not fit is left out.

    Raises:
        ConfigError: nothing fits.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        tokenizer: Any,
        rows: Sequence[dict[str, Any]],
        *,
        context: int | None = None,
    ):
        self._tokenizer, self._config = tokenizer, config
        count, room = config.guard.prompts, math.inf if context is None else context
        watched = ((encode_prompt(tokenizer, row["prompt"]), [list(row["own"][0])]) for row in rows)
        self._groups: list[TokenGroup] = list(islice((g for g in watched if group_length(g) <= room), count))
        prompts = [(prompt.prompt_id, prompt.messages) for prompt in _harmless(run)]
        prompts += [(row["prompt_id"], row["prompt"]) for row in rows]
        requests = (
            Request(tuple(encode_prompt(tokenizer, messages)), row_seed(config.seed, prompt_id, 0, PROBE_ROUND))
            for prompt_id, messages in prompts
        )
        room -= config.guard.max_new_tokens
        self._requests = list(islice((r for r in requests if len(r.prompt_ids) <= room), count))
        if not self._groups or not self._requests:
            raise ConfigError(
                f"guard: expected a prompt that leaves room for guard.max_new_tokens={config.guard.max_new_tokens} and "
                f"one with an anchor that fit the model's context of {context} tokens, found none; lower "
                "guard.max_new_tokens and anchors.max_new_tokens, or set guard.enabled=false"
            )

    @torch.inference_mode()
    def measure(self, model: Any) -> ProbeState:
        """The state of the model as it is now; it is in the mode that it was in, afterwards.

        Where its scores are not finite, what could not be measured is NaN.
        """
        with eval_mode(model):
            anchor_logp, entropy = self._anchors(model)
            broken = ProbeState(anchor_logp, entropy, math.nan, math.nan, math.nan)
            if not math.isfinite(anchor_logp) or not math.isfinite(entropy):
                return broken
            settings = SamplingSettings(TEMPERATURE, TOP_K, TOP_P, self._config.guard.max_new_tokens)
            try:
                answers = HFSampler(model, self._tokenizer, "probe").sample(self._requests, settings)
            except NonFiniteLogitsError:
                return broken
        labels = [classify(decode_response(self._tokenizer, a.token_ids), a.finish).label for a in answers]
        return ProbeState(
            anchor_logp=anchor_logp,
            entropy=entropy,
            degenerate=labels.count("degenerate") / len(labels),
            refusal=labels.count("refusal") / len(labels),
            length=sum(len(answer.token_ids) for answer in answers) / len(answers),
        )

    def _anchors(self, model: Any) -> tuple[float, float]:
        """(mean log-prob, mean entropy), nats per token of the anchors."""
        device = next(model.parameters()).device
        shared = enable_group_forward(model)
        budget = token_budget(self._config.training.tokens_per_microbatch, device)
        chunk = head_tokens(model, self._config.training.head_chunk)
        found = []
        for members in plan_microbatches([group_length(group) for group in self._groups], budget):
            groups = [self._groups[i] for i in members]
            batch, branches = lay_out(model, groups, device)
            if shared:
                states, head = hidden_at_scored(model, batch, branches), lm_head(model)
            else:
                states, head = one_at_a_time_logits(model, groups), lambda logits: logits
            found.append(logp_and_entropy(states, batch.target_ids, head, chunk=chunk))
        logp_M, entropy_M = map(torch.cat, zip(*found, strict=True))
        return logp_M.double().mean().item(), entropy_M.double().mean().item()


def _harmless(run: RunDirectory) -> list[Prompt]:
    """Benign prompts, look-alikes of harmful ones first, in an order that no file decides."""
    benign = [prompt for prompt in read_records(run.prompts, Prompt) if prompt.split == "benign"]
    return sorted(benign, key=lambda prompt: (prompt.kind != "lookalike", prompt.prompt_id))
