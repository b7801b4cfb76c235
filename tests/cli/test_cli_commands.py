"""What the commands do and print."""

import json
import os
from pathlib import Path

import pytest
import yaml

from naysay.artifacts.manifest import Manifest
from naysay.artifacts.store import write_json
from naysay.cli.lines import duration, loading_snippet, print_result, summary
from naysay.cli.options import input_name
from naysay.config import load_config
from naysay.config.stages import STAGES

ALIGN = ("align", "rejected.jsonl", "--model", "model")


def test_align_ends_with_the_verdict_the_report_and_code_that_loads(terminal):
    assert terminal(*ALIGN, "--out", "runs/mine") == 0
    assert terminal.ran == list(STAGES)
    run = terminal.folder / "runs/mine"
    assert "verdict  the margin is above 0\n" in terminal.out
    assert f"report   {run / 'report.html'}\n" in terminal.out
    snippet = terminal.out.split("# use it\n")[1]
    compile(snippet, "snippet", "exec")
    assert f"AutoModelForCausalLM.from_pretrained({str(terminal.folder / 'model')!r})" in snippet
    assert f"PeftModel.from_pretrained(base, {str(run / 'adapter')!r})" in snippet


def test_align_prints_a_line_a_stage_and_marks_what_was_skipped(terminal):
    terminal(*ALIGN)
    lines = terminal.err.splitlines()
    assert [line.split()[0] for line in lines] == list(STAGES)
    assert lines[1].split("  ")[-1] == "in 1, parts.out 3"
    assert " s  " in lines[1]
    assert terminal(*ALIGN) == 0
    assert [line.split()[1:4] for line in terminal.err.splitlines()] == [["up", "to", "date"]] * 6
    assert terminal.ran == []


def test_quiet_prints_the_result_alone(terminal):
    assert terminal(*ALIGN, "--quiet") == 0
    assert terminal.err == ""
    assert "verdict" in terminal.out
    assert os.environ["TTY_COMPATIBLE"] == "0"


def test_the_run_is_named_after_the_input_by_default(terminal):
    terminal(*ALIGN)
    assert (terminal.folder / "runs/rejected/report.html").exists()
    assert input_name("data/answers.v2.jsonl.gz") == "answers"
    assert input_name("embedded:smollm2-135m") == "embedded"


def test_flags_reach_the_config(terminal):
    flags = ("--map", "prompt=question", "--map", "rejected=bad", "--set", "training.beta=0.3", "--set", "seed=5")
    assert terminal("ingest", *ALIGN[1:], "--out", "x", *flags) == 0
    assert terminal.ran == ["ingest"]
    saved = yaml.safe_load(Path("x/config.yaml").read_text())
    assert saved["data"]["path"] == "rejected.jsonl"
    assert saved["data"]["map"] == {"prompt": "question", "rejected": "bad"}
    assert saved["model"]["name"] == "model"
    assert (saved["training"]["beta"], saved["seed"]) == (0.3, 5)


def test_a_recipe_is_read_and_flags_are_stronger(terminal):
    Path("r.yaml").write_text("data: {path: other.jsonl}\nseed: 3\ntraining: {alpha: 0.5}\n")
    assert terminal("ingest", *ALIGN[1:], "--recipe", "r.yaml", "--set", "seed=4", "--out", "x") == 0
    saved = yaml.safe_load(Path("x/config.yaml").read_text())
    assert (saved["data"]["path"], saved["seed"], saved["training"]["alpha"]) == ("rejected.jsonl", 4, 0.5)


def test_later_stages_use_the_config_of_the_run(terminal):
    terminal("ingest", *ALIGN[1:], "--out", "x", "--set", "training.beta=0.3")
    for stage in STAGES[1:]:
        assert terminal(stage, "--out", "x") == 0, terminal.err
        assert terminal.ran == [stage]
    assert "verdict" in terminal.out
    assert terminal("train", "--out", "x", "--set", "training.beta=0.4") == 2
    assert "training.beta: 0.3 -> 0.4" in terminal.err
    assert terminal("train", "--out", "x", "--set", "training.beta=0.4", "--redo", "train") == 0
    assert terminal.ran == ["train"]


def test_reuse_takes_the_config_of_the_other_run_as_its_base(terminal):
    terminal(*ALIGN, "--out", "old", "--set", "anchors.k=3")
    assert terminal("align", "--out", "new", "--reuse", "old", "--set", "training.beta=0.4") == 0
    assert terminal.ran == ["train", "evaluate", "report"]
    saved = yaml.safe_load(Path("new/config.yaml").read_text())
    assert (saved["anchors"]["k"], saved["training"]["beta"], saved["data"]["path"]) == (3, 0.4, "rejected.jsonl")
    assert "sample      taken over  from old" in terminal.err


def test_align_without_input_says_that_it_uses_the_embedded_data(terminal):
    terminal.stages["ingest"].reads = lambda config, run: {}
    assert terminal("align", "--model", "model") == 0
    assert "no input file given: using the embedded rejected answers (embedded:smollm2-135m)" in terminal.err
    assert Path("runs/embedded/config.yaml").exists()
    Path("r.yaml").write_text("data: {path: embedded:smollm2-135m}\nmodel: {name: model}\n")
    assert terminal("align", "--recipe", "r.yaml", "--out", "y") == 0
    assert "no input file" not in terminal.err


def test_offline_unless_asked(terminal):
    terminal(*ALIGN)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    terminal(*ALIGN, "--online")
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_config_show_is_a_recipe(terminal):
    arguments = ("--set", "training.method=full", "--model", "model")
    assert terminal("config", "show", *arguments) == 0
    Path("r.yaml").write_text(terminal.out)
    expected = load_config(None, ["training.method=full"], {"model.name": "model"})
    assert load_config("r.yaml") == expected
    assert terminal("config", "show", "--recipe", "r.yaml") == 0
    assert terminal.out == Path("r.yaml").read_text()


def test_config_schema_documents_every_key(terminal):
    assert terminal("config", "schema") == 0
    schema = json.loads(terminal.out)
    assert schema["$defs"]["D2OTraining"]["properties"]["beta"]["default"] == 0.1
    assert "alpha" not in schema["$defs"]["NPOTraining"]["properties"]
    undocumented = [
        f"{name}.{key}"
        for name, section in schema["$defs"].items()
        for key, value in section["properties"].items()
        if "description" not in value and "$ref" not in value and name != "SplitLimits"
    ]
    assert undocumented == []


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("config",)])
def test_help_lists_the_commands(terminal, arguments):
    assert terminal(*arguments) == 0
    expected = ["show", "schema"] if "config" in arguments else ["align", *STAGES, "config"]
    assert all(name in terminal.out for name in expected)


def test_version(terminal):
    assert terminal("--version") == 0
    assert terminal.out == "naysay 0.1.0\n"


@pytest.mark.parametrize(
    ("method", "name", "expected"),
    [
        ("lora", "org/name", "from_pretrained('org/name', revision='v1')"),
        ("full", "org/name", "x/model')"),
        ("lora", "embedded:smollm2-135m", "from_pretrained('/cache/converted')"),
    ],
)
def test_the_snippet_loads_what_was_trained(bench_run, monkeypatch, method, name, expected):
    monkeypatch.setattr("naysay.modeling.embedded.model_folder", lambda name: Path("/cache/converted"))
    config = load_config(None, [f"training.method={method}"], {"model.name": name, "model.revision": "v1"})
    snippet = loading_snippet(config, bench_run)
    compile(snippet, "snippet", "exec")
    assert expected in snippet
    assert ("peft" in snippet) == (method == "lora")


@pytest.fixture
def bench_run(tmp_path):
    from naysay.artifacts.run_directory import RunDirectory

    return RunDirectory(tmp_path / "x")


@pytest.mark.parametrize(
    ("kept_step", "method", "said"),
    [
        (0, "lora", "weights  untrained (step 0), not a success: "),
        (30, "full", "weights  those of step 30, the last check of the guard that held, not a success: "),
        (None, "lora", "# use it"),
    ],
)
def test_of_a_stopped_run_no_loading_lines_are_printed(bench_run, capsys, kept_step, method, said):
    stop = {"guard": {"step": 40, "reason": "anchors fell", "bound": "max_anchor_fall", "kept_step": kept_step}}
    Manifest(
        stage="train",
        key="0" * 32,
        settings={},
        inputs={},
        outputs={},
        counts=stop if kept_step is not None else {},
        seconds=1.0,
        environment={},
    ).save(bench_run.manifest_path("train"))
    write_json(bench_run.summary, {"verdict": "A verdict."})
    print_result(load_config(None, [f"training.method={method}"], {"model.name": "org/name"}), bench_run)
    out = capsys.readouterr().out
    assert said in out
    assert ("from_pretrained" in out) == (kept_step is None)
    if kept_step is not None:
        assert out.rstrip().endswith(str(bench_run.model if method == "full" else bench_run.adapter))


def test_durations_and_counts_are_short():
    assert [duration(value) for value in (0.04, 59.94, 65, 3600, 7620)] == [
        "0.0 s",
        "59.9 s",
        "1 min 05 s",
        "1 h 00 min",
        "2 h 07 min",
    ]
    counts = {
        "rows": {"in": 1200, "quarantined": 2},
        "prompts": {"train": 64, "heldout": 0},
        "answers": {"negatives": 80},
    }
    expected = "1,200 rows, 2 quarantined (see quarantine.jsonl), 64 prompts to train on, 80 rejected answers"
    assert summary("ingest", counts) == expected
    assert (
        summary("train", {"steps": 12, "lost": 0, "ok": True, "by": {"group_size": 8}}) == "steps 12, by.group size 8"
    )
