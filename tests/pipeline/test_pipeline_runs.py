"""Skipping, continuing, and the record that each stage leaves."""

import subprocess
import sys
import textwrap

import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, write_json
from naysay.config.stages import STAGES
from naysay.errors import ConfigError, InputNotFoundError, RunDirectoryError
from naysay.pipeline import graph
from naysay.pipeline.completion import Partial


def test_a_run_does_every_stage_once_and_the_second_time_none(bench, read_contents):
    run = bench.do()
    assert bench.ran == list(STAGES)
    assert bench.kinds("finished") == list(STAGES)
    before = read_contents(run)
    bench.do()
    assert bench.ran == []
    assert bench.kinds("skipped") == list(STAGES)
    assert read_contents(run) == before


def test_the_manifest_says_what_was_read_written_and_counted(bench):
    run = bench.do()
    manifest = run.manifest("train")
    assert manifest.stage == "train"
    assert set(manifest.inputs) == {"anchors", "selection"}
    assert set(manifest.outputs) == {"adapter", "train/metrics.jsonl"}
    assert manifest.inputs["anchors"] == run.manifest("sample").outputs["anchors.jsonl"]
    assert manifest.settings == {"beta": 0.1, "method": "lora"}
    assert manifest.counts == {"in": 2, "parts": {"out": 3}}
    assert manifest.environment["packages"]["numpy"]
    assert manifest.reused_from == ""


def test_only_ingest_gets_a_token_counter_and_nothing_is_loaded_for_it(bench, monkeypatch):
    calls = []

    def token_counter(model):
        calls.append(model.name)
        return lambda messages, answer: len(messages) + len(answer)

    monkeypatch.setattr("naysay.modeling.chat.token_counter", token_counter)
    bench.do()
    assert calls == []
    count = bench.stages["ingest"].injected["count_tokens"]
    assert (count([{}], "abc"), count([{}], "abcd")) == (4, 5)
    assert calls == ["embedded:smollm2-135m"]
    assert bench.stages["train"].injected == {}


@pytest.mark.parametrize(("stage", "error"), [("sample", RuntimeError("boom")), ("train", KeyboardInterrupt())])
def test_an_interrupted_stage_continues_and_ends_with_the_same_files(bench, read_contents, stage, error):
    whole = read_contents(bench.do(out="whole"))
    bench.stages[stage].fail_at, bench.stages[stage].error = 1, error
    with pytest.raises(type(error)):
        bench.do()
    assert bench.ran == list(STAGES[: STAGES.index(stage) + 1])
    assert bench.stages[stage].parts_made == [0, 1]
    assert bench.run.manifest(stage) is None
    bench.do()
    assert bench.ran == list(STAGES[STAGES.index(stage) :])
    assert bench.stages[stage].parts_made == [2]
    assert read_contents(bench.run) == whole


def test_seconds_add_up_over_sessions(bench):
    bench.stages["sample"].fail_at = 1
    with pytest.raises(RuntimeError, match="injected"):
        bench.do()
    partial = Partial.load(bench.run, "sample")
    assert partial.seconds > 0
    Partial(partial.key, 1000.0, partial.outputs).save(bench.run, "sample")
    bench.do()
    assert 1000.0 < bench.run.manifest("sample").seconds < 1010.0
    assert Partial.load(bench.run, "sample") is None


@pytest.mark.parametrize("key", ["of another config", None])
def test_partial_work_of_another_key_or_of_unknown_origin_is_not_continued(bench, key):
    bench.stages["sample"].fail_at = 1
    with pytest.raises(RuntimeError, match="injected"):
        bench.do()
    write_json(bench.run.anchors, "left by an older attempt")
    if key is None:
        Partial.remove(bench.run, "sample")
    else:
        Partial(key, 50.0, ("anchors.jsonl", "an-old-output.json")).save(bench.run, "sample")
        write_json(bench.run.path / "an-old-output.json", 1)
    bench.do()
    assert bench.stages["sample"].parts_made == [0, 1, 2]
    assert bench.run.manifest("sample").seconds < 50
    assert not (bench.run.path / "an-old-output.json").exists()
    assert ("partial work" in bench.notes()) == (key is not None)


def test_a_missing_output_is_made_again_and_what_follows_stays(bench, read_contents):
    before = read_contents(bench.do())
    bench.run.anchors.unlink()
    bench.do()
    assert bench.ran == ["sample"]
    assert "missing" in bench.notes()
    assert read_contents(bench.run) == before


def test_the_report_is_made_again_when_what_it_shows_has_changed(bench):
    bench.stages["report"].reads = lambda config, run: {"config": run.config, "sample": run.manifest_path("sample")}
    bench.do()
    bench.run.anchors.unlink()
    bench.do()
    assert bench.ran == ["sample", "report"]
    bench.do("training.head_chunk=7")
    assert bench.ran == ["report"]
    assert "what it reads has changed: it is done again" in bench.notes()
    bench.do("training.head_chunk=7")
    assert bench.ran == []


def test_outputs_that_are_known_only_afterwards_are_recorded(bench):
    def write_shards(config, run):
        write_json(run.anchors, 1)
        write_json(run.sampling_parts / "7.json", 1)
        return {"shards": 1}

    sample = bench.stages["sample"]
    sample.writes = lambda config, run: [run.anchors, *sorted(run.sampling_parts.glob("*.json"))]
    sample.run = write_shards
    bench.do()
    assert set(bench.run.manifest("sample").outputs) == {"anchors.jsonl", "sampling/7.json"}


def test_an_output_that_was_edited_is_not_overwritten(bench):
    bench.do()
    (bench.run.adapter / "weights.json").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"adapter: changed since stage train wrote it.*--redo train"):
        bench.do()
    assert (bench.run.adapter / "weights.json").read_text() == "mine"
    assert bench.ran == []


def test_changed_user_data_is_refused_with_both_ways(bench, read_contents):
    before = read_contents(bench.do())
    bench.data.write_text("four bad answers")
    with pytest.raises(RunDirectoryError) as caught:
        bench.do()
    message = str(caught.value)
    assert "stage ingest" in message
    assert f"'data' ({bench.data})" in message
    assert f"--out NEW --reuse {bench.run.path}" in message
    assert "--redo ingest" in message
    assert read_contents(bench.run) == before
    bench.do(redo="ingest")
    assert bench.ran == list(STAGES)


def test_another_version_of_a_stage_is_refused(bench):
    bench.do()
    bench.stages["score"].VERSION = 2
    with pytest.raises(RunDirectoryError, match=r"stage score was done by another version of naysay.*--redo score"):
        bench.do()


def test_a_stage_alone_needs_those_before_it(bench):
    with pytest.raises(InputNotFoundError, match="found none; start it with: naysay ingest"):
        bench.do(stages=["sample"])
    assert not bench.run.path.exists()
    bench.do(stages=["ingest"])
    with pytest.raises(RunDirectoryError, match=f"stage train needs sample.*naysay sample --out {bench.run.path}"):
        bench.do(stages=["train"])
    bench.do(stages=["sample"])
    assert bench.ran == ["sample"]
    assert bench.kinds("skipped") == []


def test_a_stage_alone_leaves_damaged_earlier_stages_as_they_are(bench):
    bench.do()
    bench.run.scores.unlink()
    with pytest.raises(RunDirectoryError, match="stage train needs score"):
        bench.do(stages=["train"])
    assert bench.run.selection.exists()
    assert bench.run.manifest("score") is not None


def test_a_wrong_input_path_leaves_no_run_behind(bench):
    def missing(config, run):
        raise InputNotFoundError("no such file")

    bench.stages["ingest"].reads = missing
    with pytest.raises(InputNotFoundError):
        bench.do()
    assert not bench.run.path.exists()


def test_a_folder_with_other_things_in_it_is_not_taken_for_a_run(bench):
    bench.run.model.mkdir(parents=True)
    with pytest.raises(RunDirectoryError, match=r"found 'model' and no config.yaml; choose another --out"):
        bench.do()
    assert bench.run.model.is_dir()
    with pytest.raises(RunDirectoryError, match="expected a folder, found a file"):
        bench.do(out="rejected.txt")


def test_a_run_killed_before_its_config_was_written_can_start_again(bench):
    bench.run.path.mkdir()
    (bench.run.path / ".lock").touch()
    (bench.run.path / ".config.yaml.123.tmp").touch()
    bench.do()
    assert bench.ran == list(STAGES)


def test_a_stage_that_leaves_out_an_output_is_not_done(bench):
    wrong = bench.stages["score"].writes
    bench.stages["score"].run = lambda config, run: {}
    with pytest.raises(RuntimeError, match=r"stage score left no scores.jsonl, selection.jsonl"):
        bench.do()
    assert bench.run.manifest("score") is None
    assert wrong(bench.config(), bench.run) == [bench.run.scores, bench.run.selection]


def test_unknown_stage_suggests_a_name(bench):
    with pytest.raises(ConfigError, match="stage evalute: no such stage; did you mean 'evaluate'"):
        bench.do(stages=["evalute"])
    with pytest.raises(ConfigError, match="--redo x: no such stage; the stages are ingest, sample"):
        bench.do(redo="x")


def test_a_record_that_points_outside_of_the_run_removes_nothing(bench, tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("keep me")
    bench.do()
    raw = read_json(bench.run.manifest_path("sample"))
    raw["outputs"] = {"../precious.txt": "0"}
    write_json(bench.run.manifest_path("sample"), raw)
    with pytest.raises(RunDirectoryError, match="not in it"):
        bench.do(redo="sample")
    assert precious.read_text() == "keep me"


def test_a_run_in_use_by_another_process_is_refused(bench):
    bench.do(stages=["ingest"])
    script = """
        import sys
        from naysay.artifacts.run_directory import RunDirectory
        with RunDirectory(sys.argv[1]).locked():
            print("locked", flush=True)
            sys.stdin.read()
    """
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(bench.run.path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(RunDirectoryError, match="in use by another naysay process"):
            bench.do()
        holder.kill()
    bench.do()
    assert bench.ran == list(STAGES[1:])


def test_every_stage_has_a_module_path_in_the_package():
    assert list(graph.MODULE_PATHS) == list(STAGES)
    assert all(path.startswith("naysay.") and path.endswith(".stage") for path in graph.MODULE_PATHS.values())


def test_a_damaged_manifest_is_explained(bench):
    bench.do()
    write_json(bench.run.manifest_path("score"), {"stage": "score", "outputs": {}, "color": "blue"})
    with pytest.raises(RunDirectoryError, match=r"not a manifest of this version.*--redo score"):
        bench.do()
    bench.do(redo="score")
    assert bench.ran == list(STAGES[2:])


def test_a_large_folder_is_read_once(bench, monkeypatch):
    read = []
    from naysay.artifacts.digests import digest_tree

    def counting(path):
        read.append(path)
        return digest_tree(path)

    monkeypatch.setattr("naysay.pipeline.identity.digest_tree", counting)
    run = RunDirectory(bench.do().path)
    assert read.count(run.adapter) == 1


def test_a_run_below_a_file_is_refused(bench, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="expected a folder, or a place where one can be made"):
        bench.do(out="file/run")


def test_what_an_earlier_stage_lost_is_named(bench):
    run = bench.do()
    run.anchors.unlink()
    with pytest.raises(RunDirectoryError, match=r"needs sample, of which anchors\.jsonl is missing"):
        bench.do(stages=("train",))
