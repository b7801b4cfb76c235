"""The layout of a run directory, and the lock that keeps a second process out."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from naysay.artifacts.manifest import Manifest
from naysay.artifacts.store import explain_storage_errors
from naysay.errors import RunDirectoryError


class RunDirectory:
    """Paths of one run. Every stage reads and writes here and nowhere else."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def prompts(self) -> Path:
        return self.path / "prompts.jsonl"

    @property
    def negatives(self) -> Path:
        return self.path / "negatives.jsonl"

    @property
    def acceptable(self) -> Path:
        return self.path / "acceptable.jsonl"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    @property
    def ingest_parts(self) -> Path:
        return self.path / "ingest"

    @property
    def anchors(self) -> Path:
        return self.path / "anchors.jsonl"

    @property
    def sampling_parts(self) -> Path:
        return self.path / "sampling"

    @property
    def scores(self) -> Path:
        return self.path / "scores.jsonl"

    @property
    def selection(self) -> Path:
        return self.path / "selection.jsonl"

    @property
    def reference_cache(self) -> Path:
        return self.path / "reference_cache"

    @property
    def train(self) -> Path:
        return self.path / "train"

    @property
    def metrics(self) -> Path:
        return self.path / "train" / "metrics.jsonl"

    @property
    def guard(self) -> Path:
        return self.path / "train" / "guard.json"

    @property
    def dev(self) -> Path:
        return self.path / "train" / "dev.json"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def generations(self) -> Path:
        return self.path / "generations.jsonl"

    @property
    def suite_prompts(self) -> Path:
        return self.path / "suite_prompts.jsonl"

    @property
    def generation_parts(self) -> Path:
        return self.path / "evaluation"

    @property
    def verdicts(self) -> Path:
        return self.path / "verdicts.jsonl"

    @property
    def judge_answers(self) -> Path:
        """What judges behind a server answered, by question: paid for once, so no stage removes it."""
        return self.path / "judge_answers"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def evaluation_prompts(self) -> Path:
        return self.path / "evaluation_prompts.jsonl"

    @property
    def capability(self) -> Path:
        """What `naysay capability` measured."""
        return self.path / "capability.json"

    @property
    def inspect_logs(self) -> Path:
        """Logs that Inspect reads."""
        return self.path / "inspect"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def manifest_path(self, stage: str) -> Path:
        return self.path / "manifests" / f"{stage}.json"

    def manifest(self, stage: str) -> Manifest | None:
        path = self.manifest_path(stage)
        return Manifest.load(path) if path.exists() else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            RunDirectoryError: another process has it (the lock goes with its process, so a killed run leaves none).
        """
        with explain_storage_errors(self.path):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except (NotADirectoryError, FileExistsError, FileNotFoundError) as error:
                raise RunDirectoryError(
                    f"{self.path}: expected a folder, or a place where one can be made ({error.strerror}); choose "
                    "another --out"
                ) from error
        lock = FileLock(self.path / ".lock")
        try:
            with explain_storage_errors(self.path):
                lock.acquire(timeout=0)
        except Timeout as error:
            raise RunDirectoryError(
                f"{self.path}: in use by another naysay process; wait for it, or choose another --out"
            ) from error
        try:
            yield
        finally:
            lock.release()
