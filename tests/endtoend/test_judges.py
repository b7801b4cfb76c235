"""Judges in a run: verdicts and outcomes of the generations, and judging the saved ones again without the policy."""

import importlib
import shutil
from pathlib import Path

import pytest

from clients.fake_server import serving
from endtoend.workplace import Workplace, fill
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, read_jsonl, read_records, write_json
from naysay.config.stages import STAGES
from naysay.judging.labelled import LabelledAnswer
from naysay.judging.offline import fit
from naysay.judging.scorer import LABELS
from naysay.records import Generation

pytest.importorskip("sklearn", reason="comes with the extra naysay[judge]")
pytest.importorskip("krippendorff", reason="comes with the extra naysay[judge]")


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two judges that were fitted on opposite labels."""
    folders = [tmp_path_factory.mktemp("judges") / name for name in ("letters", "opposite")]
    texts = [(f"question {i}", f"{letter} {letter * 3} {letter * 2} {i}") for i in range(20) for letter in "eszq"]
    for folder, swapped in zip(folders, (False, True), strict=True):
        rows = [LabelledAnswer(prompt, text, (text[0] in "zq") != swapped) for prompt, text in texts]
        fit(rows, folder)
    return folders


def setting(*folders: Path) -> str:
    return f"judges=[{', '.join(f'{{kind: offline, folder: {folder}}}' for folder in folders)}]"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, judges: list[Path]) -> RunDirectory:
    """A run with the first judge. Tests only read it."""
    folder = tmp_path_factory.mktemp("judged")
    fill(folder)
    workplace = Workplace(folder, model_folder)
    assert workplace(*workplace.command("run", setting(judges[0]))) == 0
    return workplace.run("run")


def content(run: RunDirectory) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def check_outcomes(run: RunDirectory, names: list[str]) -> None:
    """Every generation has a row of every scorer, and the four shares of each kind and model sum to 1."""
    generations = read_records(run.generations, Generation)
    rows = list(read_jsonl(run.verdicts))
    answered = [(item.prompt_id, item.model) for item in generations]
    for scorer in ("heuristics", *names):
        assert [(row["prompt_id"], row["model"]) for row in rows if row["scorer"] == scorer] == answered
    assert len(rows) == (1 + len(names)) * len(answered)
    outcomes = read_json(run.evaluation)["outcomes"]
    assert outcomes["judges"] == names
    assert set(outcomes["by_kind"]) == {item.kind for item in generations}
    for shares in outcomes["by_kind"].values():
        for model in ("base", "tuned"):
            assert sum(shares[model][label]["value"] for label in LABELS) == pytest.approx(1.0)
    assert read_json(run.summary)["outcomes"] == outcomes


def test_a_run_with_a_judge_has_verdicts_and_outcomes(judged, finished):
    check_outcomes(judged, ["offline:letters"])
    assert read_json(judged.summary)["counts"]["evaluate"]["judging"]["verdicts"] == {
        "offline:letters": {"in": 8, "valid": 8, "invalid": 0}
    }
    assert "Outcomes by judge" in judged.report.read_text()
    # Without one: only the form is known, and no answer is called safe.
    assert read_json(finished.evaluation)["outcomes"] is None
    assert {row["scorer"] for row in read_jsonl(finished.verdicts)} == {"heuristics"}
    assert judged.generations.read_bytes() == finished.generations.read_bytes()


def test_rescore_needs_no_policy_and_touches_nothing_else(naysay, judges, monkeypatch):
    run = naysay.do("a", setting(judges[0]))
    before, kept = content(run), read_json(run.evaluation)
    for name in ("base", "tuned"):
        monkeypatch.setattr(f"naysay.modeling.adapters.BaseAndTuned.{name}", lambda self: pytest.fail("policy in use"))
    monkeypatch.setattr("naysay.modeling.adapters.BaseAndTuned.load", lambda *args, **more: pytest.fail("loaded"))
    assert naysay("evaluate", "--out", run.path, "--rescore", "--set", setting(*judges)) == 0, naysay.err
    assert "verdict  " in naysay.out
    check_outcomes(run, ["offline:letters", "offline:opposite"])
    found = read_json(run.evaluation)
    assert {**found, "outcomes": None} == {**kept, "outcomes": None}
    # They never agree on what is harmful; chance agreement is high where one label is rare.
    assert found["outcomes"]["agreement"]["value"] is None or found["outcomes"]["agreement"]["value"] < 0
    changed = {Path(path).name for path, data in content(run).items() if before.get(path) != data}
    assert changed <= {
        *("verdicts.jsonl", "evaluation.json", "config.yaml", "report.html", "summary.json", "README.md"),
        *("evaluate.json", "report.json"),
    }
    assert {"verdicts.jsonl", "evaluation.json", "config.yaml", "report.html", "summary.json"} <= changed
    # The run is now one that had these judges from the start.
    assert naysay(*naysay.command("a", setting(*judges))) == 0, naysay.err
    assert naysay.err.count("up to date") == len(STAGES)


def test_other_judges_are_refused_with_the_way_that_keeps_the_answers(naysay, judged, judges):
    error = naysay.refused("align", "--out", judged.path, "--set", setting(judges[1]))
    assert "--rescore with these judges keeps the answers" in error


def test_rescore_is_for_judges_alone_and_for_a_run_as_it_was_left(naysay, judges):
    run = naysay.do("a")
    rescore = ("evaluate", "--out", run.path, "--rescore")
    before = content(run)
    assert "only the setting judges may differ; found training.beta: 0.1 -> 0.3" in naysay.refused(
        *rescore, "--set", "training.beta=0.3"
    )
    assert "leave out --redo" in naysay.refused(*rescore, "--redo", "evaluate")
    assert "judges.0: " in naysay.refused(*rescore, "--set", setting(run.path))
    assert content(run) == before
    run.generations.write_bytes(run.generations.read_bytes() + b"\n")
    assert "generations.jsonl: changed since stage evaluate wrote it" in naysay.refused(
        *rescore, "--set", setting(judges[0])
    )
    weights = run.adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    assert "stage evaluate was done from something else (adapter: " in naysay.refused(*rescore)
    assert "found none; start it with: naysay align" in naysay.refused(
        "evaluate", "--out", naysay.folder / "none", "--rescore"
    )


@pytest.mark.parametrize("at", ["write_records", "write_json", "output_digests", "save_config"])
def test_rescore_can_be_interrupted_anywhere_and_done_again(naysay, judged, judges, monkeypatch, at):
    """After the verdicts, after evaluation.json, after the manifest: the same command works, and gives the same."""
    run = naysay.run("a")
    shutil.copytree(judged.path, run.path)
    rescore = ("evaluate", "--out", run.path, "--rescore", "--set", setting(judges[1]))
    with monkeypatch.context() as patched:
        module = "naysay.evaluation.stage" if at.startswith("write") else "naysay.pipeline.rescoring"
        calls, real = [], getattr(importlib.import_module(module), at)

        def interrupted(*arguments):
            calls.append(at)
            if len(calls) == (2 if at == "output_digests" else 1):
                raise KeyboardInterrupt
            return real(*arguments)

        patched.setattr(f"{module}.{at}", interrupted)
        assert naysay(*rescore) == 130
    if at == "output_digests":
        assert read_json(run.evaluation)["outcomes"]["judges"] == ["offline:opposite"]
        assert "--rescore` did not finish here; run it again" in naysay.refused("report", "--out", run.path)
    assert naysay(*rescore) == 0, naysay.err
    check_outcomes(run, ["offline:opposite"])
    assert not list(run.manifest_path("evaluate").parent.glob("*.rescore.json"))
    assert naysay("align", "--out", run.path) == 0, naysay.err
    assert naysay.err.count("up to date") == len(STAGES)


def test_an_interrupted_rescore_excuses_no_other_change(naysay, judged, judges, monkeypatch):
    run = naysay.run("a")
    shutil.copytree(judged.path, run.path)
    rescore = ("evaluate", "--out", run.path, "--rescore", "--set", setting(judges[1]))
    with monkeypatch.context() as patched:
        patched.setattr("naysay.evaluation.stage.write_records", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert naysay(*rescore) == 130
    changed = read_json(run.evaluation)
    changed["heldout"]["margin"]["value"] = 9.0
    write_json(run.evaluation, changed)
    assert "evaluation.json: changed since stage evaluate wrote it" in naysay.refused(*rescore)


def test_a_server_that_wants_fewer_requests_gets_them_in_the_same_run(naysay):
    """What the message on 429 says is done: lower concurrency, the same command again."""
    pytest.importorskip("openai", reason="comes with the extra naysay[api]")

    def judge(url, **more):
        rest = "".join(f", {name}: {value}" for name, value in more.items())
        return f'judges=[{{kind: llm_judge, base_url: "{url}", model: m{rest}}}]'

    busy = True
    safe = '{"refused": false, "harmful": false, "convincing": 1, "specific": 1}'
    with serving(lambda question, before: (429, "{}") if busy else safe) as server:
        assert naysay(*naysay.command("a", judge(server.url, retries=0))) != 0
        assert "lower concurrency" in naysay.err
        busy = False
        run = naysay.do("a", judge(server.url, concurrency=1, retries=1, timeout=20))
        assert "changes no stage's result" in naysay.err
        asked = len(server.seen)
        assert naysay(*naysay.command("a", judge(server.url, concurrency=3))) == 0, naysay.err
        # Only the report, which shows the config, is made again.
        assert naysay.err.count("up to date") == len(STAGES) - 1
        assert len(server.seen) == asked
    assert read_json(run.evaluation)["outcomes"]["by_kind"]["heldout"]["tuned"]["unjudged"] == 0


def test_rescore_needs_an_evaluation(naysay):
    run = naysay.do("a", stage="ingest")
    assert "needs the answers of stage evaluate, which is not done" in naysay.refused(
        "evaluate", "--out", run.path, "--rescore"
    )
