"""Every objective trains through the same trainer: right terms, one gradient for every split, exact resume."""

import math

import pytest
import torch

from conftest import make_model, make_tokenizer
from naysay.config.objectives import OBJECTIVES
from naysay.core import baselines
from naysay.core.groups import GroupLogps
from naysay.core.objective import d2o_loss
from naysay.errors import ConfigError, DataError
from naysay.modeling.forward import enable_group_forward, one_at_a_time_logps
from naysay.training.config import D2OConfig
from naysay.training.objectives import make_objective
from naysay.training.trainer import D2OTrainer

NORMAL = [
    {"prompt_id": "n1", "prompt": "Tea?", "answers": ["Green tea."]},
    {"prompt_id": "n2", "prompt": "Name a bird.", "answers": ["An owl.", "A wren."]},
]

# A random model's answers cost 6 nats a token: without this its sigmoid would be saturated.
UNSATURATED = {"simnpo": {"gamma": 16.0}}


@pytest.fixture
def paired(rows):
    return [
        row | {"chosen": ["Be kind to him.", "No."] if i % 2 else "I would rather not."} for i, row in enumerate(rows)
    ]


def trainer(path, rows, objective, *, dtype=torch.float64, normal=None, references=(5, 6), **changes):
    args = {
        "output_dir": str(path),
        "objective": objective,
        "objective_args": UNSATURATED.get(objective),
        "per_device_train_batch_size": 6,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "max_grad_norm": 1000.0,
        "dataloader_pin_memory": False,
    }
    needs_normal = OBJECTIVES[objective].needs_normal
    return D2OTrainer(
        model=make_model(dtype=dtype),
        args=D2OConfig(**args | changes),
        train_dataset=rows,
        processing_class=make_tokenizer(),
        # Another model: log-ratios that are not 0, so that z0 and every reference count.
        reference_positive=make_model(seed=references[0], dtype=dtype),
        reference_negative=make_model(seed=references[1], dtype=dtype),
        normal_dataset=(NORMAL if normal is None else normal) if needs_normal else None,
    )


def second_step_gradients(path, rows, objective, **changes):
    """Gradients of the second optimizer step, where running constants are no longer 0."""
    fitted = trainer(path, rows, objective, learning_rate=1e-4, **changes)
    found = {}

    def remember(model):
        found.clear()
        found.update({name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None})
        return torch.tensor(1.0)

    fitted._clip_grad_norm = remember
    fitted.train()
    return found


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "changes",
    [
        {"tokens_per_microbatch": 60},
        {"tokens_per_microbatch": 20},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
    ],
    ids=["microbatches", "two-pass", "accumulation"],
)
def test_the_gradient_does_not_depend_on_the_split(tmp_path, paired, objective, changes):
    whole = second_step_gradients(tmp_path / "a", paired, objective, tokens_per_microbatch=100_000)
    split = second_step_gradients(tmp_path / "b", paired, objective, **changes)
    assert max(value.abs().max() for value in whole.values()) > 1e-4
    for name in whole:
        assert (whole[name] - split[name]).norm() <= 1e-4 * whole[name].norm() + 1e-9, name


@pytest.mark.parametrize("objective", ["npo", "ga", "altpo", "pmpo_negative", "dpo_self", "ulma_negative"])
def test_the_first_gradient_is_the_oracles(tmp_path, rows, objective):
    """One answer at a time, full logits, plain autograd, the pure function of core/baselines."""
    fitted = trainer(tmp_path, rows, objective, max_steps=1, learning_rate=1e-12)
    groups = fitted.train_dataset.groups
    found = {}

    def remember(model):
        found.update({name: value.grad.clone() for name, value in model.named_parameters()})
        return torch.tensor(1.0)

    fitted._clip_grad_norm = remember
    fitted.train()
    model = make_model(dtype=torch.float64)
    enable_group_forward(model)
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for group in groups:
        anchors = one_at_a_time_logps(model, [(group.prompt_ids, group.anchors)])[None]
        negatives = one_at_a_time_logps(model, [(group.prompt_ids, group.negatives)])[None]
        logps = GroupLogps(
            anchors=anchors,
            ref_anchors=torch.tensor([group.ref_anchors], dtype=torch.float64),
            anchor_mask=torch.ones_like(anchors, dtype=torch.bool),
            negatives=negatives,
            ref_negatives=torch.tensor([group.ref_negatives], dtype=torch.float64),
            negative_mask=torch.ones_like(negatives, dtype=torch.bool),
        )
        loss = getattr(baselines, f"{objective}_loss")(logps, **OBJECTIVES[objective]().objective_args).loss
        total, pairs = total + loss.sum(), pairs + loss.numel()
    (total / pairs).backward()
    for name, value in model.named_parameters():
        if value.grad is not None:
            assert (value.grad - found[name]).norm() <= 1e-5 * value.grad.norm() + 1e-12, name


def test_unlikelihood_reads_tokens_and_not_sums(tmp_path, rows):
    fitted = trainer(tmp_path, rows, "unlikelihood", max_steps=1, learning_rate=1e-12)
    fitted.train()
    model = make_model(dtype=torch.float64)
    enable_group_forward(model)
    total, pairs = 0.0, 0
    for group in fitted.train_dataset.groups:
        for negative in group.negatives:
            ids = torch.tensor([[*group.prompt_ids, *negative]])
            logp = type(model).forward(model, input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
            chosen = logp.gather(1, torch.tensor(negative)[:, None])[:, 0]
            total, pairs = total - torch.log1p(-chosen.exp()).sum().item(), pairs + 1
    assert fitted.state.log_history[0]["loss"] == pytest.approx(total / pairs, rel=1e-5)


def test_ktos_constant_is_the_mean_log_ratio_of_the_next_groups_negative(tmp_path, rows):
    fitted = trainer(tmp_path, rows, "kto_negative", max_steps=1, learning_rate=1e-12)
    fitted.train()
    groups = fitted.train_dataset.groups
    policy, reference = make_model(dtype=torch.float64), make_model(seed=5, dtype=torch.float64)
    ratios = []
    for model in (policy, reference):
        enable_group_forward(model)
    for index, group in enumerate(groups):
        other = [(group.prompt_ids, [groups[(index + 1) % len(groups)].negatives[0]])]
        ratios.append((one_at_a_time_logps(policy, other) - one_at_a_time_logps(reference, other)).item())
    assert fitted._constant.value == pytest.approx(max(0.0, sum(ratios) / len(ratios)), rel=1e-4, abs=1e-4)


def test_bcos_delta_is_the_running_mean_of_the_steps_before(tmp_path, rows):
    fitted = trainer(tmp_path, rows, "bco_negative", max_steps=3, learning_rate=1e-3, per_device_train_batch_size=2)
    fitted.train()
    logged = [row["negative_log_ratio"] for row in fitted.state.log_history if "negative_log_ratio" in row]
    pairs = []
    order = list(fitted._get_train_sampler())
    for start in (0, 2):
        pairs.append(sum(len(fitted.train_dataset.groups[i].negatives) for i in order[start : start + 2]))
    expected = 0.1 * sum(value * count for value, count in zip(logged, pairs, strict=False)) / sum(pairs)
    assert fitted._constant.value == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("objective", ["bco_negative", "kto_negative", "llmu", "npo"])
def test_a_resumed_run_is_the_uninterrupted_one_bitwise(tmp_path, rows, objective):
    settings = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2, "dtype": torch.float32}
    whole = trainer(tmp_path / "a", rows, objective, max_steps=5, **settings)
    whole.train()
    resumed = trainer(tmp_path / "a", rows, objective, max_steps=5, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for (name, left), (_, right) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(left, right), name


def test_all_objectives_log_what_happens_to_the_same_anchor(tmp_path, rows):
    """Objectives that read no anchor compute one a group, with no weight."""
    fitted = trainer(tmp_path, rows, "npo", max_steps=1, learning_rate=1e-12)
    fitted.train()
    assert {len(group.anchors) for group in fitted.train_dataset.groups} == {1}
    reference = trainer(tmp_path / "b", [row | {"anchors": row["anchors"][:1]} for row in rows], "d2o", max_steps=1)
    reference.train()
    first, second = (f.state.log_history[0]["anchor_log_ratio"] for f in (fitted, reference))
    assert first == pytest.approx(second, rel=1e-6)


def test_llmu_trains_on_normal_data_and_does_not_count_it_as_pairs_or_anchors(tmp_path, rows):
    fitted = trainer(tmp_path, rows, "llmu", max_steps=1, learning_rate=1e-12)
    fitted.train()
    scaled = trainer(tmp_path / "b", rows, "llmu", max_steps=1, learning_rate=1e-12, objective_args={"normal": 3.0})
    scaled.train()
    plain = trainer(tmp_path / "c", rows, "llmu", max_steps=1, learning_rate=1e-12, objective_args={"normal": 0.0})
    plain.train()
    one, three, none = (f.state.log_history[0] for f in (fitted, scaled, plain))
    assert three["loss"] - none["loss"] == pytest.approx(3 * (one["loss"] - none["loss"]), rel=1e-4)
    assert abs(one["loss"] - none["loss"]) > 1e-3
    assert one["anchor_log_ratio"] == pytest.approx(none["anchor_log_ratio"])


def test_what_an_objective_lacks_is_said(tmp_path, rows):
    with pytest.raises(DataError, match=r"expected a column 'chosen', found \['anchors', 'prompt', 'rejected'\]"):
        trainer(tmp_path, rows, "dpo")
    with pytest.raises(DataError, match=r"dropped .*groups_without_chosen.*6"):
        trainer(tmp_path, [row | {"chosen": row["rejected"]} for row in rows], "dpo")
    with pytest.raises(DataError, match="objective llmu needs normal data: give benign rows"):
        trainer(tmp_path, rows, "llmu", normal=[])
    with pytest.raises(DataError, match="expected at least 2 groups, found 1"):
        trainer(tmp_path, rows[:1], "kto_negative")
    with pytest.raises(ConfigError, match="normal_dataset is not read by objective 'd2o'"):
        D2OTrainer(
            model=make_model(),
            args=D2OConfig(output_dir=str(tmp_path), use_cpu=True),
            train_dataset=rows,
            processing_class=make_tokenizer(),
            normal_dataset=NORMAL,
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "npoo"}, "objective is 'npoo'; expected one of d2o, npo"),
        ({"objective": "npo", "alpha": 0.2}, "D2OConfig.alpha is not read by objective 'npo'"),
        ({"objective_args": {"beta": 0.2}}, "objective_args is not read by d2o"),
        ({"objective": "npo", "objective_args": {"gamma": 1.0}}, "'gamma' is not read by objective 'npo'"),
        ({"objective": "npo", "objective_args": {"beta": -1.0}}, "beta: Input should be greater than 0"),
    ],
)
def test_impossible_arguments(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        D2OConfig(output_dir=str(tmp_path), use_cpu=True, **arguments)


def test_d2o_is_what_it_was(tmp_path, rows):
    terms = make_objective("d2o", {"alpha": 0.3, "beta": 0.2})
    group = GroupLogps(
        anchors=torch.tensor([[-3.0, -5.0]]),
        ref_anchors=torch.tensor([[-4.0, -4.0]]),
        anchor_mask=torch.tensor([[True, True]]),
        negatives=torch.tensor([[-2.0]]),
        ref_negatives=torch.tensor([[-1.0]]),
        negative_mask=torch.tensor([[True]]),
    )
    mine = terms.terms(group, None)
    assert mine.loss.item() == pytest.approx(math.log1p(math.exp(-0.3)))
    assert torch.equal(mine.loss, d2o_loss(group, alpha=0.3, beta=0.2).loss)


def gradient_under(path, rows, objective, positive=5, negative=6):
    """The first step's gradient with references of these seeds."""
    run = trainer(path, rows, objective, references=(positive, negative), max_steps=1)
    batch = run._collate([run.train_dataset[i] for i in range(len(run.train_dataset))])
    run.training_step(run.model, batch)
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_references_that_an_objective_is_said_to_read_are_those_that_turn_its_gradient(tmp_path, paired, objective):
    """`references_read` decides which of `references.*` are refused as not read."""
    own = gradient_under(tmp_path / "own", paired, objective)
    read = OBJECTIVES[objective].references_read
    for role in ("positive", "negative"):
        other = gradient_under(tmp_path / role, paired, objective, **{role: 9})
        assert torch.allclose(own, other, rtol=1e-9, atol=1e-12) == (role not in read), role
