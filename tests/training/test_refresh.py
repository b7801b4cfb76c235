"""Refreshed anchors: which are redrawn and when, what they are scored with, and that a resumed run is the same run."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from conftest import make_model, make_tokenizer
from naysay.errors import ConfigError
from naysay.modeling.forward import enable_group_forward, one_at_a_time_logps
from naysay.records import Anchor
from naysay.training.config import D2OConfig
from naysay.training.data import EncodedGroup
from naysay.training.refresh import AnchorBuffer, AnchorSchedule, interleave
from naysay.training.trainer import D2OTrainer


def anchor(group_id, ids, round):
    return Anchor(
        anchor_id="y", prompt_id=group_id, index=0, round=round, token_ids=tuple(ids), token_logprobs=(), text="",
        finish="stop", instruction_id="bare", seed=0, policy_digest="", sampler="fake",
    )  # fmt: skip


class Source:
    """Draws two tokens that depend on the policy's weights, the slot and the round; refuses what `refused` says."""

    def __init__(self, refused=lambda slot, number: False):
        self.asked, self.refused, self.modes = [], refused, []

    def draw(self, model, slots, round):
        self.asked.append((round, list(slots)))
        self.modes.append(model.training)
        state = int(sum(p.double().abs().sum() for p in model.parameters()).item() * 1e6)
        return [
            None
            if self.refused(slot, round)
            else anchor(slot[0], ((state + i) % 200 + 20, (state // 7 + i) % 200 + 20), round)
            for i, slot in enumerate(slots)
        ]


def trainer(path, rows, source, *, lora=True, schedule=AnchorSchedule(2, 2, 0.5), **changes):  # noqa: B008
    args = {
        "output_dir": str(path),
        "per_device_train_batch_size": 2,
        "max_steps": 7,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "save_steps": 3,
        "dataloader_pin_memory": False,
    }
    return D2OTrainer(
        model=make_model(),
        args=D2OConfig(**args | changes),
        train_dataset=rows,
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear") if lora else None,
        anchor_source=source,
        anchor_schedule=schedule,
    )


def anchors_of(fitted):
    return [(group.anchors, group.ref_anchors) for group in fitted.train_dataset.groups]


def test_the_schedule_counts_from_the_warm_up():
    schedule = AnchorSchedule(warmup_steps=3, refresh_every=2)
    assert [schedule.round_after(step) for step in range(8)] == [None, None, None, 1, None, 2, None, 3]
    assert [AnchorSchedule(0, 2).round_after(step) for step in range(5)] == [None, None, 2, None, 3]
    for impossible in ((-1, 1, 0.5), (0, 0, 0.5), (0, 1, 0.0), (0, 1, 1.5)):
        with pytest.raises(ConfigError, match="expected warmup_steps >= 0, refresh_every >= 1"):
            AnchorSchedule(*impossible)


def test_the_oldest_are_redrawn_first_and_all_in_turn(tmp_path):
    groups = [
        EncodedGroup(f"g{i}", (1,), anchors=((5,), (6,)), negatives=((7,),), ref_anchors=(0.0, 0.0)) for i in range(4)
    ]
    drawn = []

    def draw(slots, round):
        drawn.append(set(slots))
        return [anchor(slot[0], (9, round), round) for slot in slots]

    buffer = AnchorBuffer(
        groups,
        AnchorSchedule(1, 1, 0.25),
        tmp_path,
        draw=draw,
        score=lambda asked: [dict.fromkeys(a, -1.0) for _, a in asked],
    )
    for step in (1, 2, 3, 4):
        buffer.refresh(step)
    assert [len(slots) for slots in drawn] == [2, 2, 2, 2]
    assert len(set.union(*drawn)) == 8  # none twice before all were once
    buffer.refresh(5)
    assert drawn[4] == drawn[0]  # the oldest again
    assert {ids for group in buffer.groups for ids in group.anchors} == {(9, n) for n in (2, 3, 4, 5)}


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_new_anchors_are_scored_with_the_frozen_reference_and_trained_on(tmp_path, rows, lora):
    source = Source()
    fitted = trainer(tmp_path, rows, source, lora=lora)
    before = anchors_of(fitted)
    fitted.train()
    assert [number for number, _ in source.asked] == [1, 2, 3]
    assert source.modes == [False, False, False]
    assert all(len(slots) == 8 for _, slots in source.asked)  # half of 16 anchors
    after = anchors_of(fitted)
    assert before != after
    model = make_model()
    enable_group_forward(model)
    for group in fitted.train_dataset.groups:
        expected = one_at_a_time_logps(model, [(group.prompt_ids, group.anchors)])
        assert torch.allclose(torch.tensor(group.ref_anchors), expected, atol=1e-3)
    assert fitted.anchor_buffer.counts == {"rounds": 3, "redrawn": 24, "kept_old": 0}


def test_a_step_sees_the_anchors_of_its_own_moment(tmp_path, rows):
    """The data loader collates one batch ahead; the loss must not be that of the anchors before the refresh."""
    seen = []

    class Watching(D2OTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            self.batches = getattr(self, "batches", [])
            return super().training_step(model, inputs, num_items_in_batch)

        def _micro_loss(self, batch, members, logp_R):
            rows_of = [batch.tensors["row"].tolist()[i] for i in members]
            for row, i in zip(rows_of, members, strict=True):
                seen.append((self.state.global_step, row, [tuple(a) for a in batch.groups[i][1]]))
                assert set(map(tuple, batch.groups[i][1])) == set(self.train_dataset.groups[row].responses)
            return super()._micro_loss(batch, members, logp_R)

    args = D2OConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=2, max_steps=6, disable_tqdm=True, use_cpu=True,
        save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    fitted = Watching(
        model=make_model(), args=args, train_dataset=rows, processing_class=make_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear"), anchor_source=Source(),
        anchor_schedule=AnchorSchedule(1, 1, 1.0),
    )  # fmt: skip
    fitted.train()
    assert len(seen) >= 12


def test_a_refused_draw_keeps_the_old_anchor(tmp_path, rows):
    fitted = trainer(tmp_path, rows, Source(refused=lambda slot, number: True))
    before = anchors_of(fitted)
    fitted.train()
    assert anchors_of(fitted) == before
    assert fitted.anchor_buffer.counts == {"rounds": 3, "redrawn": 0, "kept_old": 24}


def test_every_round_is_recorded(tmp_path, rows):
    from naysay.artifacts.store import read_jsonl

    trainer(tmp_path, rows, Source()).train()
    for number, step in ((1, 2), (2, 4), (3, 6)):
        found = list(read_jsonl(tmp_path / f"anchors-round-{number}.jsonl"))
        assert {row["step"] for row in found} == {step}
        assert all(row["anchor"]["round"] == number and row["ref_logp"] < 0 for row in found)


@pytest.mark.parametrize("checkpoint", [3, 6])
def test_a_resumed_run_is_the_uninterrupted_one_bitwise(tmp_path, rows, checkpoint):
    whole = trainer(tmp_path, rows, Source())
    whole.train()
    resumed = trainer(tmp_path, rows, Source())
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{checkpoint}"))
    assert anchors_of(resumed) == anchors_of(whole)
    assert resumed.anchor_buffer.counts == whole.anchor_buffer.counts
    for (name, left), (_, right) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(left, right), name


def test_a_new_run_in_the_same_folder_does_not_read_old_rounds(tmp_path, rows):
    trainer(tmp_path, rows, Source()).train()
    again = trainer(tmp_path, rows, Source(refused=lambda slot, number: True))
    before = anchors_of(again)
    again.train()
    assert anchors_of(again) == before


def test_what_cannot_be_refreshed_is_refused(tmp_path, rows):
    with pytest.raises(ConfigError, match=r"objective .npo. reads no anchors; use anchors.schedule: offline"):
        trainer(tmp_path, rows, Source(), objective="npo")


def test_shares_of_ranks_come_back_in_order():
    for world in (1, 2, 3):
        items = list(range(7))
        assert interleave([items[rank::world] for rank in range(world)]) == items


def test_a_group_keeps_its_negatives(tmp_path, rows):
    fitted = trainer(tmp_path, rows, Source())
    before = [replace(group, anchors=(), ref_anchors=()) for group in fitted.train_dataset.groups]
    fitted.train()
    assert [replace(group, anchors=(), ref_anchors=()) for group in fitted.train_dataset.groups] == before
