"""`naysay compare` on fake stages: flags to a plan, what is printed, what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from naysay.artifacts.store import read_json
from naysay.cli.compare import run_line
from naysay.pipeline.compare import RunEvent
from naysay.pipeline.compare_plan import RunSpec
from naysay.reporting.comparison_measures import MEASURES
from pipeline.compare_fakes import compare_stages

COMPARE = ("compare", "rejected.jsonl", "--model", "model", "--budget", "16", "--learning-rates", "1e-4,3e-4")


@pytest.fixture
def compared(terminal, monkeypatch):
    """The terminal, with stages that a comparison can read."""
    stages = compare_stages()
    monkeypatch.setattr("naysay.pipeline.graph.stage_module", stages.__getitem__)
    terminal.compared = stages
    return terminal


def do(terminal, *more):
    for stage in ("train", "evaluate"):
        terminal.compared[stage].calls.clear()
    return terminal(*COMPARE, *more)


def test_it_ends_with_the_table_the_verdicts_and_the_report(compared):
    assert do(compared, "--objectives", "d2o,npo,ga", "--seeds", "1", "--out", "c") == 0, compared.err
    lines = compared.out.splitlines()
    table = lines[1 : lines.index("", 1)]
    assert table[0].split() == ["held-out,", "all", "seeds", "d2o", "npo", "ga"]
    assert [line[: len(m.name)] for line, m in zip(table[1:], MEASURES, strict=True)] == [m.name for m in MEASURES]
    assert table[1].split() == ["Separation", "+0.120", "+0.090", "worse", "+0.010", "worse"]
    assert "verdict  Compared with d2o: worse: npo, ga." in lines
    assert any(line.startswith("  npo: worse than d2o; separation -0.030") for line in lines)
    assert f"report   {Path('c/compare.html').resolve()}" in lines
    assert f"numbers  {Path('c/compare.json').resolve()}" in lines
    assert Path("c/compare.html").exists()


def test_a_line_a_run_with_its_place_and_the_time_left(compared):
    do(compared, "--objectives", "d2o,npo", "--out", "c")
    lines = compared.err.splitlines()
    assert lines[0] == "compare   8 runs: 4 of 1 steps to choose learning rates, 2 objectives x 2 seeds of 2 steps"
    assert [line.split()[0] for line in lines[1:4]] == ["ingest", "sample", "score"]
    runs = [line for line in lines if line.startswith("run ")]
    assert runs[0] == "run 1/8   d2o, learning rate 0.0001, 1 steps"
    assert runs[1].startswith("run 1/8   d2o, learning rate 0.0001  0.")
    assert "separation +0.0" in runs[1]
    assert "; about 0." in runs[1]
    assert runs[-1].startswith("run 8/8   npo, seed 1  0.")
    assert "left" not in runs[-1]
    assert "chosen    d2o, learning rate 0.0003: largest dev separation" in compared.err


def test_the_same_command_again_finds_everything_done(compared):
    do(compared, "--out", "c", "--objectives", "d2o,npo")
    before = read_json(Path("c/compare.json"))
    assert do(compared, "--out", "c", "--objectives", "d2o,npo") == 0
    assert compared.compared["train"].calls == []
    assert "run 1/8   d2o, learning rate 0.0001  up to date  separation" in compared.err
    assert read_json(Path("c/compare.json")) == before


def test_quiet_prints_the_result_alone(compared):
    assert do(compared, "--quiet", "--objectives", "d2o,npo") == 0
    assert compared.err == ""
    assert "verdict  " in compared.out
    assert Path("runs/compare-rejected/compare.json").exists()


def test_flags_reach_every_run(compared):
    flags = ("--objectives", "npo, ga", "--seeds", "1", "--set", "anchors.k=3", "--set", "training.lora.rank=4")
    Path("r.yaml").write_text("seed: 7\ntraining: {groups_per_step: 4, max_steps: 99}\n")
    assert do(compared, *flags, "--recipe", "r.yaml", "--map", "prompt=question", "--out", "c") == 0, compared.err
    for path in (Path("c/tune/ga/lr-0.0001/config.yaml"), Path("c/runs/npo/seed-0/config.yaml")):
        saved = yaml.safe_load(path.read_text())
        assert (saved["seed"], saved["anchors"]["k"], saved["training"]["lora"]["rank"]) == (7, 3, 4)
        assert saved["data"]["map"] == {"prompt": "question"}
        assert saved["model"]["name"] == "model"
    assert (saved["training"]["max_steps"], saved["training"]["groups_per_step"]) == (4, 4)
    assert "compare   not read: training.max_steps = 99 (--budget decides)" in compared.err


def test_the_command_is_recorded(compared, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/naysay", "compare", "my rows.jsonl"])
    do(compared, "--objectives", "d2o,npo", "--out", "c")
    assert read_json(Path("c/compare.json"))["command"] == "naysay compare 'my rows.jsonl'"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--objectives", "d2o,nop"), "--objectives nop: no such objective; did you mean 'npo'?"),
        (("--objectives", "d2o"), "--objectives d2o: expected at least two, each once"),
        (("--learning-rates", "1e-4,fast"), "--learning-rates 1e-4,fast: expected numbers, for example"),
        (("--set", "training.learning_rate=1"), "a comparison sets training.learning_rate itself (--learning-rates"),
        (("--set", "evaluation.split=dev"), "a comparison sets evaluation.split itself"),
        (("--set", "training.gamma=1"), "training.gamma"),
        (("--set", "training.beta=0.5"), "a comparison gives every objective its own defaults"),
        (("--recipe", "none.yaml"), "recipe none.yaml: no such file"),
        (("--budget", "0"), "--budget 0: expected at least 1"),
        (("--set", "data.dev_fraction=0"), "in the dev split, so nothing could be evaluated; raise data.dev_fraction"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_drawn(compared, flags, message):
    assert do(compared, *flags, "--out", "c") == 2
    last = compared.err.splitlines()[-1]
    assert last.startswith("naysay: error: ")
    assert message in last
    assert compared.compared["sample"].runs == 0


def test_another_setting_in_the_same_folder_is_refused_by_name(compared):
    do(compared, "--objectives", "d2o,npo", "--out", "c")
    assert do(compared, "--objectives", "d2o,npo", "--out", "c", "--set", "anchors.k=2", "--seeds", "3") == 2
    assert "naysay: error: c: this comparison has other settings (seeds: 2 -> 3, anchors.k: 11 -> 2); " in compared.err


def test_a_diverged_run_is_a_line():
    spec = RunSpec("final", "ga", 1e-4, 1, 12)
    event = RunEvent("diverged", "ga", 3, 8, spec, "step 4: the loss is nan", 0.0, 60.0)
    assert run_line(event) == "run 3/8   ga, seed 1  diverged  step 4: the loss is nan; about 1 min 00 s left"


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from naysay.cli.main import main; main(['compare', '--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'matplotlib', 'scipy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
