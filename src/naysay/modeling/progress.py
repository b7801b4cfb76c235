"""Progress bars: ours shown, those of other libraries kept out of them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class RateColumn(ProgressColumn):
    """Units per second, e.g. `412 tokens/s`."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:,.1f} {task.fields.get('unit', '')}/s", style="cyan")


@contextmanager
def progress_bar(description: str, total: float, unit: str, done: int = 0) -> Iterator["Advance"]:
    """A rich bar on stderr with rate and time left; silent where stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total, completed=done, unit=unit)
        yield Advance(progress, task)


class Advance:
    """Call it with the number of units done since the last call."""

    def __init__(self, progress: Progress, task):
        self._progress = progress
        self._task = task

    def __call__(self, units: float = 1) -> None:
        self._progress.advance(self._task, units)


@contextmanager
def bars_on_terminal_only() -> Iterator[None]:
    """Where ours would not be shown, nothing that a library writes to stderr meanwhile is either."""
    if Console(stderr=True).is_terminal:
        yield
        return
    with redirect_stderr(io.StringIO()):
        yield


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars of transformers inside."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
