"""What the step benchmark times: one prompt group, forward and backward, by naysay and by its rivals.

Each implementation runs in a process of its own, so that its peak memory is its own; the parent asks for one step at a
time, so that rivals are timed in turn.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import torch
from benchmarks.switches import SWITCHES

from naysay.config.model import ModelConfig
from naysay.config.training import LoraSettings
from naysay.modeling.adapters import add_adapter, lora_config
from naysay.modeling.forward import causal_lm, enable_group_forward, one_at_a_time_logps, response_logps
from naysay.modeling.loading import load_model, load_tokenizer

Step = Callable[[], None]


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

    @property
    def answers(self) -> int:
        return self.k + 1

    @property
    def tokens(self) -> int:
        """Tokens that must be computed where the prompt is shared: of an answer all but the last, which predicts
        nothing."""
        return self.prompt + self.answers * (self.answer - 1)

    @property
    def name(self) -> str:
        own = "" if self.vocabulary is None else f", V={self.vocabulary}"
        return f"P={self.prompt}, R={self.answer}, K={self.k}{own}"


def group_of(case: Case) -> tuple[list[int], list[list[int]]]:
    """A prompt and its answers, random tokens: the same in every process."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(1000, min(40_000, case.vocabulary or 40_000), (count,), generator=generator).tolist()

    return ids(case.prompt), [ids(case.answer) for _ in range(case.answers)]


def _model(case: Case) -> Any:
    model = load_model(ModelConfig())
    if case.vocabulary is not None:
        model.resize_token_embeddings(case.vocabulary, mean_resizing=False)
    return model


def serve(connection: Connection, implementation: str, case: Case, threads: int) -> None:
    """Run in a child process: build the implementation, then a step for each message until None."""
    torch.set_num_threads(threads)
    try:
        step = make_step(implementation, case)
        connection.send({"ready": True})
        while connection.recv() is not None:
            started = time.perf_counter()
            step()
            seconds = time.perf_counter() - started
            # ru_maxrss is in KiB on Linux and in bytes on macOS.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            connection.send({"seconds": seconds, "peak_bytes": peak})
    except Exception as error:  # noqa: BLE001  the parent says which rival failed, and ends
        connection.send({"error": f"{implementation}: {type(error).__name__}: {error}"})


def make_step(implementation: str, case: Case) -> Step:
    """One forward and backward of the group.

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

    prompt, answers = group_of(case)
    group = EncodedGroup(
        "group",
        tuple(prompt),
        anchors=tuple(map(tuple, answers[:-1])),
        negatives=(tuple(answers[-1]),),
        ref_anchors=(-5.0 * case.answer,) * case.k,
        ref_negatives=(-5.0 * case.answer,),
    )
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
        processing_class=load_tokenizer(ModelConfig()),
        peft_config=lora_config(LoraSettings()),
    )
    if checkpointing:  # what train() would do, which is not called
        trainer.model.activation_checkpointing_enable({"use_reentrant": False})
    trainer.train_dataset = GroupDataset([group])
    batch = trainer._collate([trainer.train_dataset[0]])

    def step() -> None:
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, dict(batch), num_items_in_batch=torch.tensor(1))

    return step


def _surrogate(case: Case, implementation: str) -> Step:
    """Σ coefficient · log-prob, which has the gradient of the loss: all answers at once, or one after another."""
    model = _model(case)
    torch.manual_seed(42)  # the trainer's own default: the same adapter
    model = add_adapter(model, lora_config(LoraSettings()))
    enable_group_forward(model)
    model.train()
    prompt, answers = group_of(case)
    weights = [0.05 / case.k] * case.k + [-0.05]
    if implementation == "unshared":
        groups = [(prompt, [answer]) for answer in answers]

        def together() -> None:
            model.zero_grad()
            (-response_logps(model, groups, head_chunk=None) * torch.tensor(weights)).sum().backward()

        return together
    if implementation == "pairs":
        pair = torch.tensor([weights[0], weights[-1] / case.k])

        def in_pairs() -> None:
            model.zero_grad()
            for anchor in answers[:-1]:
                logps = response_logps(model, [(prompt, [anchor]), (prompt, [answers[-1]])], head_chunk=None)
                (-logps * pair).sum().backward()

        return in_pairs
    if implementation != "one at a time":
        raise ValueError(f"no implementation {implementation!r}")

    def apart() -> None:
        model.zero_grad()
        for answer, weight in zip(answers, weights, strict=True):
            (-one_at_a_time_logps(model, [(prompt, [answer])])[0] * weight).backward()

    return apart


def _trl(case: Case, batch_size: int) -> Step:
    """TRL's DPOTrainer on the K (anchor, negative) pairs: its fused LM head, reference log-probs known, LoRA."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    prompt, answers = group_of(case)
    trainer: Any = DPOTrainer(
        model=load_model(ModelConfig()),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            max_length=None,
        ),
        train_dataset=Dataset.from_list([{"prompt": "Why?", "chosen": " Because.", "rejected": " No."}]),
        processing_class=load_tokenizer(ModelConfig()),
        peft_config=lora_config(LoraSettings()),
    )
    # The log-probs of the reference are handed to it, as its own precomputation would.
    trainer.precompute_ref_logps = True
    known = {"ref_chosen_logps": -5.0 * case.answer, "ref_rejected_logps": -5.0 * case.answer}
    pairs = [
        {"prompt_ids": prompt, "chosen_ids": anchor, "rejected_ids": answers[-1], **known} for anchor in answers[:-1]
    ]
    trainer.current_gradient_accumulation_steps = 1  # set by train(), which is not called
    batches = [trainer.data_collator(pairs[i : i + batch_size]) for i in range(0, len(pairs), batch_size)]

    def step() -> None:
        trainer.model.zero_grad()
        for batch in batches:
            trainer.training_step(trainer.model, dict(batch), num_items_in_batch=None)

    return step


def needed_flops(case: Case) -> dict[str, float]:
    """Floating-point operations that a step of a LoRA policy cannot do without: 4N a token for the frozen matrices
    (forward, and the gradient by their input), attention over allowed pairs alone. The adapter's own are left out."""
    config, body = _body()
    scored = case.answers * case.answer
    read = case.answer - 1
    own = read * (read + 1) // 2
    pairs = case.prompt * (case.prompt + 1) // 2 + case.answers * (read * case.prompt + own)
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Two products forward and four backward, each of 2 operations an element of a head.
    attention = 12 * pairs * config.num_attention_heads * head_size * config.num_hidden_layers
    return {
        "body": 4.0 * body * case.tokens,
        "head": 4.0 * (case.vocabulary or config.vocab_size) * config.hidden_size * scored,
        "attention": float(attention),
    }


@cache
def _body() -> tuple[Any, int]:
    """(the model's config, the weights of its layers' matrices)."""
    lm = causal_lm(load_model(ModelConfig()))
    body = sum(m.weight.numel() for m in lm.base_model.modules() if isinstance(m, torch.nn.Linear))
    return lm.config.get_text_config(), body


def matmul_rate(threads: int, seconds: float = 1.5) -> float:
    """FLOP/s of float32 products of the shapes of a layer, measured now, on this many threads."""
    torch.set_num_threads(threads)
    tokens, hidden, inner = torch.randn(896, 576), torch.randn(576, 1536), torch.randn(1536, 576)
    flops, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        (tokens @ hidden) @ inner
        flops += 2 * 2 * 896 * 576 * 1536
    return flops / (time.perf_counter() - started)
