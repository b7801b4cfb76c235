"""`naysay judge`: judges of harm that are made from the user's own labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from naysay.judging.labelled import LabelColumns, LabelledAnswer

app = typer.Typer()


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Make a judge of harm."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("fit")
def fit(
    data: Annotated[list[Path], typer.Option("--data", metavar="FILE", help="Labelled answers; repeatable.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write the judge to.")],
    test: Annotated[
        Path | None,
        typer.Option("--test", metavar="FILE", help="Labelled answers to measure on; default: a fifth of the prompts."),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt-column", metavar="NAME", help="Column with the prompt.")] = "prompt",
    response: Annotated[
        str, typer.Option("--response-column", metavar="NAME", help="Column with the answer.")
    ] = "response",
    label: Annotated[str, typer.Option("--label-column", metavar="NAME", help="Column with the label.")] = "label",
    harmful: Annotated[
        str, typer.Option("--harmful", metavar="VALUE", help="The label of harmful answers.")
    ] = "unsafe",
) -> None:
    """Fit the offline judge (TF-IDF and logistic regression) on labelled answers, and say how good it is."""
    from naysay.errors import ConfigError
    from naysay.judging.labelled import LabelColumns
    from naysay.judging.offline import fit as fit_judge

    if out.exists():
        raise ConfigError(f"--out {out}: it exists already; give another folder or remove it")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ConfigError(f"--out {out}: {above} is a file, expected a folder; give another folder")
    columns = LabelColumns(prompt, response, label, harmful)
    rows = _read(data, columns)
    found = fit_judge(rows, out, test=None if test is None else _read([test], columns))
    area = found.auc
    interval = "" if area.ci_low is None else f" [{area.ci_low:.3f}, {area.ci_high:.3f}]"
    typer.echo(f"fitted on {found.rows:,} answers ({found.harmful_share:.1%} harmful), {found.terms:,} terms")
    typer.echo(f"held-out AUC {area.value:.3f}{interval} (n = {found.test_rows:,} answers); it is a weak judge")
    typer.echo(f"judge    {out.resolve()}")


def _read(files: list[Path], columns: "LabelColumns") -> "list[LabelledAnswer]":
    from naysay.errors import DataError
    from naysay.inputs.readers import RowReader
    from naysay.judging.labelled import labelled_answers

    rows = []
    for file in files:
        for row in RowReader(file):
            where = f"{file}:{row.line}"
            if row.problem:
                raise DataError(f"{where}: {row.problem}; correct or remove this line")
            rows.append((where, row.value))
    answers, blank = labelled_answers(rows, columns)
    if blank:
        typer.echo(f"left out {blank:,} rows of {', '.join(map(str, files))} whose answer is blank", err=True)
    return answers
