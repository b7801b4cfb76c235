"""What is said before the first stage: references that are not there, schedules that never act."""

import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import write_records
from naysay.config import load_config
from naysay.errors import DataError, InputNotFoundError, ModelError
from naysay.pipeline.preflight import check_objective, check_settings, warnings
from naysay.records import Acceptable, Prompt


def test_a_reference_that_is_not_there_is_named_by_its_key(tmp_path):
    with pytest.raises(InputNotFoundError, match=r"references\.negative: model .*nowhere"):
        check_settings(load_config(None, [f"references.negative={tmp_path}/nowhere"]))
    with pytest.raises(ModelError, match=r"references\.positive: .* has neither config\.json nor adapter_config\.json"):
        check_settings(load_config(None, [f"references.positive={tmp_path}"]))
    (tmp_path / "adapter_config.json").write_text("{}")
    check_settings(load_config(None, [f"references.positive={tmp_path}"]))


def test_a_device_that_is_not_there_is_said_first():
    with pytest.raises(ModelError, match=r"model\.device: 'cuda:77' is not usable here"):
        check_settings(load_config(None, ["model.device=cuda:77"]))


def test_target_modules_that_the_model_lacks_are_said_first(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    model = f"model.name={tmp_path}"
    with pytest.raises(ModelError, match=r"the adapter does not fit the model \(.*nothing_proj.*set training\.lora"):
        check_settings(load_config(None, [model, "training.lora.target_modules=[nothing_proj]"]))
    with pytest.raises(ModelError, match="the adapter does not fit the model"):
        check_settings(load_config(None, [model, "training.lora.target_modules='*_proj'"]))
    check_settings(load_config(None, [model, "training.lora.target_modules=[q_proj]"]))


def test_a_judge_that_is_not_there_is_named_by_its_key(tmp_path):
    with pytest.raises(InputNotFoundError, match=r"judges\.0: model .*nowhere"):
        check_settings(load_config(None, [f"judges=[{{kind: guard, guard: wildguard, model: {tmp_path}/nowhere}}]"]))


def test_a_suite_that_is_not_there_is_named_by_its_key(tmp_path):
    with pytest.raises(InputNotFoundError, match=r"evaluation\.suites\.0: .*nowhere\.csv: no such file"):
        check_settings(load_config(None, [f"evaluation.suites=[{{path: {tmp_path}/nowhere.csv}}]"]))


@pytest.mark.parametrize(
    ("overrides", "first"), [(["training.max_steps=4"], 4), (["training.max_steps=1", "anchors.warmup_steps=0"], 1)]
)
def test_a_schedule_that_redraws_nothing_is_said(overrides, first):
    (line,) = warnings(load_config(None, ["anchors.schedule=online", *overrides]))
    assert f"no anchor is redrawn: training ends after {first} steps and the first refresh comes after step" in line
    assert warnings(load_config(None, ["anchors.schedule=online", "training.max_steps=5"])) == []


@pytest.mark.parametrize("count", [1, 2])
def test_normal_data_leave_a_benign_prompt_to_the_evaluation(tmp_path, count):
    run = RunDirectory(tmp_path)
    prompts = [Prompt(f"p{i}", ({"role": "user", "content": "Tea?"},), "data", "benign") for i in range(count)]
    write_records(run.prompts, prompts)
    write_records(run.acceptable, [Acceptable(f"a{i}", f"p{i}", "Green tea.") for i in range(count)])
    config = load_config(None, ["training.objective=llmu"])
    if count == 2:
        check_objective(config, run)
        return
    with pytest.raises(DataError, match="found one; expected at least 2"):
        check_objective(config, run)


@pytest.mark.parametrize(("device", "said"), [("cpu", 1), ("meta", 0)])
def test_crowded_cores_are_said_once_where_the_model_computes_on_them(bench, monkeypatch, device, said):
    monkeypatch.setattr("naysay.modeling.threads.crowded_cores", lambda: "2 compute threads, but ...")
    bench.do(f"model.device={device}")
    assert [event.stage for event in bench.events if "compute threads" in event.text] == ["sample"] * said
    bench.do(f"model.device={device}")
    assert "compute threads" not in bench.notes()  # nothing is computed


def test_what_early_stopping_most_likely_does_not_mean_is_said():
    on = ["training.early_stopping.enabled=true", "training.max_steps=12"]
    assert warnings(load_config(None, on)) == []
    (line,) = warnings(load_config(None, [*on, "evaluation.split=dev"]))
    assert "the figures will be those of the prompts that chose" in line
    (line,) = warnings(load_config(None, [*on, "training.early_stopping.every=12"]))
    assert "nothing is looked at before the last step" in line
    assert warnings(load_config(None, ["evaluation.split=dev", "training.max_steps=2"])) == []
