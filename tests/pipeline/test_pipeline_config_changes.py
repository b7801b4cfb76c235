"""A run directory and another config: refused, redone, or taken over into a new run."""

import pytest
import yaml

from naysay.artifacts.store import read_json, write_json
from naysay.config import load_config
from naysay.config.stages import STAGES
from naysay.errors import ConfigError, InputNotFoundError, RunDirectoryError
from naysay.pipeline.saved_config import config_text, config_values, describe, differences, load_saved_config


def test_the_saved_config_is_a_recipe_that_gives_the_same_config(bench, tmp_path):
    for overrides in ([], ["training.method=full", "training.learning_rate=1e-6"], ["training.lora.rank=4"]):
        config = bench.config(*overrides, "anchors.instructions=['Sei höflich: ja', '']")
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(config_text(config), encoding="utf-8")
        assert load_config(recipe) == config


def test_another_config_is_refused_with_keys_values_and_both_ways(bench, read_contents):
    before = read_contents(bench.do())
    with pytest.raises(RunDirectoryError) as caught:
        bench.do("training.beta=0.2", "evaluation.top_k=3")
    message = str(caught.value)
    assert "training.beta: 0.1 -> 0.2" in message
    assert "evaluation.top_k: 50 -> 3" in message
    assert f"--out NEW --reuse {bench.run.path}" in message
    assert "--redo train)" in message
    assert "\n" not in message
    assert bench.ran == []
    assert read_contents(bench.run) == before


def test_many_changes_are_counted_and_long_values_shortened(bench):
    keys = ("k=1", "temperature=1", "top_k=1", "top_p=1", "max_new_tokens=1", "filters.min_tokens=2")
    changed = bench.config(*(f"anchors.{key}" for key in keys), "anchors.instructions=['be kind']", "seed=1")
    changes = differences(bench.config(), changed)
    assert [change.key for change in changes][:2] == ["seed", "anchors.k"]
    text = describe(changes)
    assert text.endswith(" and 2 more")
    assert text.count(" -> ") == 6
    old = next(change.old for change in changes if change.key == "anchors.instructions")
    assert len(old) == 60
    assert old.endswith("…")


def test_keys_of_free_mappings_are_compared_one_by_one(bench):
    old = bench.config("training.trainer_args={seed: 1, report_to: none}", "data.map={prompt: a}")
    new = bench.config("training.trainer_args={seed: 2, report_to: none}")
    assert [str(change) for change in differences(old, new)] == [
        'data.map.prompt: "a" -> unset',
        "training.trainer_args.seed: 1 -> 2",
    ]


def test_a_change_that_no_stage_depends_on_is_taken_in(bench):
    bench.do()
    bench.do("training.head_chunk=7")
    assert bench.kinds("skipped") == list(STAGES)
    assert "training.head_chunk: null -> 7" in bench.notes()
    assert load_saved_config(bench.run).training.head_chunk == 7


def test_a_refused_input_does_not_change_the_saved_config(bench):
    bench.do()
    bench.data.write_text("other")
    with pytest.raises(RunDirectoryError, match="stage ingest"):
        bench.do("training.head_chunk=7")
    assert load_saved_config(bench.run).training.head_chunk is None


def test_before_anything_is_done_another_config_is_no_mistake(bench):
    bench.stages["ingest"].fail_at = 0
    with pytest.raises(RuntimeError, match="injected"):
        bench.do("training.beta=0.3")
    bench.do("training.beta=0.2")
    assert bench.run.manifest("train").settings["beta"] == 0.2
    assert yaml.safe_load(bench.run.config.read_text()) == config_values(bench.config("training.beta=0.2"))


def test_redo_replaces_a_stage_and_those_after_it(bench):
    bench.do()
    kept = bench.run.manifest("score")
    bench.do("training.beta=0.2", redo="train")
    assert bench.ran == ["train", "evaluate", "report"]
    assert bench.kinds("skipped") == ["ingest", "sample", "score"]
    assert bench.stages["train"].parts_made == [0, 1, 2]
    assert bench.stages["evaluate"].parts_made == [0, 1, 2]
    assert bench.run.manifest("score") == kept
    assert load_saved_config(bench.run).training.beta == 0.2
    bench.do("training.beta=0.2")
    assert bench.ran == []


def test_redo_of_one_stage_removes_the_later_ones(bench):
    bench.do()
    bench.do(stages=["train"], redo="train")
    assert bench.ran == ["train"]
    assert not bench.run.report.exists()
    assert not bench.run.evaluation.exists()
    assert not bench.run.generation_parts.exists()
    assert [stage for stage in STAGES if bench.run.manifest(stage)] == ["ingest", "sample", "score", "train"]


def test_redo_removes_what_the_old_config_left(bench):
    bench.do()
    bench.do("training.method=full", redo="train")
    assert bench.run.model.is_dir()
    assert not bench.run.adapter.exists()


def test_redo_that_does_not_reach_back_far_enough_names_the_right_stage(bench, read_contents):
    before = read_contents(bench.do())
    with pytest.raises(
        RunDirectoryError, match=r"--redo evaluate: training.beta: 0.1 -> 0.2 changes stage train already"
    ):
        bench.do("training.beta=0.2", redo="evaluate")
    assert read_contents(bench.run) == before


def test_redo_checks_the_stages_before_it_first(bench, read_contents):
    bench.do()
    bench.data.write_text("other")
    before = read_contents(bench.run)
    with pytest.raises(RunDirectoryError, match="stage ingest was done from another content"):
        bench.do("training.beta=0.2", redo="train")
    assert read_contents(bench.run) == before


def test_redo_of_a_stage_that_the_command_does_not_run_is_refused(bench):
    bench.do()
    with pytest.raises(ConfigError, match=r"runs only train; run: naysay sample --out .* --redo sample"):
        bench.do(stages=["train"], redo="sample")


def test_a_single_stage_with_another_config_is_sent_to_the_right_command(bench):
    bench.do()
    with pytest.raises(RunDirectoryError, match=r"naysay align --out \S+ with these settings and --redo train"):
        bench.do("training.beta=0.2", stages=["evaluate"])


def test_a_config_edited_by_hand_is_refused_with_the_settings(bench):
    bench.do()
    bench.run.config.write_text(config_text(bench.config("training.beta=0.2")))
    with pytest.raises(RunDirectoryError, match=r"stage train was done with other settings \(beta: 0.1 -> 0.2\)"):
        bench.do("training.beta=0.2")
    bench.do("training.beta=0.2", redo="train")
    assert bench.ran == ["train", "evaluate", "report"]


def test_a_redo_that_lacks_an_earlier_stage_changes_nothing(bench):
    bench.do(stages=["ingest"])
    with pytest.raises(RunDirectoryError, match="stage train needs sample"):
        bench.do("training.beta=0.2", stages=["train"], redo="train")
    assert load_saved_config(bench.run).training.beta == 0.1


def test_the_same_redo_command_continues_an_interrupted_redo(bench):
    bench.do()
    bench.stages["train"].fail_at = 1
    with pytest.raises(RuntimeError, match="injected"):
        bench.do("training.beta=0.2", redo="train")
    bench.stages["evaluate"].fail_at = 1
    with pytest.raises(RuntimeError, match="injected"):
        bench.do("training.beta=0.2", redo="train")
    assert bench.stages["train"].parts_made == [2]
    bench.do("training.beta=0.2", redo="train")
    assert bench.ran == ["evaluate", "report"]
    assert "continuing the interrupted --redo train" in bench.notes()
    bench.do("training.beta=0.2", redo="train")
    assert bench.ran == ["train", "evaluate", "report"]


def test_another_redo_does_not_continue_the_interrupted_one(bench):
    bench.do()
    bench.stages["train"].fail_at = 1
    with pytest.raises(RuntimeError, match="injected"):
        bench.do("training.beta=0.2", redo="train")
    bench.do("training.beta=0.3", redo="train")
    assert bench.stages["train"].parts_made == [0, 1, 2]
    assert bench.run.manifest("train").settings["beta"] == 0.3


def test_a_removal_that_was_killed_is_finished_before_the_stage_runs(bench, monkeypatch):
    bench.do()

    def killed(run, stage, outputs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("naysay.pipeline.completion.clear_work", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.do("training.beta=0.2", redo="train")
    bench.do("training.method=full", "training.beta=0.2", redo="train")
    assert not bench.run.adapter.exists()
    assert bench.stages["train"].parts_made == [0, 1, 2]


def test_reuse_takes_over_only_what_the_change_does_not_touch(bench):
    old = bench.do()
    new = bench.do("training.beta=0.2", out="new", reuse=old.path)
    assert bench.kinds("reused") == ["ingest", "sample", "score"]
    assert bench.ran == ["train", "evaluate", "report"]
    assert new.manifest("sample").reused_from == str(old.path)
    assert new.manifest("sample").seconds == old.manifest("sample").seconds
    assert new.anchors.read_bytes() == old.anchors.read_bytes()
    assert read_json(new.adapter / "weights.json")[1]["beta"] == 0.2
    assert "not taken over" in bench.notes()
    bench.do("training.beta=0.2", out="new", reuse=old.path)
    assert bench.ran == []


def test_reuse_gives_what_a_run_from_the_start_gives(bench, read_contents):
    old = bench.do()
    whole = read_contents(bench.do("evaluation.top_k=9", out="whole"))
    taken = read_contents(bench.do("evaluation.top_k=9", out="new", reuse=old.path))
    work = [name for name in whole if name.startswith(("sampling/", "train/checkpoints/"))]
    assert {name: data for name, data in whole.items() if name not in work} == taken


def test_reuse_of_a_stage_alone(bench):
    old = bench.do()
    bench.do("training.beta=0.2", out="new", reuse=old.path, stages=["train"])
    assert bench.ran == ["train"]
    with pytest.raises(RunDirectoryError, match="stage train needs sample"):
        bench.do("anchors.k=2", out="newer", reuse=old.path, stages=["train"])


def test_reuse_with_redo_does_that_stage_again(bench):
    old = bench.do()
    bench.do(out="new", reuse=old.path, redo="evaluate")
    assert bench.ran == ["evaluate", "report"]


def test_reuse_of_files_that_changed_is_refused(bench):
    old = bench.do()
    write_json(old.anchors, "edited")
    with pytest.raises(RunDirectoryError, match=r"anchors.jsonl changed since it was written; redo stage sample there"):
        bench.do("training.beta=0.2", out="new", reuse=old.path)
    old.anchors.unlink()
    with pytest.raises(RunDirectoryError, match=r"anchors.jsonl is missing"):
        bench.do("training.beta=0.2", out="new", reuse=old.path)


def test_reuse_replaces_partial_work(bench):
    old = bench.do()
    bench.stages["sample"].fail_at = 1
    with pytest.raises(RuntimeError, match="injected"):
        bench.do(out="new")
    new = bench.do(out="new", reuse=old.path)
    assert bench.ran == []
    assert not new.sampling_parts.exists()


def test_reuse_of_nothing_or_of_itself_is_refused(bench, tmp_path):
    with pytest.raises(InputNotFoundError, match=r"--reuse .*nowhere: expected the directory of a run"):
        bench.do(reuse=tmp_path / "nowhere")
    assert not bench.run.path.exists()
    bench.do()
    with pytest.raises(RunDirectoryError, match="cannot take over its own stages"):
        bench.do(reuse=bench.run.path)


def test_a_config_of_another_version_is_explained(bench):
    bench.do()
    bench.run.config.write_text("training: {gamma: 1}\n")
    with pytest.raises(RunDirectoryError, match=r"config.yaml: not the config of a run.*training.gamma.*another --out"):
        bench.do()
    bench.run.config.write_text("[a: b\n")
    with pytest.raises(RunDirectoryError, match=r"choose another --out"):
        bench.do()
