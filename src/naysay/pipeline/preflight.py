"""What a later stage would refuse, said before the first one: not after minutes of sampling and training."""

from naysay.artifacts.run_directory import RunDirectory
from naysay.config.references import INITIAL
from naysay.config.run import RunConfig
from naysay.errors import DataError


def check_settings(config: RunConfig) -> None:
    """Check what needs a library or the disk to be checked; those are loaded only where there is something to check.

    Raises:
        ConfigError: `training.trainer_args` has an unknown name or an impossible value.
        InputNotFoundError, ModelError: `references.*` names a model that is not there.
    """
    if config.training.trainer_args:
        from naysay.training.config import check_trainer_args

        check_trainer_args(config.training.trainer_args)
    references = {config.references.positive, config.references.negative} - {INITIAL}
    if references:
        from naysay.modeling.loading import resolve

        for name in sorted(references):
            resolve(name)


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
