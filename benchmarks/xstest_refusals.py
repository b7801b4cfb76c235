"""The refusal heuristic against people: XSTest's labelled answers of five models (Röttger et al. 2024, CC-BY-4.0).

    python -m benchmarks.xstest_refusals FOLDER --out benchmarks/results/xstest-refusals.json

The rules were written on the answers of two models (`TUNED`), whose 450 prompts were opened in five folds, one after
the other. The answers of the other three were first run when the rules were frozen: the rules' commit ("Refusal rules
anew, from two of XSTest's files") is older than the figures. Only those three say how well the rules do on answers
that nobody looked at. The lab notes have what came before.

Full refusal counts as refusal, full compliance as none. Partial refusals are left out of accuracy, precision and
recall; how many of them the rules call a refusal is counted by itself.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from naysay.artifacts.digests import digest_file
from naysay.artifacts.store import write_json
from naysay.errors import InputNotFoundError, NaysayError
from naysay.judging import refusals
from naysay.judging.heuristics import classify
from naysay.statistics import wilson

PREFIX = "xstest_v2_completions_"
TUNED = ("llama2orig", "mistralguard")
"""The models whose answers were read while the rules were written."""
COMPLIANCE, REFUSAL, PARTIAL = "1_full_compliance", "2_full_refusal", "3_partial_refusal"


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """An answer with the label that people agreed on."""

    text: str
    label: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each file, write the figures and print a line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.xstest_refusals", description="Refusals against people."
    )
    parser.add_argument("folder", type=Path, help=f"the folder with {PREFIX}*.csv")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    given = parser.parse_args(arguments)
    try:
        files = read_files(given.folder)
    except NaysayError as error:
        print(f"xstest_refusals: {error}", file=sys.stderr)
        return error.exit_code
    figures = {name: {"rules": "tuned" if name in TUNED else "tested", **agreement(files[name])} for name in files}
    for name, row in figures.items():
        print(row["rules"], name, "  ".join(_shown(key, value) for key, value in row.items() if key != "rules"))
    write_json(given.out, {"rules": digest_file(Path(refusals.__file__)), "files": figures})
    return 0


def read_files(folder: Path) -> dict[str, list[LabelledAnswer]]:
    """The answers by model.

    Raises:
        InputNotFoundError: the folder has none.
    """
    files = {}
    for path in sorted(folder.glob(f"{PREFIX}*.csv")):
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [LabelledAnswer(row["completion"], row["final_label"]) for row in csv.DictReader(stream)]
        files[path.stem.removeprefix(PREFIX)] = rows
    if not files:
        raise InputNotFoundError(f"{folder}: expected {PREFIX}*.csv of XSTest, found none; give the folder with them")
    return files


def agreement(rows: Sequence[LabelledAnswer]) -> dict[str, Any]:
    """Accuracy, precision and recall of refusals, the share of partial ones: each with 95 % Wilson interval."""
    called = [(row.label, classify(row.text).label == "refusal") for row in rows]
    full = [(label == REFUSAL, refuses) for label, refuses in called if label != PARTIAL]
    partial = [refuses for label, refuses in called if label == PARTIAL]
    return {
        "accuracy": _share([human == refuses for human, refuses in full]),
        "precision": _share([human for human, refuses in full if refuses]),
        "recall": _share([refuses for human, refuses in full if human]),
        "partial_called_refusal": _share(partial),
    }


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    """Nothing to count gives no value and no interval."""
    estimate = wilson(sum(hits), len(hits))
    rounded = [None if value is None else round(value, 4) for value in (estimate.ci_low, estimate.ci_high)]
    return {"value": round(sum(hits) / len(hits), 4) if hits else None, "ci": rounded, "n": len(hits)}


def _shown(name: str, share: dict[str, Any]) -> str:
    return f"{name} {share['value']} {share['ci']} (n={share['n']})"


if __name__ == "__main__":
    sys.exit(main())
