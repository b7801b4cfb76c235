"""KL to the base: exact over the whole vocabulary, for full weights and for an adapter wherever it sits."""

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model

from conftest import make_model
from naysay.modeling.adapters import BaseAndTuned
from naysay.modeling.divergence import kl_divergence

GROUPS = [([256, 5, 9, 11], [[7, 6, 257], [1, 257]]), ([256, 2], [[8] * 9]), ([256, 3, 3], [[4, 257]])]


def oracle(model_p, model_q, group):
    """Σ over positions Σ over the vocabulary p (log p − log q), each answer on its own, in one piece."""
    prompt, answers = group
    total = 0.0
    for answer in answers:
        ids = torch.tensor([prompt + answer])
        logp, logq = (m(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (model_p, model_q))
        total += float((logp.exp() * (logp - logq)).sum())
    return total


def kl(open_p, open_q, budget=1000, chunk=4):
    return kl_divergence(open_p, open_q, GROUPS, tokens_per_microbatch=budget, head_chunk=chunk, description="KL")


@torch.no_grad()
def assert_kl_is_the_oracles(open_p, open_q, model_p, model_q):
    found = kl(open_p, open_q)
    assert [tokens for _, tokens in found] == [5, 9, 2]
    expected = [oracle(model_p, model_q, group) for group in GROUPS]
    assert [value for value, _ in found] == pytest.approx(expected, rel=1e-5)
    assert min(expected) > 0.01
    assert [value for value, _ in kl(open_p, open_q, budget=1, chunk=1)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])  # mamba: prompts cannot be shared
def test_two_models(kind):
    p, q = (make_model(kind, dtype=torch.float64, seed=seed) for seed in (0, 1))
    assert_kl_is_the_oracles(lambda: nullcontext(p), lambda: nullcontext(q), p, q)
    assert [value for value, _ in kl(lambda: nullcontext(p), lambda: nullcontext(p))] == pytest.approx(
        [0] * 3, abs=1e-9
    )


@pytest.mark.parametrize("modules", [["q_proj", "down_proj"], ["q_proj", "lm_head"]], ids=["layers", "head too"])
def test_an_adapter_and_its_base(modules):
    """The base's own head belongs to the base's hidden states, also when the head carries an adapter."""
    base, inner = make_model(dtype=torch.float64), make_model(dtype=torch.float64)
    torch.manual_seed(3)
    tuned = get_peft_model(inner, LoraConfig(r=4, target_modules=modules, init_lora_weights=False)).eval()
    policies = BaseAndTuned(None, tuned)
    assert_kl_is_the_oracles(policies.base, policies.tuned, base, tuned)
    assert_kl_is_the_oracles(policies.tuned, policies.base, tuned, base)
