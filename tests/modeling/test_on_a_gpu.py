"""On a CUDA device: the packed row, its attention, LoRA layers, norms and head == one answer at a time, in float32 and
float64 to rounding, and in half precision as near to the truth as the library itself."""

import copy

import pytest
import torch
from torch.nn import functional as F

from conftest import make_model
from naysay.core import logprobs
from naysay.core.logprobs import FrozenLinear, sum_by_response, token_logps
from naysay.core.prefix import branch_mask, layout_groups, pack_groups
from naysay.generation import decode
from naysay.modeling import branch_varlen, lora_forward, norm_forward
from naysay.modeling.branch_varlen import Spans
from naysay.modeling.forward import causal_lm, enable_group_forward, one_at_a_time_logps, response_logps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none"),
]

ARCHITECTURES = ["llama", "llama_tied", "qwen2", "qwen3", "gpt2", "gpt_neox", "mistral_sliding", "gemma3"]
GROUPS = [
    ([5, 9, 11, 3, 8, 20, 31], [[7, 6, 256], [1], [9, 9, 4, 2, 256], [7, 6, 3]]),
    ([2], [[4, 256], [8]]),
    ([100, 101, 102], [[103] * 9]),
    ([50, 51, 52, 53], [[1, 2, 3], [4, 5, 6], [7], [8, 9, 256], [10, 11, 12], [13, 14, 15]]),
    ([70, 71, 72], [[1], [256]]),  # nothing but the prompt is read
]
LONG = [
    (list(range(10, 140)), [list(range(20 + i, 84 + i)) for i in range(5)]),
    (list(range(3, 80)), [list(range(90, 230)), [7, 8]]),
]


def gradients(model, logps):
    model.zero_grad()
    (torch.linspace(-1, 2, len(logps), dtype=logps.dtype, device=logps.device) * logps).sum().backward()
    return {name: p.grad.double().cpu() for name, p in model.named_parameters() if p.grad is not None}


def with_lora(model):
    """A LoRA policy whose adapter says something: peft keeps it in float32 around half-precision weights."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def pair(kind, dtype, *, lora=False):
    """The same model twice: bound, and as the libraries compute it."""
    both = [make_model(kind, dtype=dtype).cuda() for _ in range(2)]
    if lora:
        both = [with_lora(model) for model in both]
    assert enable_group_forward(both[0])
    assert causal_lm(both[0])._naysay.masks == "branches"
    assert not any("forward" in vars(module) for module in both[1].modules())
    return both


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("groups", [GROUPS, [GROUPS[4]], [([5, 6, 7], [[1]])]])
def test_equals_one_at_a_time(kind, dtype, groups):
    bound, library = pair(kind, dtype)
    oracle = one_at_a_time_logps(library, groups)
    expected = gradients(library, oracle)
    shared = response_logps(bound, groups, head_chunk=4)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    assert torch.allclose(shared, oracle, rtol=tolerance, atol=tolerance)
    found = gradients(bound, shared)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= tolerance * value.norm() + 1e-6, name


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "qwen2", "qwen3", "mistral_sliding", "gemma3"])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize(
    "groups", [GROUPS, LONG, [GROUPS[4]], [([5, 6, 7], [[1]])], [([5, 6], [[1, 2]]), ([7], [[3]])]]
)
def test_half_precision_is_as_near_to_the_truth_as_the_library(kind, lora, groups):
    """The truth: the same rounded weights in float64, in the library's own layers."""
    bound, library = pair(kind, torch.bfloat16, lora=lora)
    exact = copy.deepcopy(library).double()
    truth = one_at_a_time_logps(exact, groups)
    of_truth = gradients(exact, truth)
    theirs = one_at_a_time_logps(library, groups)
    of_theirs = gradients(library, theirs)
    ours = response_logps(bound, groups, head_chunk=None)
    of_ours = gradients(bound, ours)
    assert ours.dtype == torch.float32
    assert of_ours.keys() == of_theirs.keys() == of_truth.keys()

    def off(found):
        return (found.double() - truth).norm() / truth.norm()

    def off_by(found):
        return sum((found[name] - value).norm() ** 2 for name, value in of_truth.items()) ** 0.5 / total

    total = sum(value.norm() ** 2 for value in of_truth.values()) ** 0.5
    assert off(ours) <= 1.5 * off(theirs) + 1e-3
    assert off_by(of_ours) <= 1.5 * off_by(of_theirs) + 1e-2


@pytest.mark.parametrize("heads", [(9, 3), (4, 4), (4, 1)])
@pytest.mark.parametrize("size", [64, 128])
def test_attention_equals_a_dense_mask(heads, size):
    groups = [
        ([1] * 40, [[1] * 16, [1] * 16, [1] * 9]),
        ([1], [[1, 1], [1] * 70]),
        ([1] * 9, [[1]]),  # an answer that is not in the row
        ([1] * 300, [[1] * 130, [1] * 5]),
    ]
    batch, branches = pack_groups(groups)
    tokens = batch.input_ids.shape[1]
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, count, size) for count in (heads[0], *heads[1:] * 2)]
    states = [torch.randn(shape, generator=generator).to("cuda", torch.bfloat16) for shape in shapes]
    weight = torch.randn(shapes[0], generator=generator).cuda()
    allowed = torch.zeros(tokens, tokens, dtype=torch.bool)
    for number in range(len(groups)):
        mine = branches.group_of == number
        inside = torch.cat([
            branches.prompt_at[number][branches.prompt_mask[number]],
            branches.response_at[mine][branches.response_mask[mine]],
        ])  # fmt: skip
        allowed[inside[:, None], inside] = branch_mask(batch.branch_ids[:, inside], batch.position_ids[:, inside])[0, 0]

    def dense(dtype):
        leaves = [part.to(dtype).detach().requires_grad_() for part in states]
        turned = (part.transpose(0, 1)[None] for part in leaves)
        out = F.scaled_dot_product_attention(*turned, attn_mask=allowed.cuda(), scale=0.1, enable_gqa=True)
        out = out[0].transpose(0, 1)
        (out * weight.to(dtype)).sum().backward()
        return [out, *(part.grad for part in leaves)]

    given = [part.detach().requires_grad_() for part in states]
    assert branch_varlen.covers(tuple(part.transpose(0, 1)[None] for part in given))
    out = branch_varlen.branch_varlen(*given, Spans.of(branches.to(torch.device("cuda"))), 0.1)
    (out * weight.to(torch.bfloat16)).sum().backward()
    found = [out, *(part.grad for part in given)]
    for mine, theirs, truth in zip(found, dense(torch.bfloat16), dense(torch.float64), strict=True):
        off, allowed_off = ((part.double() - truth).norm() / truth.norm() for part in (mine, theirs))
        assert off <= 1.5 * allowed_off + 1e-3


def test_the_kernels_for_a_gpu_are_used(monkeypatch):
    """Else the tests above would compare something else."""
    seen = []
    functions = (branch_varlen._BranchVarlen, lora_forward._LoraLinear, lora_forward._LoraGatedMlp)
    for name, module in (("rms_norm", norm_forward.F), ("_at_once", logprobs)):
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *args, n=name, call=function, **more: seen.append(n) or call(*args, **more)
        )
    for function in functions:
        monkeypatch.setattr(
            function, "apply", lambda *args, f=function, call=function.apply: seen.append(f) or call(*args)
        )
    model = with_lora(make_model(dtype=torch.bfloat16).cuda())
    enable_group_forward(model)
    seen.clear()
    response_logps(model, GROUPS, head_chunk=None)
    assert seen.count(branch_varlen._BranchVarlen) == 2
    assert seen.count(lora_forward._LoraGatedMlp) == 2
    assert seen.count(lora_forward._LoraLinear) == 8
    assert seen.count("rms_norm") == 5
    assert seen.count("_at_once") == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_the_head_equals_full_logits(bias, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 32, generator=generator).to("cuda", dtype) for n in (37, 1001))
    offset = torch.randn(1001, generator=generator).to("cuda", dtype) if bias else None
    targets = torch.randint(1001, (37,), generator=generator).cuda()
    upstream = torch.randn(37, generator=generator, dtype=torch.float64).cuda()
    truth = hidden.double().detach().clone().requires_grad_()
    logits = (truth @ weight.double().T + (0 if offset is None else offset.double())) * 0.5
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (expected * upstream).sum().backward()
    mine = hidden.detach().clone().requires_grad_()
    found = token_logps(mine, targets, FrozenLinear(weight, offset, 0.5), chunk=10)
    (found * upstream).sum().backward()
    # Logits are summed and kept in float32, whatever the weights are.
    assert torch.allclose(found.double(), expected, rtol=min(tolerance, 1e-4), atol=min(tolerance, 1e-4))
    assert (mine.grad.double() - truth.grad).norm() <= tolerance * truth.grad.norm()


def test_sums_are_the_same_bits_each_time():
    generator = torch.Generator().manual_seed(0)
    logp = (torch.randn(20_000, generator=generator) * 100).cuda().requires_grad_()
    response_of = torch.randint(50, (20_000,), generator=generator).cuda()
    found = [sum_by_response(logp, response_of, 60) for _ in range(5)]
    assert all(torch.equal(found[0], other) for other in found[1:])
    expected = torch.zeros(60, dtype=torch.float64).index_add(0, response_of.cpu(), logp.double().cpu())
    assert torch.allclose(found[0].double().cpu(), expected, rtol=1e-5, atol=1e-2)
    found[0][:30].sum().backward()
    assert torch.equal(logp.grad, (response_of < 30).float())


def test_memory_of_a_step_does_not_grow_with_the_vocabulary():
    """At most as many logits are there at a time, so that only the weights of the head itself grow."""

    def peak(vocabulary):
        model = make_model(dtype=torch.bfloat16, hidden_size=256, vocab_size=vocabulary, tie_word_embeddings=True)
        model = with_lora(model.cuda())
        enable_group_forward(model)
        groups = [(list(range(300)), [list(range(64 + i)) for i in range(12)])]
        response_logps(model, groups, head_chunk=None).sum().backward()
        torch.cuda.synchronize()
        weights = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        response_logps(model, groups, head_chunk=2**20 // vocabulary).sum().backward()
        return torch.cuda.max_memory_allocated() - weights

    assert peak(49_000) <= 1.05 * peak(8_000)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral_sliding"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_share_a_prompt_are_drawn_as_the_model_would(kind, dtype):
    assert decode.why_not(make_model(kind, dtype=dtype).cuda()) == ""


def test_a_padded_row_with_a_dense_mask_still_works():
    model = make_model("llama", dtype=torch.float32).cuda()
    model.config._attn_implementation = "eager"
    assert enable_group_forward(model)
    assert model._naysay.masks == "full"
    assert layout_groups(GROUPS).input_ids.shape[0] == len(GROUPS)
    expected = one_at_a_time_logps(model, GROUPS)
    assert torch.allclose(response_logps(model, GROUPS, head_chunk=4), expected, rtol=1e-4, atol=1e-4)
