"""The entry point `naysay`."""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from naysay.cli import capability, compare, config, inspect, judge, lab, stages
from naysay.cli.failures import INTERRUPTED, current_run, explain, explain_interruption

app = typer.Typer(
    name="naysay",
    help="Align language models from the answers people said no to.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
stages.register(app)
compare.register(app)
lab.register(app)
capability.register(app)
app.add_typer(config.app, name="config")
app.add_typer(judge.app, name="judge")
app.add_typer(inspect.app, name="inspect")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata  # takes as long as the rest of `naysay --help`

        typer.echo(f"naysay {metadata.version('naysay')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 internal, 2 the user's mistake, 3 stopped by the guard,
    130 interrupted."""
    token = current_run.set(None)
    try:
        with _terminate_as_interrupt():
            code = app(list(arguments) if arguments is not None else sys.argv[1:], standalone_mode=False)
        if code == INTERRUPTED:  # typer's way to return from a KeyboardInterrupt
            return explain_interruption()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return explain_interruption()
    except Exception as error:  # noqa: BLE001  # nothing above could: it becomes one line and an exit code
        return explain(error)
    finally:
        current_run.reset(token)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, so that the stage at work can leave its partial work in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
