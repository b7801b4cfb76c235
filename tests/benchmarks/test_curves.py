"""The picture of cost against size: every measured point is drawn, in the panel of its size."""

from benchmarks import curves
from naysay.artifacts.store import write_json


def point(axis, ours, seconds, **case):
    sizes = {"prompt": 128, "answer": 64, "k": 8, "vocabulary": None, **case}
    return {"axis": axis, "ours": ours, "seconds": seconds, "peak_gb": seconds / 2, "case": sizes}


POINTS = [
    point("K", "naysay", 1.0, k=1),
    point("K", "naysay", 3.0, k=4),
    point("K", "naysay, 100 tokens", 5.0, k=4),
    point("P", "naysay", 2.0, prompt=16),
    point("R", "naysay", 9.0, answer=32),
    point("V", "naysay", 4.0, vocabulary=100),
]


def lines(axes):
    return {line.get_label(): [list(values) for values in line.get_data()] for line in axes.get_lines()}


def test_every_point_is_drawn_and_none_is_cut_off():
    figure = curves.draw(POINTS)
    seconds, memory = figure.axes[:4], figure.axes[4:]
    assert lines(seconds[0]) == {"100 tokens at a time": [[1, 4], [1.0, 5.0]], "all at once": [[1, 4], [1.0, 3.0]]}
    assert lines(memory[3]) == {"all at once": [[100], [2.0]]}
    assert seconds[0].get_ylim()[1] >= 9.0
    assert seconds[2].get_ylim()[0] == 0.0
    assert [axes.get_xlabel() for axes in memory] == [
        "K, anchors",
        "P, prompt tokens",
        "R, answer tokens",
        "V, vocabulary",
    ]


def test_rows_have_a_column_of_their_own():
    ingest = [
        {"rows": 10_000, "seconds": 0.2, "orjson_seconds": 0.01, "peak_bytes": [4e8, 0]},
        {"rows": 1_000_000, "seconds": 9.0, "orjson_seconds": 0.8, "peak_bytes": [5e8, 4e8]},
    ]
    seconds, memory = curves.draw(POINTS, ingest).axes[8:]
    assert lines(seconds) == {"ingest": [[0.01, 1.0], [0.2, 9.0]], "orjson alone": [[0.01, 1.0], [0.01, 0.8]]}
    assert [list(values) for values in memory.get_lines()[0].get_data()] == [[0.01, 1.0], [0.4, 0.9]]


def test_the_picture_is_written(tmp_path):
    results, picture = tmp_path / "results.json", tmp_path / "curves.png"
    write_json(results, {"size": POINTS})
    curves.main([str(results), str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
