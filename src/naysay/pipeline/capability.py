"""`naysay capability`: lm-eval on both policies of a run, kept as capability.json, and the report that shows it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from naysay.artifacts.store import write_json
from naysay.pipeline.runner import OnEvent, run_stages
from naysay.pipeline.trained_run import load_policies, open_run

if TYPE_CHECKING:
    from naysay.evaluation.capability import CapabilitySettings


def measure_capability(
    out: Path | str, settings: "CapabilitySettings", *, on_event: OnEvent = lambda event: None
) -> dict[str, Any]:
    """Run the tasks on the base and the tuned policy of a run; returns the content of its capability.json.

    What an earlier call left is replaced. Where the run is evaluated, its report is made anew and shows the scores.

    Raises:
        ConfigError: lm-eval is not installed, or a task is unknown or cannot be read; no model was loaded then.
        InputNotFoundError, RunDirectoryError: there is no trained run.
        ModelError: a policy cannot be loaded.
    """
    from naysay.evaluation.capability import Tasks, measure

    config, run = open_run(out, "train")
    tasks = Tasks(settings)
    with run.locked():
        policies, tokenizer = load_policies(config, run)
        samples = config.evaluation.bootstrap_samples
        result = measure(tasks, policies, tokenizer, bootstrap_samples=samples, seed=config.seed)
        write_json(run.capability, result)
    if run.manifest_path("evaluate").exists():
        run_stages(config, out, ("report",), on_event=on_event)
    return result
