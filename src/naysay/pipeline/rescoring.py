"""`naysay evaluate --rescore`: the saved generations judged again with other judges, and the report made from that.

It is a part of stage `evaluate` done anew in place. That is sound because its other results depend neither on the
judges nor on their verdicts: what they were made from must be as it was, and they themselves untouched.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from naysay.artifacts.digests import digest_json
from naysay.artifacts.manifest import Manifest, environment
from naysay.artifacts.run_directory import RunDirectory
from naysay.artifacts.store import read_json, write_json
from naysay.config.run import RunConfig
from naysay.errors import InputNotFoundError, RunDirectoryError
from naysay.pipeline.completion import load_manifest, output_digests, relative_names, rescore_record, two_ways
from naysay.pipeline.graph import stage_module
from naysay.pipeline.identity import Digests, Identity, identify, key_of
from naysay.pipeline.preflight import check_settings
from naysay.pipeline.runner import Event, OnEvent, run_stages
from naysay.pipeline.saved_config import changed_leaves, describe, differences, load_saved_config, save_config

JUDGES = "judges"
"""The setting that may differ, and the beginning of the names of the inputs that belong to it."""
OUTCOMES = "outcomes"
"""What in evaluation.json comes from the judges."""


def rescore(config: RunConfig, out: Path | str, *, on_event: OnEvent = lambda event: None) -> RunDirectory:
    """Judge the generations of a run with the judges of `config`, then make the report. No policy is loaded.

    Interrupted anywhere, the same call, or one with yet other judges, does it again.

    Raises:
        InputNotFoundError: there is no run, or a judge is not there.
        RunDirectoryError: the run is not evaluated, was changed since, or the config differs in more than its judges.
        NaysayError: whatever a judge raises; the run is as it was then.
    """
    run, digests = RunDirectory(out), Digests()
    if not run.config.exists():
        raise InputNotFoundError(
            f"{run.path}: expected the directory of a run, found none; start it with: naysay align"
        )
    check_settings(config)
    with run.locked():
        _accept(config, run)
        from naysay.evaluation import stage as evaluation

        identity = identify("evaluate", stage_module("evaluate"), config, run, digests)
        before = _evaluated(run, identity, evaluation.VERSION)
        _require_untouched(run, before, digests)
        _Begun.save(run, before)
        on_event(Event("started", "evaluate", seconds=before.seconds))
        start = time.monotonic()
        counts = {**before.counts, **evaluation.rescore(config, run)}
        outputs = evaluation.outputs(config, run)
        digests.forget(outputs)
        after = Manifest(
            "evaluate",
            identity.key,
            identity.settings,
            identity.inputs,
            output_digests(run, relative_names(run, outputs), digests),
            counts,
            before.seconds + time.monotonic() - start,
            environment(),
        )
        after.save(run.manifest_path("evaluate"))
        save_config(config, run)
        _Begun.remove(run)
        on_event(Event("finished", "evaluate", seconds=after.seconds, counts=counts))
    return run_stages(config, out, ("report",), on_event=on_event)


def _accept(config: RunConfig, run: RunDirectory) -> None:
    saved = load_saved_config(run)
    assert saved is not None
    others = [change for change in differences(saved, config) if change.key != JUDGES]
    if others:
        raise RunDirectoryError(
            f"{run.path}: --rescore judges saved answers again, and only the setting judges may differ; found "
            f"{describe(others)}; give --out and the judges alone (no input file, no recipe), or use --redo evaluate"
        )


def _evaluated(run: RunDirectory, identity: Identity, version: int) -> Manifest:
    """The manifest of an evaluation of the same policies on the same prompts, whatever its judges."""
    manifest = load_manifest(run, "evaluate")
    if manifest is None:
        raise RunDirectoryError(
            f"{run.path}: --rescore needs the answers of stage evaluate, which is not done; "
            f"run: naysay evaluate --out {run.path}"
        )
    pairs = [(manifest.settings, identity.settings), (manifest.inputs, identity.inputs)]
    changes = [change for old, new in pairs for change in changed_leaves(_but_judges(old), _but_judges(new))]
    if changes:
        reason = f"was done from something else ({describe(changes)})"
    elif manifest.key != key_of("evaluate", version, manifest.settings, manifest.inputs):
        reason = "was done by another version of naysay"
    else:
        return manifest
    raise RunDirectoryError(f"{run.path}: stage evaluate {reason}; {two_ways(run, 'evaluate')}")


def _require_untouched(run: RunDirectory, manifest: Manifest, digests: Digests) -> None:
    """Verdicts are written anew in any case; everything else stays and must be what the stage wrote.

    Of evaluation.json an interrupted --rescore may have written new outcomes, and no manifest of them.
    """
    kept = {name: digest for name, digest in manifest.outputs.items() if run.path / name != run.verdicts}
    found = output_digests(run, kept, digests)
    for name, digest in kept.items():
        begun = run.path / name == run.evaluation and _Begun.load(run) == _Begun.of(run, manifest)
        if found[name] != digest and not begun:
            raise RunDirectoryError(
                f"{run.path / name}: changed since stage evaluate wrote it; put it back, or make it anew with "
                "--redo evaluate"
            )


@dataclass(frozen=True, slots=True)
class _Begun:
    """A `--rescore` that was begun: the key of the evaluation, and the digest of what does not depend on judges."""

    key: str
    measured: str

    @classmethod
    def of(cls, run: RunDirectory, manifest: Manifest) -> "_Begun | None":
        """That of the files as they are now; None where there is no evaluation.json."""
        if not run.evaluation.exists():
            return None
        measured = {name: value for name, value in read_json(run.evaluation).items() if name != OUTCOMES}
        return cls(manifest.key, digest_json(measured))

    @classmethod
    def load(cls, run: RunDirectory) -> "_Begun | None":
        path = rescore_record(run)
        return cls(**read_json(path)) if path.exists() else None

    @staticmethod
    def save(run: RunDirectory, manifest: Manifest) -> None:
        write_json(rescore_record(run), _Begun.of(run, manifest))

    @staticmethod
    def remove(run: RunDirectory) -> None:
        rescore_record(run).unlink(missing_ok=True)


def _but_judges(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name.partition(".")[0] != JUDGES}
