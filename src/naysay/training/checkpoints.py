"""Which checkpoint a run can go on from, and which references it was trained against."""

import shutil
from pathlib import Path

from naysay.artifacts.store import read_json, write_json
from naysay.errors import ReferenceMismatchError

MARKER = "naysay_references.json"


def mark_complete(checkpoint: Path, reference_digests: dict[str, str]) -> None:
    """Written last: a checkpoint without this file was cut off while it was saved."""
    write_json(checkpoint / MARKER, reference_digests)


def last_complete(output_dir: Path) -> Path | None:
    """The newest complete `checkpoint-N`, None where there is none. Nothing is removed: others may keep theirs here."""
    complete = [folder for folder in _checkpoints(output_dir) if (folder / MARKER).exists()]
    return max(complete, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), default=None)


def remove_incomplete(run_folder: Path) -> None:
    """Remove checkpoints that a kill cut off. Only for a folder that belongs to a run of naysay."""
    for folder in _checkpoints(run_folder):
        if not (folder / MARKER).exists():
            shutil.rmtree(folder)


def _checkpoints(folder: Path) -> list[Path]:
    return [item for item in folder.glob("checkpoint-*") if item.name.removeprefix("checkpoint-").isdigit()]


def check_references(checkpoint: Path, reference_digests: dict[str, str]) -> None:
    """Raises ReferenceMismatchError where the checkpoint was trained against other references.

    The usual cause is that the half-trained policy was loaded as the initial model.
    """
    if not (checkpoint / MARKER).exists():
        return
    pinned = read_json(checkpoint / MARKER)
    for role, digest in reference_digests.items():
        if pinned.get(role) != digest:
            raise ReferenceMismatchError(
                f"{checkpoint}: trained with {role} reference {pinned.get(role, 'none')[:12]}, found {digest[:12]}; "
                "load the same initial model and references as when the run began, or start a new output_dir"
            )
