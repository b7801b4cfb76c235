"""What the command line prints of a run: a line a stage while it works, and the result at the end."""

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from naysay.artifacts.run_directory import RunDirectory
    from naysay.config.run import RunConfig
    from naysay.pipeline import Event

_SHOWN: dict[str, dict[str, str]] = {
    "ingest": {
        "rows": "rows.in",
        "quarantined (see quarantine.jsonl)": "rows.quarantined",
        "prompts to train on": "prompts.train",
        "held out": "prompts.heldout",
        "benign": "prompts.benign",
        "rejected answers": "answers.negatives",
    },
}
"""Counts of a stage that are worth its line: label -> dotted name. For other stages, the first ones that are not 0."""

STOPPED_BY_GUARD = 3
"""The exit code."""
_MOST_COUNTS = 5


class StageLines:
    """Prints events on stderr, so that stdout holds the result alone."""

    def __init__(self, *, quiet: bool):
        self.quiet = quiet

    def __call__(self, event: "Event") -> None:
        line = event_line(event)
        if line is not None and not self.quiet:
            sys.stderr.write(line + "\n")


def event_line(event: "Event") -> str | None:
    """The line of an event; None for those that are not shown (a stage that works shows a progress bar)."""
    stage = f"{event.stage or 'run':<9}"
    if event.kind == "finished":
        return f"{stage} {duration(event.seconds):>12}  {summary(event.stage or '', event.counts)}".rstrip()
    if event.kind == "skipped":
        return f"{stage} {'up to date':>12}  {summary(event.stage or '', event.counts)}".rstrip()
    if event.kind == "reused":
        return f"{stage} {'taken over':>12}  from {event.text}; {summary(event.stage or '', event.counts)}".rstrip("; ")
    return f"{stage} {event.text}" if event.kind == "note" else None


def duration(seconds: float) -> str:
    """`0.4 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def summary(stage: str, counts: Mapping[str, Any]) -> str:
    """A few counts, e.g. `128 rows, 2 quarantined`."""
    leaves = dict(_leaves(counts))
    if stage in _SHOWN:
        shown = [f"{leaves[name]:,} {label}" for label, name in _SHOWN[stage].items() if leaves.get(name)]
    else:
        shown = [f"{name.replace('_', ' ')} {value:,}" for name, value in leaves.items() if value][:_MOST_COUNTS]
    return ", ".join(shown)


def print_result(config: "RunConfig", run: "RunDirectory") -> None:
    """The verdict, where the report is, and how to load what was trained; of a run that the guard stopped, what its
    weights are instead."""
    from naysay.artifacts.store import read_json

    verdict = " ".join(str(read_json(run.summary)["verdict"]).split())
    typer.echo(f"\nverdict  {verdict}")
    typer.echo(f"report   {run.report.resolve()}")
    stop = _stop(run)
    if stop is None:
        typer.echo(f"\n# use it\n{loading_snippet(config, run)}")
    else:
        typer.echo(f"weights  {_kept(stop)}, not a success: {_weights(config, run).resolve()}")


def early_stop(run: "RunDirectory") -> str | None:
    """What early stopping did to the training; None where it is off, or the collapse guard had the last word."""
    manifest = run.manifest("train")
    return None if manifest is None else manifest.counts.get("early_stopping", {}).get("said")


def end_if_stopped(run: "RunDirectory") -> None:
    """Exit with code 3 where the collapse guard stopped the training, after saying why and what was kept."""
    stop = _stop(run)
    if stop is None:
        return
    typer.echo(
        f"naysay: the guard stopped training at step {stop['step']}: {stop['reason']}; the weights of step "
        f"{stop['kept_step']} were kept; try a lower training.learning_rate or fewer steps (bound: {stop['bound']}; "
        "docs/guard.md)",
        err=True,
    )
    raise typer.Exit(STOPPED_BY_GUARD)


def _stop(run: "RunDirectory") -> Mapping[str, Any] | None:
    """What the collapse guard said, where it stopped the training."""
    manifest = run.manifest("train")
    return (manifest.counts.get("guard") or None) if manifest is not None else None


def _kept(stop: Mapping[str, Any]) -> str:
    if stop["kept_step"] == 0:
        return "untrained (step 0)"
    return f"those of step {stop['kept_step']}, the last check of the guard that held"


def _weights(config: "RunConfig", run: "RunDirectory") -> "Path":
    return run.model if config.training.method == "full" else run.adapter


def loading_snippet(config: "RunConfig", run: "RunDirectory") -> str:
    """Python that loads the aligned model with plain transformers and peft."""
    if config.training.method == "full":
        folder = str(run.model.resolve())
        return "\n".join(
            (
                "from transformers import AutoModelForCausalLM, AutoTokenizer",
                f"model = AutoModelForCausalLM.from_pretrained({folder!r})",
                f"tokenizer = AutoTokenizer.from_pretrained({folder!r})",
            )
        )
    folder = str(run.adapter.resolve())
    return "\n".join(
        (
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f"base = AutoModelForCausalLM.from_pretrained({_base_arguments(config)})",
            f"model = PeftModel.from_pretrained(base, {folder!r})",
            f"tokenizer = AutoTokenizer.from_pretrained({folder!r})",
        )
    )


def _base_arguments(config: "RunConfig") -> str:
    from pathlib import Path

    from naysay.modeling.embedded import is_embedded, model_folder

    name = config.model.name
    if is_embedded(name):
        return repr(str(model_folder(name)))
    local = Path(name).expanduser()
    if local.is_dir():
        return repr(str(local.resolve()))
    return repr(name) if config.model.revision is None else f"{name!r}, revision={config.model.revision!r}"


def _leaves(counts: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, int | float]]:
    for name, value in counts.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, str(name)))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield ".".join((*path, str(name))), value
