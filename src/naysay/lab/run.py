"""All claims in a row, and the folder that the lab writes."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from naysay.artifacts.store import explain_storage_errors, read_json, write_bytes, write_json
from naysay.errors import ConfigError, RunDirectoryError
from naysay.lab import bounds, collapse, noise, onpolicy, pull, references, variance
from naysay.lab.figures import FIGURES
from naysay.lab.finding import Finding
from naysay.lab.world import BENIGN, HARMFUL, JUNK, LETTERS, LONGEST, PARAMETERS, PROMPTS, make_world

AREAS: dict[str, Callable[[int], list[Finding]]] = {
    "bounds": bounds.check,
    "pull": pull.check,
    "on-policy anchors": onpolicy.check,
    "collapse": collapse.check,
    "noise": noise.check,
    "variance": variance.check,
    "references": references.check,
}
VERDICTS = "lab.json"
_KIND = "naysay lab"


@dataclass(frozen=True)
class LabResult:
    """What the lab found with one seed."""

    seed: int
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> list[Finding]:
        """Claims that should hold and do not."""
        return [finding for finding in self.findings if finding.expected and not finding.holds]

    def as_dict(self) -> dict[str, Any]:
        world = make_world()
        kinds = {"benign": BENIGN, "harmful": HARMFUL, "junk": JUNK}
        return {
            "kind": _KIND,
            "files": [VERDICTS, *FIGURES],
            "settings": {
                "seed": self.seed,
                "dtype": "float64",
                "prompts": PROMPTS,
                "letters": LETTERS,
                "longest_answer": LONGEST,
                "answers": {name: int((world.kinds == kind).sum()) for name, kind in kinds.items()},
                "parameters": PARAMETERS,
            },
            "versions": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in ("naysay", "torch", "numpy", "scipy", "matplotlib")},
            },
            "claims": [_rounded(finding.as_dict()) for finding in self.findings],
        }


def run_lab(seed: int = 0, on_area: Callable[[str, float], None] | None = None) -> LabResult:
    """Check every claim; `on_area` is told each part's name and seconds when it is done.

    Raises:
        ConfigError: a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"seed: expected 0 or above, found {seed}; give another --seed")
    findings: list[Finding] = []
    with _one_thread():
        for name, check in AREAS.items():
            began = time.perf_counter()
            findings += check(seed)
            if on_area is not None:
                on_area(name, time.perf_counter() - began)
    return LabResult(seed, tuple(findings))


def require_free(out: Path) -> None:
    """Refuse a folder in which the lab would overwrite what an earlier lab did not write.

    Raises:
        RunDirectoryError: `out` is a file, or holds a file of one of our names that is not the lab's.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise RunDirectoryError(f"{out}: expected a folder or nothing, found a file; choose another --out")
    verdicts = out / VERDICTS
    earlier = read_json(verdicts) if verdicts.exists() else {}
    ours = earlier.get("files", []) if isinstance(earlier, dict) and earlier.get("kind") == _KIND else []
    foreign = [name for name in (VERDICTS, *FIGURES) if (out / name).exists() and name not in ours]
    if foreign:
        raise RunDirectoryError(f"{out / foreign[0]}: not written by the lab, not overwritten; choose another --out")


def write_lab(result: LabResult, out: Path) -> list[Path]:
    """Write lab.json and the figures, each atomically; returns their paths.

    Raises:
        RunDirectoryError: see `require_free`.
        StorageError: the disk is full or not writable.
    """
    require_free(out)
    with explain_storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    numbers = {finding.claim: finding.numbers for finding in result.findings}
    write_json(out / VERDICTS, result.as_dict())  # first: from here on the figures are known to be the lab's
    for name, draw in FIGURES.items():
        write_bytes(out / name, draw(numbers))
    return [out / VERDICTS, *(out / name for name in FIGURES)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors here are tiny: a second thread would mostly wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rounded(value: Any) -> Any:
    """Six significant digits: what is left does not depend on the machine's last bits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_rounded(item) for item in value]
    return value
