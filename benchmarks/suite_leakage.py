"""How many prompts of suites would also occur in training, if these conversations were trained on.

    python -m benchmarks.suite_leakage hh-rlhf/harmless-base-test.jsonl.gz --suite xstest_prompts.csv
        --suite '{path: SimpleSafetyTests.csv, kind: safety, prompt_column: prompts_final}'
        --threshold 0.7 --threshold 0.5

The training file has HH-RLHF's columns; its prompts are what stands before the last answer of `rejected`.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from naysay.config import load_config
from naysay.errors import NaysayError
from naysay.evaluation.leakage import find_leaks
from naysay.evaluation.suites import read_suites
from naysay.inputs.conversations import RowError, split_conversation
from naysay.inputs.readers import RowReader


def main(arguments: Sequence[str] | None = None) -> int:
    """Print exact and near matches of each suite, at each threshold."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite_leakage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trained", type=Path, help="a file of transcripts in the column rejected")
    parser.add_argument("--suite", action="append", required=True, help="a path, or settings as in evaluation.suites")
    parser.add_argument("--threshold", action="append", type=float, help="least similarity of near ones (0.7)")
    given = parser.parse_args(arguments)
    settings = [text if text.startswith("{") else f"{{path: {text}}}" for text in given.suite]
    try:
        trained = [split_conversation(row.value["rejected"], "rejected")[0] for row in RowReader(given.trained)]
        config = load_config(overrides=[f"evaluation.suites=[{', '.join(settings)}]"])
        suites = read_suites(config.evaluation.suites)
    except (NaysayError, RowError, KeyError, TypeError) as error:
        print(f"suite_leakage: {error}", file=sys.stderr)
        return 2
    print(f"{len(trained):,} training prompts")
    for threshold in given.threshold or [config.data.near_duplicate_threshold]:
        for suite in suites:
            leaks = find_leaks([prompt.messages for prompt in suite.prompts], trained, threshold=threshold)
            found = Counter(leaks)
            print(f"{threshold:g}  {suite.name}: {len(leaks)} prompts, {found['exact']} exact, {found['near']} near")
    return 0


if __name__ == "__main__":
    sys.exit(main())
