"""What a later stage would refuse, said before the first one: not after minutes of sampling and training."""

from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_records
from naysay.config.model import ModelConfig
from naysay.config.references import INITIAL
from naysay.config.run import RunConfig
from naysay.config.training import LoraSettings
from naysay.errors import DataError, ModelError, NaysayError
from naysay.records import Acceptable, Prompt


def check_settings(config: RunConfig) -> None:
    """Check what needs a library or the disk to be checked; those are loaded only where there is something to check.

    Raises:
        ModelError: `model.device` is not there, or `training.lora.target_modules` fit no module of the model.
        ConfigError: `training.trainer_args` has an unknown name or an impossible value.
        InputNotFoundError, ModelError: `references.*` names a model that is not there.
        ConfigError, InputNotFoundError: a judge lacks its package, its key, its folder or its model.
        InputNotFoundError, DataError: a file of `evaluation.suites` is not there or cannot be used.
    """
    if config.model.device != ModelConfig.model_fields["device"].default:
        from naysay.modeling.loading import pick_device

        pick_device(config.model.device)
    lora = config.training.lora
    if lora.target_modules != LoraSettings.model_fields["target_modules"].default:
        from naysay.modeling.adapters import check_fit

        check_fit(config.model, lora)
    if config.training.trainer_args:
        from naysay.training.config import check_trainer_args

        check_trainer_args(config.training.trainer_args)
    for role in ("positive", "negative"):
        name = getattr(config.references, role)
        if name != INITIAL:
            _check_reference(role, name)
    if config.judges:
        from naysay.judging.build import check_judges

        check_judges(config.judges)
    if config.evaluation.suites:
        from naysay.evaluation.suites import read_suites

        read_suites(config.evaluation.suites)


def _check_reference(role: str, name: str) -> None:
    from naysay.modeling.loading import resolve

    try:
        folder = resolve(name)
    except NaysayError as error:
        raise type(error)(f"references.{role}: {error}") from error
    if not any((folder / kind).exists() for kind in ("config.json", "adapter_config.json")):
        raise ModelError(
            f"references.{role}: {folder} has neither config.json nor adapter_config.json; expected a model or a "
            "folder with a peft adapter"
        )


def check_split(config: RunConfig, run: RunDirectory) -> None:
    """Check that what `ingest` left can be evaluated on; another split of the prompts would redo everything.

    Raises:
        DataError: `evaluation.split` has no prompt with a rejected answer.
    """
    split, manifest = config.evaluation.split, run.manifest("ingest")
    prompts = manifest.counts.get("prompts", {}) if manifest is not None else {}
    if prompts.get(split) == 0:
        raise DataError(
            f"{config.data.path}: no prompt with a rejected answer is in the {split} split, so nothing could be "
            f"evaluated; raise data.{split}_fraction or data.limit.{split}, or give more rows"
        )


def check_objective(config: RunConfig, run: RunDirectory) -> None:
    """Check that what `ingest` left holds what the objective needs.

    Raises:
        DataError: no training prompt has a chosen answer, or no benign prompt has an answer.
    """
    training, share = config.training, config.anchors.acceptable_share
    if not (training.needs_chosen or training.needs_normal or share):
        return
    splits = {prompt.prompt_id: prompt.split for prompt in read_records(run.prompts, Prompt)}
    with_answer = {answer.prompt_id for answer in read_records(run.acceptable, Acceptable)}
    answered = {splits[prompt_id] for prompt_id in with_answer}
    if training.needs_chosen and "train" not in answered:
        raise DataError(
            f"{config.data.path}: training.objective {training.objective!r} needs answers that people preferred "
            "(column chosen), found none for any training prompt; add them, or use an objective that needs none (d2o)"
        )
    if share and "train" not in answered:
        raise DataError(
            f"{config.data.path}: anchors.acceptable_share is {share:g} and needs answers that people accepted (column "
            "chosen, or label true), found none for any training prompt; add them, or leave it at 0"
        )
    if training.needs_normal and "benign" not in answered:
        raise DataError(
            f"{config.data.path}: training.objective {training.objective!r} needs benign prompts with answers, found "
            "none; give a file with prompt and chosen as data.benign, or use an objective that needs none (d2o)"
        )
    if training.needs_normal and sum(split == "benign" for split in splits.values()) < 2:
        raise DataError(
            f"{config.data.path}: training.objective {training.objective!r} trains on every second benign prompt and "
            "found one; expected at least 2, so that one is left to measure the KL to base on; raise data.limit.benign"
        )


def check_dev(config: RunConfig, run: RunDirectory) -> None:
    """Check that what `ingest` left holds prompts that early stopping can look at.

    Raises:
        DataError: no dev prompt has a rejected answer.
    """
    if not config.training.early_stopping.enabled:
        return
    if not any(prompt.split == "dev" for prompt in read_records(run.prompts, Prompt)):
        raise DataError(
            f"{config.data.path}: training.early_stopping needs prompts with a rejected answer in the dev split, found "
            "none; raise data.dev_fraction, give more rows, or leave early stopping off"
        )


def crowded_cores(config: RunConfig) -> str | None:
    """What to say before a stage whose model computes on cores that other processes use; None where they are free."""
    from naysay.modeling import threads
    from naysay.modeling.loading import pick_device

    return threads.crowded_cores() if pick_device(config.model.device).type == "cpu" else None


def warnings(config: RunConfig) -> list[str]:
    """What a config asks for that is allowed and most likely not meant, one line each."""
    return [*_anchor_warnings(config), *_early_stopping_warnings(config)]


def _early_stopping_warnings(config: RunConfig) -> list[str]:
    stopping, steps = config.training.early_stopping, config.training.max_steps
    if not stopping.enabled:
        return []
    found = []
    if config.evaluation.split == "dev":
        found.append(
            "training.early_stopping chooses weights on dev prompts and evaluation.split is dev: the figures will be "
            "those of the prompts that chose; report held-out ones"
        )
    if steps is not None and stopping.every >= steps:
        found.append(
            f"training.early_stopping.every is {stopping.every} and training ends after {steps} steps: nothing is "
            "looked at before the last step; lower it"
        )
    return found


def _anchor_warnings(config: RunConfig) -> list[str]:
    anchors, steps = config.anchors, config.training.max_steps
    if anchors.schedule == "online" and steps is not None and max(anchors.warmup_steps, 1) >= steps:
        return [
            f"anchors.schedule is online, but no anchor is redrawn: training ends after {steps} steps and the first "
            f"refresh comes after step {max(anchors.warmup_steps, 1)}; lower anchors.warmup_steps"
        ]
    if anchors.strictly_on_policy:
        return [
            "strictly on-policy anchors (refresh_every 1, refresh_fraction 1, no instruction) have no first-order "
            "gradient, since E[grad log pi] = 0 under pi itself: what holds the model back is then about 2K/beta times "
            "weaker, and D2O becomes NPO; use a lagged buffer (refresh_every > 1), a part (refresh_fraction < 1) or "
            "anchors.mode: instruct"
        ]
    return []
