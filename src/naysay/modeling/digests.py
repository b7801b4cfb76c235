"""Identity of models by content: two policies with the same digest give the same log-probs."""

import hashlib
from typing import Any

import torch
from torch import nn

from naysay.artifacts.digests import digest_json

SCORING_VERSION = 1


def weights_digest(model: nn.Module) -> str:
    """Digest (32 hex characters) of all parameters and buffers: names, types, shapes and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        sha.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return sha.hexdigest()[:32]


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
