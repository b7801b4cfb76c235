"""`naysay compare`: several objectives on the same rows, with the same budget."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from naysay.cli import options as flags
from naysay.cli.environment import prepare_environment
from naysay.cli.failures import current_run
from naysay.cli.lines import duration, event_line
from naysay.cli.options import RunOptions, input_name, load

if TYPE_CHECKING:
    from naysay.pipeline import Event
    from naysay.pipeline.compare import RunEvent
    from naysay.pipeline.compare_plan import Plan

_EPILOG = (
    "Each objective chooses its learning rate on the dev split, with half the budget and one seed: the largest "
    "separation among the rates whose KL to base, taken to grow with the square of the steps, will be within "
    "evaluation.kl_bound at the whole budget and whose degenerate answers rose by at "
    "most 5 points (the margin, where the split has no acceptable answers; the smallest KL, where no rate qualifies). "
    "The grid is a base rate / 3, x 1 and x 3: 2e-4 where anchors or chosen answers pull back (d2o, altpo, dpo_self, "
    "dpo, ipo, slic, simpo, sft_chosen), 1e-4 where the push fades but nothing is pulled up (npo, simnpo, "
    "kto_negative, bco_negative, ulma_negative, pmpo_negative), 3e-5 where the push does not fade (ga, llmu, "
    "unlikelihood)."
)


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("compare", epilog=_EPILOG)(compare)


def compare(
    rejected: flags.Rejected = None,
    model: flags.Model = None,
    objectives: Annotated[
        str,
        typer.Option(
            "--objectives",
            metavar="A,B,...",
            help="What is compared; the others are held to d2o, or to the first where d2o is not named.",
        ),
    ] = "d2o,npo,ga,dpo_self",
    budget: Annotated[
        int,
        typer.Option(
            "--budget",
            metavar="GROUPS",
            help="Prompt groups each run trains on, over steps; the same for every objective.",
        ),
    ] = 96,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", help="Runs of each objective: training.seed = 0 to N - 1.")
    ] = 2,
    learning_rates: Annotated[
        str | None,
        typer.Option("--learning-rates", metavar="A,B,...", help="One grid for all, in place of each objective's own."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="The folder of the comparison; default: runs/compare- and the input's name."
        ),
    ] = None,
    recipe: flags.Recipe = None,
    set_: flags.Set = None,
    map_: flags.Map = None,
    quiet: flags.Quiet = False,
    online: flags.Online = False,
) -> None:
    """Compare objectives on the same rejected answers: same rows, anchors, references, steps and evaluation.

    Resumable: the same command continues. Ends with a table, paired intervals against d2o, and compare.html.
    """
    prepare_environment(online=online, quiet=quiet)
    from naysay.pipeline.compare import compare as run_comparison
    from naysay.pipeline.compare_plan import make_plan, unread_settings

    _refuse_what_is_set_here(set_ or ())
    config = load(RunOptions(rejected, model, set=set_ or (), map=map_ or ()), recipe)
    out = out or Path("runs") / f"compare-{input_name(config.data.path)}"
    current_run.set(out)
    plan = make_plan(
        config,
        objectives=_names(objectives),
        budget=budget,
        seeds=seeds,
        learning_rates=None if learning_rates is None else _numbers(learning_rates),
    )
    show = ComparisonLines(quiet=quiet)
    show.begin(plan, unread_settings(config))
    folder = run_comparison(plan, out, command=_command(), on_event=show)
    print_comparison(folder.result, folder.report)


class ComparisonLines:
    """Prints what happens on stderr: a line a stage of what is shared, and a line a run."""

    def __init__(self, *, quiet: bool):
        self.quiet = quiet

    def begin(self, plan: "Plan", unread: Sequence[str]) -> None:
        tuning = sum(map(len, plan.learning_rates.values()))
        seeds = "seed" if plan.seeds == 1 else "seeds"
        self._line(
            f"compare   {plan.runs} runs: {tuning} of {plan.tuning_steps} steps to choose learning rates, "
            f"{len(plan.objectives)} objectives x {plan.seeds} {seeds} of {plan.steps} steps"
        )
        for setting in unread:
            self._line(f"compare   not read: {setting}")

    def __call__(self, event: "Event | RunEvent") -> None:
        line = run_line(event) if hasattr(event, "objective") else event_line(event)  # type: ignore[arg-type]
        if line is not None:
            self._line(line)

    def _line(self, text: str) -> None:
        if not self.quiet:
            sys.stderr.write(text + "\n")


def run_line(event: "RunEvent") -> str | None:
    """`run 3/20   npo, learning rate 0.0001   3 min 05 s  separation +0.031, ...; about 48 min left`."""
    if event.kind == "chosen":
        return f"chosen    {event.objective}, learning rate {event.text}"
    assert event.spec is not None
    what = f"{event.objective}, " + (
        f"learning rate {event.spec.learning_rate:g}" if event.spec.phase == "tune" else f"seed {event.spec.seed}"
    )
    place = f"run {event.number}/{event.of}"
    left = "" if event.left is None else f"about {duration(event.left)} left"
    if event.kind == "started":
        return f"{place:<9} {what}, {event.spec.steps} steps{'; ' + left if left else ''}"
    done = {"finished": duration(event.seconds), "known": "up to date", "diverged": "diverged"}[event.kind]
    return f"{place:<9} {what}  {done}  {event.text}{'; ' + left if left and event.number < event.of else ''}"


def print_comparison(result: Path, report: Path) -> None:
    """The table, a verdict line an objective, and where the report is."""
    from naysay.artifacts.store import read_json

    comparison = read_json(result)
    typer.echo("")
    for line in table_lines(comparison):
        typer.echo(line)
    typer.echo(f"\nverdict  {comparison['headline']}")
    for verdict in comparison["verdicts"].values():
        typer.echo(f"  {verdict['text']}")
    typer.echo(f"report   {report.resolve()}\nnumbers  {result.resolve()}")


def table_lines(comparison: Mapping[str, Any]) -> list[str]:
    """Held-out values over all seeds, one line a measure; `better` and `worse` are against the reference."""
    from naysay.reporting.comparison_measures import MEASURES
    from naysay.reporting.formatting import number

    names = comparison["settings"]["objectives"]
    rows = [["held-out, all seeds", *names]]
    for measure in MEASURES:
        cells = [measure.name]
        for name in names:
            claim = comparison["differences"].get(name, {}).get(measure.key, {}).get("claim", "")
            cells.append(f"{number(comparison['table'][name][measure.key]['value'], measure.style)} {claim}".rstrip())
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _refuse_what_is_set_here(overrides: Sequence[str]) -> None:
    from naysay.errors import ConfigError
    from naysay.pipeline.compare_plan import SET_HERE

    for override in overrides:
        key = override.partition("=")[0].strip()
        if key in SET_HERE:
            raise ConfigError(f"--set {override}: a comparison sets {key} itself ({SET_HERE[key]}); leave it out")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[float]:
    from naysay.errors import ConfigError

    try:
        return [float(part) for part in _names(text)]
    except ValueError as error:
        raise ConfigError(f"--learning-rates {text}: expected numbers, for example 3e-5,1e-4,3e-4") from error


def _command() -> str:
    return shlex.join(["naysay", *sys.argv[1:]])
