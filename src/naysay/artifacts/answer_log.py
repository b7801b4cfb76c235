"""Answers of a paid or slow judge, kept as they come in: an append-only file that survives a kill."""

from pathlib import Path
from typing import Any

import orjson

from naysay.artifacts.store import explain_storage_errors, write_bytes
from naysay.errors import RunDirectoryError


class AnswerLog:
    """key -> answer (a JSON object), in one JSONL file.

    A line that a kill cut short is removed when the file is opened; its answer is asked for again.

    Raises (on construction):
        RunDirectoryError: a whole line is not what was written.

    Example:
        log = AnswerLog(folder / "answers.jsonl")
        log.add("3f2a", {"text": "..."})
        log.get("3f2a")  # {"text": "..."}
    """

    def __init__(self, path: Path):
        self.path = path
        self._answers: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._read()

    def get(self, key: str) -> dict[str, Any] | None:
        return self._answers.get(key)

    def add(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer: on disk first, then in memory."""
        with explain_storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                stream.write(orjson.dumps({"key": key, "answer": answer}) + b"\n")
        self._answers[key] = answer

    def _read(self) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            write_bytes(self.path, b"".join(whole))
        for number, line in enumerate(whole, 1):
            try:
                row = orjson.loads(line)
                self._answers[row["key"]] = row["answer"]
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise RunDirectoryError(
                    f"{self.path}:{number}: not an answer ({error}); remove this line, it will be asked for again"
                ) from error
