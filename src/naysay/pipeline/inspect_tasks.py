"""`naysay inspect`: a run's answers as logs of Inspect, and tasks of Inspect on a run's policies."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from naysay.artifacts.store import read_records, write_atomic
from naysay.errors import ConfigError, InputNotFoundError, NaysayError, missing_extra
from naysay.pipeline.trained_run import Which, open_run
from naysay.records import Generation, GenerationVerdict, Prompt

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog  # pyright: ignore[reportMissingImports]


def export_logs(out: Path | str, to: Path | None = None) -> list[Path]:
    """Write the answers of the base and of the tuned policy of an evaluated run as a log each; returns their paths.

    Args:
        to: the folder; None = `inspect` in the run.

    Raises:
        ConfigError: inspect-ai is not installed.
        InputNotFoundError, RunDirectoryError: there is no evaluated run.
    """
    require_inspect()
    config, run = open_run(out, "evaluate")
    from inspect_ai.log import write_eval_log  # pyright: ignore[reportMissingImports]
    from inspect_ai.model import GenerateConfig  # pyright: ignore[reportMissingImports]

    from naysay.evaluation.inspect_log import generations_log

    generations, prompts = read_records(run.generations, Generation), read_records(run.prompts, Prompt)
    verdicts = read_records(run.verdicts, GenerationVerdict)
    drawn = config.evaluation
    settings = GenerateConfig(
        temperature=drawn.temperature, top_k=drawn.top_k, top_p=drawn.top_p, max_tokens=drawn.max_new_tokens
    )
    paths = []
    for name in ("base", "tuned"):
        log = generations_log(
            [item for item in generations if item.model == name],
            prompts,
            verdicts,
            model=f"naysay/{name}",
            source=str(run.path.resolve()),
            config=settings,
        )
        path = (to or run.inspect_logs) / f"generations-{name}.eval"
        write_atomic(path, lambda temporary, log=log: write_eval_log(log, str(temporary), format="eval"))
        paths.append(path)
    return paths


def run_task(
    task: str, out: Path | str, *, which: Which = "tuned", limit: int | None = None, max_tokens: int | None = None
) -> "list[EvalLog]":
    """Run a task on a policy of a run; the logs lie in the folder `inspect` of the run.

    Args:
        task: `FILE`, `FILE@NAME`, or the name of a task in an installed package, such as `inspect_evals/strong_reject`.
        limit: only the first samples.
        max_tokens: longest answer, where the task does not say; None = `evaluation.max_new_tokens` of the run.

    Raises:
        ConfigError: inspect-ai is not installed, the file has no such task, or the task failed.
        InputNotFoundError, RunDirectoryError, ModelError: there is no file, no trained run, or no usable policy.
    """
    require_inspect()
    _, run = open_run(out, "train")
    specs = _task_specs(task)
    import inspect_ai  # pyright: ignore[reportMissingImports]
    from inspect_ai.model import get_model  # pyright: ignore[reportMissingImports]

    from naysay.pipeline import inspect_provider

    given: dict[str, Any] = {} if max_tokens is None else {"max_tokens": max_tokens}
    model = get_model(f"{inspect_provider.PROVIDER}/{which}", memoize=False, run=str(run.path.resolve()))
    try:
        logs = inspect_ai.eval(
            specs,
            model=model,
            log_dir=str(run.inspect_logs.resolve()),
            limit=limit,
            display="none",
            log_level="error",
            score_display=False,
            log_realtime=False,
            acp_server=False,
            ctl_server=False,
            **given,
        )
    except NaysayError:
        raise
    except Exception as error:  # a task file is the user's program: anything can come of it
        raise ConfigError(f"{task}: Inspect cannot run it: {_line(error)}") from error
    for log in logs:
        if log.status != "success":
            reason = "" if log.error is None else f": {' '.join(log.error.message.split())[:300]}"
            raise ConfigError(f"{task}: Inspect ended with status {log.status}{reason}; its log: {log.location}")
    return logs


def require_inspect() -> None:
    """Raises ConfigError where the package `inspect-ai` is not installed."""
    if importlib.util.find_spec("inspect_ai") is None:
        raise ConfigError(f"naysay inspect needs the package inspect-ai; {missing_extra('inspect')}")


def _task_specs(task: str) -> list[str]:
    """What Inspect takes for the tasks, after a look at the file where it is one.

    Raises:
        ConfigError: the file has no such task.
        InputNotFoundError: there is no such file.
    """
    name, at, wanted = task.partition("@")
    path = Path(name).expanduser()
    if not path.suffix:
        return [task]  # of an installed package
    if not path.is_file():
        raise InputNotFoundError(f"{name}: no such file; give a file with tasks of Inspect, FILE or FILE@NAME")
    from inspect_ai import list_tasks  # pyright: ignore[reportMissingImports]

    there = [info.name for info in list_tasks(path.name, root_dir=path.resolve().parent)]
    if not there:
        raise ConfigError(f"{name}: it has no task; mark a function that returns a Task with @task of inspect_ai")
    if at and wanted not in there:
        raise ConfigError(f"{task}: the file has no task {wanted!r}; it has {', '.join(there)}")
    # With its name each: for a file alone Inspect takes no absolute path.
    return [f"{path.resolve()}@{name}" for name in ([wanted] if at else there)]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
