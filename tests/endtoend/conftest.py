"""The whole pipeline on a model of 50 thousand parameters: real stages and real files, no network."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from endtoend.workplace import Workplace, fill, save_model
from naysay.artifacts.run_directory import RunDirectory


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of floats depend on the number of threads, and two threads for so small a model only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> RunDirectory:
    """An uninterrupted run with the recipe as it is. Tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    fill(folder)
    workplace = Workplace(folder, model_folder)
    assert workplace(*workplace.command("run")) == 0
    return workplace.run("run")


@pytest.fixture
def naysay(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> Workplace:
    fill(tmp_path)
    return Workplace(tmp_path, model_folder, capsys)
