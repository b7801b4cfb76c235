"""report.html and summary.json from a made-up run: complete, self-contained, and safe to open."""

import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest

from naysay.artifacts.run_directory import RunDirectory
from naysay.config import RunConfig, load_config
from naysay.errors import RunDirectoryError
from naysay.records import Generation, Negative
from naysay.reporting import decide, stage

MakeRun = Callable[..., RunDirectory]
MakeGeneration = Callable[..., Generation]
HOSTILE = '</pre></script><script>alert(\'x")</script><img src=x onerror="alert(1)">&amp;{{ 7*7 }}\x00'
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements, attributes and text of a page, and whether every element is closed in order."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def make_page(run: RunDirectory, config: RunConfig | None = None) -> tuple[str, Page]:
    stage.run(config or RunConfig(), run)
    source = run.report.read_text(encoding="utf-8")
    return source, Page(source)


def test_counts_and_files(make_run: MakeRun) -> None:
    run = make_run()
    assert stage.run(RunConfig(), run) == {"training_steps": 12, "generations": 46, "stages": 5}
    assert all(path.exists() for path in stage.outputs(RunConfig(), run))


def test_inputs_name_what_is_read(make_run: MakeRun) -> None:
    run = make_run()
    found = stage.inputs(RunConfig(), run)
    assert found["evaluation"] == run.evaluation
    assert {name for name in found if name.startswith("manifest of")} == {
        f"manifest of {name}" for name in ("ingest", "sample", "score", "train", "evaluate")
    }
    run.manifest_path("score").unlink()
    assert "manifest of score" not in stage.inputs(RunConfig(), run)


def test_settings_hold_the_bound() -> None:
    assert stage.settings(load_config(overrides=["evaluation.kl_bound=0.2"]))["kl_bound"] == 0.2


def test_the_page_says_what_was_found(make_run: MakeRun, evaluation: dict[str, Any]) -> None:
    _, page = make_page(make_run())
    text = " ".join(" ".join(page.text).split())
    assert decide(evaluation, 0.10).text in text
    for expected in (
        "Pairs ranked right",
        "+13.0 points [+4.0, +22.0]",
        "What matters is the gap between them",
        "The tuned answer to benign 3.",
        "2 min 30 s",
        "another CPU",
        "Everything that went in is accounted for.",
        "t" * 32,
    ):
        assert expected in text


def test_the_page_loads_nothing_and_runs_nothing(make_run: MakeRun) -> None:
    source, page = make_page(make_run())
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert (value or "").startswith("#")
    assert "http:" not in source
    assert "https:" not in source
    policy = next(a for tag, a in page.elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


def test_whatever_people_or_models_wrote_is_escaped(make_run: MakeRun, make_generation: MakeGeneration) -> None:
    plain = make_page(make_run())[1]
    answers = [
        make_generation(kind, 0, model, HOSTILE, prompt=HOSTILE, outcome="answer")
        for kind in ("heldout", "benign", "lookalike", HOSTILE)
        for model in ("base", "tuned")
    ]
    counts = {"ingest": {HOSTILE: {HOSTILE: 3, "value": HOSTILE}}}
    config = RunConfig().model_copy(update={"model": RunConfig().model.model_copy(update={"name": HOSTILE})})
    run = make_run(answers=answers, config=f"data: {HOSTILE}", counts=counts)
    source, page = make_page(run, config)
    assert "<script" not in source.lower()
    assert "<img" not in source.lower()
    assert "{{" in source  # shown as text, not evaluated
    assert "\x00" not in source
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements}
    assert {name for _, attributes in page.elements for name in attributes} <= {
        name for _, attributes in plain.elements for name in attributes
    }
    shown = html.unescape(source)
    # title and heading; 4 kinds of 1 prompt and 2 answers; the config; counts: a group, a count and a value
    assert shown.count("<script>alert('x\")</script>") >= 2 + 4 * 3 + 1 + 3


def test_answers_to_harmful_prompts_are_folded_and_benign_ones_limited(make_run: MakeRun) -> None:
    source, _ = make_page(make_run())
    sections = {part.split("</h3>")[0]: part for part in source.split('<section class="kind">\n<h3>')[1:]}
    heldout, benign, lookalike = (
        sections[name] for name in ("Held-out prompts (5)", "Benign prompts (15)", "Look-alike prompts (3)")
    )
    assert "<details open>" not in heldout
    assert heldout.index("<details") < heldout.index("The base answer to heldout 0.")
    assert "may be harmful" in heldout
    opened, folded = benign.split("3 more</summary>")
    assert opened.count('<article class="pair">') == 12
    assert folded.split("</details>")[0].count('<article class="pair">') == 3
    assert "<details open>" in lookalike
    assert "The tuned answer to lookalike 2." in lookalike


def test_a_kind_that_is_not_known_to_be_harmless_is_folded(make_run: MakeRun, make_generation: MakeGeneration) -> None:
    source, _ = make_page(make_run(answers=[make_generation("new", 0, "base"), make_generation("new", 0, "tuned")]))
    section = source.split('<section class="kind">')[1].split("</section>")[0]
    assert 'class="sensitive"' in section
    assert "<details open>" not in section


def test_an_answer_without_its_partner_is_shown_as_such(make_run: MakeRun, make_generation: MakeGeneration) -> None:
    source, _ = make_page(make_run(answers=[make_generation("benign", 0, "tuned")]))
    assert "not generated" in source


def test_ids_are_unique_and_references_resolve(make_run: MakeRun) -> None:
    source, page = make_page(make_run())
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r"url\(#([^)]+)\)", source)) | set(re.findall(r'href="#([^"]+)"', source))
    assert references
    assert references <= set(ids)


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun) -> None:
    run = make_run()
    first = make_page(run)[0], run.summary.read_bytes()
    assert (make_page(run)[0], run.summary.read_bytes()) == first


def test_a_run_in_which_little_was_measured_still_has_a_report(make_run: MakeRun) -> None:
    evaluation = {"heldout": {"margin": None}, "benign": None, "kl": None, "generations": None, "style_gap": None}
    _, page = make_page(make_run(evaluation=evaluation, metrics=[], answers=[], counts={}))
    text = " ".join(page.text)
    assert "not measured" in text
    assert "No optimizer step was recorded." in text
    assert "No answers were generated." in text


@pytest.mark.parametrize(
    "name", ["evaluation", "evaluation_prompts", "metrics", "generations", "verdicts", "negatives", "config"]
)
def test_a_missing_file_is_named(make_run: MakeRun, name: str) -> None:
    run = make_run()
    path: Path = getattr(run, name)
    path.unlink()
    with pytest.raises(RunDirectoryError, match=re.escape(str(path))):
        stage.run(RunConfig(), run)


def summary_of(run: RunDirectory) -> dict[str, Any]:
    stage.run(RunConfig(), run)
    return orjson.loads(run.summary.read_bytes())


def test_the_summary_has_the_numbers_of_the_evaluation(make_run: MakeRun, evaluation: dict[str, Any]) -> None:
    summary = summary_of(make_run())
    for key in ("heldout", "benign", "kl", "generations", "style_gap", "split"):
        assert summary[key] == evaluation[key]
    assert summary["verdict"] == decide(evaluation, 0.10).text
    assert summary["verdict_label"] == "separated"
    assert summary["seconds"] == {
        "ingest": 10.0,
        "sample": 20.0,
        "score": 30.0,
        "train": 40.0,
        "evaluate": 50.0,
        "total": 150.0,
    }
    assert summary["counts"]["score"]["anchors"]["dropped"]["repetition"] == 12
    assert summary["training"]["steps"] == 12
    assert summary["training"]["last"]["margin"] == pytest.approx(0.6)
    assert summary["digests"]["policy"]["tuned_digest"] == "t" * 32


def leaves(value: Any, path: str = "") -> list[str]:
    """Dotted paths of all leaves; an estimate is one leaf."""
    if isinstance(value, dict) and set(value) != {"value", "ci_low", "ci_high", "n"}:
        return [leaf for key, item in value.items() for leaf in leaves(item, f"{path}.{key}" if path else key)]
    return [path]


def documented() -> list[re.Pattern[str]]:
    text = (Path(__file__).parents[2] / "docs" / "summary.md").read_text(encoding="utf-8")
    keys = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    return [re.compile(_pattern(key)) for key in keys]


def _pattern(key: str) -> str:
    """`<name>` is one part of a path, `{a,b}` one of these, a final `.*` everything below."""
    pattern = re.escape(key).replace(r"\{", "(?:").replace(r"\}", ")").replace(",", "|")
    pattern = re.sub(r"<\w+>", r"[^.]+", pattern)
    return pattern.removesuffix(r"\.\*") + r"\..+" if key.endswith(".*") else pattern


def test_every_key_of_the_summary_is_documented(make_run: MakeRun, judged_evaluation: dict[str, Any]) -> None:
    patterns = documented()
    negatives = [Negative(f"n-{index}", f"p-heldout-{index}", "No.", category="insult") for index in range(5)]
    paths = leaves(summary_of(make_run(judged_evaluation, negatives=negatives)))
    assert len(paths) > 60
    missing = [path for path in paths if not any(pattern.fullmatch(path) for pattern in patterns)]
    assert missing == []
    unused = [pattern.pattern for pattern in patterns if not any(pattern.fullmatch(path) for path in paths)]
    assert unused == []
