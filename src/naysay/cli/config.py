"""`naysay config`: the settings in force, and what there is to set."""

import json

import typer

from naysay.cli import options as flags

app = typer.Typer()


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Show the settings."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("show")
def show(recipe: flags.Recipe = None, set_: flags.Set = None, model: flags.Model = None) -> None:
    """Print the resolved config as YAML; it can be used as a recipe."""
    from naysay.config import load_config
    from naysay.pipeline.saved_config import config_text

    values = {"model.name": model} if model is not None else {}
    typer.echo(config_text(load_config(recipe, set_ or (), values)), nl=False)


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of the config: every key with its type, default and meaning."""
    from naysay.config import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2, ensure_ascii=False))
