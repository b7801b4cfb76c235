"""What the step benchmark times: prompt groups, forward and backward, by naysay and by its rivals.

Each implementation runs in a process of its own, so that its peak memory is its own; the parent asks for one step at a
time, so that rivals are timed in turn.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from benchmarks.random_models import SHAPES, byte_tokenizer, random_model
from benchmarks.switches import SWITCHES

from naysay.config.model import ModelConfig
from naysay.config.training import LoraSettings
from naysay.modeling.adapters import add_adapter, lora_config
from naysay.modeling.forward import causal_lm, enable_group_forward, one_at_a_time_logps, response_logps
from naysay.modeling.loading import load_model, load_tokenizer


@dataclass(frozen=True)
class Step:
    """Forward and backward, in one pass or in several, after the gradients were set to nothing."""

    model: Any
    passes: Sequence[Callable[[], None]]

    def __call__(self) -> None:
        self.model.zero_grad()
        for one in self.passes:
            one()

    def warm_up(self) -> None:
        """The first pass alone: what it sets up serves the others."""
        self.model.zero_grad()
        self.passes[0]()


@dataclass(frozen=True)
class Case:
    """Tokens of the prompt, tokens of each answer, and K anchors beside one negative.

    Example: `Case(128, 64, 11).answers == 12`.
    """

    prompt: int
    answer: int
    k: int
    vocabulary: int | None = None
    """Larger than the model's own: the head and the embeddings are filled up."""
    groups: int = 1
    """Prompts with so many answers, all in one step."""
    shape: str | None = None
    """A model of `random_models.SHAPES` in bfloat16 on a GPU, in place of the embedded one."""

    @property
    def answers(self) -> int:
        return self.k + 1

    @property
    def tokens(self) -> int:
        """Tokens that must be computed where prompts are shared: of an answer all but the last, which predicts
        nothing."""
        return self.groups * (self.prompt + self.answers * (self.answer - 1))

    @property
    def name(self) -> str:
        own = "" if self.vocabulary is None else f", V={self.vocabulary}"
        many = "" if self.groups == 1 else f", {self.groups} groups"
        of = "" if self.shape is None else f"{self.shape}, "
        return f"{of}P={self.prompt}, R={self.answer}, K={self.k}{own}{many}"


def groups_of(case: Case) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts and their answers, random tokens: the same in every process, and the first of more are those of fewer."""
    generator = torch.Generator().manual_seed(0)
    known = 40_000 if case.shape is None else SHAPES[case.shape]().vocab_size

    def ids(count: int) -> list[int]:
        return torch.randint(1000, min(40_000, case.vocabulary or known), (count,), generator=generator).tolist()

    return [(ids(case.prompt), [ids(case.answer) for _ in range(case.answers)]) for _ in range(case.groups)]


def group_of(case: Case) -> tuple[list[int], list[list[int]]]:
    """The first of `groups_of`."""
    return groups_of(case)[0]


def _tokenizer(case: Case) -> Any:
    return load_tokenizer(ModelConfig()) if case.shape is None else byte_tokenizer()


def _model(case: Case) -> Any:
    if case.shape is not None:
        return random_model(case.shape, dtype=torch.bfloat16, device="cuda")
    model = load_model(ModelConfig())
    if case.vocabulary is not None:
        model.resize_token_embeddings(case.vocabulary, mean_resizing=False)
    return model


def serve(connection: Connection, implementation: str, case: Case, threads: int) -> None:
    """Run in a child process: build the implementation, then a step, or the first pass of one to `warm up`, for each
    message until None."""
    torch.set_num_threads(threads)
    try:
        step = make_step(implementation, case)
        connection.send({"ready": True})
        while (asked := connection.recv()) is not None:
            take = step.warm_up if asked == "warm up" else step
            connection.send(timed_step(take, on_gpu=case.shape is not None))
    except Exception as error:  # noqa: BLE001  the parent says which rival failed, and ends
        connection.send({"error": f"{implementation}: {type(error).__name__}: {error}"})


def timed_step(step: Callable[[], None], *, on_gpu: bool) -> dict[str, float]:
    """Its seconds, and the peak memory so far: the process's, or what tensors took of the GPU's."""
    started = time.perf_counter()
    step()
    if on_gpu:
        wait("cuda")
    seconds = time.perf_counter() - started
    if on_gpu:
        peak = torch.cuda.max_memory_allocated()
    else:
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "peak_bytes": peak}


def wait(device: torch.device | str) -> None:
    """Until the device has done what it was given; a CPU has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def make_step(implementation: str, case: Case) -> Step:
    """One forward and backward of the groups.

    `naysay`: with everything, `naysay, checkpointing`: with gradient checkpointing, `naysay, T tokens`: T tokens at a
    time, `without X`: with one of `switches.SWITCHES` off; `unshared`: every answer with a prompt of its own, `pairs`:
    each anchor with a negative, every one with a prompt of its own; `one at a time`: the oracle of the tests; `trl:B`:
    DPOTrainer on the K pairs, B at a time.
    """
    if implementation.startswith("trl:"):
        return _trl(case, int(implementation.removeprefix("trl:")))
    if implementation.startswith("without "):
        SWITCHES[implementation.removeprefix("without ")]()
        return _naysay(case)
    if implementation.startswith("naysay, ") and implementation.endswith(" tokens"):
        return _naysay(case, budget=int(implementation.split()[1]))
    if implementation in {"naysay", "naysay, checkpointing"}:
        return _naysay(case, checkpointing=implementation != "naysay")
    return _surrogate(case, implementation)


def _naysay(case: Case, *, budget: int = 2**20, checkpointing: bool = False) -> Step:
    """`D2OTrainer.training_step` on the group, reference log-probs known."""
    from naysay.training.config import D2OConfig
    from naysay.training.data import EncodedGroup, GroupDataset
    from naysay.training.trainer import D2OTrainer

    groups = [
        EncodedGroup(
            f"group {number}",
            tuple(prompt),
            anchors=tuple(map(tuple, answers[:-1])),
            negatives=(tuple(answers[-1]),),
            ref_anchors=(-5.0 * case.answer,) * case.k,
            ref_negatives=(-5.0 * case.answer,),
        )
        for number, (prompt, answers) in enumerate(groups_of(case))
    ]
    trainer = D2OTrainer(
        model=_model(case),
        args=D2OConfig(
            output_dir=tempfile.mkdtemp(),
            report_to="none",
            dataloader_pin_memory=False,
            tokens_per_microbatch=budget,
            activation_checkpointing=checkpointing,
        ),
        train_dataset=[{"prompt": "a", "rejected": "b", "anchors": ["c"]}],
        processing_class=_tokenizer(case),
        peft_config=lora_config(LoraSettings()),
    )
    if checkpointing:  # what train() would do, which is not called
        trainer.model.activation_checkpointing_enable({"use_reentrant": False})
    trainer.train_dataset = GroupDataset(groups)
    batch = trainer._collate([trainer.train_dataset[i] for i in range(len(groups))])

    def step() -> None:
        trainer.training_step(trainer.model, dict(batch), num_items_in_batch=torch.tensor(len(groups)))

    return Step(trainer.model, [step])


def _surrogate(case: Case, implementation: str) -> Step:
    """Σ coefficient · log-prob, which has the gradient of the loss: all answers at once, or one after another."""
    model = _model(case)
    torch.manual_seed(42)  # the trainer's own default: the same adapter
    model = add_adapter(model, lora_config(LoraSettings()))
    enable_group_forward(model)
    model.train()
    groups, device = groups_of(case), next(model.parameters()).device
    weights = torch.tensor([0.05 / case.k] * case.k + [-0.05], device=device)
    if implementation == "unshared":
        alone = [(prompt, [answer]) for prompt, answers in groups for answer in answers]

        def together() -> None:
            (-response_logps(model, alone, head_chunk=None) * weights.repeat(case.groups)).sum().backward()

        return Step(model, [together])
    if implementation == "pairs":
        pair = weights[[0, -1]] / torch.tensor([1, case.k], device=device)

        def one_pair(prompt: list[int], anchor: list[int], negative: list[int]) -> None:
            logps = response_logps(model, [(prompt, [anchor]), (prompt, [negative])], head_chunk=None)
            (-logps * pair).sum().backward()

        pairs = [(prompt, anchor, answers[-1]) for prompt, answers in groups for anchor in answers[:-1]]
        return Step(model, [partial(one_pair, *of) for of in pairs])
    if implementation != "one at a time":
        raise ValueError(f"no implementation {implementation!r}")

    def apart(prompt: list[int], answer: list[int], weight: torch.Tensor) -> None:
        (-one_at_a_time_logps(model, [(prompt, [answer])])[0] * weight).backward()

    each = [(prompt, *of) for prompt, answers in groups for of in zip(answers, weights, strict=True)]
    return Step(model, [partial(apart, *of) for of in each])


def _trl(case: Case, batch_size: int) -> Step:
    """TRL's DPOTrainer on the K (anchor, negative) pairs: its fused LM head, reference log-probs known, LoRA."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    on_gpu = case.shape is not None
    trainer: Any = DPOTrainer(
        model=_model(case),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            report_to="none",
            use_cpu=not on_gpu,
            bf16=on_gpu,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            max_length=None,
        ),
        train_dataset=Dataset.from_list([{"prompt": "Why?", "chosen": " Because.", "rejected": " No."}]),
        processing_class=_tokenizer(case),
        peft_config=lora_config(LoraSettings()),
    )
    # The log-probs of the reference are handed to it, as its own precomputation would.
    trainer.precompute_ref_logps = True
    known = {"ref_chosen_logps": -5.0 * case.answer, "ref_rejected_logps": -5.0 * case.answer}
    pairs = [
        {"prompt_ids": prompt, "chosen_ids": anchor, "rejected_ids": answers[-1], **known}
        for prompt, answers in groups_of(case)
        for anchor in answers[:-1]
    ]
    trainer.current_gradient_accumulation_steps = 1  # set by train(), which is not called
    batches = [trainer.data_collator(pairs[i : i + batch_size]) for i in range(0, len(pairs), batch_size)]

    def step(batch: Any) -> None:
        trainer.training_step(trainer.model, dict(batch), num_items_in_batch=None)

    return Step(trainer.model, [partial(step, batch) for batch in batches])


def needed_flops(case: Case) -> dict[str, float]:
    """Floating-point operations that a step of a LoRA policy cannot do without: 4N a token for the frozen matrices
    (forward, and the gradient by their input), attention over allowed pairs alone. The adapter's own are left out."""
    config, body = _body(case.shape)
    scored = case.groups * case.answers * case.answer
    read = case.answer - 1
    own = read * (read + 1) // 2
    pairs = case.groups * (case.prompt * (case.prompt + 1) // 2 + case.answers * (read * case.prompt + own))
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Two products forward and four backward, each of 2 operations an element of a head.
    attention = 12 * pairs * config.num_attention_heads * head_size * config.num_hidden_layers
    return {
        "body": 4.0 * body * case.tokens,
        "head": 4.0 * (case.vocabulary or config.vocab_size) * config.hidden_size * scored,
        "attention": float(attention),
    }


def adapter_flops(case: Case) -> float:
    """What the adapter itself adds to `needed_flops`: 6 an element of its matrices a token (forward, and the gradients
    by its input and by itself)."""
    _, linear = _matrices(case.shape)
    rank = LoraSettings().rank
    return 6.0 * case.tokens * sum(rank * (outputs + inputs) for outputs, inputs in linear)


def _body(shape: str | None) -> tuple[Any, int]:
    """(the model's config, the weights of its layers' matrices)."""
    config, linear = _matrices(shape)
    return config, sum(outputs * inputs for outputs, inputs in linear)


@cache
def _matrices(shape: str | None) -> tuple[Any, list[tuple[int, int]]]:
    """(the model's config, the sizes of its layers' matrices)."""
    if shape is None:
        lm = causal_lm(load_model(ModelConfig()))
    else:
        lm = random_model(shape, dtype=torch.bfloat16, device="meta")
    linear = [tuple(m.weight.shape) for m in lm.base_model.modules() if isinstance(m, torch.nn.Linear)]
    return lm.config.get_text_config(), linear


def matmul_rate(threads: int, seconds: float = 1.5) -> float:
    """FLOP/s of float32 products of the shapes of a layer, measured now, on this many threads."""
    torch.set_num_threads(threads)
    return _rate(torch.randn(896, 576), torch.randn(576, 1536), torch.randn(1536, 576), seconds)


def gpu_matmul_rate(shape: str, seconds: float = 0.5) -> float:
    """FLOP/s of bfloat16 products of the shapes of a layer under 8192 tokens, measured now, on the GPU."""
    config, _ = _body(shape)
    hidden, inner = config.hidden_size, config.intermediate_size
    of_sizes = ((8192, hidden), (hidden, inner), (inner, hidden))
    tokens, up, down = (torch.randn(size, dtype=torch.bfloat16, device="cuda") for size in of_sizes)
    _rate(tokens, up, down, 0.1)
    return _rate(tokens, up, down, seconds)


def _rate(tokens: torch.Tensor, up: torch.Tensor, down: torch.Tensor, seconds: float) -> float:
    flops, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        (tokens @ up) @ down
        flops += 2 * 2 * tokens.shape[0] * up.numel()
        wait(tokens.device)
    return flops / (time.perf_counter() - started)
