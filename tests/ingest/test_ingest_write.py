"""Records go to the split that each prompt has in the end, whichever was likely."""

from pathlib import Path

import numpy as np
import orjson
import pytest

from naysay.artifacts.spill import PackWriter, Piece
from naysay.ingest.gather import LENGTHS, NEGATIVES, PROMPTS, record_end
from naysay.ingest.split import DEV, HELDOUT, LEFT_OUT, NEAR_DUPLICATE, SPLITS, TRAIN
from naysay.ingest.write import write_records

KIND = '"split":"dev","kind":"x"}'


def lay_aside(folder: Path, name: str, records: list[bytes], likely: list[int], writer: int) -> dict[str, Piece]:
    """As `gather` does: ordered by the likely split, lengths in the order of the ids."""
    order = sorted(range(len(records)), key=likely.__getitem__)
    data, sizes = PackWriter(folder, name, writer), PackWriter(folder, name + LENGTHS, writer)
    pieces = {
        name: data.append(b"".join(records[place] for place in order)),
        name + LENGTHS: sizes.append(np.array([len(item) for item in records], np.uint32).tobytes()),
    }
    data.close()
    sizes.close()
    return pieces


@pytest.mark.parametrize("name", [PROMPTS, NEGATIVES])
def test_moved_and_removed_prompts(tmp_path: Path, name: str) -> None:
    draw = np.random.default_rng(1)
    pieces, likely, final, expected = [], [], [], {split: [] for split in SPLITS}
    for bucket, count in enumerate((0, 1, 40, 40, 3)):
        # Mostly what was likely, so that there are stretches.
        before = draw.choice([TRAIN, DEV, HELDOUT], count)
        other = draw.choice([TRAIN, DEV, HELDOUT, NEAR_DUPLICATE, LEFT_OUT], count)
        after = np.where(draw.random(count) < 0.8, before, other)
        records = []
        for place, code in enumerate(before.tolist()):
            end = record_end(SPLITS[code], orjson.dumps(KIND))
            answers = b'{"id":"%d-%d","text":"a"}\n' % (bucket, place) * (place % 3)
            records.append(b'{"id":"%d-%d","split":"' % (bucket, place) + end if name == PROMPTS else answers)
            if after[place] <= HELDOUT:
                row = {"id": f"{bucket}-{place}", "split": SPLITS[after[place]], "kind": KIND}
                answer = {"id": row["id"], "text": "a"}
                expected[SPLITS[after[place]]] += [row] if name == PROMPTS else [answer] * (place % 3)
        pieces.append(lay_aside(tmp_path, name, records, before.tolist(), bucket % 2))
        likely.append(before.astype(np.uint8))
        final.append(after.astype(np.uint8))
    path = tmp_path / "out.jsonl"
    count = write_records(path, tmp_path, name, pieces, likely, final)
    rows = [row for split in SPLITS for row in expected[split]]
    assert [orjson.loads(line) for line in path.read_bytes().splitlines()] == rows
    assert count == len(rows)
