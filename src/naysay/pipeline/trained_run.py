"""What is done with a run after its training: its config and its policies, opened by the folder alone."""

from pathlib import Path
from typing import Any, Literal

from naysay.artifacts.run_directory import RunDirectory
from naysay.config.run import RunConfig
from naysay.errors import InputNotFoundError, RunDirectoryError
from naysay.pipeline.saved_config import load_saved_config

Which = Literal["base", "tuned"]


def open_run(out: Path | str, needs: Literal["train", "evaluate"]) -> tuple[RunConfig, RunDirectory]:
    """The config and the directory of a run in which a stage is done.

    Raises:
        InputNotFoundError: there is no run.
        RunDirectoryError: the stage is not done, or the config is of another version of naysay.
    """
    run = RunDirectory(out)
    config = load_saved_config(run)
    if config is None:
        raise InputNotFoundError(
            f"{run.path}: expected the directory of a run, found none; start it with: naysay align"
        )
    if not run.manifest_path(needs).exists():
        raise RunDirectoryError(f"{run.path}: stage {needs} is not done; run: naysay align --out {run.path}")
    return config, run


def load_policies(config: RunConfig, run: RunDirectory) -> tuple[Any, Any]:
    """The policies before and after training (a `BaseAndTuned`), and the tokenizer.

    Raises:
        ModelError, InputNotFoundError: one cannot be loaded.
    """
    from naysay.modeling.adapters import BaseAndTuned
    from naysay.modeling.loading import load_tokenizer

    tokenizer = load_tokenizer(config.model)
    full = config.training.method == "full"
    return BaseAndTuned.load(
        config.model, adapter=None if full else run.adapter, full=run.model if full else None
    ), tokenizer


def load_policy(config: RunConfig, run: RunDirectory, which: Which) -> tuple[Any, Any]:
    """One of the two policies, and the tokenizer.

    Raises:
        ModelError, InputNotFoundError: it cannot be loaded.
    """
    from naysay.modeling.adapters import with_adapter
    from naysay.modeling.loading import load_model, load_tokenizer

    tokenizer = load_tokenizer(config.model)
    if which == "tuned" and config.training.method == "full":
        return load_model(config.model.model_copy(update={"name": str(run.model), "revision": None})), tokenizer
    base = load_model(config.model)
    return (with_adapter(base, run.adapter) if which == "tuned" else base), tokenizer
