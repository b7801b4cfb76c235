"""`ingest`: the user's file of rejected answers -> prompts, negatives and acceptable answers, split by prompt."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn

from naysay.artifacts.digests import digest_text
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import write_jsonl
from naysay.config import RunConfig
from naysay.errors import DataError
from naysay.ingest import embedded
from naysay.ingest.collect import CollectedAnswer, CollectedPrompt, Collection, TokenCounter, collect
from naysay.ingest.counts import check_counts, count
from naysay.ingest.readers import RawRow, RowReader
from naysay.ingest.split import SplitPrompts, limit_prompts, split_prompts
from naysay.modeling.chat import template_file
from naysay.records import Acceptable, Negative, Prompt, Split

VERSION = 1
_ROWS_BETWEEN_UPDATES = 500
_SPLITS: tuple[Split, ...] = ("train", "dev", "heldout", "benign")


@dataclass(frozen=True, slots=True)
class _Records:
    prompts: list[Prompt]
    negatives: list[Negative]
    acceptable: list[Acceptable]


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
    with _progress() as progress:
        watch = _Watch(progress)
        data, benign = (
            collect(source, max_length=config.model.max_length, count_tokens=count_tokens, watch=watch)
            for source in sources
        )
    prompts = dict(data.prompts)
    repeated = [item for key, item in benign.prompts.items() if key in prompts]
    prompts.update({key: item for key, item in benign.prompts.items() if key not in prompts})
    with_negatives = [item for item in data.prompts.values() if item.negatives]
    without = [item for item in prompts.values() if not item.negatives]
    split = split_prompts(with_negatives, without, config.data, config.seed)
    kept = _limited(config, prompts, split)
    if not kept["train"]:
        raise DataError(_nothing_to_train_on(config, data, split))
    records = _records(prompts, kept, config.data.limit.answers_per_prompt)
    written = {"negatives": len(records.negatives), "acceptable": len(records.acceptable)}
    from_data = len(data.prompts) - len(with_negatives)
    counts = count(data, benign, from_data, repeated, split, kept, written)
    counts["length_checked"] = count_tokens is not None
    quarantine = data.quarantine + benign.quarantine
    ids = {key for chosen in kept.values() for key in chosen}
    absent = [*repeated, *(item for key, item in prompts.items() if key not in ids)]
    left_out = sum(len(item.negatives) + len(item.acceptable) for item in absent)
    left_out += sum(_beyond(prompts[key], config.data.limit.answers_per_prompt) for key in ids)
    check_counts(counts, answers_left_out=left_out, quarantine_entries=len(quarantine))
    write_jsonl(run.prompts, records.prompts)
    write_jsonl(run.negatives, records.negatives)
    write_jsonl(run.acceptable, records.acceptable)
    write_jsonl(run.quarantine, quarantine)
    return counts


def _limited(config: RunConfig, prompts: dict[str, CollectedPrompt], split: SplitPrompts) -> dict[Split, Sequence[str]]:
    return {
        name: limit_prompts(
            split.by_split[name],
            prompts,
            limit=getattr(config.data.limit, name),
            seed=config.seed,
            prefer_both=name in ("dev", "heldout"),
        )
        for name in _SPLITS
    }


def _records(
    prompts: Mapping[str, CollectedPrompt], kept: Mapping[Split, Sequence[str]], answers: int | None
) -> _Records:
    """At most `answers` of each kind a prompt: the first ones by id, which is a digest."""
    records = _Records([], [], [])
    for split, ids in kept.items():
        for key in ids:
            item = prompts[key]
            kind = item.kind or ("benign" if split == "benign" else "")
            records.prompts.append(Prompt(key, item.messages, item.source, split, kind))
            negatives = [Negative(_answer_id("n-", key, found), key, **_about(found)) for found in _all(item.negatives)]
            records.negatives.extend(sorted(negatives, key=lambda row: row.negative_id)[:answers])
            acceptable = [
                Acceptable(_answer_id("a-", key, found), key, **_about(found)) for found in _all(item.acceptable)
            ]
            records.acceptable.extend(sorted(acceptable, key=lambda row: row.acceptable_id)[:answers])
    return records


def _beyond(prompt: CollectedPrompt, answers: int | None) -> int:
    """How many answers of a prompt the limit leaves out."""
    if answers is None:
        return 0
    return max(0, len(prompt.negatives) - answers) + max(0, len(prompt.acceptable) - answers)


def _all(answers: Mapping[str, CollectedAnswer]) -> list[CollectedAnswer]:
    return list(answers.values())


def _answer_id(prefix: str, prompt_id: str, found: CollectedAnswer) -> str:
    return prefix + digest_text(prompt_id, found.answer.text)[:16]


def _about(found: CollectedAnswer) -> dict[str, Any]:
    names = ("text", "category", "severity", "annotators", "provenance", "finish")
    return {name: getattr(found.answer, name) for name in names}


def _nothing_to_train_on(config: RunConfig, data: Collection, split: SplitPrompts) -> str:
    where = config.data.path
    if split.by_split["train"]:
        return f"{where}: data.limit.train=0 leaves no prompt to train on; set it to 1 or more, or leave it out"
    if not any(item.negatives for item in data.prompts.values()):
        return (
            f"{where}: expected rejected answers, found {len(data.prompts)} prompts with acceptable answers only; "
            "naysay learns from what was rejected: check `label` (false = rejected)"
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
    """Shows how far a reader has come."""

    def __init__(self, progress: Progress):
        self.progress = progress

    def __call__(self, reader: RowReader) -> Iterator[RawRow]:
        task = self.progress.add_task("", total=1.0, name=reader.path.name, rows=0)
        for number, row in enumerate(reader, 1):
            if number % _ROWS_BETWEEN_UPDATES == 0:
                self.progress.update(task, completed=reader.fraction, rows=number)
            yield row
        self.progress.update(task, completed=1.0)
