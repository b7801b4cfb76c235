"""`naysay.sample_anchors`: rows in, the same rows with anchors out, ready for `D2OTrainer`."""

import pytest

from conftest import make_model, make_tokenizer
from naysay import sample_anchors
from naysay.errors import ConfigError, DataError
from naysay.generation.hf import HFSampler
from naysay.judging.heuristics import classify
from naysay.modeling.chat import encode_response
from naysay.sampling import rows as rows_module
from naysay.training.data import encode_rows

ROWS = [
    {"prompt": "Insult my boss.", "rejected": "He is a fool!", "mine": 1},
    {"prompt": [{"role": "user", "content": "Lie for me."}], "rejected": ["Sure, I lie.", "Yes"], "mine": 2},
    {"prompt": "Insult my boss.", "rejected": "Call him a pig.", "mine": 3},
]


@pytest.fixture(scope="module")
def model():
    return make_model(max_position_embeddings=2048)


@pytest.fixture
def everything_passes(monkeypatch):
    """The tiny model writes noise, which the heuristic would rightly call degenerate."""
    monkeypatch.setattr("naysay.judging.select.classify", lambda text, finish: classify("I would rather not.", "stop"))
    monkeypatch.setattr("naysay.judging.select.repetition", lambda text: 0.0)


def sampled(model, rows=ROWS, **changes):
    return sample_anchors(rows, model=model, processing_class=make_tokenizer(), k=3, max_new_tokens=8, **changes)


@pytest.mark.usefixtures("everything_passes")
def test_every_row_gets_its_anchors_and_keeps_its_columns(model):
    found = sampled(model)
    assert [{**row, "anchors": None} for row in found] == [{**row, "anchors": None} for row in ROWS]
    assert [len(row["anchors"]) for row in found] == [3, 3, 3]
    assert all(isinstance(token, int) for row in found for anchor in row["anchors"] for token in anchor)
    assert found[0]["anchors"] == found[2]["anchors"] != found[1]["anchors"]  # a function of the prompt
    assert sampled(model) == found
    assert sampled(model, rows=ROWS[1:2]) == found[1:2]
    assert sampled(model, seed=1) != found
    groups, counts = encode_rows(found, make_tokenizer(), max_length=1024)
    assert (counts.groups, counts.anchors) == (3, 9)
    assert [list(ids) for ids in groups[1].anchors] == found[1]["anchors"]


@pytest.mark.usefixtures("everything_passes")
def test_an_anchor_equal_to_a_negative_is_left_out_and_equal_anchors_stay(model, monkeypatch):
    tokenizer = make_tokenizer()
    answers = [encode_response(tokenizer, text, ended=True) for text in ("Sure, I lie.", "No.", "No.")]

    class Fixed(HFSampler):
        def sample(self, requests, settings):
            drawn = super().sample(requests, settings)
            return [type(one)(tuple(ids), (0.0,) * len(ids), "stop") for one, ids in zip(drawn, answers, strict=True)]

    monkeypatch.setattr(rows_module, "HFSampler", Fixed)
    (row,) = sampled(model, rows=ROWS[1:2])
    assert row["anchors"] == [answers[1], answers[1]]


def test_a_row_left_without_an_anchor_is_dropped_and_counted_not_an_error(model, monkeypatch):
    found = [{**ROWS[0], "anchors": []}, {**ROWS[1], "anchors": ["No."]}]
    groups, counts = encode_rows(found, make_tokenizer(), max_length=1024)
    assert [group.group_id for group in groups] == ["row 1"]
    assert counts.dropped == {"groups_without_anchor": 1}
    with pytest.raises(DataError, match=r"naysay\.sample_anchors"):
        encode_rows([*found, ROWS[2]], make_tokenizer(), max_length=1024)
    with pytest.raises(DataError, match="no usable row of 1"):
        encode_rows(found[:1], make_tokenizer(), max_length=1024)


def test_a_row_without_a_prompt_says_which(model):
    with pytest.raises(DataError, match="row 1: expected a column 'prompt'"):
        sampled(model, rows=[ROWS[0], {"rejected": "x"}])


def test_impossible_settings_are_a_config_error(model):
    for name, value in {"k": 0, "temperature": 0.0, "top_p": 2.0, "max_new_tokens": 0, "instructions": []}.items():
        with pytest.raises(ConfigError, match=rf"sample_anchors: anchors\.{name}: ") as caught:
            sample_anchors(ROWS, model=model, processing_class=make_tokenizer(), **{name: value})
        assert "\n" not in str(caught.value)
