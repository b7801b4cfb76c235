"""What went in, what came out, and that the two agree."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from naysay.ingest.merge import Tally
from naysay.ingest.split import NEAR_DUPLICATE, NEAR_TRAINING, SPLITS
from naysay.records import Split


def count(
    tallies: tuple[Tally, Tally],
    repeated: int,
    split: np.ndarray,
    kept: Mapping[Split, int],
    written: Mapping[str, int],
) -> dict[str, Any]:
    """The counts of the stage, nested, JSON-able.

    Args:
        tallies: what the data and the benign file gave.
        repeated: prompts of the benign file that the data file has too.
        split: the code of each prompt, before the limits.
        kept: how many prompts were written, by split.
        written: number of `negatives` and `acceptable` written.
    """
    data, benign = tallies
    answers: Counter[str] = data.answers + benign.answers
    dropped = {key: answers[key] for key in sorted(answers) if key not in ("in", "duplicates_merged")}
    distinct = answers["in"] - answers["duplicates_merged"] - sum(dropped.values())
    number = np.bincount(split, minlength=NEAR_TRAINING + 1).tolist()
    return {
        "rows": data.row_counts(),
        "benign_rows": benign.row_counts(),
        "answers": {
            "in": answers["in"],
            "duplicates_merged": answers["duplicates_merged"],
            "dropped": dropped,
            "left_out": distinct - sum(written.values()),
            **written,
        },
        "prompts": {
            "in": data.prompts + benign.prompts,
            **kept,
            "left_out": {name: number[code] - kept[name] for code, name in enumerate(SPLITS)},
            "near_duplicates_removed": number[NEAR_DUPLICATE],
            "benign_in_training_data": repeated + number[NEAR_TRAINING],
            "benign_from_data": data.prompts - data.with_negatives,
        },
        "chosen_context_differs": data.chosen_context_differs,
        "split_conflicts": data.split_conflicts,
    }


def check_counts(counts: Mapping[str, Any], *, answers_left_out: int, quarantine_entries: int) -> None:
    """Every row, answer and prompt that went in is somewhere.

    Args:
        counts: as `count` gives them.
        answers_left_out: answers of the prompts that were not written, counted one by one.
        quarantine_entries: lines of quarantine.jsonl.

    Raises:
        AssertionError: they do not add up, which is a defect of naysay and not of the data.
    """
    answers, prompts = counts["answers"], counts["prompts"]
    sums = {"prompts": (prompts["in"], _all_but(prompts, "in", "benign_from_data"))}
    sums["answers"] = (answers["in"], _all_but(answers, "in"))
    sums["answers left out"] = (answers["left_out"], answers_left_out)
    entries = 0
    for name in ("rows", "benign_rows"):
        rows = counts[name]
        sums[name] = (rows["in"], rows["used"] + rows["quarantined"])
        sums[f"{name} quarantined"] = (rows["quarantined"], sum(rows["by_reason"].values()))
        entries += rows["quarantined"] + rows["used_in_part"]
    wrong = {name: pair for name, pair in sums.items() if pair[0] != pair[1]}
    # A row may have an entry for each of two reasons, never none.
    if wrong or quarantine_entries < entries:
        raise AssertionError(f"ingest: counts do not add up ({wrong}, {quarantine_entries} entries); please report it")


def _all_but(counts: Mapping[str, Any], *names: str) -> int:
    values = [value for key, value in counts.items() if key not in names]
    return sum(sum(value.values()) if isinstance(value, dict) else value for value in values)
