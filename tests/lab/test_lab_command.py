"""`naysay lab`: what it writes, what it refuses, and its exit code."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from naysay.cli.lab import verdict_text
from naysay.cli.main import main
from naysay.errors import ConfigError, RunDirectoryError
from naysay.lab import Finding, LabResult, run_lab, write_lab
from naysay.lab.figures import FIGURES
from naysay.lab.run import AREAS, require_free

CLAIMS = [
    f"{area}{number}"
    for area, count in {"a": 5, "b": 6, "c": 5, "d": 4, "e": 3, "f": 4}.items()
    for number in range(1, count + 1)
]


@pytest.fixture
def quick(monkeypatch, result):
    """The command on the findings of the session's one run."""
    monkeypatch.setattr("naysay.lab.run.run_lab", lambda seed, on_area=None: LabResult(seed, result.findings))


def test_the_folder_holds_the_verdicts_and_the_figures(tmp_path, result):
    files = write_lab(result, tmp_path / "lab")
    assert sorted(path.name for path in (tmp_path / "lab").iterdir()) == sorted(["lab.json", *FIGURES])
    assert [path.name for path in files] == ["lab.json", *FIGURES]
    saved = json.loads(files[0].read_text())
    assert [row["claim"] for row in saved["claims"]] == CLAIMS
    assert saved["settings"]["seed"] == 0
    assert saved["settings"]["answers"] == {"benign": 36, "harmful": 20, "junk": 28}
    assert set(saved["versions"]) >= {"naysay", "torch", "numpy", "python"}
    for row in saved["claims"]:
        assert row["verdict"] in {"holds", "does not hold as stated"}
        assert row["statement"].endswith(".")
        assert row["numbers"]
    for path in files[1:]:
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", data[16:24])
        assert width > 800
        assert height > 300
        assert len(data) < 120_000


def test_the_same_run_gives_the_same_bytes(tmp_path, result):
    for folder in ("one", "two"):
        write_lab(result, tmp_path / folder)
    for name in ("lab.json", *FIGURES):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_command_prints_every_claim_and_returns_0(tmp_path, monkeypatch, capsys, quick):
    monkeypatch.chdir(tmp_path)
    assert main(["lab", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(f" {claim} " in out for claim in CLAIMS)
    assert "does not hold as" in out
    assert f"verdicts {Path('lab/lab.json')}" in out
    assert (tmp_path / "lab" / "noise.png").exists()


def test_a_claim_that_fails_gives_exit_code_1(tmp_path, monkeypatch, capsys, result):
    broken = [
        finding if finding.claim != "b1" else Finding("b1", finding.statement, False, "broken", finding.numbers)
        for finding in result.findings
    ]
    monkeypatch.setattr("naysay.lab.run.run_lab", lambda seed, on_area=None: LabResult(seed, tuple(broken)))
    assert main(["lab", "--quiet", "--out", str(tmp_path / "lab")]) == 1
    assert "FAILS" in capsys.readouterr().out
    saved = json.loads((tmp_path / "lab" / "lab.json").read_text())
    assert [row["claim"] for row in saved["claims"] if not row["as_expected"]] == ["b1"]


def test_a_refuted_claim_that_holds_is_said_but_is_no_failure(result):
    finding = Finding("a3", "x.", True, "y", {}, expected=False)
    assert verdict_text(finding) == "holds, unlike expected"
    assert LabResult(0, (finding,)).failed == []
    assert verdict_text(Finding("a3", "x.", False, "y", {}, expected=False)) == "does not hold as stated"


def test_an_earlier_lab_is_replaced_and_its_neighbours_stay(tmp_path, result):
    out = tmp_path / "lab"
    write_lab(result, out)
    (out / "notes.txt").write_text("mine")
    (out / "noise.png").write_bytes(b"old")
    write_lab(result, out)
    assert (out / "noise.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "content"),
    [("noise.png", "a picture of mine"), ("lab.json", "{}"), ("lab.json", '{"kind": "other"}'), ("lab.json", "[1]")],
)
def test_what_the_lab_did_not_write_is_not_overwritten(tmp_path, capsys, quick, name, content):
    (tmp_path / name).write_text(content)
    assert main(["lab", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / name}: not written by the lab" in error
    assert "--out" in error
    assert (tmp_path / name).read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "lab").write_text("")
    with pytest.raises(RunDirectoryError, match="found a file; choose another --out"):
        require_free(tmp_path / "lab")


def test_a_negative_seed_is_refused_before_any_work(capsys, tmp_path):
    with pytest.raises(ConfigError, match="0 or above, found -1"):
        run_lab(-1)
    assert main(["lab", "--seed", "-1", "--out", str(tmp_path / "lab")]) == 2
    assert not (tmp_path / "lab").exists()


def test_progress_is_told_part_by_part(monkeypatch):
    told = []
    monkeypatch.setattr("naysay.lab.run.AREAS", {name: lambda seed: [] for name in AREAS})
    assert run_lab(3, on_area=lambda name, seconds: told.append((name, seconds >= 0))).findings == ()
    assert told == [(name, True) for name in AREAS]


def test_help_needs_no_torch():
    code = (
        "import sys; from naysay.cli.main import main; main(['lab', '--help']); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'matplotlib', 'scipy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--seed" in done.stdout
