"""Sampling with a transformers model: one random stream a row, through our decoding loop (`decode`), or through the
library's `generate` for models that the loop does not cover.

Legend: S rows of the batch, U unique prompts, T prompt tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from naysay.errors import ModelError
from naysay.generation.decode import Row, decode, why_not
from naysay.generation.sampler import Request, Response, SamplingSettings
from naysay.generation.seeds import uniforms
from naysay.generation.truncation import draw_tokens
from naysay.modeling.chat import end_of_turn_id
from naysay.modeling.loading import context_length

_GENERATE_ROWS = 64
"""Rows of one call of `generate`, which keeps a prompt's keys and values once a row."""


class InverseCdfSampling(LogitsProcessor):
    """Draws each row's token with its own uniform.

    `generate` has no generator per row; this leaves one finite score a row, so that its greedy choice is our sample.
    """

    def __init__(self, settings: SamplingSettings, seeds: Sequence[int], prompt_length: int, device: torch.device):
        self.settings = settings
        self.uniforms_ST = uniforms_of(seeds, settings, device)
        self.prompt_length = prompt_length
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_length
        tokens_S, logprobs_S = draw_tokens(scores, self.uniforms_ST[:, step], self.settings)
        self.logprobs.append(logprobs_S)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens_S[:, None], 0.0)


def uniforms_of(seeds: Sequence[int], settings: SamplingSettings, device: torch.device) -> torch.Tensor:
    """[S, max_new_tokens] uniforms, a row's from its own stream."""
    draws = np.stack([uniforms(seed, settings.max_new_tokens) for seed in seeds])
    return torch.from_numpy(draws).to(device=device, dtype=torch.float32)


class HFSampler:
    """Draws from a transformers causal LM on this machine, `rows_at_a_time` of a batch together (None: what suits the
    device)."""

    name = "hf"

    def __init__(self, model: Any, tokenizer: Any, policy_digest: str, rows_at_a_time: int | None = None):
        self.model = model
        self.rows_at_a_time = rows_at_a_time
        self.policy_digest = policy_digest
        self.end_ids = _end_ids(model, tokenizer)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_ids[0]

    def sample(self, requests: Sequence[Request], settings: SamplingSettings) -> list[Response]:
        """One batch of any prompts. A prompt that several requests share is computed once.

        Raises:
            ModelError: the answers might not fit into the model's context.
        """
        self._check_context(max(len(request.prompt_ids) for request in requests), settings)
        if why_not(self.model):
            starts = range(0, len(requests), _GENERATE_ROWS)
            parts = [self._sample_with_generate(requests[i : i + _GENERATE_ROWS], settings) for i in starts]
            return [response for part in parts for response in part]
        uniforms_ST = uniforms_of([r.seed for r in requests], settings, next(self.model.parameters()).device)

        def choose(logits: torch.Tensor, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
            at = [row.request for row in rows], [len(row.tokens) for row in rows]
            return draw_tokens(logits, uniforms_ST[at], settings)

        def ended(row: Row) -> bool:
            return row.tokens[-1] in self.end_ids or len(row.tokens) == settings.max_new_tokens

        rows = decode(
            self.model,
            [request.prompt_ids for request in requests],
            choose,
            ended,
            length=settings.max_new_tokens,
            rows_at_a_time=self.rows_at_a_time,
        )
        return [self._response(row.tokens, row.logprobs) for row in rows]

    @torch.inference_mode()
    def _sample_with_generate(self, requests: Sequence[Request], settings: SamplingSettings) -> list[Response]:
        """The same for a few rows, padded on the left, and every row computed until the last one ends."""
        device = next(self.model.parameters()).device
        prompts = list(dict.fromkeys(request.prompt_ids for request in requests))
        longest = max(map(len, prompts))
        ids_UT = torch.tensor([[self.pad_id] * (longest - len(ids)) + list(ids) for ids in prompts], device=device)
        mask_UT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        of_row = torch.tensor([prompts.index(request.prompt_ids) for request in requests], device=device)
        cache = self._shared_cache(ids_UT, mask_UT, of_row) if len(prompts) < len(requests) and longest > 1 else None
        processor = InverseCdfSampling(settings, [request.seed for request in requests], longest, device)
        sequences = self._generate(ids_UT[of_row], mask_UT[of_row], cache, processor, settings.max_new_tokens)
        logprobs = torch.stack(processor.logprobs, dim=1).tolist()
        return [self._response(row[longest:], values) for row, values in zip(sequences.tolist(), logprobs, strict=True)]

    def _check_context(self, longest: int, settings: SamplingSettings) -> None:
        context = context_length(self.model)
        if context is not None and longest + settings.max_new_tokens > context:
            raise ModelError(
                f"the longest prompt has {longest} tokens and up to {settings.max_new_tokens} are drawn after it, but "
                f"the model's context is {context}; lower max_new_tokens (of anchors or evaluation) or model.max_length"
            )

    def _shared_cache(self, ids_UT: torch.Tensor, mask_UT: torch.Tensor, of_row: torch.Tensor) -> DynamicCache | None:
        """Keys and values of all prompt tokens but the last, one row a request; None where the model keeps other
        state than keys and values (then every request computes its prompt itself)."""
        position_UT = (mask_UT.cumsum(-1) - 1).clamp(min=0)
        output = self.model(
            input_ids=ids_UT[:, :-1],
            attention_mask=mask_UT[:, :-1],
            position_ids=position_UT[:, :-1],
            use_cache=True,
            logits_to_keep=1,
        )
        cache = getattr(output, "past_key_values", None)
        if type(cache) is not DynamicCache:
            return None
        cache.batch_select_indices(of_row)
        return cache

    def _generate(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        cache: DynamicCache | None,
        processor: LogitsProcessor,
        length: int,
    ) -> torch.Tensor:
        neutral = GenerationConfig(
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=list(self.end_ids),
            pad_token_id=self.pad_id,
            use_cache=True,
        )
        # The model's own generation_config (repetition penalty, temperature, ...) would change the distribution.
        own, self.model.generation_config = self.model.generation_config, neutral
        try:
            return self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=neutral,
                logits_processor=LogitsProcessorList([processor]),
                **({} if cache is None else {"past_key_values": cache}),
            )
        finally:
            self.model.generation_config = own

    def _response(self, tokens: Sequence[int], logprobs: Sequence[float]) -> Response:
        """The answer up to its first end token, which `generate` pads."""
        for position, token in enumerate(tokens):
            if token in self.end_ids:
                end = position + 1
                return Response(tuple(tokens[:end]), tuple(logprobs[:end]), "stop")
        return Response(tuple(tokens), tuple(logprobs[: len(tokens)]), "length")


def _end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    configured = model.generation_config.eos_token_id
    configured = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    return tuple(dict.fromkeys([end_of_turn_id(tokenizer), *configured]))
