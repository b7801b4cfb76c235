"""`naysay align` and its stages, one command each."""

import typer

from naysay.cli import options as flags
from naysay.cli.environment import prepare_environment
from naysay.cli.failures import current_run
from naysay.cli.lines import StageLines, early_stop, end_if_stopped, print_result
from naysay.cli.options import RunOptions, resolve

STAGE_HELP = {
    "ingest": "Read, check and split the rejected answers.",
    "sample": "Draw anchors from the initial policy.",
    "score": "Select the anchors that are trained on.",
    "train": "Train the adapter (or the full model).",
    "evaluate": "Measure what changed, before and after.",
    "report": "Write report.html and summary.json.",
}
_STAGE_EPILOG = "Without REJECTED and --recipe, the config of the run at --out is used."


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("align", epilog=_STAGE_EPILOG)(align)
    for stage, text in STAGE_HELP.items():
        if stage == "evaluate":
            app.command("evaluate", help=text, epilog=_STAGE_EPILOG)(evaluate)
        else:
            _register_stage(app, stage, text)


def align(
    rejected: flags.Rejected = None,
    model: flags.Model = None,
    out: flags.OptionalOut = None,
    recipe: flags.Recipe = None,
    set_: flags.Set = None,
    map_: flags.Map = None,
    reuse: flags.Reuse = None,
    redo: flags.Redo = None,
    quiet: flags.Quiet = False,
    online: flags.Online = False,
) -> None:
    """Align a model from the answers people said no to: all stages, resumable, ends with a report."""
    run_command(
        RunOptions(rejected, model, out, recipe, set_ or (), map_ or (), reuse, redo, quiet, online), tuple(STAGE_HELP)
    )


def evaluate(
    out: flags.Out,
    rejected: flags.Rejected = None,
    model: flags.Model = None,
    recipe: flags.Recipe = None,
    set_: flags.Set = None,
    map_: flags.Map = None,
    reuse: flags.Reuse = None,
    redo: flags.Redo = None,
    rescore: flags.Rescore = False,
    quiet: flags.Quiet = False,
    online: flags.Online = False,
) -> None:
    """Measure what changed; with `--rescore` only the judging of the saved answers, and the report, are done anew."""
    options = RunOptions(rejected, model, out, recipe, set_ or (), map_ or (), reuse, redo, quiet, online)
    if rescore:
        rescore_command(options)
    else:
        run_command(options, ("evaluate",))


def _register_stage(app: typer.Typer, stage: str, text: str) -> None:
    @app.command(stage, help=text, epilog=_STAGE_EPILOG)
    def command(
        out: flags.Out,
        rejected: flags.Rejected = None,
        model: flags.Model = None,
        recipe: flags.Recipe = None,
        set_: flags.Set = None,
        map_: flags.Map = None,
        reuse: flags.Reuse = None,
        redo: flags.Redo = None,
        quiet: flags.Quiet = False,
        online: flags.Online = False,
    ) -> None:
        run_command(
            RunOptions(rejected, model, out, recipe, set_ or (), map_ or (), reuse, redo, quiet, online), (stage,)
        )


def run_command(options: RunOptions, stages: tuple[str, ...]) -> None:
    """Resolve the config, do the stages, and print the result where a report was made."""
    prepare_environment(online=options.online, quiet=options.quiet)
    from naysay.pipeline import Event, run_stages

    config, out = resolve(options)
    current_run.set(out)
    show = StageLines(quiet=options.quiet)
    chosen = options.rejected is not None or options.recipe is not None or (out / "config.yaml").exists()
    if "ingest" in stages and config.data.path.startswith("embedded:") and not chosen:
        show(Event("note", text=f"no input file given: using the embedded rejected answers ({config.data.path})"))
    run = run_stages(config, out, stages, redo=options.redo, reuse=options.reuse, on_event=show)
    if "train" in stages and (said := early_stop(run)) is not None:
        show(Event("note", "train", text=said))
    if "report" in stages:
        print_result(config, run)
    if "train" in stages:
        end_if_stopped(run)


def rescore_command(options: RunOptions) -> None:
    """Judge the saved answers of a run again, and print the result of the new report."""
    prepare_environment(online=options.online, quiet=options.quiet)
    from naysay.errors import ConfigError
    from naysay.pipeline import rescore

    if options.redo is not None or options.reuse is not None:
        raise ConfigError("--rescore works on the saved answers of this run; leave out --redo and --reuse")
    config, out = resolve(options)
    current_run.set(out)
    print_result(config, rescore(config, out, on_event=StageLines(quiet=options.quiet)))
