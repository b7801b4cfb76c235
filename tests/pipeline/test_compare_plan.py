"""What a comparison may be asked for, and which run each objective gets."""

import pytest
import yaml

from naysay.cli.compare import _EPILOG
from naysay.config import load_config
from naysay.config.objectives import OBJECTIVES
from naysay.config.training import EarlyStoppingSettings
from naysay.errors import ConfigError, RunDirectoryError
from naysay.pipeline.compare_plan import (
    BASE_RATES,
    RATES,
    SET_HERE,
    RunSpec,
    check_saved_plan,
    default_rates,
    make_plan,
    save_plan,
    unread_settings,
)


def plan(*sets, objectives=("d2o", "npo", "ga"), budget=96, seeds=2, **options):
    return make_plan(load_config(None, sets), objectives=objectives, budget=budget, seeds=seeds, **options)


def test_every_objective_has_a_grid_of_three_around_its_base():
    named = [name for _, names, _ in BASE_RATES for name in names]
    assert sorted(named) == sorted(OBJECTIVES)
    for base, names, reason in BASE_RATES:
        assert reason
        for name in names:
            low, middle, high = default_rates(name)
            assert (middle, high / middle, middle / low) == pytest.approx((base, 3.0, 3.0), rel=0.02)
            assert len(default_rates(name)) == RATES
    assert default_rates("d2o") == (6.7e-5, 2e-4, 6e-4)
    assert default_rates("ga") == (1e-5, 3e-5, 9e-5)


def test_the_help_says_what_the_table_says():
    after = 0
    for base, names, _ in BASE_RATES:
        start = _EPILOG.index(f"{base:.0e}".replace("e-0", "e-"))
        assert start >= after
        after = start
        group = _EPILOG[_EPILOG.index("(", start) + 1 : _EPILOG.index(")", start)]
        assert tuple(name.strip() for name in group.split(",")) == names


def test_how_fast_a_judge_works_is_no_setting_of_a_comparison(tmp_path):
    def judged(**more):
        settings = {"kind": "llm_judge", "base_url": "http://x/v1", "model": "m", **more}
        return plan(f"judges=[{yaml.safe_dump(settings, default_flow_style=True, width=1000).strip()}]")

    save_plan(tmp_path / "plan.yaml", judged())
    assert check_saved_plan(tmp_path / "plan.yaml", judged(concurrency=2, retries=0, timeout=5.0, key_env="KEY"))
    with pytest.raises(RunDirectoryError, match="judges"):
        check_saved_plan(tmp_path / "plan.yaml", judged(base_url="http://y/v1"))


def test_the_budget_counts_groups_and_is_rounded_up_for_all_alike():
    found = plan("training.groups_per_step=8", budget=100)
    assert (found.steps, found.tuning_steps) == (13, 7)
    specs = [spec for name in found.objectives for spec in found.tuning(name)]
    assert {spec.steps for spec in specs} == {7}
    assert {spec.steps for spec in found.final(dict.fromkeys(found.objectives, 1e-4))} == {13}
    assert found.runs == 3 * 3 + 3 * 2 == len(specs) + 6


def test_final_runs_go_seed_by_seed_and_skip_an_objective_without_a_rate():
    found = plan().final({"ga": 1e-5, "d2o": 2e-4})
    assert [(spec.seed, spec.objective, spec.learning_rate) for spec in found] == [
        (0, "d2o", 2e-4),
        (0, "ga", 1e-5),
        (1, "d2o", 2e-4),
        (1, "ga", 1e-5),
    ]


def test_names_of_the_folders():
    assert RunSpec("tune", "npo", 3.3e-5, 0, 6).name == "tune/npo/lr-3.3e-05"
    assert RunSpec("final", "npo", 3.3e-5, 1, 12).name == "runs/npo/seed-1"


def test_runs_differ_in_what_is_compared_and_in_nothing_else():
    found = plan("anchors.k=3", "seed=5", "training.lora.rank=4", "evaluation.kl_bound=0.2")
    configs = [
        found.run_config(spec).model_dump(mode="json")
        for name in found.objectives
        for spec in [*found.tuning(name)[:1], RunSpec("final", name, 1e-4, 1, 12)]
    ]
    for config in configs:
        shared = config["training"]
        assert (config["anchors"]["k"], config["seed"], shared["lora"]["rank"]) == (3, 5, 4)
        own = {"objective", "learning_rate", "max_steps", "seed", "alpha", "beta", "skip_weight_below"}
        config["training"] = {name: value for name, value in shared.items() if name not in own}
        del config["evaluation"]["split"]
        assert config == configs[0]


def test_a_tuning_run_sees_dev_and_a_final_run_the_held_out_prompts():
    found = plan()
    tuning = found.run_config(found.tuning("npo")[1])
    assert (tuning.evaluation.split, tuning.training.seed, tuning.training.max_steps) == ("dev", 0, 6)
    assert (tuning.training.objective, tuning.training.learning_rate) == ("npo", 1e-4)
    final = found.run_config(RunSpec("final", "ga", 3e-5, 1, 12))
    assert (final.evaluation.split, final.training.seed, final.training.max_steps) == ("heldout", 1, 12)
    assert (final.seed, found.run_config(found.tuning("npo")[0]).seed) == (0, 0)


def test_judges_are_asked_in_final_runs_alone():
    found = plan("judges=[{kind: offline, folder: x}]")
    final = found.run_config(RunSpec("final", "npo", 3e-5, 1, 12))
    assert [len(config.judges) for config in (found.run_config(found.tuning("npo")[0]), final)] == [0, 1]


def test_one_grid_for_all():
    found = plan(learning_rates=[1e-3, 1e-5])
    assert dict(found.learning_rates) == dict.fromkeys(("d2o", "npo", "ga"), (1e-5, 1e-3))


def test_the_reference_is_d2o_or_the_first():
    assert plan(objectives=("npo", "d2o")).reference == "d2o"
    assert plan(objectives=("npo", "ga")).reference == "npo"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objectives": ("d2o", "np0")}, "--objectives np0: no such objective; did you mean 'npo'?"),
        ({"objectives": ("d2o",)}, "--objectives d2o: expected at least two, each once"),
        ({"objectives": ("d2o", "npo", "d2o")}, "--objectives d2o,npo,d2o: expected at least two, each once"),
        ({"budget": 0}, "--budget 0: expected at least 1"),
        ({"seeds": 0}, "--seeds 0: expected at least 1"),
        ({"learning_rates": [1e-4, 0.0]}, "--learning-rates 0.0001,0: expected different numbers above 0"),
        ({"learning_rates": [1e-4, 1e-4]}, "--learning-rates 0.0001,0.0001: expected different numbers above 0"),
        ({"learning_rates": []}, "--learning-rates : expected different numbers above 0"),
    ],
)
def test_impossible_comparisons_are_refused(options, message):
    with pytest.raises(ConfigError) as caught:
        plan(**options)
    assert str(caught.value).startswith(message)


def test_settings_that_one_objective_alone_reads_are_refused():
    for key in ("beta", "skip_weight_below"):
        with pytest.raises(
            ConfigError, match=rf"training\.{key} = 0\.2: a comparison gives every objective its own defaults"
        ):
            plan(f"training.{key}=0.2")
    plan("training.beta=0.1")  # the default: nothing is asked for


def test_without_benign_generations_there_is_no_kl_to_choose_by():
    with pytest.raises(ConfigError, match=r"evaluation\.benign_generations is 0"):
        plan("evaluation.benign_generations=0")


def test_what_a_comparison_decides_itself_is_named():
    given = load_config(None, ["training.max_steps=12", "training.learning_rate=5e-4", "evaluation.split=dev"])
    assert unread_settings(given) == [
        "training.learning_rate = 0.0005 (--learning-rates decides)",
        "training.max_steps = 12 (--budget decides)",
        "evaluation.split = dev (rates are chosen on dev, the table is of heldout)",
    ]
    assert unread_settings(load_config()) == []
    assert not {key.split(".")[1] for key in SET_HERE} & set(plan().values()["training"])


def test_a_saved_plan_is_recognised_and_another_one_refused_by_its_keys(tmp_path):
    path, first = tmp_path / "compare_config.yaml", plan()
    assert not check_saved_plan(path, first)
    save_plan(path, first)
    assert check_saved_plan(path, plan())
    assert yaml.safe_load(path.read_text())["objectives"] == ["d2o", "npo", "ga"]
    with pytest.raises(RunDirectoryError) as caught:
        check_saved_plan(path, plan("anchors.k=3", "training.lora.rank=4", budget=48))
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}: this comparison has other settings (budget: 96 -> 48, anchors.k: 11 -> 3, ")
    assert "training.lora.rank: 16 -> 4" in line
    assert line.endswith(f"or remove {tmp_path} (nothing is trained there yet)")
    (tmp_path / "tune").mkdir()
    with pytest.raises(RunDirectoryError, match="or choose another --out"):
        check_saved_plan(path, plan("anchors.k=3", "training.lora.rank=4", budget=48))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"objectives": ("d2o", "npo")}, "objectives: "),
        ({"seeds": 3}, "seeds: 2 -> 3"),
        ({"learning_rates": [1e-4]}, "learning_rates.npo: [3.3e-05, 0.0001, 0.0003] -> [0.0001]"),
    ],
)
def test_each_part_of_the_plan_counts(tmp_path, options, key):
    save_plan(tmp_path / "p.yaml", plan())
    with pytest.raises(RunDirectoryError) as caught:
        check_saved_plan(tmp_path / "p.yaml", plan(**options))
    assert key in str(caught.value)


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", ""])
def test_a_damaged_plan_is_one_line(tmp_path, content):
    (tmp_path / "p.yaml").write_text(content)
    with pytest.raises(RunDirectoryError, match="choose another --out"):
        check_saved_plan(tmp_path / "p.yaml", plan())


def test_early_stopping_is_off_in_every_run_and_no_part_of_the_plan():
    found = plan("training.early_stopping.enabled=true", "training.early_stopping.every=2")
    for spec in (found.tuning("npo")[0], RunSpec("final", "d2o", 1e-4, 0, 12)):
        assert found.run_config(spec).training.early_stopping == EarlyStoppingSettings()
    assert found.values() == plan().values()
    assert "early_stopping" not in found.values()["training"]
    (line,) = unread_settings(found.config)
    assert line.startswith("training.early_stopping = ")
    assert line.endswith("(every objective is trained to its budget)")
