"""Taking over a finished stage of another run, by digest."""

import shutil
from dataclasses import replace
from pathlib import Path

from naysay.artifacts.manifest import Manifest
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import write_atomic, write_directory_atomic
from naysay.errors import InputNotFoundError, RunDirectoryError
from naysay.pipeline.completion import Partial, clear_work, inside, load_manifest, output_digests
from naysay.pipeline.identity import MISSING, Digests, Identity


def open_other_run(path: Path, run: RunDirectory) -> RunDirectory:
    """The run that `--reuse` names.

    Raises:
        InputNotFoundError: there is no run.
        RunDirectoryError: it is the run itself.
    """
    other = RunDirectory(path)
    if not other.config.is_file():
        raise InputNotFoundError(f"--reuse {path}: expected the directory of a run, found no config.yaml there")
    if path.resolve() == run.path.resolve():
        raise RunDirectoryError(
            f"--reuse {path}: a run cannot take over its own stages; give a new folder with --out NEW"
        )
    return other


def take_over(run: RunDirectory, other: RunDirectory, identity: Identity, digests: Digests) -> Manifest | None:
    """Copy a stage's outputs and manifest from another run; None where it did not do this stage under this key.

    Raises:
        RunDirectoryError: the other run's files are not what its stage left.
        StorageError: the copy cannot be written.
    """
    manifest = load_manifest(other, identity.stage)
    if manifest is None or manifest.key != identity.key:
        return None
    for name, digest in output_digests(other, manifest.outputs, digests).items():
        if digest != manifest.outputs[name]:
            what = "is missing" if digest == MISSING else "changed since it was written"
            raise RunDirectoryError(
                f"--reuse {other.path}: {other.path / name} {what}; "
                f"redo stage {identity.stage} there, or leave out --reuse"
            )
    partial = Partial.load(run, identity.stage)
    clear_work(run, identity.stage, {*manifest.outputs, *(partial.outputs if partial else ())})
    for name, digest in manifest.outputs.items():
        target = inside(run, name)
        _copy(inside(other, name), target)
        if digests.of(target) != digest:
            raise RunDirectoryError(
                f"--reuse {other.path}: {name} changed while it was copied; run the same command again"
            )
    taken = replace(manifest, reused_from=str(other.path))
    taken.save(run.manifest_path(identity.stage))
    Partial.remove(run, identity.stage)
    return taken


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        write_directory_atomic(target, lambda temporary: _copy_tree(source, temporary))
    else:
        write_atomic(target, lambda temporary: _copy_file(source, temporary))


def _copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def _copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
