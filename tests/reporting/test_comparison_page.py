"""compare.json and compare.html: everything is there, once, and nothing comes from outside."""

import re
from html import unescape
from html.parser import HTMLParser

import orjson
import pytest
from matplotlib.figure import Figure

from naysay.records import PromptEvaluation
from naysay.reporting import comparison_tables as tables
from naysay.reporting.comparison import FinishedRun, RateChoice, Subject, assemble, render
from naysay.reporting.comparison_curves import COLOURS, comparison_curves, trade_off
from naysay.reporting.comparison_measures import MEASURES

OBJECTIVES = ("d2o", "npo", "ga")
SETTINGS = {
    "objectives": list(OBJECTIVES),
    "budget": 96,
    "seeds": 2,
    "learning_rates": {name: [1e-4, 2e-4] for name in OBJECTIVES},
    "model": {"name": "a-model"},
    "data": {"path": "rows<script>alert(1)</script>.jsonl"},
    "evaluation": {"kl_bound": 0.1, "bootstrap_samples": 200},
}
GAIN = {"d2o": 0.05, "npo": 0.02, "ga": 0.05}


def prompts(objective, seed):
    gain = GAIN[objective] * (1 + 0.1 * seed)
    for i in range(10):
        yield PromptEvaluation(
            f"p-{i}",
            "heldout",
            margins=(10 * gain,),
            separation=gain + 0.001 * i,
            pairs_right_base=(False,),
            pairs_right_tuned=(i < 6,),
            negative_log_ratio=-gain * 20,
            negative_tokens=20,
            outcome_base="answer",
            outcome_tuned="answer",
        )
        yield PromptEvaluation(
            f"b-{i}",
            "benign",
            acceptable_log_ratio=0.01,
            acceptable_tokens=7,
            kl_base_to_tuned=(0.3, 10),
            kl_tuned_to_base=(0.2 + 2 * (objective == "ga"), 10),
            outcome_base="answer",
            outcome_tuned="answer",
        )


def metrics(objective, seed, steps=12):
    scale = 50.0 if objective == "ga" else 1.0
    return [
        {
            "step": step,
            "loss": scale - step,
            "margin": 123.0,
            "anchor_log_ratio": -1.0 * step,
            "negative_log_ratio": -3.0 * step,
            "anchor_log_ratio_per_token": -0.01 * step,
            "negative_log_ratio_per_token": -0.02 * step * (1 + seed),
            "grad_norm": scale * (1 + step % 3),
        }
        for step in range(1, steps + 1)
    ]


def final(objective, seed, **changes):
    values = {
        "name": f"runs/{objective}/seed-{seed}",
        "phase": "final",
        "objective": objective,
        "learning_rate": 2e-4,
        "seed": seed,
        "steps": 12,
        "groups": 96,
        "tokens": 12_345.6,
        "seconds": {"train": 60.0 + seed, "evaluate": 30.0},
        "evaluation": {"policy": {"base_digest": "b"}},
        "prompts": list(prompts(objective, seed)),
        "metrics": metrics(objective, seed),
        "environment": {"python": "3.12", "packages": {"torch": "2.13.0"}},
    }
    return FinishedRun(**(values | changes))


def tuning(objective, rate):
    return FinishedRun(
        f"tune/{objective}/lr-{rate:g}", "tune", objective, rate, 0, 6, seconds={"train": 20.0, "evaluate": 10.0}
    )


CANDIDATES = [
    {"learning_rate": 1e-4, "separation": 0.01, "margin": 0.1, "kl": 0.01, "degenerate_rise": 0.0, "diverged": ""},
    {"learning_rate": 2e-4, "separation": 0.02, "margin": 0.2, "kl": 0.02, "degenerate_rise": 0.0, "diverged": ""},
]
CHOICES = {name: RateChoice(2e-4, "largest dev separation", True, CANDIDATES) for name in OBJECTIVES}
RUNS = [tuning(name, rate) for name in OBJECTIVES for rate in (1e-4, 2e-4)]
RUNS += [final(name, seed) for seed in (0, 1) for name in OBJECTIVES]
HISTORIES = {name: [metrics(name, seed) for seed in (0, 1)] for name in OBJECTIVES}


@pytest.fixture(scope="module")
def comparison():
    return assemble(Subject(SETTINGS, "d2o", "naysay compare 'a b'.jsonl", "0.1.0"), CHOICES, RUNS)


@pytest.fixture(scope="module")
def page(comparison):
    return render(comparison, HISTORIES)


def test_the_verdicts(comparison):
    found = {name: item["label"] for name, item in comparison["verdicts"].items()}
    # ga gains as much as d2o, at a KL of 0.22.
    assert found == {"npo": "worse", "ga": "no_evidence"}
    assert comparison["differences"]["ga"]["kl_tuned_to_base"]["claim"] == "worse"
    assert comparison["headline"] == "Compared with d2o: worse: npo; no evidence of a difference: ga."


def test_the_json_survives_a_round_trip_and_is_rounded(comparison):
    assert orjson.loads(orjson.dumps(comparison)) == comparison
    assert comparison["given"]["npo"]["tokens"] == 12345.6
    assert comparison["table"]["d2o"]["separation"]["value"] == pytest.approx(0.05 * 1.05 + 0.0045)
    numbers = re.findall(rb"0\.0*[1-9](\d*)", orjson.dumps(comparison))
    assert max(map(len, numbers)) <= 5


def test_what_each_was_given(comparison):
    found = comparison["given"]["ga"]
    assert (found["steps"], found["groups"], found["train_seconds"], found["tuning_seconds"]) == (12, 96, 60.5, 60.0)
    shown = {row.name: row.cells for row in tables.given(comparison).rows}
    assert shown["Optimizer steps"] == ("12",) * 3
    assert shown["Prompt groups trained on"] == ("96",) * 3
    assert shown["Tokens trained on"] == ("12,346",) * 3
    assert shown["Learning rates tried"] == ("0.0001\n0.0002",) * 3
    assert shown["Learning rate"] == ("0.0002\nat the edge of its grid:\nanother may be better",) * 3
    assert shown["Training time"] == ("1 min 00 s",) * 3


def test_tables_have_every_row_and_every_objective(comparison):
    names = [measure.name for measure in MEASURES]
    results, differences = tables.results(comparison), tables.differences(comparison)
    assert [row.name for row in results.rows] == [row.name for row in differences.rows] == names
    assert results.headers == ("Measure", "Base", "d2o (reference)", "npo", "ga", "n")
    assert differences.headers == ("Measure", "npo", "ga")
    for table in (results, differences):
        assert {len(row.cells) for row in table.rows} == {len(table.headers) - 1}
    separation, accuracy = results.rows[0].cells, results.rows[1].cells
    assert (separation[0], separation[-1]) == ("", "10")
    assert separation[1].startswith("+0.057\n[+0.0")
    assert accuracy[0].startswith("0.0 %")
    assert accuracy[1].startswith("60.0 %")
    assert differences.rows[0].cells[0].endswith("\nworse")
    assert differences.rows[0].cells[1].startswith("+0.000\n")


def test_every_rate_and_every_run_is_shown(comparison):
    rates = tables.choices(comparison)
    assert [row.name for row in rates.rows] == [f"{name}, {rate:g}" for name in OBJECTIVES for rate in (1e-4, 2e-4)]
    assert [row.cells[-1] for row in rates.rows] == ["", "chosen"] * 3
    runs = tables.every_run(comparison)
    assert [row.name for row in runs.rows] == [f"{name}, seed {seed}" for seed in (0, 1) for name in OBJECTIVES]
    assert runs.rows[0].cells[0] == "+0.054"


class Links(HTMLParser):
    """Every attribute that could load something, and every tag."""

    def __init__(self):
        super().__init__()
        self.tags, self.targets = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.targets += [value for name, value in attrs if name in {"href", "src", "action", "xlink:href"}]


def test_the_page_is_self_contained_and_escapes_what_it_is_given(page):
    links = Links()
    links.feed(page)
    assert not {"script", "link", "img", "iframe"} & links.tags
    assert all(target.startswith("#") for target in links.targets)
    assert "<script>" not in page
    assert "rows&lt;script&gt;alert(1)&lt;/script&gt;.jsonl" in page
    assert "url(http" not in page
    assert "@import" not in page


def test_the_page_has_all_of_it(page, comparison):
    text = unescape(page)
    for measure in MEASURES:
        assert text.count(f">{measure.name}<") >= 2, measure.name
    for verdict in comparison["verdicts"].values():
        assert verdict["text"] in text
    for run in RUNS:
        if run.phase == "final":
            assert run.name in text
    for sentence in ("naysay compare 'a b'.jsonl", comparison["headline"], "torch", "kl_bound: 0.1"):
        assert sentence in text
    assert text.count("<figure>") == 5 + len(OBJECTIVES)


def test_ids_of_drawings_are_unique(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_margin_is_the_same_quantity_for_every_objective():
    """0.1 x (-1 step) - 0.1 x (-3 step), not the metric of the same name."""
    margin = comparison_curves(HISTORIES)[0]
    assert margin.alternative == "Margin: " + "; ".join(f"{name} from 0.200 to 2.400" for name in OBJECTIVES) + "."


def test_curves_are_means_over_seeds_in_their_range():
    rejected = comparison_curves({"npo": HISTORIES["npo"]})[1]
    assert rejected.alternative == "Rejected answers: npo from -0.030 to -0.360."
    assert "opacity" in rejected.svg
    one = comparison_curves({"npo": HISTORIES["npo"][:1]})[1]
    assert "opacity" not in one.svg


def test_an_objective_has_one_colour_everywhere():
    curves = {curve.title: curve.svg for curve in comparison_curves(HISTORIES)}
    assert "--objective-3" in curves["Loss of ga"]
    assert "--objective-1" not in curves["Loss of ga"]
    assert all(f"--objective-{i}" in curves["Margin"] for i in (1, 2, 3))
    many = {f"o{i}": HISTORIES["npo"] for i in range(COLOURS + 1)}
    assert "stroke-dasharray" in comparison_curves(many)[-1].svg
    assert not re.search(r"#0102[0-9a-f]{2}", "".join(curves.values()))


def test_a_gradient_that_explodes_gets_a_logarithmic_axis(monkeypatch):
    scales = {}

    def figure(name, draw, series):
        axes = Figure().add_subplot()
        draw(axes)
        scales[name] = axes.get_yscale()
        return ""

    monkeypatch.setattr("naysay.reporting.comparison_curves._figure", figure)
    comparison_curves(HISTORIES)
    assert {name: scale for name, scale in scales.items() if scale != "linear"} == {"grad_norm": "log"}
    comparison_curves({"npo": HISTORIES["npo"]})
    assert scales["grad_norm"] == "linear"


def test_the_trade_off_shows_each_final_run_once(comparison):
    drawn = trade_off(comparison)
    assert drawn.alternative.count(" at KL ") == 6
    assert "ga 0.054 at KL 0.220" in drawn.alternative
    nothing = comparison | {"runs": [run for run in comparison["runs"] if run["phase"] == "tune"]}
    assert trade_off(nothing) is None


def test_without_a_single_curve_the_page_is_still_written(comparison):
    assert "What each was given" in render(comparison, dict.fromkeys(OBJECTIVES, ()))
