"""Records go to the split that each prompt has, wherever its rows lay."""

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from naysay.artifacts.digests import digest_json
from naysay.config.data import DataConfig
from naysay.ingest.columns import find_columns
from naysay.ingest.formats import ParsedAnswer, ParsedRow
from naysay.ingest.gather import PROMPTS, Task, gather
from naysay.ingest.rows import ACCEPTABLE, COLUMNS, NEGATIVES, Rows, RowWriter, UsualRows
from naysay.ingest.split import BENIGN, LEFT_OUT, NEAR_DUPLICATE, SPLITS
from naysay.ingest.spread import usual_about
from naysay.ingest.write import write_records

BITS = 2
ABOUT = usual_about(
    find_columns("f", [{"prompt": "", "rejected": ""}], wanted="auto", mapped={}, from_text=False, for_benign=False)
)


def prompt_id(prompt: str) -> str:
    return "p-" + digest_json([{"role": "user", "content": prompt}])[:16]


def lay_aside(folder: Path, prompts: list[str]) -> tuple[Task, list[Any]]:
    """As `ingest` does: usual rows, of which every third prompt has two, and a kind in every fifth."""
    found = []
    for name in ("data", "benign"):
        writers = [RowWriter(folder, name, BITS, writer) for writer in (0, 1)]
        for place, prompt in enumerate(prompts if name == "data" else ()):
            for answer in range(1 + (place % 3 == 0)):
                chosen = f"gladly {place}" if place % 2 else None
                if place % 5 == 0:
                    answers = (ParsedAnswer(f'never "{answer}"', True, "rejected"),)
                    row = ParsedRow(({"role": "user", "content": prompt},), answers, None, '"split":"dev","kind":"x"}')
                    writers[place % 2].add(place + 1, row)
                else:
                    texts = [b"" if text is None else orjson.dumps(text) for text in (f'never "{answer}"', chosen)]
                    rows = UsualRows([place + 1], [orjson.dumps(prompt)], *([text] for text in texts))
                    writers[answer].add_usual(rows)
            if place % 7 == 0:
                writers[place % 2].write_run()
        for writer in writers:
            writer.write_run()
            writer.close()
        indexes = [writer.indexes() for writer in writers]
        found.append(Rows(folder, name, {column: [index[column] for index in indexes] for column in COLUMNS}))
    task = Task(folder, (found[0], found[1]), ("rows.jsonl", "b.jsonl"), (ABOUT, ABOUT), 0, DataConfig(path="x"))
    first, weights = gather([0], task=task, weights=None, writer=0)
    odd, _ = gather([1, 3], task=task, weights=weights, writer=1)
    even, _ = gather([2], task=task, weights=weights, writer=0)
    return task, [*first, odd[0], *even, odd[1]]


@pytest.mark.parametrize("kind", [PROMPTS, NEGATIVES, ACCEPTABLE])
def test_every_split_has_its_records_in_the_order_of_the_ids(tmp_path: Path, kind: str) -> None:
    prompts = [f"Why {n}\n“so”?" for n in range(60)]
    task, buckets = lay_aside(tmp_path, prompts)
    places = sorted(range(60), key=lambda place: prompt_id(prompts[place]))
    codes = np.random.default_rng(1).choice([*range(BENIGN + 1), NEAR_DUPLICATE, LEFT_OUT], 60).astype(np.uint8)
    ends = np.cumsum([bucket.size for bucket in buckets])
    assert ends[-1] == 60
    path = tmp_path / "out.jsonl"
    count = write_records(path, kind, task, [bucket.pieces for bucket in buckets], np.split(codes, ends[:-1]))
    expected: list[Any] = []
    for code, split in enumerate(SPLITS):
        for place in (place for place, its in zip(places, codes, strict=True) if its == code):
            named = prompt_id(prompts[place])
            if kind == PROMPTS:
                of_kind = '"split":"dev","kind":"x"}' if place % 5 == 0 else "benign" if split == "benign" else ""
                expected.append((named, prompts[place], split, of_kind, f"rows.jsonl:{place + 1}"))
            elif kind == NEGATIVES:
                expected += [(named, {f'never "{answer}"' for answer in range(1 + (place % 3 == 0))})]
            elif place % 2 and place % 5:
                expected.append((named, {f"gladly {place}"}))
    rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert count == len(rows)
    if kind == PROMPTS:
        assert [
            (row["prompt_id"], row["messages"][0]["content"], row["split"], row["kind"], row["source"]) for row in rows
        ] == expected
        return
    texts: dict[str, set[str]] = {}
    for row in rows:
        texts.setdefault(row["prompt_id"], set()).add(row["text"])
    assert list(texts.items()) == expected
    assert count == sum(len(found) for _, found in expected)
