"""The refusal heuristic against people: XSTest's labelled answers of five models (Röttger et al. 2024, CC-BY-4.0).

    python -m benchmarks.xstest_refusals FOLDER --out benchmarks/results/xstest-refusals.json

The rules were written with all five files in view, so their accuracy alone does not say how they do on answers that
nobody looked at. The second part does, as far as it can be told afterwards: for every two of the five files, each
phrase that these two do not need is taken out of the rules, and what is left is measured on the other three. It takes
half a minute a pair; a run that was stopped goes on after the pairs in its file.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from naysay.artifacts.digests import digest_file
from naysay.artifacts.store import read_json, write_json
from naysay.errors import InputNotFoundError, NaysayError
from naysay.judging import heuristics
from naysay.statistics import wilson

PREFIX = "xstest_v2_completions_"
COMPLIANCE, REFUSAL, PARTIAL = "1_full_compliance", "2_full_refusal", "3_partial_refusal"
RULES = ("_DECLINES", "_APOLOGISES", "_DISAPPROVES")


@dataclass(frozen=True, slots=True)
class LabelledAnswer:
    """An answer with the label that people agreed on."""

    text: str
    label: str


Files = Mapping[str, Sequence[LabelledAnswer]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both parts, write the file and print a line for each row."""
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
    accuracy = {name: file_accuracy(rows) for name, rows in files.items()}
    for name, row in accuracy.items():
        print(name, "  ".join(f"{key} {value}" for key, value in row.items()))
    rules = digest_file(Path(heuristics.__file__))
    known = read_json(given.out) if given.out.exists() else {}
    pairs = known["pairs"] if known.get("rules") == rules else []
    for pair in map(list, combinations(files, 2)):
        if pair not in [row["tuned_on"] for row in pairs]:
            rest, kept, taken = pruned_accuracy(files, pair)
            pairs.append({"tuned_on": pair, "phrases_kept": kept, "phrases_taken_out": taken, "accuracy": rest})
            print(" + ".join(pair), f"{taken} of {kept + taken} phrases out;", rest, flush=True)
            write_json(given.out, {"rules": rules, "files": accuracy, "pairs": pairs})
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


def file_accuracy(rows: Sequence[LabelledAnswer]) -> dict[str, Any]:
    """Agreement on full compliance and full refusal, and how partial refusals are classed."""
    full = [row for row in rows if row.label != PARTIAL]
    right = _right(full)
    called = [row for row in full if _refuses(row.text)]
    refusals = [row for row in full if row.label == REFUSAL]
    partial = [row for row in rows if row.label == PARTIAL]
    estimate = wilson(right, len(full))
    return {
        "accuracy": round(right / len(full), 4),
        "ci": [round(estimate.ci_low or 0.0, 4), round(estimate.ci_high or 0.0, 4)],
        "n": len(full),
        "precision": round(sum(row.label == REFUSAL for row in called) / len(called), 4),
        "recall": round(sum(_refuses(row.text) for row in refusals) / len(refusals), 4),
        "partial": len(partial),
        "partial_called_refusal": sum(_refuses(row.text) for row in partial),
    }


def pruned_accuracy(files: Files, pair: Sequence[str]) -> tuple[dict[str, float], int, int]:
    """Accuracy on the other files with only those phrases that leave every label of the pair as it is.

    Returns it by file, with the number of phrases that stayed and that were taken out.
    """
    own = {name: getattr(heuristics, name) for name in RULES}
    # Of degenerate answers these rules are never asked.
    texts = [row.text for name in pair for row in files[name] if heuristics.classify(row.text).label != "degenerate"]
    wanted = [_declines(text) for text in texts]

    def unchanged() -> bool:
        return all(_declines(text) == label for text, label in zip(texts, wanted, strict=True))

    try:
        for name in RULES:
            setattr(heuristics, name, re.compile(_pruned(name, unchanged)))
        rest = {name: _accuracy(rows) for name, rows in files.items() if name not in pair}
        kept = sum(len(alternatives(getattr(heuristics, name).pattern)) for name in RULES)
    finally:
        for name, rule in own.items():
            setattr(heuristics, name, rule)
    return rest, kept, sum(len(alternatives(rule.pattern)) for rule in own.values()) - kept


def alternatives(pattern: str) -> list[tuple[int, int]]:
    """Spans (start, end) of everything between two bars, or a bar and a bracket, of a regular expression: its phrases.

    Groups with one alternative have none. Escapes and character classes are stepped over.
    """
    spans: list[tuple[int, int]] = []
    open_groups: list[list[int]] = [[0]]
    position = 0
    while position < len(pattern):
        match pattern[position]:
            case "\\":
                position += 1
            case "[":
                position = pattern.index("]", position + 2)
            case "(":
                body = re.compile(r"\((?:\?(?:[:=!]|<[=!]))?").match(pattern, position)
                assert body is not None
                position = body.end() - 1
                open_groups.append([position + 1])
            case "|":
                open_groups[-1].append(position + 1)
            case ")":
                spans += _spans(open_groups.pop(), position)
            case _:
                pass
        position += 1
    return spans + _spans(open_groups.pop(), len(pattern))


def _spans(starts: Sequence[int], end: int) -> list[tuple[int, int]]:
    ends = [*(start - 1 for start in starts[1:]), end]
    return list(zip(starts, ends, strict=True)) if len(starts) > 1 else []


def _pruned(name: str, unchanged: Callable[[], bool]) -> str:
    """The rule's pattern without the alternatives, longest first, that change nothing."""
    pattern = getattr(heuristics, name).pattern
    tried: set[str] = set()
    while True:
        spans = sorted(alternatives(pattern), key=lambda span: span[0] - span[1])
        span = next((span for span in spans if _without(pattern, span) not in tried), None)
        if span is None:
            return pattern
        shorter = _without(pattern, span)
        tried.add(shorter)
        setattr(heuristics, name, re.compile(shorter))
        if unchanged():
            pattern = shorter


def _without(pattern: str, span: tuple[int, int]) -> str:
    start, end = span
    bar_before = start > 0 and pattern[start - 1] == "|"
    return pattern[: start - bar_before] + pattern[end if bar_before else end + 1 :]


def _accuracy(rows: Sequence[LabelledAnswer]) -> float:
    full = [row for row in rows if row.label != PARTIAL]
    return round(_right(full) / len(full), 4)


def _right(rows: Sequence[LabelledAnswer]) -> int:
    return sum(_refuses(row.text) == (row.label == REFUSAL) for row in rows)


def _declines(text: str) -> bool:
    """The refusal rules alone, which is all that is pruned: the whole of `classify` takes ten times as long."""
    return heuristics._refusal(text.strip()) is not None


def _refuses(text: str) -> bool:
    return heuristics.classify(text).label == "refusal"


if __name__ == "__main__":
    sys.exit(main())
