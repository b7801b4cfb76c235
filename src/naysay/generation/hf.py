"""Sampling with transformers' own `generate`: batches of any prompts, one random stream a row.

Legend: S rows of the batch, U unique prompts, C candidate tokens after truncation, V vocabulary, T prompt tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from naysay.errors import ModelError
from naysay.generation.sampler import Request, Response, SamplingSettings
from naysay.generation.seeds import uniforms
from naysay.modeling.chat import end_of_turn_id


class InverseCdfSampling(LogitsProcessor):
    """Temperature, top-k, top-p, then the inverse CDF at the row's own uniform.

    `generate` has no generator per row; this leaves one finite score a row, so that its greedy choice is our sample.
    """

    def __init__(self, settings: SamplingSettings, seeds: Sequence[int], prompt_length: int, device: torch.device):
        self.settings = settings
        draws = np.stack([uniforms(seed, settings.max_new_tokens) for seed in seeds])
        self.uniforms_ST = torch.from_numpy(draws).to(device=device, dtype=torch.float32)
        self.prompt_length = prompt_length
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt_length
        logp_SC, tokens_SC = truncated_logprobs(scores, self.settings)
        cdf_SC = logp_SC.exp().cumsum(-1)
        target_S1 = self.uniforms_ST[:, step : step + 1] * cdf_SC[:, -1:]
        choice_S1 = (cdf_SC <= target_S1).sum(-1, keepdim=True).clamp(max=tokens_SC.shape[1] - 1)
        # A uniform next to 1 can land on a truncated candidate (probability 0): step back to the last allowed one.
        allowed_S1 = torch.isfinite(logp_SC).sum(-1, keepdim=True) - 1
        choice_S1 = torch.minimum(choice_S1, allowed_S1)
        self.logprobs.append(logp_SC.gather(1, choice_S1).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter(1, tokens_SC.gather(1, choice_S1), 0.0)


def truncated_logprobs(scores_SV: torch.Tensor, settings: SamplingSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs [S, C] (renormalised, −inf where cut) and their tokens [S, C], most likely first.

    Only the top-k are sorted: a full sort of the vocabulary at each step costs more than the model.
    """
    scaled_SV = scores_SV.float() / settings.temperature
    vocabulary = scaled_SV.shape[-1]
    kept = min(settings.top_k, vocabulary) if settings.top_k > 0 else vocabulary
    values_SC, tokens_SC = scaled_SV.topk(kept, dim=-1)
    if settings.top_k == 0 and settings.top_p >= 1.0:
        return scaled_SV.log_softmax(-1).gather(1, tokens_SC), tokens_SC
    logp_SC = values_SC.log_softmax(-1)
    mass_before_SC = logp_SC.exp().cumsum(-1) - logp_SC.exp()
    cut_SC = mass_before_SC >= settings.top_p
    cut_SC[:, 0] = False
    return logp_SC.masked_fill(cut_SC, -torch.inf).log_softmax(-1), tokens_SC


class HFSampler:
    """Draws from a transformers causal LM on this machine."""

    name = "hf"

    def __init__(self, model: Any, tokenizer: Any, policy_digest: str):
        self.model = model
        self.policy_digest = policy_digest
        self.end_ids = _end_ids(model, tokenizer)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end_ids[0]

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request], settings: SamplingSettings) -> list[Response]:
        """One batch, padded on the left. A prompt that several requests share is computed once.

        Raises:
            ModelError: the answers might not fit into the model's context.
        """
        device = next(self.model.parameters()).device
        prompts = list(dict.fromkeys(request.prompt_ids for request in requests))
        longest = max(map(len, prompts))
        self._check_context(longest, settings)
        ids_UT = torch.tensor([[self.pad_id] * (longest - len(ids)) + list(ids) for ids in prompts], device=device)
        mask_UT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
        of_row = torch.tensor([prompts.index(request.prompt_ids) for request in requests], device=device)
        cache = self._shared_cache(ids_UT, mask_UT, of_row) if len(prompts) < len(requests) and longest > 1 else None
        processor = InverseCdfSampling(settings, [request.seed for request in requests], longest, device)
        sequences = self._generate(ids_UT[of_row], mask_UT[of_row], cache, processor, settings.max_new_tokens)
        logprobs = torch.stack(processor.logprobs, dim=1).tolist()
        return [self._cut(row[longest:], values) for row, values in zip(sequences.tolist(), logprobs, strict=True)]

    def _check_context(self, longest: int, settings: SamplingSettings) -> None:
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
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

    def _cut(self, tokens: Sequence[int], logprobs: Sequence[float]) -> Response:
        for position, token in enumerate(tokens):
            if token in self.end_ids:
                end = position + 1
                return Response(tuple(tokens[:end]), tuple(logprobs[:end]), "stop")
        return Response(tuple(tokens), tuple(logprobs[: len(tokens)]), "length")


def _end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    configured = model.generation_config.eos_token_id
    configured = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    return tuple(dict.fromkeys([end_of_turn_id(tokenizer), *configured]))
