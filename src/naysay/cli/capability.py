"""`naysay capability`: the tasks of lm-eval, before and after training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from naysay.cli import options as flags
from naysay.cli.environment import prepare_environment
from naysay.cli.failures import current_run
from naysay.cli.lines import StageLines

_PLAIN_WIDTH = 120


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("capability")(capability)


def capability(
    out: flags.Out,
    tasks: Annotated[
        str, typer.Option("--tasks", metavar="A,B,...", help="Tasks, groups or tags of lm-eval, or task files (.yaml).")
    ],
    tasks_dir: Annotated[
        Path | None, typer.Option("--tasks-dir", metavar="DIR", help="A folder with task files of your own.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N questions of each task.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", metavar="N", min=0, help="Worked examples before each question.")
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Put each question into the model's chat template.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Rows of one forward.")] = 8,
    quiet: flags.Quiet = False,
    online: flags.Online = False,
) -> None:
    """Measure with lm-eval what the base and the tuned model of a run can do, question by question.

    Writes capability.json into the run, over that of an earlier call, and makes the report anew.
    """
    prepare_environment(online=online, quiet=quiet)
    from naysay.evaluation.capability import CapabilitySettings
    from naysay.pipeline.capability import measure_capability

    current_run.set(out)
    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    settings = CapabilitySettings(names, tasks_dir, limit, num_fewshot, apply_chat_template, batch_size)
    result = measure_capability(out, settings, on_event=StageLines(quiet=quiet))
    _print_table(result["scores"])
    typer.echo(f"scores   {(out / 'capability.json').resolve()}")


def _print_table(scores: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from naysay.reporting.capability import HEADERS, capability_rows

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    table = Table(*HEADERS)
    for row in capability_rows(scores):
        table.add_row(*(Text(cell) for cell in (row.name, *row.cells)))
    console.print(table)
