"""Tiny models and a tiny tokenizer, built in memory: no network, no files from outside the checkout."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from benchmarks.random_models import TEMPLATE as TEMPLATE
from benchmarks.random_models import byte_tokenizer as make_tokenizer

# Tiny models: a second thread would mostly wait, and badly so where another process is busy.
torch.set_num_threads(1)


def make_model(kind: str = "llama", *, dtype=torch.float32, seed: int = 0, **changes):
    """A random causal LM with about 50 thousand parameters; weights large enough that every token matters."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(make_config(kind, **changes), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.generation_config.eos_token_id = 257
    model.generation_config.pad_token_id = 258
    return model


def make_config(kind: str, **changes):
    import transformers

    common = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
    }
    without_gqa = {name: value for name, value in common.items() if name != "num_key_value_heads"}
    makers = {
        "llama": lambda: transformers.LlamaConfig(**common | changes),
        "llama_tied": lambda: transformers.LlamaConfig(**common | {"tie_word_embeddings": True} | changes),
        "qwen2": lambda: transformers.Qwen2Config(**common | changes),
        "qwen3": lambda: transformers.Qwen3Config(**common | {"head_dim": 8} | changes),
        "mistral_sliding": lambda: transformers.MistralConfig(**common | {"sliding_window": 6} | changes),
        "gemma3": lambda: transformers.Gemma3TextConfig(**common | {"head_dim": 8, "sliding_window": 6} | changes),
        "gemma2": lambda: transformers.Gemma2Config(
            **common
            | {"head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0}
            | changes
        ),
        "granite": lambda: transformers.GraniteConfig(**common | {"residual_multiplier": 0.5} | changes),
        "smollm3": lambda: transformers.SmolLM3Config(**common | {"no_rope_layers": [1, 0]} | changes),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**without_gqa | changes),
        "gpt2": lambda: transformers.GPT2Config(
            **{
                "vocab_size": 259,
                "n_embd": 32,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 512,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
                "bos_token_id": 256,
                "eos_token_id": 257,
            }
            | changes
        ),
        "mamba": lambda: transformers.MambaConfig(
            vocab_size=259, hidden_size=32, num_hidden_layers=2, state_size=4, bos_token_id=256, eos_token_id=257
        ),
    }
    return makers[kind]()


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def tiny_model():
    return make_model()


@pytest.fixture
def rows():
    """Six ragged groups: several negatives, one that was cut off, a repeated anchor, multi-turn prompts."""
    return [
        {"prompt": "Insult my boss.", "rejected": "He is a fool!", "anchors": ["No, be kind.", "Talk to him.", "No."]},
        {"prompt": "Lie for me.", "rejected": ["Sure, I lie.", "Yes"], "anchors": ["I will not.", "Honesty helps."]},
        {
            "prompt": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Open his mail?"},
            ],
            "rejected": [{"text": "Steam the env", "finish": "length"}],
            "anchors": ["Please do not."] * 2 + ["It is private."],
        },
        {"prompt": "A", "rejected": "b", "anchors": ["c"]},
        {"prompt": "Cheat?", "rejected": "Yes, do it now.", "anchors": ["Study.", "Ask for help.", "Rest.", "Plan."]},
        {"prompt": "Is it true?", "rejected": "Of course it is.", "anchors": ["No.", "It is false.", "Not at all."]},
    ]
