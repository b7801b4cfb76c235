"""`ingest`: the user's file of rejected answers -> prompts, negatives and acceptable answers, split by prompt."""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import scratch_folder
from naysay.config import RunConfig
from naysay.errors import DataError
from naysay.ingest import embedded
from naysay.ingest.counts import check_counts, count
from naysay.ingest.gather import PROMPTS
from naysay.ingest.merge import LengthCheck, TokenCounter
from naysay.ingest.near_duplicates import PARTS, NearDuplicates, find_repeated
from naysay.ingest.read import Prompts, read_prompts, second_process
from naysay.ingest.rows import ACCEPTABLE, NEGATIVES
from naysay.ingest.second_process import Result, SecondProcess, share
from naysay.ingest.split import (
    BENIGN,
    DEV,
    HELDOUT,
    LEFT_OUT,
    SPLITS,
    TRAIN,
    group_draws,
    limit_prompts,
    split_prompts,
)
from naysay.ingest.write import FILES, QUARANTINE, write_file
from naysay.inputs.readers import RowReader
from naysay.modeling.chat import template_file
from naysay.records import Split

VERSION = 1


def settings(config: RunConfig) -> dict[str, Any]:
    """What the output depends on besides the files; the model's name and template decide which rows are too long."""
    return {
        "data": config.data.model_dump(mode="json"),
        "seed": config.seed,
        "max_length": config.model.max_length,
        "tokenizer": config.model.model_dump(mode="json", include={"name", "revision", "chat_template"}),
    }


def inputs(config: RunConfig, run: RunDirectory) -> dict[str, Path]:
    """The files of the user, or the embedded one, and the chat template: it decides which rows are too long.

    Raises:
        InputNotFoundError, DataError: a file is missing, empty, a folder or of an unknown kind.
    """
    sources = {"data": embedded.data_source(config), "benign": embedded.benign_source(config)}
    files = {name: RowReader(source.path).path for name, source in sources.items()}
    return {**files, **template_file(config.model)}


def outputs(config: RunConfig, run: RunDirectory) -> list[Path]:
    return [run.prompts, run.negatives, run.acceptable, run.quarantine]


def run(config: RunConfig, run: RunDirectory, *, count_tokens: TokenCounter | None = None) -> dict[str, Any]:
    """Read, group, check, split and write.

    Args:
        config: `data`, `seed` and `model.max_length` are used.
        run: where the records go.
        count_tokens: tokens of a prompt and its answer as the model gets them; None: lengths are not checked.

    Returns:
        Counts that add up.

    Raises:
        InputNotFoundError, DataError: a file cannot be used, or nothing is left to train on.
    """
    sources = embedded.data_source(config), embedded.benign_source(config)
    lengths = None if count_tokens is None else LengthCheck(config.model.max_length, count_tokens)
    with _progress() as progress, scratch_folder(run.ingest_parts) as folder, second_process(sources) as second:
        prompts = read_prompts(config, sources, lengths, folder, _Watch(progress), second)
        with closing(_near_duplicates(config, prompts, folder, second)) as near:
            split = split_prompts(prompts.negatives > 0, prompts.asked, prompts.split_draw, near, config.data)
        kept = _limited(config, prompts, split)
        if not (kept == TRAIN).any():
            raise DataError(_nothing_to_train_on(config, prompts, split))
        counts = _write(config, run, prompts, split, kept, second)
    counts["length_checked"] = count_tokens is not None
    return counts


def _near_duplicates(config: RunConfig, prompts: Prompts, folder: Path, second: SecondProcess | None) -> NearDuplicates:
    odd = _beside(second, find_repeated, folder, range(1, PARTS, 2))
    find_repeated(folder, range(0, PARTS, 2))
    odd()
    threshold = config.data.near_duplicate_threshold
    return NearDuplicates(folder, prompts.shingles, prompts.bucket_sizes, threshold, range(PARTS))


def _limited(config: RunConfig, prompts: Prompts, split: np.ndarray) -> np.ndarray:
    """`split`, with those left out that a limit leaves out."""
    limits = {code: getattr(config.data.limit, name) for code, name in enumerate(SPLITS)}
    if all(limit is None for limit in limits.values()):
        return split
    kept, places = split.copy(), group_draws(config.seed, prompts.groups)
    both = (prompts.negatives > 0) & (prompts.acceptable > 0)
    for code, limit in limits.items():
        if limit is None:
            continue
        chosen = np.flatnonzero(split == code)
        kept[chosen] = LEFT_OUT
        # Prompts that have a rejected and an acceptable answer tell more where answers are compared.
        second = ~both if code in (DEV, HELDOUT) else np.zeros_like(both)
        kept[
            limit_prompts(
                chosen, limit=limit, draw=prompts.limit_draw, group=prompts.group, group_draw=places, second=second
            )
        ] = code
    return kept


def _write(
    config: RunConfig,
    run: RunDirectory,
    prompts: Prompts,
    split: np.ndarray,
    kept: np.ndarray,
    second: SecondProcess | None,
) -> dict[str, Any]:
    paths = {PROMPTS: run.prompts, NEGATIVES: run.negatives, ACCEPTABLE: run.acceptable, QUARANTINE: run.quarantine}
    written = share(
        second,
        write_file,
        FILES,
        paths=paths,
        task=prompts.task,
        pieces=prompts.pieces,
        buckets=np.split(kept, prompts.bucket_ends),
        doubts=[(source.path, tally.doubts) for source, tally in zip(prompts.sources, prompts.tallies, strict=True)],
    )
    of_kind = dict(zip(FILES, written, strict=True))
    answers = {kind: of_kind[kind] for kind in (NEGATIVES, ACCEPTABLE)}
    number = np.bincount(kept, minlength=LEFT_OUT + 1).tolist()
    by_split: dict[Split, int] = {name: number[code] for code, name in enumerate(SPLITS)}
    counts = count(prompts.tallies, prompts.repeated, split, by_split, answers)
    stays, most = kept <= BENIGN, config.data.limit.answers_per_prompt
    left_out = prompts.repeated_answers
    for numbers in (prompts.negatives, prompts.acceptable):
        left_out += int(numbers[~stays].sum())
        if most is not None:
            left_out += int(np.maximum(numbers[stays].astype(np.int64) - most, 0).sum())
    entries = sum(len(tally.doubts) for tally in prompts.tallies)
    check_counts(counts, answers_left_out=left_out, quarantine_entries=entries)
    return counts


def _beside(second: SecondProcess | None, function: Callable[..., Result], *args: Any) -> Callable[[], Result]:
    """Begin a call in the second process, or make it at once where there is none; what is returned gives its result."""
    if second is not None:
        return second.start(function, *args)
    result = function(*args)
    return lambda: result


def _nothing_to_train_on(config: RunConfig, prompts: Prompts, split: np.ndarray) -> str:
    where = config.data.path
    if (split == TRAIN).any():
        return f"{where}: data.limit.train=0 leaves no prompt to train on; set it to 1 or more, or leave it out"
    if not prompts.tallies[0].with_negatives:
        return (
            f"{where}: expected rejected answers, found {prompts.tallies[0].prompts} prompts with acceptable answers "
            "only; naysay learns from what was rejected: check `label` (false = rejected)"
        )
    return f"{where}: every prompt's column `split` says dev or heldout; mark some as train or drop the column"


def _progress() -> Progress:
    return Progress(
        TextColumn("reading {task.fields[name]}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        _Speed(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


class _Speed(TextColumn):
    """Rows read each second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Any:
        self.text_format = f"{task.fields['rows'] / task.elapsed:,.0f} rows/s" if task.elapsed else ""
        return super().render(task)


class _Watch:
    """Shows how far a reader has come, and how many rows are read."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.tasks: dict[Path, TaskID] = {}
        self.rows: Counter[Path] = Counter()

    def __call__(self, reader: RowReader, rows: int) -> None:
        if reader.path not in self.tasks:
            self.tasks[reader.path] = self.progress.add_task("", total=1.0, name=reader.path.name, rows=0)
        self.rows[reader.path] += rows
        shown = self.tasks[reader.path]
        if reader.fraction:
            self.progress.update(shown, completed=reader.fraction)
        self.progress.update(shown, rows=self.rows[reader.path])
