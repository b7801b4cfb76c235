"""The wheel in an environment of its own, outside the checkout: its data are in it, and it runs."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from endtoend.workplace import Workplace

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(python, environment): a venv in which naysay comes from the wheel, and only its dependencies from here."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("naysay-*.whl")
    venv.create(folder / "env", with_pip=False)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(folder / "site"), str(wheel)], check=True, capture_output=True)
    # Folders on PYTHONPATH are not site folders: the editable checkout's .pth file is not read from there.
    paths = [str(folder / "site"), sysconfig.get_paths()["purelib"]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return folder / "env" / "bin" / "python", environment


def test_the_wheel_holds_its_data_and_runs_the_whole_job(installed, naysay: Workplace):
    python, environment = installed

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python), *command], cwd=naysay.folder, env=environment, capture_output=True, text=True, check=False
        )

    where = run("-c", "import naysay, importlib.resources as r; print(naysay.__file__); print(r.files('naysay'))")
    assert str(CHECKOUT / "src") not in where.stdout, where.stdout
    assert "/site/naysay" in where.stdout
    data = run(
        "-c", "import importlib.resources as r; print(len((r.files('naysay.data')/'answers.jsonl').read_text()))"
    )
    assert int(data.stdout) > 100_000, data.stderr
    finished = run("-m", "naysay", *naysay.command("from-wheel"))
    assert finished.returncode == 0, finished.stderr
    assert (naysay.run("from-wheel").report).stat().st_size > 10_000
