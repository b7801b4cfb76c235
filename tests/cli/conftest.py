"""The command line in this process, on fake stages."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from naysay.cli.main import main
from pipeline.fake_stages import FakeStage, fake_stages


@dataclass
class Terminal:
    """`terminal("train", "--out", "x")` gives the exit code; `out` and `err` hold what was printed."""

    folder: Path
    stages: dict[str, FakeStage]
    capture: pytest.CaptureFixture[str]
    out: str = ""
    err: str = ""

    def __call__(self, *arguments: object) -> int:
        self.capture.readouterr()
        for stage in self.stages.values():
            stage.runs = 0
        code = main([str(argument) for argument in arguments])
        self.out, self.err = self.capture.readouterr()
        return code

    @property
    def ran(self) -> list[str]:
        return [name for name, stage in self.stages.items() if stage.runs]


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    stages = fake_stages()
    for name in ("HF_HUB_OFFLINE", "NAYSAY_TRACEBACK", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # restored afterwards, whatever the command sets
        monkeypatch.delenv(name)
    monkeypatch.setattr("naysay.pipeline.graph.stage_module", stages.__getitem__)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "rejected.jsonl").write_text("bad answers")
    level = logging.getLogger("naysay").level
    yield Terminal(tmp_path, stages, capsys)
    logging.getLogger("naysay").setLevel(level)
