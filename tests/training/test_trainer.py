"""D2OTrainer: equal gradients for every split, the right denominator, pinned references, loud failures."""

import math

import pytest
import torch
from peft import LoraConfig, PeftModel

from conftest import make_model, make_tokenizer
from naysay.core.groups import GroupLogps
from naysay.core.objective import d2o_loss
from naysay.errors import (
    ConfigError,
    DataError,
    InputNotFoundError,
    ModelError,
    NonFiniteLossError,
    ReferenceMismatchError,
)
from naysay.modeling.forward import enable_group_forward, one_at_a_time_logps, response_logps
from naysay.training.balance import Dealing
from naysay.training.config import D2OConfig
from naysay.training.data import GroupSampler, encode_rows
from naysay.training.trainer import D2OTrainer


def config(path, **changes):
    defaults = {
        "output_dir": str(path),
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "max_grad_norm": 1000.0,
        "dataloader_pin_memory": False,
    }
    return D2OConfig(**defaults | changes)


def trainer(path, rows, *, model=None, lora=False, dtype=torch.float32, model_seed=0, **changes):
    keyed = {
        name: changes.pop(name)
        for name in ("reference_positive", "reference_negative", "eval_dataset")
        if name in changes
    }
    return D2OTrainer(
        model=model if model is not None else make_model(seed=model_seed, dtype=dtype),
        args=config(path, **changes),
        train_dataset=rows,
        processing_class=make_tokenizer(),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear") if lora else None,
        **keyed,
    )


def losses(fitted):
    return [row["loss"] for row in fitted.state.log_history if "loss" in row]


def weights(fitted):
    return {name: value.detach().clone() for name, value in fitted.model.named_parameters() if value.requires_grad}


def step_gradients(path, rows, **changes):
    """Gradients at the end of one optimizer step that changes nothing."""
    fitted = trainer(path, rows, max_steps=1, dtype=torch.float64, learning_rate=1e-12, **changes)
    found = {}

    def remember(model):
        found.update({name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None})
        return torch.tensor(1.0)

    fitted._clip_grad_norm = remember
    fitted.train()
    return found


def test_the_first_loss_is_log_2_and_it_falls(tmp_path, rows):
    fitted = trainer(tmp_path, rows, max_steps=6, per_device_train_batch_size=6)
    fitted.train()
    assert losses(fitted)[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses(fitted)[-1] < losses(fitted)[0] - 0.05
    first = fitted.state.log_history[0]
    assert first["margin"] == pytest.approx(0, abs=1e-3)
    assert first["weight"] == pytest.approx(0.5, abs=1e-3)
    last = [row for row in fitted.state.log_history if "margin" in row][-1]
    assert last["negative_log_ratio"] < last["anchor_log_ratio"]
    assert last["tokens_per_second"] > 0
    assert last["negative_log_ratio_per_token"] == pytest.approx(last["negative_log_ratio"] / 11.8, rel=0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens_per_microbatch": 60},  # several micro-batches, and one group in two passes
        {"tokens_per_microbatch": 20},  # every group in two passes
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 6, "tokens_per_microbatch": 16},
        {"head_chunk": 3},
        {"activation_checkpointing": True},
    ],
    ids=["microbatches", "two-pass", "accumulation", "both", "head-chunk", "checkpointing"],
)
def test_the_gradient_does_not_depend_on_the_split(tmp_path, rows, changes):
    whole = step_gradients(tmp_path / "a", rows, per_device_train_batch_size=6, tokens_per_microbatch=100_000)
    split = step_gradients(tmp_path / "b", rows, **{"per_device_train_batch_size": 6} | changes)
    assert whole.keys() == split.keys()
    assert max(value.abs().max() for value in whole.values()) > 1e-3
    for name in whole:
        # Norms and rotary embeddings work in float32 inside even a float64 model.
        assert (whole[name] - split[name]).norm() <= 1e-5 * whole[name].norm(), name


def test_the_gradient_is_the_oracles(tmp_path, rows):
    """Σ over pairs / pairs, one answer at a time, full logits, plain autograd."""
    found = step_gradients(tmp_path, rows, per_device_train_batch_size=6)
    model = make_model(dtype=torch.float64)
    groups, counts = encode_rows(rows, make_tokenizer(), max_length=1024)
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        anchors = one_at_a_time_logps(model, [(group.prompt_ids, group.anchors)])[None]
        negatives = one_at_a_time_logps(model, [(group.prompt_ids, group.negatives)])[None]
        terms = d2o_loss(
            GroupLogps(
                anchors=anchors,
                ref_anchors=anchors.detach(),
                anchor_mask=torch.ones_like(anchors, dtype=torch.bool),
                negatives=negatives,
                ref_negatives=negatives.detach(),
                negative_mask=torch.ones_like(negatives, dtype=torch.bool),
            ),
            alpha=0.1,
            beta=0.1,
        )
        total = total + terms.loss.sum()
    (total / counts.negatives).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-5, atol=1e-7), name


def test_a_step_is_taken_in_training_mode_throughout(tmp_path, rows):
    fitted = trainer(tmp_path, rows)
    fitted.model.model.layers[0].mlp.eval()
    batch = fitted.data_collator([fitted.train_dataset[0]])
    fitted.training_step(fitted.model, batch, num_items_in_batch=torch.tensor(1))
    assert all(module.training for module in fitted.model.modules())


def test_duplicate_anchors_count_twice_and_are_computed_once(rows):
    groups, _ = encode_rows(rows, make_tokenizer(), max_length=1024)
    assert len(groups[2].anchors) == 3
    assert len(groups[2].responses) == 3  # two unique anchors and a negative


def test_a_cut_negative_carries_no_end_of_turn(rows):
    groups, _ = encode_rows(rows, make_tokenizer(), max_length=1024)
    assert groups[2].negatives[0][-1] != 257
    assert groups[0].negatives[0][-1] == 257


def test_rows_that_do_not_fit_are_dropped_and_counted(rows):
    groups, counts = encode_rows(rows, make_tokenizer(), max_length=70)
    assert counts.rows == 6
    assert counts.groups == len(groups) < 6
    assert (
        counts.groups
        + counts.dropped.get("groups_without_negative", 0)
        + counts.dropped.get("groups_without_anchor", 0)
        == 6
    )


def test_an_anchor_equal_to_a_negative_is_dropped():
    rows = [{"prompt": "x", "rejected": "no", "anchors": ["no", "yes"]}]
    groups, counts = encode_rows(rows, make_tokenizer(), max_length=100)
    assert len(groups[0].anchors) == 1
    assert counts.dropped == {"anchors_equal_to_a_negative": 1}


def test_token_ids_of_another_vocabulary_are_refused(tmp_path):
    rows = [
        {"prompt": "x", "rejected": "no", "anchors": [[5, 6]]},
        {"prompt": "y", "rejected": [7, 259], "anchors": [[8]]},
    ]
    with pytest.raises(DataError, match=r"row 1: expected token ids below 259, the model's vocabulary, found 259; "):
        trainer(tmp_path, rows)
    rows[1]["rejected"] = [7, -1]
    with pytest.raises(DataError, match=r"row 1: expected token ids below 259, the model's vocabulary, found -1; "):
        trainer(tmp_path, rows)


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match="expected rows with prompt, rejected and anchors, found none"):
        encode_rows([], make_tokenizer(), max_length=100)


def test_missing_anchors_name_the_function_that_draws_them(tmp_path):
    with pytest.raises(DataError, match=r"naysay\.sample_anchors"):
        trainer(tmp_path, [{"prompt": "x", "rejected": "y"}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchors": "one text"}, "anchors: expected a list"),
        ({"rejected": [True, False]}, "expected a text or token ids"),
        ({"rejected": []}, "rejected is empty"),
        ({"rejected": {"text": "no", "finish": "lenght"}}, "finish is 'lenght'"),
        ({"prompt": [1, 2]}, "expected a text or a list of messages"),
        ({"prompt": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}, "waits for an answer"),
    ],
)
def test_rows_that_would_be_misread_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        encode_rows([{"prompt": "p", "rejected": "r", "anchors": ["a"]} | changes], make_tokenizer(), max_length=99)


def test_a_second_adapter_is_refused_and_the_first_can_be_trained_on(tmp_path, rows):
    first = trainer(tmp_path / "a", rows, lora=True)
    first.train()
    with pytest.raises(ModelError, match="has an adapter already"):
        trainer(tmp_path / "b", rows, model=first.model, lora=True)
    again = trainer(tmp_path / "c", rows, model=first.model, max_steps=1)
    again.train()
    assert losses(again)[0] == pytest.approx(math.log(2), abs=1e-4)


def test_answers_beyond_the_models_context_are_dropped(tmp_path, rows):
    long = {"prompt": "p", "rejected": "abc def " * 88, "anchors": ["a"]}
    fitted = trainer(tmp_path, [*rows, long])
    assert fitted.encoding_counts["train"].dropped == {"negatives_too_long": 1, "groups_without_negative": 1}


def test_checkpoints_of_others_are_left_alone(tmp_path, rows):
    other = tmp_path / "checkpoint-500"
    other.mkdir()
    (other / "model.safetensors").write_text("precious")
    with pytest.raises(InputNotFoundError, match="no complete checkpoint"):
        trainer(tmp_path, rows).train(resume_from_checkpoint=True)
    assert (other / "model.safetensors").read_text() == "precious"


def test_a_model_with_nothing_to_train_is_refused(tmp_path, rows):
    frozen = make_model().requires_grad_(False)
    with pytest.raises(ModelError, match="no parameter of the model requires a gradient"):
        trainer(tmp_path, rows, model=frozen)


def test_dropout_is_refused(tmp_path, rows):
    with pytest.raises(ModelError, match=r"dropout must be 0, found 0\.1"):
        trainer(tmp_path, rows, model=make_model("gpt2", resid_pdrop=0.1))
    with pytest.raises(ModelError, match="lora_dropout"):
        D2OTrainer(
            model=make_model(),
            args=config(tmp_path),
            train_dataset=rows,
            processing_class=make_tokenizer(),
            peft_config=LoraConfig(lora_dropout=0.1, target_modules="all-linear"),
        )


@pytest.mark.parametrize(
    "values",
    [{"alpha": -1.0}, {"alpha": 0.0, "beta": 0.0}, {"head_chunk": 0}, {"train_sampling_strategy": "group_by_length"}],
)
def test_impossible_arguments_are_refused(tmp_path, values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        config(tmp_path, **values)


def test_a_non_finite_loss_stops_before_the_step_and_names_the_group(tmp_path, rows):
    fitted = trainer(tmp_path, rows, per_device_train_batch_size=6, logging_nan_inf_filter=False)
    broken = fitted.train_dataset.groups[3]
    object.__setattr__(broken, "ref_negatives", (float("nan"),))
    before = weights(fitted)
    with pytest.raises(NonFiniteLossError, match="row 3"):
        fitted.train()
    assert all(torch.equal(before[name], value) for name, value in weights(fitted).items())


def test_two_references_are_used_crossed(tmp_path, rows):
    other = make_model(seed=9)
    model = make_model(seed=0)
    fitted = trainer(tmp_path, rows, model=model, reference_negative=other)
    enable_group_forward(other)
    group = fitted.train_dataset.groups[0]
    under_other = response_logps(other, [(group.prompt_ids, group.anchors)], head_chunk=99).tolist()
    under_initial = response_logps(model, [(group.prompt_ids, group.negatives)], head_chunk=99).tolist()
    assert group.ref_anchors == pytest.approx(under_other, abs=1e-3)
    assert group.ref_negatives == pytest.approx(under_initial, abs=1e-3)
    swapped = trainer(tmp_path / "swapped", rows, model=make_model(seed=0), reference_positive=other)
    first, second = fitted.train(), swapped.train()
    assert abs(first.training_loss - second.training_loss) > 0.02


def test_twenty_steps_are_ten_and_ten_more_bitwise(tmp_path, rows):
    whole = trainer(tmp_path / "whole", rows, lora=True, max_steps=20)
    whole.train()
    half = trainer(tmp_path / "half", rows, lora=True, max_steps=20, save_strategy="steps", save_steps=10)
    half.add_callback(_StopAt(10))
    half.train()
    rest = trainer(tmp_path / "half", rows, lora=True, max_steps=20, save_strategy="steps", save_steps=10)
    rest.train(resume_from_checkpoint=True)
    expected, found = weights(whole), weights(rest)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_resume_with_another_reference_is_refused(tmp_path, rows):
    trainer(tmp_path, rows, save_strategy="steps", save_steps=1).train()
    other = trainer(tmp_path, rows, model_seed=5)
    with pytest.raises(ReferenceMismatchError, match="trained with negative reference"):
        other.train(resume_from_checkpoint=True)


def test_a_saved_adapter_reloaded_by_plain_peft_gives_the_training_log_probs(tmp_path, rows):
    fitted = trainer(tmp_path, rows, lora=True, max_steps=5)
    fitted.train()
    fitted.save_model(str(tmp_path / "adapter"))
    group = fitted.train_dataset.groups[0].tokens
    fitted.model.eval()
    trained = response_logps(fitted.model, [group], head_chunk=99)
    reloaded = PeftModel.from_pretrained(make_model(), str(tmp_path / "adapter")).eval()
    plain = one_at_a_time_logps(reloaded, [group])
    base = one_at_a_time_logps(make_model(), [group])
    assert torch.allclose(trained, plain, atol=1e-3)
    assert (plain - base).abs().max() > 0.1


def test_evaluate_gives_the_mean_loss_over_pairs(tmp_path, rows):
    fitted = trainer(tmp_path, rows, eval_dataset=rows[:4], per_device_eval_batch_size=4)
    assert fitted.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_datasets_rows_work(tmp_path, rows):
    datasets = pytest.importorskip("datasets")
    plain = [{"prompt": "Why?", "rejected": "Because I say so.", "anchors": ["Good question.", "Let us see."]}] * 2
    fitted = trainer(tmp_path, datasets.Dataset.from_list(plain), max_steps=1)
    fitted.train()
    assert losses(fitted)[0] == pytest.approx(math.log(2), abs=1e-4)


def test_the_sampler_permutes_by_seed_and_epoch_and_leaves_the_global_state():
    state = torch.get_rng_state()
    dealt = Dealing(ranks=2, groups=2)
    sampler = GroupSampler([1] * 10, seed=1, dealt=dealt)
    first = list(sampler)
    assert sorted(index for index in first if index < 10) == list(range(10))
    assert len(first) == len(sampler) == 12
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(GroupSampler([1] * 10, seed=1, dealt=dealt)) == first
    assert torch.equal(torch.get_rng_state(), state)


class _StopAt:
    """A callback that stops after a number of steps, as a kill between two checkpoints would."""

    def __new__(cls, step):
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step >= step:
                    control.should_training_stop = True

        return Stop()


@pytest.mark.parametrize("lora", [False, True])
def test_mixed_precision_on_a_cpu_trains(tmp_path, rows, lora):
    exact = trainer(tmp_path / "a", rows, lora=lora, max_steps=2)
    exact.train()
    mixed = trainer(tmp_path / "b", rows, lora=lora, max_steps=2, bf16=True)
    mixed.train()
    assert losses(mixed) == pytest.approx(losses(exact), abs=0.1)
    assert losses(mixed) != losses(exact)


def test_several_gpus_in_one_process_are_refused(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(D2OConfig, "n_gpu", 2)
    with pytest.raises(ConfigError, match=r"expected one GPU a process, found 2: .*torchrun"):
        trainer(tmp_path, rows)
