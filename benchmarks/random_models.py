"""Models of known shapes with random weights: how fast a step is does not depend on what the weights say, and no
download is needed. What they compute means nothing."""

from collections.abc import Callable
from typing import Any

import torch

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _llama(**shape: Any) -> Callable[[], Any]:
    def config() -> Any:
        from transformers import LlamaConfig

        ends = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
        return LlamaConfig(max_position_embeddings=4096, **shape, **ends)

    return config


SHAPES = {
    "smollm2-135m": _llama(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    ),
    "llama-3.2-1b": _llama(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "llama-2-7b": _llama(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    ),
}
"""Name -> what makes its config; sizes as their makers' config.json gives them."""


def random_model(shape: str, *, dtype: torch.dtype, device: torch.device | str, **changes: Any) -> Any:
    """A causal LM of this shape, its weights as transformers initialises them, the same for the same device."""
    from transformers import AutoModelForCausalLM

    config = SHAPES[shape]()
    config.update(changes)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 257, 258
    return model


def byte_tokenizer() -> Any:
    """Bytes as tokens, plus the three control tokens of a ChatML model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
