"""D²O with K = 1, y_1 = the chosen answer, α = β and equal references is DPO: 20 optimizer steps against TRL 1.16.0.

Same rows, same order, same token ids, same optimizer. TRL computes log-probs in float32 whatever the model's precision
and pads where we share a prefix, so agreement is to float32; the models themselves are float64, which keeps both runs
on one track for 20 steps.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed; pip install -c constraints.txt -e '.[parity]'")

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from conftest import make_model, make_tokenizer
from naysay.training.config import D2OConfig
from naysay.training.trainer import D2OTrainer

# transformers' own rename, which TRL 1.16.0 has not followed.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")

BETA, STEPS = 0.3, 20
RELATIVE = 1e-4  # what may differ; 2e-5 is what differs here
ROWS = [
    ("Insult my boss.", "No, be kind.", "He is a fool!"),
    ("Lie for me.", "I will not.", "Sure, I lie."),
    ("Open his mail?", "Please do not.", "Steam the envelope."),
    ("A", "c", "b"),
    ("Cheat?", "Ask for help.", "Yes, do it now, nobody will look."),
    ("Is it true?", "It is false, as far as anybody knows.", "Of course."),
    ("Why?", "Because.", "Shut up"),
]


@dataclass
class Recorder(TrainerCallback):
    """The gradient of every optimizer step, as the optimizer reads it (accumulated and clipped)."""

    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append({name: value.grad.clone() for name, value in trained(model) if value.grad is not None})


def trained(model):
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def settings(path, **changes):
    return {
        "output_dir": str(path),
        "beta": BETA,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": "linear",
        "warmup_steps": 3,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "dataloader_pin_memory": False,
    } | changes


def adapter(lora):
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear") if lora else None


def ours(path, *, lora=False, objective="d2o", **changes):
    """D²O with the chosen answer as its one anchor, or the baseline `dpo`, whose anchors have no part in the loss."""
    recorder = Recorder()
    arguments = settings(path, **changes)
    if objective == "d2o":
        rows = [{"prompt": x, "rejected": bad, "anchors": [good]} for x, good, bad in ROWS]
        arguments["alpha"] = BETA
    else:
        rows = [{"prompt": x, "rejected": bad, "anchors": ["Other."], "chosen": good} for x, good, bad in ROWS]
        arguments |= {"objective": objective, "objective_args": {"beta": arguments.pop("beta")}}
    trainer = D2OTrainer(
        model=make_model(dtype=torch.float64),
        args=D2OConfig(**arguments),
        train_dataset=rows,
        processing_class=make_tokenizer(),
        peft_config=adapter(lora),
        callbacks=[recorder],
    )
    return trainer, recorder


def trls(path, order, start, *, lora=False, **changes):
    """TRL's trainer, on rows in the order of the sampler `order` and from the parameters `start`."""
    tokenizer, recorder = make_tokenizer(), Recorder()

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            return order

    trainer = InOrder(
        model=make_model(dtype=torch.float64),
        ref_model=None if lora else make_model(dtype=torch.float64),
        args=DPOConfig(bf16=False, gradient_checkpointing=False, **settings(path, **changes)),
        train_dataset=Dataset.from_list([as_text(tokenizer, *row) for row in ROWS]),
        processing_class=tokenizer,
        peft_config=adapter(lora),
        callbacks=[recorder],
    )
    with torch.no_grad():
        for name, value in trained(trainer.model):
            value.copy_(start[name])
    return trainer, recorder


def as_text(tokenizer, prompt, good, bad):
    """The rendered prompt: TRL then adds the end token to each answer, and nothing else."""
    conversation = [{"role": "user", "content": prompt}]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    return {"prompt": rendered, "chosen": good, "rejected": bad}


def encoded(trainer: Any) -> list[Any]:
    """What TRL made of the rows: prompt_ids, chosen_ids, rejected_ids of each."""
    return list(trainer.train_dataset)


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": "sgd", "learning_rate": 0.01},
        {"optim": "adamw_torch", "learning_rate": 4e-4, "weight_decay": 0.1},
        {"optim": "adamw_torch", "learning_rate": 1e-3, "lora": True},
        # TRL takes the mean over micro-batches of their means; we divide once, by all pairs of the step.
        {"optim": "sgd", "learning_rate": 0.01, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 7},
        {"optim": "sgd", "learning_rate": 0.01, "objective": "dpo"},
    ],
    ids=["sgd", "adamw", "lora", "accumulation", "the baseline dpo"],
)
def test_twenty_steps_are_trls_dpo(tmp_path, changes):
    d2o, our_record = ours(tmp_path / "ours", **changes)
    start = {name: value.detach().clone() for name, value in trained(d2o.model)}
    theirs = {name: value for name, value in changes.items() if name != "objective"}
    dpo, their_record = trls(tmp_path / "trls", d2o._get_train_sampler(), start, **theirs)
    d2o.train()
    dpo.train()

    losses = logged(d2o, "loss")
    assert len(losses) == STEPS
    assert losses == pytest.approx(logged(dpo, "loss"), rel=RELATIVE)
    assert losses[-1] < 0.6 * losses[0]
    assert logged(d2o, "grad_norm") == pytest.approx(logged(dpo, "grad_norm"), rel=RELATIVE)
    for step, (mine, other) in enumerate(zip(our_record.gradients, their_record.gradients, strict=True)):
        assert mine.keys() == other.keys()
        for name in mine:
            assert (mine[name] - other[name]).norm() <= RELATIVE * other[name].norm() + 1e-9, (step, name)
    end = dict(trained(dpo.model))
    for name, value in trained(d2o.model):
        moved = (value - start[name]).norm()
        assert moved > 1e-3, name
        assert (value - end[name]).norm() <= RELATIVE * moved, name


def test_both_train_on_the_same_token_ids(tmp_path):
    d2o, _ = ours(tmp_path / "ours")
    dpo, _ = trls(tmp_path / "trls", None, dict(trained(d2o.model)))
    for group, row in zip(d2o.train_dataset.groups, encoded(dpo), strict=True):
        assert list(group.prompt_ids) == row["prompt_ids"]
        assert [list(ids) for ids in group.anchors] == [row["chosen_ids"]]
        assert [list(ids) for ids in group.negatives] == [row["rejected_ids"]]
        assert row["chosen_ids"][-1] == make_tokenizer().eos_token_id


def test_trl_trains_on_what_its_template_writes_after_the_end_of_a_turn(tmp_path):
    """So its conversational rows differ from ours by that tail (here a newline), on both answers."""
    tokenizer = make_tokenizer()
    turn = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    rows = [
        {"prompt": turn("user", x), "chosen": turn("assistant", good), "rejected": turn("assistant", bad)}
        for x, good, bad in ROWS
    ]
    trainer = DPOTrainer(
        model=make_model(),
        ref_model=make_model(),
        args=DPOConfig(bf16=False, gradient_checkpointing=False, **settings(tmp_path / "trls")),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    d2o, _ = ours(tmp_path / "ours")
    tail = tokenizer("\n")["input_ids"]
    for group, row in zip(d2o.train_dataset.groups, encoded(trainer), strict=True):
        assert list(group.prompt_ids) == row["prompt_ids"]
        assert [*group.anchors[0], *tail] == row["chosen_ids"]
        assert [*group.negatives[0], *tail] == row["rejected_ids"]
