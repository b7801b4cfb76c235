"""What test_distributed.py runs in one process and in two: the same groups, trained with the same optimizer steps.

python -m torch.distributed.run --nproc_per_node 2 tests/training/distributed_step.py FOLDER
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import ClassVar

import torch
from peft import LoraConfig

from conftest import make_model, make_tokenizer
from naysay.artifacts.run_directory import RunDirectory
from naysay.config.run import RunConfig
from naysay.config.training import EarlyStoppingSettings
from naysay.records import Anchor
from naysay.training.balance import Dealing
from naysay.training.config import D2OConfig
from naysay.training.data import GroupSampler
from naysay.training.dev import DevProbe
from naysay.training.early_stopping import BestWeights, EarlyStopping
from naysay.training.ranks import Ranks
from naysay.training.refresh import AnchorSchedule, frozen_initial
from naysay.training.trainer import D2OTrainer

SEED = 3
BUDGET = 100
GROUPS = 11
# What one process does, and what each of two does: 4 groups a step, so 3 steps, the last one of 3 groups.
SCENARIOS = {
    "plain": ({"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 2}),
    "accumulated": (
        {"per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    ),
    "lora": ({"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 2}),
    "finished": (
        {"per_device_train_batch_size": 4, "skip_weight_below": 0.49, "tokens_per_microbatch": 50},
        {"per_device_train_batch_size": 2, "skip_weight_below": 0.49, "tokens_per_microbatch": 50},
    ),
    "refreshed": ({"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 2}),
    # Twice the budget, but dev prompts end it after as many steps as the others take.
    "stopped": (
        {"per_device_train_batch_size": 4, "num_train_epochs": 2},
        {"per_device_train_batch_size": 2, "num_train_epochs": 2},
    ),
}


class Source:
    """Draws what the slot and the round decide, whichever rank is asked; refuses some."""

    def draw(self, model, slots, round):
        return [self.one(*slot, round) for slot in slots]

    def one(self, group_id, place, round):
        digest = hashlib.sha256(f"{group_id}/{place}/{round}".encode()).digest()
        if digest[0] < 64:
            return None
        ids = tuple(20 + value % 200 for value in digest[1 : 3 + digest[0] % 5])
        return Anchor(
            anchor_id=f"{group_id}/{place}", prompt_id=group_id, index=place, round=round, token_ids=ids,
            token_logprobs=(), text="", finish="length", instruction_id="bare", seed=0, policy_digest="",
            sampler="fake",
        )  # fmt: skip


class RecordedRanks(Ranks):
    """Remembers how much work this rank had in each training step: (whole micro-batches, parts of large groups)."""

    work: ClassVar[list[list[int]]] = []

    def most(self, *counts):
        self.work.append(list(counts))
        return super().most(*counts)


class Recorded(D2OTrainer):
    @property
    def _ranks(self):
        return RecordedRanks(self.accelerator)


def uneven_rows():
    """Groups of 40 to 300 tokens. Of the first four groups three exceed the budget, and of the next four one: then a
    rank has parts only, or whole micro-batches only. Two groups of the last step are equal."""
    long, middle = "no " * 20, "because " * 4
    by_position = [
        {"prompt": "A", "rejected": "x" + long, "anchors": ["a" + long, "b" + long, "c" + long]},
        {"prompt": "B", "rejected": ["y" + long, "short"], "anchors": ["d" + long, "e" + long]},
        {"prompt": "G", "rejected": "z" + long, "anchors": ["h" + long, "short"]},
        {"prompt": "C", "rejected": "Sure", "anchors": ["n", "I will not"]},
        {"prompt": "E", "rejected": middle, "anchors": ["Why?", middle + "!", middle + "?"]},
        {"prompt": "D", "rejected": ["Yes", "Ok", "Go"], "anchors": ["no"]},
        {"prompt": "F", "rejected": "f", "anchors": ["g"] * 3},
        {"prompt": "H", "rejected": "h", "anchors": ["i", "j"]},
        {"prompt": "I", "rejected": "same", "anchors": ["k", "l", middle]},
        {"prompt": "J", "rejected": ["m", "n"], "anchors": [middle]},
        {"prompt": "I", "rejected": "same", "anchors": ["k", "l", middle]},
    ]
    rows = [{}] * GROUPS
    for row, index in zip(by_position, GroupSampler([1] * GROUPS, seed=SEED, dealt=Dealing(1, 4)), strict=True):
        rows[index] = row
    return rows


def early_stopping(trainer, folder):
    """Scores five of the rows after every step, and stops after three without an improvement of almost everything."""
    rows = [
        {"prompt_id": f"p{i}", "chosen": [{"text": "Gladly", "finish": "stop"}], **row}
        for i, row in enumerate(uneven_rows()[:5])
    ]
    share = {"rank": trainer.args.process_index, "ranks": trainer.args.world_size}
    initial = frozen_initial(trainer.model, adapter_is_new=True)
    probe = DevProbe(
        RunDirectory(folder), RunConfig(), make_tokenizer(), rows, initial=initial, max_length=512, **share
    )
    writes = trainer.args.should_save
    return EarlyStopping(
        measure=lambda: probe.measure(trainer.model),
        weights=BestWeights(folder, lambda path: trainer.save_model(str(path)), writes=writes),
        settings=EarlyStoppingSettings(enabled=True, every=1, patience=3, min_improvement=0.99, max_kl=1e6),
        log=folder / "dev.json",
        writes=writes,
    )


def train(folder, name, *, ranks):
    """Train one scenario as one of `ranks` processes; what comes out, as JSON and tensors below `folder`."""
    lora, refreshed = name in {"lora", "refreshed", "stopped"}, name == "refreshed"
    arguments = D2OConfig(
        output_dir=str(folder / name),
        optim="adamw_torch" if lora else "sgd",
        learning_rate=1e-3 if lora else 0.05,
        lr_scheduler_type="constant",
        max_grad_norm=1e6,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=SEED,
        dataloader_pin_memory=False,
        **({"ddp_backend": "gloo"} if ranks > 1 else {}),
        **{"tokens_per_microbatch": BUDGET, "num_train_epochs": 1} | SCENARIOS[name][ranks - 1],
    )
    trainer = Recorded(
        model=make_model(dtype=torch.float64),
        args=arguments,
        train_dataset=uneven_rows(),
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear") if lora else None,
        anchor_source=Source() if refreshed else None,
        anchor_schedule=AnchorSchedule(warmup_steps=1, refresh_every=1, refresh_fraction=0.5) if refreshed else None,
    )
    RecordedRanks.work.clear()
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    stopping = early_stopping(trainer, folder / name) if name == "stopped" else None
    if stopping is not None:
        trainer.add_callback(stopping)
    trainer.train()
    groups = trainer.train_dataset.groups
    return {
        "ranks": trainer.accelerator.num_processes,
        "weights": {name: p.detach().clone() for name, p in trained.items()},
        "moved": max(float((p.detach() - before[name]).abs().max()) for name, p in trained.items()),
        "references": [[*group.ref_anchors, *group.ref_negatives] for group in groups],
        "anchors": [group.anchors for group in groups],
        "refresh": trainer.anchor_buffer.counts if trainer.anchor_buffer else {},
        "log": [row for row in trainer.state.log_history if "margin" in row],
        "work": list(RecordedRanks.work),
        "steps": trainer.state.global_step,
        "dev": stopping._checks if stopping is not None else [],
    }


def main(folder):
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for name in SCENARIOS:
        result = train(folder, name, ranks=2)
        torch.save(result.pop("weights"), folder / f"{name}-{rank}.pt")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(result))
    torch.distributed.barrier()  # a process that leaves while the other is at work may end in gloo's std::terminate
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
