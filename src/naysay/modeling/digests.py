"""Identity of models by content: two policies with the same digest give the same log-probs."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from naysay.artifacts.digests import digest_json

SCORING_VERSION = 2
_PEFT_PREFIX = "base_model.model."


def weights_digest(model: nn.Module) -> str:
    """Digest (32 hex characters) of all parameters and buffers in use: names, types, shapes and bytes.

    A peft model whose adapter is switched off has the digest of its base model; with the adapter on, the factors that
    it is multiplied by count too (they are not in the state dict).
    """
    sha = hashlib.sha256()
    for name, module in model.named_modules():
        if hasattr(module, "scaling") and getattr(module, "disable_adapters", True) is False:
            sha.update(f"{name}:{module.active_adapters}:{module.scaling};".encode())
    for name, tensor in sorted(_weights_in_use(model).items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        sha.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return sha.hexdigest()[:32]


def _weights_in_use(model: nn.Module) -> Mapping[str, Tensor]:
    """The state dict; where peft's layers are switched off, that of the base model, under its own names."""
    state = model.state_dict()
    off = {name for name, module in model.named_modules() if getattr(module, "disable_adapters", False) is True}
    if not off:
        return state
    weights = {}
    for name, tensor in state.items():
        parts = name.split(".")
        layer = next((n for n in range(1, len(parts)) if ".".join(parts[:n]) in off), None)
        if layer is None:
            weights[name.removeprefix(_PEFT_PREFIX)] = tensor
        elif parts[layer] in {"base_layer", "original_module"}:
            weights[".".join((*parts[:layer], *parts[layer + 1 :])).removeprefix(_PEFT_PREFIX)] = tensor
    return weights


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of the vocabulary, the merges and the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return digest_json([content, getattr(tokenizer, "chat_template", None)])


def policy_digest(model: nn.Module, tokenizer: Any) -> str:
    """What a cached reference log-prob depends on besides the token ids: weights with adapter, tokenizer, template,
    dtype, and the version of the scoring code."""
    dtype = str(next(model.parameters()).dtype)
    return digest_json([weights_digest(model), tokenizer_digest(tokenizer), dtype, SCORING_VERSION])
