"""`naysay inspect`: a run's answers as logs of Inspect, and tasks of Inspect on its models."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from naysay.cli import options as flags
from naysay.cli.environment import prepare_environment
from naysay.cli.failures import current_run

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog  # pyright: ignore[reportMissingImports]

app = typer.Typer()


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Exchange with Inspect (inspect-ai): logs of a run's answers, and safety suites on its models."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("export")
def export(
    out: flags.Out,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="The folder of the logs; default: inspect in the run.")
    ] = None,
) -> None:
    """Write the answers before and after as a log each, with the judges' verdicts as scores: see `inspect view`."""
    prepare_environment(online=False, quiet=False)
    from naysay.pipeline.inspect_tasks import export_logs

    current_run.set(out)
    for path in export_logs(out, to):
        typer.echo(f"log      {path.resolve()}")


@app.command("run")
def run(
    task: Annotated[str, typer.Argument(metavar="TASK", help="FILE, FILE@NAME, or a task of an installed package.")],
    out: flags.Out,
    model: Annotated[Literal["tuned", "base"], typer.Option("--model", help="Which model of the run.")] = "tuned",
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N samples.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", metavar="N", min=1, help="Longest answer; default: the task's, else that of the run."
        ),
    ] = None,
    online: flags.Online = False,
) -> None:
    """Run a task of Inspect on the tuned model of a run, or on its base; the log lies in inspect/ of the run."""
    prepare_environment(online=online, quiet=False)
    from naysay.pipeline.inspect_tasks import run_task

    current_run.set(out)
    for log in run_task(task, out, which=model, limit=limit, max_tokens=max_tokens):
        _print_scores(log)


def _print_scores(log: "EvalLog") -> None:
    samples = log.results.completed_samples if log.results else 0
    for score in log.results.scores if log.results else ():
        values = ", ".join(f"{metric.name} {metric.value:.3f}" for metric in score.metrics.values())
        typer.echo(f"{log.eval.task} {score.name}: {values or 'no metric'} (n = {samples})")
    typer.echo(f"log      {log.location}")
