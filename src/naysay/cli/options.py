"""The flags that the commands share, and the config that they ask for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from naysay.config.run import RunConfig

Rejected = Annotated[
    str | None,
    typer.Argument(metavar="REJECTED", show_default=False, help="File with prompts and rejected answers (data.path)."),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="embedded:smollm2-135m, a folder, or a hub id (model.name)."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The run directory.")]
OptionalOut = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The run directory; default: runs/ and the input's name.")
]
Recipe = Annotated[Path | None, typer.Option("--recipe", metavar="R.yaml", help="Settings in YAML.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. training.beta=0.2; repeatable."),
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="NAME=COLUMN", help="Column of the file, e.g. prompt=question; repeatable (data.map)."
    ),
]
Reuse = Annotated[
    Path | None,
    typer.Option("--reuse", metavar="RUN", help="Take over the stages of another run that are still valid."),
]
Redo = Annotated[
    str | None, typer.Option("--redo", metavar="STAGE", help="Do this stage and those after it anew, in this run.")
]
Rescore = Annotated[
    bool, typer.Option("--rescore", help="Judge the saved answers again (--set judges=...), and make the report.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the result and errors.")]
Online = Annotated[bool, typer.Option("--online", help="Allow downloads from the Hugging Face hub.")]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The flags of one command, as given."""

    rejected: str | None = None
    model: str | None = None
    out: Path | None = None
    recipe: Path | None = None
    set: Sequence[str] = ()
    map: Sequence[str] = ()
    reuse: Path | None = None
    redo: str | None = None
    quiet: bool = False
    online: bool = False


def resolve(options: RunOptions) -> tuple["RunConfig", Path]:
    """The config and the run directory that the flags ask for.

    Without a recipe and an input file, the flags apply to the config of the run at `--out`, else of that at `--reuse`.

    Raises:
        ConfigError, InputNotFoundError: as `naysay.config.load_config`, or a wrong `--map`.
    """
    out = options.out
    if out is None:
        config = load(options, options.recipe)
        out = Path("runs") / input_name(config.data.path)
    base = options.recipe
    if base is None and options.rejected is None:
        runs = [path for path in (out, options.reuse) if path is not None]
        base = next((path / "config.yaml" for path in runs if (path / "config.yaml").is_file()), None)
    return load(options, base), out


def input_name(path: str) -> str:
    """Name of a run on this input: `answers` for `data/answers.jsonl.gz`, `embedded` for the embedded data."""
    if path.startswith("embedded:"):
        return "embedded"
    name = Path(path).name
    return name.split(".")[0] or name.strip(".")


def parse_map(pairs: Sequence[str]) -> dict[str, str]:
    """`["prompt=question"]` -> `{"prompt": "question"}`; raises ConfigError for anything else."""
    from naysay.errors import ConfigError

    columns: dict[str, str] = {}
    for pair in pairs:
        name, _, column = pair.partition("=")
        if not name or not column:
            raise ConfigError(f"--map {pair}: expected naysay's column = the file's, for example --map prompt=question")
        columns[name.strip()] = column  # as it stands: a header may begin with a space
    return columns


def load(options: RunOptions, recipe: Path | None) -> "RunConfig":
    """The config that the flags ask for, on top of a recipe."""
    from naysay.config import load_config

    given: dict[str, Any] = {
        "data.path": options.rejected,
        "model.name": options.model,
        "data.map": parse_map(options.map) or None,
    }
    return load_config(recipe, options.set, {key: value for key, value in given.items() if value is not None})
