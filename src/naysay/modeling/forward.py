"""The group forward: a prompt is computed once for all its answers, and only scored positions meet the LM head.

It is bound as the causal LM's own `forward` and called through whatever wraps the model (peft, DDP, FSDP), so that
their hooks see every use of the parameters.

Legend: S rows, T tokens, M scored tokens, R responses, D hidden.
"""

import logging
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

from naysay.core.groups import Branches, GroupBatch
from naysay.core.logprobs import FrozenLinear, Head, log_complement, sum_by_response, token_logps
from naysay.core.prefix import PROMPT, TokenGroup, branch_mask, layout_groups, pack_groups
from naysay.errors import DataError, ModelError
from naysay.modeling import branch_attention
from naysay.modeling.layer_forward import bind_decoder_layers
from naysay.modeling.lora_forward import bind_lora_layers
from naysay.modeling.modes import eval_mode
from naysay.modeling.norm_forward import bind_norms
from naysay.modeling.rotary_forward import bind_rotary

logger = logging.getLogger(__name__)
_BINDERS = (bind_lora_layers, bind_norms, bind_rotary)
_DENSE_MASK_ATTENTION = {"sdpa", "eager"}
_CHECK_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_CHECK_TOLERANCE_HALF = 0.25
# The most logits that exist at a time: 16 MB in float32 on a CPU, 256 MB elsewhere.
_LOGITS = {"cpu": 2**22, "other": 2**26}


def enable_group_forward(model: nn.Module) -> bool:
    """Bind the group forward to the causal LM inside `model` and check it against the model's own forward.

    Returns whether prompts are shared. Where an architecture's results differ (state-space layers, unusual masks,
    another head), a warning says so and every answer is computed on its own, which is slower and exact.
    """
    lm = causal_lm(model)
    bind_parts(lm)  # each time: an adapter may have come since
    if "_naysay" not in vars(lm):
        lm._naysay = _Binding(vars(lm).get("forward"))
        lm.forward = types.MethodType(_forward_of(type(lm)), lm)
    elif lm._naysay.attention == _attention(lm):
        bind_decoder_layers(lm)
        return bool(lm._naysay.masks)
    reason = _why_not_shared(lm)
    lm._naysay.attention = _attention(lm)
    if reason:
        lm._naysay.masks = ""
        logger.warning(
            "%s: %s; falling back to one answer at a time (exact, but the prompt is computed anew for each answer)",
            type(lm).__name__,
            reason,
        )
    bind_decoder_layers(lm)
    return not reason


def bind_parts(lm: Any) -> None:
    """Give LoRA layers, MLPs, norms and rotary embeddings inside `lm` their joined forward; again is harmless."""
    for bind in _BINDERS:
        bind(lm)


@dataclass
class _Binding:
    """What naysay knows of a causal LM whose forward it replaced: the instance's former one (None = its class's), and
    how its layers share a prompt: `branches` (a packed row, and attention over allowed pairs only), with a dense mask
    (`full`, `sliding`, or `by_type`, a mapping), or "" where they cannot. That holds for one `attention` of its config,
    which anyone may set (`set_attn_implementation`)."""

    former: Any
    masks: str = ""
    attention: Any = None


def token_budget(configured: int | None, device: torch.device) -> int:
    """Tokens of one forward: what is configured, or what suits the device.

    2048 on a CPU bounds the memory of activations; less is much slower where prompts are long (docs/performance.md).
    """
    if configured is not None:
        return configured
    return 2048 if device.type == "cpu" else 16384


def head_tokens(model: nn.Module, configured: int | None) -> int:
    """Tokens that meet the LM head at a time: what is configured, or as many as give `_LOGITS` logits, so that their
    memory does not grow with the vocabulary."""
    if configured is not None:
        return configured
    lm = causal_lm(model)
    device = next(lm.parameters()).device
    return max(1, _LOGITS["cpu" if device.type == "cpu" else "other"] // lm.config.get_text_config().vocab_size)


def causal_lm(model: nn.Module) -> Any:
    """The transformers causal LM inside peft, DDP or FSDP wrappers.

    Raises:
        ModelError: it has no output embeddings, or its adapter prepends virtual tokens (prompt tuning).
    """
    inner: Any = model
    while isinstance(getattr(inner, "module", None), nn.Module) and not hasattr(inner, "get_output_embeddings"):
        inner = inner.module
    # transformers models carry a (method-only) adapter mixin too; only a peft wrapper has `get_base_model`.
    if hasattr(inner, "get_base_model") and hasattr(inner, "peft_config"):
        if getattr(inner.active_peft_config, "is_prompt_learning", False):
            raise ModelError(
                f"peft type {inner.active_peft_config.peft_type} prepends virtual tokens, which the group forward "
                "cannot share; use LoRA or full training"
            )
        inner = inner.get_base_model()
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if head is None:
        raise ModelError(f"{type(inner).__name__} has no output embeddings; expected a transformers causal LM")
    return inner


def response_logps(
    model: nn.Module,
    groups: Sequence[TokenGroup],
    *,
    head_chunk: int | None,
    device: torch.device | None = None,
    unlikelihood: bool = False,
) -> Tensor:
    """[R] sums of log-probs (nats) of all responses, through the (possibly wrapped) model.

    `enable_group_forward` must have been called on it, and its attention be the same since. With `unlikelihood`
    [R, 2]: beside them Σ_t log(1 − π), which is a sum over tokens too and cannot be had from the sums.

    Raises:
        DataError: no group has an answer.
        ModelError: another attention was set since.
    """
    device = device or next(model.parameters()).device
    batch, branches = lay_out(model, groups, device)
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return model(
        input_ids=batch.input_ids,
        naysay_group={**tensors, "responses": batch.responses},
        naysay_branches=None if branches is None else dict(vars(branches)),
        naysay_head_chunk=head_chunk,
        naysay_unlikelihood=unlikelihood,
    )


def lay_out(model: nn.Module, groups: Sequence[TokenGroup], device: torch.device) -> tuple[GroupBatch, Branches | None]:
    """The groups as this model takes them: packed, with its branches, or padded rows for a dense mask.

    Raises:
        DataError: no group has an answer, or as `layout_groups`.
    """
    if not any(len(answers) for _, answers in groups):
        raise DataError(f"expected an answer to score, found {len(groups)} groups without one; leave them out")
    if causal_lm(model)._naysay.masks != "branches":
        return layout_groups(groups).to(device), None
    batch, branches = pack_groups(groups)
    return batch.to(device), branches.to(device)


def hidden_at_scored(model: nn.Module, batch: GroupBatch, branches: Branches | None) -> Tensor:
    """[M, D] last hidden states at the positions that predict the targets.

    Raises:
        ModelError: another attention was set since `enable_group_forward`, and layers would not see what they should.
    """
    lm = causal_lm(model)
    bound, attention = lm._naysay.attention, _attention(lm)
    if attention != bound:
        raise ModelError(
            f"{type(lm).__name__}: attention was set to {attention!r} after the group forward had been bound with "
            f"{bound!r}; call enable_group_forward(model) again after set_attn_implementation"
        )
    if branches is None:
        how = {"attention_mask": _attention_masks(lm, batch)}
    else:
        # A mask of four dimensions is taken as it is, so that the library makes none; the attention does not read it.
        how = {
            "attention_mask": torch.zeros(1, 1, 1, 1, device=batch.input_ids.device),
            "naysay_branches": branch_attention.BranchMasks(branches, batch.position_ids[0]),
        }
    hidden_STD = lm.base_model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
        **how,
    )[0]
    return hidden_STD[batch.scored_row, batch.scored_at]


def lm_head(model: nn.Module) -> Head:
    """Hidden states -> logits, with the scale or soft cap that some architectures put behind the head."""
    lm = causal_lm(model)
    head, config = lm.get_output_embeddings(), lm.config.get_text_config()
    frozen = _frozen_linear(head, config)
    if frozen is not None:
        return frozen
    softcap = getattr(config, "final_logit_softcapping", None)
    multiply, divide = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)

    def logits(hidden: Tensor) -> Tensor:
        value = head(hidden)
        if multiply is not None:
            value = value * multiply
        if divide is not None:
            value = value / divide
        return torch.tanh(value / softcap) * softcap if softcap is not None else value

    return logits


def _frozen_linear(head: Any, config: Any) -> FrozenLinear | None:
    """The head as a matrix, where it is nothing else and no gradient of it is asked for: no adapter, hook, soft cap,
    sharded weight."""
    plain = type(head) is nn.Linear and not (head._forward_hooks or head._forward_pre_hooks)
    trained = torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters())
    if not plain or trained or any(type(p) is not nn.Parameter for p in head.parameters()):
        return None
    if getattr(config, "final_logit_softcapping", None) is not None:
        return None
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return FrozenLinear(head.weight, head.bias, scale)


def one_at_a_time_logps(model: nn.Module, groups: Sequence[TokenGroup]) -> Tensor:
    """[R] sums of log-probs (nats), each answer on its own through the model's unpatched forward and full logits.

    The oracle of the tests, and the fallback for architectures that cannot share a prompt.
    """
    lm = causal_lm(model)
    device = next(lm.parameters()).device
    singles = [_single_logps(lm, prompt, answer, device) for prompt, answers in groups for answer in answers]
    return torch.stack([logp.sum() for logp in singles])


def _single_logps(lm: Any, prompt: Sequence[int], answer: Sequence[int], device: torch.device) -> Tensor:
    logits = _single_logits(lm, prompt, answer, device)
    logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return logp.gather(1, torch.tensor(answer, device=device)[:, None])[:, 0]


def one_at_a_time_logits(model: nn.Module, groups: Sequence[TokenGroup]) -> Tensor:
    """[M, V] logits that predict the tokens of all answers, each answer on its own."""
    lm = causal_lm(model)
    device = next(lm.parameters()).device
    return torch.cat([_single_logits(lm, prompt, answer, device) for prompt, answers in groups for answer in answers])


def _single_logits(lm: Any, prompt: Sequence[int], answer: Sequence[int], device: torch.device) -> Tensor:
    ids = torch.tensor([[*prompt, *answer]], device=device)
    return _own_forward(lm)(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]


def _own_forward(lm: Any) -> Any:
    binding = vars(lm).get("_naysay")
    return binding.former if binding and binding.former else types.MethodType(type(lm).forward, lm)


@cache
def _forward_of(kind: type) -> Any:
    """The group forward with the signature of the class's own forward: `generate` reads there what a model takes, and
    would leave out the positions of padded prompts."""

    @wraps(kind.forward)  # type: ignore[attr-defined]
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _forward(self, *args, **kwargs)

    return forward


def _forward(
    self: Any,
    *args: Any,
    naysay_group: Any = None,
    naysay_branches: Any = None,
    naysay_head_chunk: int | None = None,
    naysay_unlikelihood: bool = False,
    **kwargs: Any,
) -> Any:
    if naysay_group is None:
        return _own_forward(self)(*args, **kwargs)
    batch = GroupBatch(**naysay_group)
    if self._naysay.masks:
        hidden_MD = hidden_at_scored(self, batch, None if naysay_branches is None else Branches(**naysay_branches))
        chunk = head_tokens(self, naysay_head_chunk)
        logp_M = token_logps(hidden_MD, batch.target_ids, lm_head(self), chunk=chunk)
    else:
        device = next(self.parameters()).device
        groups = _token_groups(batch)
        logp_M = torch.cat([_single_logps(self, prompt, a, device) for prompt, answers in groups for a in answers])
    sums_R = sum_by_response(logp_M, batch.response_of, batch.responses)
    if not naysay_unlikelihood:
        return sums_R
    return torch.stack([sums_R, sum_by_response(log_complement(logp_M), batch.response_of, batch.responses)], 1)


def _token_groups(batch: GroupBatch) -> list[TokenGroup]:
    answers: list[dict[int, list[int]]] = [{} for _ in batch.input_ids]
    scored = (batch.scored_row.tolist(), batch.response_of.tolist(), batch.target_ids.tolist())
    for row, response, token in zip(*scored, strict=True):
        answers[row].setdefault(response, []).append(token)
    prompts = [ids[own == PROMPT].tolist() for ids, own in zip(batch.input_ids, batch.branch_ids, strict=True)]
    return [(prompt, list(mine.values())) for prompt, mine in zip(prompts, answers, strict=True)]


def _attention_masks(lm: Any, batch: GroupBatch) -> Any:
    """One dense mask for all layers, or one a layer type, as the check found that the model takes it."""
    window = _sliding_window(lm)
    if lm._naysay.masks == "full":
        return _additive(lm, branch_mask(batch.branch_ids, batch.position_ids))
    sliding = _additive(lm, branch_mask(batch.branch_ids, batch.position_ids, window=window))
    if lm._naysay.masks == "sliding":
        return sliding
    full = _additive(lm, branch_mask(batch.branch_ids, batch.position_ids))
    return {"full_attention": full, "sliding_attention": sliding}


def _sliding_window(lm: Any) -> int | None:
    config = lm.config.get_text_config()
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None


def _additive(lm: Any, allowed: Tensor) -> Tensor:
    dtype = next(lm.parameters()).dtype
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


@torch.no_grad()
def _why_not_shared(lm: Any) -> str:
    """Empty where a shared prompt gives the log-probs of the model's own forward on random groups."""
    config = lm.config.get_text_config()
    attention = _attention(lm)
    if attention == branch_attention.NAME:  # a config that was copied from a model in use
        attention = "sdpa"
    if attention not in _DENSE_MASK_ATTENTION:
        return f"attn_implementation={attention!r} takes no dense mask (use attn_implementation='sdpa')"
    unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if unknown:
        return f"it has layers of type {', '.join(sorted(unknown))}"
    window = _sliding_window(lm)
    groups = _check_groups(config.vocab_size, long_prompt=min(window + 3, 64) if window else 5)
    reason = ""
    with eval_mode(lm):
        expected = one_at_a_time_logps(lm, groups)
        for masks in _candidates(attention, window):
            lm._naysay.masks = masks
            # For good, not for the forward alone: gradient checkpointing runs the layers again in the backward.
            lm.config._attn_implementation = branch_attention.NAME if masks == "branches" else attention
            lm._naysay.attention = _attention(lm)
            reason = _mismatch(lm, groups, expected)
            if not reason:
                break
    return reason


def _attention(lm: Any) -> Any:
    """The name of the attention that its layers use now."""
    return getattr(lm.config, "_attn_implementation", None)


def _candidates(attention: str, window: int | None) -> Iterator[str]:
    """Ways to share a prompt, the fastest first."""
    if attention == "sdpa":
        branch_attention.register()
        yield "branches"
    yield from ("by_type", "sliding") if window else ("full",)


def _mismatch(lm: Any, groups: Sequence[TokenGroup], expected: Tensor) -> str:
    try:
        found = response_logps(lm, groups, head_chunk=None)
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError) as error:
        return f"its layers refuse a prompt shared by branches ({' '.join(str(error).split())[:120]})"
    difference = (expected - found).abs().max().item()
    tolerance = _CHECK_TOLERANCE.get(next(lm.parameters()).dtype, _CHECK_TOLERANCE_HALF)
    return "" if difference <= tolerance else f"sharing the prompt changes log-probs by up to {difference:.2g} nats"


def _check_groups(vocabulary: int, long_prompt: int) -> list[TokenGroup]:
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=generator).tolist()

    return [(ids(long_prompt), [ids(3), ids(4), ids(1)]), (ids(1), [ids(2), ids(2)])]
