"""The known-rule benchmark: its rows, its Pareto front, and a cell that is killed and taken up again."""

import json
from dataclasses import replace

import pytest
from benchmarks.known_rule_cell import Answers, Cell, ObjectiveSpec, run_cell
from benchmarks.known_rule_data import DataSettings, OwnAnswer, export_rows, heldout_pairs, training_rows
from benchmarks.known_rule_report import draw_figure, fronts, max_kl, pareto_front, reported_point, summarise, table
from benchmarks.known_rule_train import train_cell
from benchmarks.rule_prompts import SPLITS, TOPICS_OF_SPLIT, RulePrompt, prompts_of_split
from benchmarks.rules import RULES, Rule

from benchmarks import known_rule, known_rule_data, known_rule_measure, known_rule_train
from conftest import make_model, make_tokenizer
from naysay.errors import ConfigError
from naysay.ingest.columns import find_columns
from naysay.ingest.formats import parse_row
from naysay.inputs.readers import RawRow


def own(prompt_id, texts, start=0):
    return [OwnAnswer(prompt_id, start + i, tuple(text.encode()), text, "stop") for i, text in enumerate(texts)]


PROMPTS = [RulePrompt("exclamation", f"Question {i}", f"{i}", "train") for i in range(3)]
DRAWN = [
    own(PROMPTS[0].prompt_id, ["You win!", "You lose.", "Is it the end!", "Go!", "The sea!", "To the sea."]),
    own(PROMPTS[1].prompt_id, ["Calm.", "Quiet.", "Still.", "Soft.", "Loud!", "Low."]),
    own(PROMPTS[2].prompt_id, ["No!", "No!", "No!", "No!", "No!", "No!"]),
]
SETTINGS = DataSettings(k=2, labelled=4, negatives_per_prompt=2)


def text_of(ids):
    return bytes(ids).decode()


def rows_of(**changes):
    chosen = changes.pop("with_chosen", False)
    return training_rows("exclamation", PROMPTS, DRAWN, replace(SETTINGS, **changes), seed=0, with_chosen=chosen)


def test_rows_take_the_first_violations_and_unfiltered_further_answers():
    rows, counts = rows_of()
    assert [row["prompt"] for row in rows] == ["Question 0"]
    assert [text_of(ids) for ids in rows[0]["rejected"]] == ["You win!", "Is it the end!"]
    assert [text_of(ids) for ids in rows[0]["anchors"]] == ["The sea!", "To the sea."]
    # Prompt 1 has no violation; the anchors of prompt 2 all equal its negative.
    assert counts == {
        "prompts": 3,
        "rows": 1,
        "negatives": 2,
        "mislabelled": 0,
        "without_violation": 1,
        "without_other": 1,
    }


def test_accepted_anchors_keep_the_rule():
    rows, _ = rows_of(anchors="accepted")
    assert [text_of(ids) for ids in rows[0]["anchors"]] == ["To the sea.", "You lose."]


def test_mixed_anchors_are_half_own_and_half_acceptable_in_the_other_style():
    rows, _ = rows_of(anchors="mixed", negatives="rewritten")
    assert text_of(rows[0]["anchors"][0]) == "The sea!"
    assert rows[0]["anchors"][1] == {"text": "T' th' sea.", "finish": "stop"}
    assert [answer["text"] for answer in rows[0]["rejected"]] == ["Ye win!", "Is it th' end!"]


def test_source_anchors_are_acceptable_answers_in_the_style_of_the_negatives_alone():
    rows, _ = rows_of(anchors="source", negatives="rewritten")
    assert [answer["text"] for answer in rows[0]["anchors"]] == ["T' th' sea.", "Ye lose."]


def test_noise_replaces_negatives_by_answers_that_keep_the_rule():
    rows, counts = rows_of(noise=1.0)
    # Only one acceptable answer of prompt 0 met the rule: the second negative stays.
    assert [text_of(ids) for ids in rows[0]["rejected"]] == ["You lose.", "Is it the end!"]
    assert counts["mislabelled"] == 1


def test_a_chosen_answer_keeps_the_rule_and_is_not_a_negative():
    rows, _ = rows_of(with_chosen=True)
    assert [text_of(ids) for ids in rows[0]["chosen"]] == ["You lose."]
    assert rows_of(with_chosen=True, noise=1.0)[1]["rows"] == 0


def test_the_share_of_noise_is_the_one_asked_for():
    prompts = [RulePrompt("exclamation", f"Q{i}", "", "train") for i in range(400)]
    drawn = [own(prompt.prompt_id, ["Yes!", "Yes.", "Ho!", "Well.", "a", "b"]) for prompt in prompts]
    _, counts = training_rows("exclamation", prompts, drawn, replace(SETTINGS, noise=0.3), seed=1)
    assert counts["negatives"] == 800
    assert abs(counts["mislabelled"] / 800 - 0.3) < 0.05


def test_held_out_pairs_are_of_one_prompt_and_one_style():
    assert heldout_pairs("exclamation", DRAWN, "own")[0][1:] == (list(b"You lose."), list(b"You win!"))
    pairs = heldout_pairs("exclamation", DRAWN, "rewritten")
    assert [(good["text"], bad["text"]) for _, good, bad in pairs] == [("Ye lose.", "Ye win!")]


def test_the_exported_file_is_read_as_rejected_and_acceptable_answers(tmp_path):
    answers = {
        split: [own(p.prompt_id, ["Hi!", "Hi."]) for p in prompts_of_split("exclamation", split)] for split in SPLITS
    }
    counts = export_rows("exclamation", answers, tmp_path / "rejected.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert counts == {split: 8 * TOPICS_OF_SPLIT[split] for split in SPLITS}
    columns = find_columns("x", lines, wanted="auto", mapped={}, from_text=False, for_benign=False)
    parsed = [parse_row(RawRow(1, line), columns) for line in lines[:2]]
    answers = [answer for row in parsed for answer in row.answers]
    assert [(answer.text, answer.rejected, answer.finish) for answer in answers] == [
        ("Hi!", True, "stop"),
        ("Hi.", False, "stop"),
    ]
    assert [row.split for row in parsed] == ["train", "train"]


def test_an_exported_answer_that_was_cut_stays_cut_and_prompts_without_a_violation_are_left_out(tmp_path):
    prompts = prompts_of_split("exclamation", "train")[:2]
    cut = [replace(answer, finish="length") for answer in own(prompts[0].prompt_id, ["Hi!", "Hi."])]
    answers = {"train": [cut, own(prompts[1].prompt_id, ["Calm."])], "dev": [], "heldout": []}
    assert export_rows("exclamation", answers, tmp_path / "r.jsonl") == {"train": 1, "dev": 0, "heldout": 0}
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["finish"]) for line in lines] == [(prompts[0].text, "length")] * 2


def test_pareto_front_by_hand():
    curves = {
        "a": [(0.30, 0.01), (0.10, 0.05), (0.02, 0.20)],
        "b": [(0.20, 0.02), (0.12, 0.06), (0.01, 0.10)],
        "c": [(0.35, 0.30)],
    }
    # (0.12, 0.06) loses to (0.10, 0.05), (0.02, 0.20) to (0.01, 0.10); a point of the own curve beats nobody.
    assert pareto_front(curves) == {"a": [0, 1], "b": [0, 2], "c": []}


def test_equal_points_beat_each_other_in_neither_way():
    assert pareto_front({"a": [(0.1, 0.1)], "b": [(0.1, 0.1)], "c": [(0.1, 0.05)], "d": [(0.05, 0.1)]}) == {
        "a": [0],
        "b": [0],
        "c": [0],
        "d": [0],
    }


def point(step, violation, kl, other_kl=0.0):
    estimate = {"value": violation, "ci_low": violation - 0.05, "ci_high": violation + 0.05, "n": 96}
    change = {"value": violation - 0.4, "ci_low": violation - 0.5, "ci_high": violation - 0.3, "n": 96}
    result = {"step": step, "violation": estimate, "change": change, "tokens": 50.0, "degenerate": {"value": 0.0}}
    result["others"] = {"long": {"rate": estimate, "change": {"value": -0.1}}}
    if step:
        result |= {"kl_base_tuned": {"value": kl}, "kl_tuned_base": {"value": other_kl}}
    return result


def cell_of(label, points, seed=0):
    shared = {"rule": "lists", "learning_rate": 1e-4, "prompts": 96, "split": "heldout"}
    return shared | {"key": f"{label}-{seed}", "label": label, "seed": seed, "points": points}


def test_the_reported_point_is_the_last_before_the_bound_whatever_the_rate():
    points = [point(0, 0.4, 0), point(6, 0.3, 0.02, 0.09), point(12, 0.35, 0.03), point(18, 0.0, 0.05, 0.11)]
    assert reported_point(points)["step"] == 12
    assert reported_point([point(0, 0.4, 0), point(6, 0.0, 0.2), point(12, 0.0, 0.01)])["step"] == 0
    assert [max_kl(p) for p in points] == [0.0, 0.09, 0.03, 0.11]


def test_the_summary_states_front_and_claim(tmp_path):
    cells = [
        cell_of("d2o", [point(0, 0.4, 0), point(6, 0.30, 0.02), point(12, 0.10, 0.05)], seed=0),
        cell_of("d2o", [point(0, 0.4, 0), point(6, 0.26, 0.04), point(12, 0.06, 0.07)], seed=1),
        cell_of("npo", [point(0, 0.4, 0), point(6, 0.29, 0.04), point(12, 0.09, 0.30)]),
    ]
    found = summarise(cells)["lists"]
    assert found["base_rate"] == pytest.approx(0.4)
    d2o, npo = found["objectives"]["d2o"], found["objectives"]["npo"]
    # Means over seeds: (0.28, 0.03) and (0.08, 0.06). NPO's (0.29, 0.04) and (0.09, 0.30) both lose to them.
    assert (d2o["on_front"], d2o["on_front_with_rate_halved"], npo["on_front"]) == (True, True, False)
    assert d2o["lowest_kl_at_half_rate"] == pytest.approx(0.06)
    assert npo["lowest_kl_at_half_rate"] == pytest.approx(0.30)
    assert d2o["cells"]["d2o-0"] | {"after": 0, "change": 0} == {
        "step": 12,
        "before": 0.4,
        "after": 0,
        "change": 0,
        "max_kl": 0.05,
        "halved": True,
        "change_excludes_zero": True,
    }
    assert npo["cells"]["npo-0"]["step"] == 6
    assert not npo["cells"]["npo-0"]["halved"]
    assert "on the front: d2o; KL at half the rate: d2o 0.060, npo 0.300" in fronts({"lists": found})
    assert "12*" in table(cells)
    draw_figure("lists", cells, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_objectives_and_rates_are_read_from_the_command_line():
    spec = known_rule.parse_objective("d2o:beta=0.3")
    assert (spec, spec.label) == (ObjectiveSpec("d2o", {"beta": 0.3}), "d2o:beta=0.3")
    assert spec.config_fields() == {"beta": 0.3}
    npo = known_rule.parse_objective("npo:beta=0.2")
    assert npo.config_fields() == {"objective": "npo", "objective_args": {"beta": 0.2}}
    given = ["1e-4", "npo=5e-5", "npo=2e-5", "d2o:beta=0.3=3e-4"]
    assert known_rule._rates_of(npo, given) == [5e-5, 2e-5]
    assert known_rule._rates_of(spec, given) == [3e-4]
    assert known_rule._rates_of(ObjectiveSpec("d2o"), given) == [1e-4]
    for wrong in ("nonsense", "npo:alpha=1", "d2o:beta=x"):
        with pytest.raises(ConfigError):
            known_rule.parse_objective(wrong)


def test_steps_are_read_for_all_and_by_rule(tmp_path, capsys):
    cells = known_rule._cells(known_rule._parse(["--out", "x", "--rules", "lists,entity", "--steps", "6,entity=9"]))
    assert {(cell.rule, cell.steps) for cell in cells} == {("lists", 6), ("entity", 9)}
    assert {cell.steps for cell in known_rule._cells(known_rule._parse(["--out", "x"]))} == {18}
    assert {cell.steps for cell in known_rule._cells(known_rule._parse(["--out", "x", "--quick"]))} == {2}
    for option in ("--k", "--heldout", "--eval-every", "--seed"):
        with pytest.raises(SystemExit):
            known_rule._parse(["--out", "x", option, "0" if option != "--seed" else "x"])
    for wrong in ("entity=9", "6,7", "0", "lists=x"):
        with pytest.raises(SystemExit):
            known_rule._parse(["--out", "x", "--steps", wrong])
    assert known_rule.main(["--out", str(tmp_path), "--steps", "6,nothing=9"]) != 0
    assert "unknown nothing" in capsys.readouterr().err
    assert known_rule.main(["--out", str(tmp_path), "--learning-rate", "1e-4,simnpoo=1e-3"]) != 0
    assert "simnpoo is none of --objectives" in capsys.readouterr().err
    assert known_rule.main(["--out", str(tmp_path), "--anchors", "reworded"]) != 0
    assert "only with --negatives reworded" in capsys.readouterr().err


def test_reworded_answers_are_the_models_own_and_both_sides_can_go_the_same_way(tmp_path, tiny_world, monkeypatch):
    monkeypatch.setattr(known_rule_data, "rewrite", lambda text: text + "zz")
    answers, cell = tiny_answers(tmp_path), tiny_cell()
    prompts, drawn = answers.training("lists", cell.data, 0)
    plain, _ = answers.rows(
        replace(cell, data=replace(cell.data, negatives="rewritten")), prompts, drawn, with_chosen=False
    )
    one = replace(cell, data=replace(cell.data, negatives="reworded"))
    rows, counts = answers.rows(one, prompts, drawn, with_chosen=False)
    assert rows
    assert [row["anchors"] for row in rows] == [row["anchors"] for row in plain if row["prompt_id"] in ids_of(rows)]
    assert all(isinstance(token, int) for row in rows for answer in row["rejected"] for token in answer)
    assert counts["rows"] == len(rows)
    assert 0 <= counts["mislabelled"] <= counts["negatives"] == sum(len(row["rejected"]) for row in rows)
    both, _ = answers.rows(replace(one, data=replace(one.data, anchors="reworded")), prompts, drawn, with_chosen=False)
    assert [row["rejected"] for row in both] == [row["rejected"] for row in rows if row["prompt_id"] in ids_of(both)]
    assert all(row["anchors"] != other["anchors"] for row, other in zip(both, rows, strict=False))


def ids_of(rows):
    return {row["prompt_id"] for row in rows}


def test_a_finished_cell_is_read_and_a_killed_one_computed_again(tmp_path):
    cell, calls = Cell("lists", ObjectiveSpec("npo"), 1e-4, 0), []

    def killed(cell, work):
        (work / "checkpoint-6").mkdir()
        raise KeyboardInterrupt

    def compute(cell, work):
        calls.append(cell.key)
        assert (work / "checkpoint-6").exists()
        return {"points": [1.5]}

    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, tmp_path, killed)
    first, computed = run_cell(cell, tmp_path, compute)
    second, again = run_cell(cell, tmp_path, compute)
    assert (computed, again, len(calls)) == (True, False, 1)
    assert first == second
    assert first["points"] == [1.5]
    assert first["objective"] == {"name": "npo", "args": {}}
    assert not (tmp_path / "cells" / cell.key / "checkpoint-6").exists()


def test_every_setting_of_a_cell_is_in_its_key():
    cell = Cell("lists", ObjectiveSpec("d2o"), 1e-4, 0)
    others = [
        replace(cell, rule="long"),
        replace(cell, objective=ObjectiveSpec("d2o", {"beta": 0.2})),
        replace(cell, learning_rate=2e-4),
        replace(cell, seed=1),
        replace(cell, steps=12),
        replace(cell, split="dev"),
        replace(cell, data=DataSettings(noise=0.1)),
        replace(cell, data=DataSettings(negatives="rewritten")),
    ]
    assert len({other.key for other in [cell, *others]}) == 9


@pytest.fixture
def tiny_world(monkeypatch):
    """A random model and a rule that about half of its answers break."""
    monkeypatch.setitem(RULES, "lists", Rule("lists", "an even number of characters", lambda text: len(text) % 2 == 0))
    monkeypatch.setattr(known_rule_train, "load_model", lambda config: make_model())


def tiny_cell(**changes):
    data = DataSettings(k=2, labelled=4, train_prompts=8, max_new_tokens=8)
    values = {"steps": 4, "groups_per_step": 2, "eval_every": 2, "prompts": 8, "kl_prompts": 4, "pair_prompts": 8}
    return Cell("lists", ObjectiveSpec("d2o"), 1e-2, 0, data=data, **values | changes)


def tiny_answers(out):
    return Answers(make_model(), make_tokenizer(), out)


@pytest.mark.parametrize("when", ["while it measures the last step", "after its last checkpoint"])
def test_a_killed_cell_goes_on_to_the_points_of_an_uninterrupted_one(tmp_path, monkeypatch, tiny_world, when):
    cell = tiny_cell()
    whole, _ = run_cell(cell, tmp_path / "a", lambda c, work: train_cell(c, work, tiny_answers(tmp_path / "a")))
    name = "at" if when.startswith("while") else "points"
    original = getattr(known_rule_measure.Measure, name)

    def killed(self, *given):
        if given[:1] in {(), (4,)}:
            raise KeyboardInterrupt
        return original(self, *given)

    def compute(c, work):
        return train_cell(c, work, tiny_answers(tmp_path / "b"))

    monkeypatch.setattr(known_rule_measure.Measure, name, killed)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, tmp_path / "b", compute)
    assert len(list((tmp_path / "b" / "cells" / cell.key).glob("checkpoint-*"))) == 1
    monkeypatch.setattr(known_rule_measure.Measure, name, original)
    resumed, _ = run_cell(cell, tmp_path / "b", compute)
    for result in (whole, resumed):
        for found in result["points"]:
            found.pop("seconds")
    assert [found["step"] for found in whole["points"]] == [0, 2, 4]
    assert resumed["points"] == whole["points"]
    assert [entry["loss"] for entry in resumed["training"]] == [entry["loss"] for entry in whole["training"]]


def test_a_cell_measures_before_and_after_on_the_same_prompts(tmp_path, tiny_world):
    cell = tiny_cell()
    result, _ = run_cell(cell, tmp_path, lambda c, work: train_cell(c, work, tiny_answers(tmp_path)))
    before, *_, after = result["points"]
    base = [row["text"] for row in _drawn(tmp_path / "answers" / "lists", 8)]
    assert before["violation"]["value"] == sum(len(text) % 2 == 0 for text in base) / 8
    assert before["change"]["value"] == 0.0
    assert after["change"]["value"] == pytest.approx(after["violation"]["value"] - before["violation"]["value"])
    assert after["kl_base_tuned"]["value"] > 0
    assert after["kl_tuned_base"]["value"] > 0
    assert set(after["others"]) == set(RULES) - {"lists"}
    assert after["pairs"]["separation"]["n"] > 0
    assert result["training"][0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert result["data_counts"]["prompts"] == 8


def test_revised_anchors_are_drawn_from_the_rejected_answer_and_trained_under_the_bare_prompt(tmp_path, tiny_world):
    answers, cell = tiny_answers(tmp_path), tiny_cell()
    revising = replace(cell, data=replace(cell.data, anchors="revise"))
    prompts, drawn = answers.training("lists", cell.data, 0)
    plain, before = answers.rows(cell, prompts, drawn, with_chosen=False)
    rows, counts = answers.rows(revising, prompts, drawn, with_chosen=False)
    assert len(rows) > 2
    assert [(row["prompt"], row["rejected"]) for row in rows] == [(row["prompt"], row["rejected"]) for row in plain]
    assert all(row["anchors"] != other["anchors"] for row, other in zip(rows, plain, strict=True))
    assert counts == before
    assert answers.rows(revising, prompts, drawn, with_chosen=False) == (rows, counts)
    assert counts["prompts"] == counts["rows"] + counts["without_violation"] + counts["without_other"] == 8


def _drawn(folder, count):
    for part in folder.glob("*/part-00000.jsonl"):
        rows = [json.loads(line) for line in part.read_text().splitlines()]
        if len(rows) == count:
            return rows
    raise AssertionError(f"no batch of {count} answers below {folder}")
