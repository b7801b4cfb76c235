"""`naysay lab`: every claim about the method, checked in a world small enough to enumerate."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from naysay.lab import Finding, LabResult

_PLAIN_WIDTH = 120


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("lab")(lab)


def lab(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where lab.json and the figures go.")] = Path("lab"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of all worlds and draws.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the table and errors.")] = False,
) -> None:
    """Check the claims about D²O exactly, with this library's losses; exit code 1 if one that should hold fails."""
    from naysay.lab.run import require_free, run_lab, write_lab

    require_free(out)
    result = run_lab(seed, on_area=None if quiet else _print_area)
    files = write_lab(result, out)
    _print_table(result)
    typer.echo(f"verdicts {files[0]}\nfigures  {', '.join(path.name for path in files[1:])}")
    if result.failed:
        raise typer.Exit(1)


def verdict_text(finding: "Finding") -> str:
    """`holds`, `does not hold as stated`, or what is unexpected about it."""
    if finding.as_expected:
        return finding.verdict
    return "FAILS: it should hold" if finding.expected else "holds, unlike expected"


def _print_area(name: str, seconds: float) -> None:
    from naysay.cli.lines import duration

    sys.stderr.write(f"{name:<18} {duration(seconds):>12}\n")


def _print_table(result: "LabResult") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PLAIN_WIDTH)
    table = Table("claim", "statement", "verdict", "numbers", title=f"The lab, seed {result.seed}", show_lines=True)
    colours = {"holds": "green", "does not hold as stated": "yellow"}
    for finding in result.findings:
        text = verdict_text(finding)
        cells = (finding.claim, finding.statement, (text, colours.get(text, "red")), finding.reading)
        table.add_row(*(Text(*cell) if isinstance(cell, tuple) else Text(cell) for cell in cells))
    console.print(table)
