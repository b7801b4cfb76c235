"""Defaults live once: the command line, `D2OConfig` and `sample_anchors` start from the same values."""

import inspect
from dataclasses import fields

import pytest

from naysay.config import RunConfig
from naysay.config.anchors import SCHEDULE_KEYS, AnchorsConfig
from naysay.config.objectives import OBJECTIVES
from naysay.config.objectives import D2OTraining as TrainingConfig
from naysay.sampling.rows import sample_anchors
from naysay.training.config import D2OConfig

SAME_MEANING = {
    "objective": "objective",
    "alpha": "alpha",
    "beta": "beta",
    "skip_weight_below": "skip_weight_below",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "lr_scheduler_type",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "epochs": "num_train_epochs",
    "tokens_per_microbatch": "tokens_per_microbatch",
    "head_chunk": "head_chunk",
    "groups_per_step": "per_device_train_batch_size",
}
# Same meaning, another way to say "off"; or how often a run is saved, which is the command line's own affair.
ELSEWHERE = {
    "method",
    "seed",
    "max_steps",
    "gradient_checkpointing",
    "save_steps",
    "early_stopping",
    "lora",
    "trainer_args",
}


@pytest.fixture(scope="module")
def d2o(tmp_path_factory):
    return D2OConfig(output_dir=str(tmp_path_factory.mktemp("out")), use_cpu=True)


@pytest.mark.parametrize(("ours", "theirs"), SAME_MEANING.items())
def test_training_defaults_agree(d2o, ours, theirs):
    assert getattr(d2o, theirs) == getattr(TrainingConfig(), ours)


def test_every_training_setting_is_compared_or_said_to_have_no_counterpart():
    assert set(TrainingConfig.model_fields) == set(SAME_MEANING) | ELSEWHERE
    assert set(SAME_MEANING.values()) <= {field.name for field in fields(D2OConfig)}


def test_what_is_off_by_default_is_off_in_both(d2o):
    training = TrainingConfig()
    assert training.max_steps is None
    assert d2o.max_steps == -1
    assert training.gradient_checkpointing is False
    assert not d2o.activation_checkpointing


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_objectives_parameters_have_the_same_defaults(tmp_path, name):
    args = D2OConfig(output_dir=str(tmp_path), use_cpu=True, objective=name)
    assert args.make_objective().args == OBJECTIVES[name]().objective_args


def test_the_longest_sequence_agrees(d2o):
    longest = RunConfig().model.max_length
    assert d2o.max_length == longest
    assert inspect.signature(sample_anchors).parameters["max_length"].default == longest


def test_sample_anchors_draws_what_the_stage_draws():
    defaults = {name: item.default for name, item in inspect.signature(sample_anchors).parameters.items()}
    anchors = AnchorsConfig()
    # How anchors are redrawn, how a stage asks for them, and what stands beside them is not the function's.
    for name in set(AnchorsConfig.model_fields) - {"filters", "mode", "schedule", "acceptable_share", *SCHEDULE_KEYS}:
        assert defaults[name] == getattr(anchors, name), name
    assert defaults["batch_size"] == RunConfig().sampling.batch_size
    assert defaults["seed"] == RunConfig().seed
