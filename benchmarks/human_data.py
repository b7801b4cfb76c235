"""Turn a public data set of human labels into a file that naysay reads.

    python -m benchmarks.human_data diasafety FOLDER rejected.jsonl

DiaSafety (thu-coai/DiaSafety): answers to a message, each called safe or unsafe by people. Only contexts that have both
kinds are written, so that a held-out prompt has an acceptable answer beside the rejected one. HH-RLHF needs no
conversion: naysay reads its files as they are.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from naysay.artifacts.store import write_jsonl
from naysay.errors import InputNotFoundError, NaysayError

FILES = ("train.json", "val.json", "test.json")
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one data set, and say how many prompts and answers were written."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.human_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=("diasafety",))
    parser.add_argument("folder", type=Path, help=f"the folder with {', '.join(FILES)}")
    parser.add_argument("out", type=Path, help="a .jsonl file with prompt, completion, label and category")
    given = parser.parse_args(arguments)
    try:
        rows = with_both_labels(row for name in FILES for row in _read(given.folder / name))
    except NaysayError as error:
        print(f"human_data: {error}", file=sys.stderr)
        return error.exit_code
    write_jsonl(given.out, rows)
    rejected = sum(not row["label"] for row in rows)
    prompts = len({row["prompt"] for row in rows})
    print(f"{given.out}: {prompts} prompts, {rejected} rejected and {len(rows) - rejected} acceptable answers")
    return 0


def with_both_labels(rows: Iterable[Row]) -> list[Row]:
    """DiaSafety's rows as prompt, completion, label (false = unsafe) and category; contexts of one label are left out.

    An answer that stands there twice is written once; one that was called both safe and unsafe is written not at all.
    """
    labels: dict[str, dict[str, set[bool]]] = defaultdict(lambda: defaultdict(set))
    category: dict[str, str] = {}
    for row in rows:
        prompt = row["context"].strip()
        labels[prompt][row["response"].strip()].add(row["label"] == "Safe")
        category[prompt] = row["category"]
    written = []
    for prompt, answers in labels.items():
        agreed = {text: next(iter(given)) for text, given in answers.items() if text and len(given) == 1}
        if len(set(agreed.values())) == 2:
            written += [
                {"prompt": prompt, "completion": text, "label": label, "category": category[prompt]}
                for text, label in agreed.items()
            ]
    return written


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        raise InputNotFoundError(f"{path}: expected a file of DiaSafety, found none; give the folder that has it")
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
