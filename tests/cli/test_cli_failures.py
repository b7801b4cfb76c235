"""Every failure is one line and an exit code."""

import errno
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from naysay.cli.failures import print_error
from naysay.errors import DataError, NonFiniteLossError, StorageError

ALIGN = ("align", "rejected.jsonl", "--model", "model", "--out", "run")


def failing(terminal, stage, error):
    terminal.stages[stage].fail_at, terminal.stages[stage].error = 0, error


def one_line(terminal) -> str:
    """The last line of stderr; those before it must be lines of stages."""
    *before, last = terminal.err.splitlines()
    assert not any("Traceback" in line or "error" in line for line in before)
    return last


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("evaluat",), "No such command 'evaluat'. Did you mean 'evaluate'?"),
        (("align", "--beta", "1"), "No such option: --beta"),
        (("train",), "Missing option '--out'"),
        ((*ALIGN, "--set", "training.bta=1"), "unknown key 'training.bta'; did you mean 'training.beta'?"),
        ((*ALIGN, "--set", "training.beta"), "--set training.beta: expected section.key=value"),
        ((*ALIGN, "--set", "anchors.k=0"), "anchors.k: Input should be greater than or equal to 1 (found 0)"),
        ((*ALIGN, "--map", "prompt"), "--map prompt: expected naysay's column = the file's"),
        ((*ALIGN, "--map", "promt=question"), "data.map: unknown column 'promt'"),
        ((*ALIGN, "--recipe", "no.yaml"), "recipe no.yaml: no such file"),
        ((*ALIGN, "--redo", "evalute"), "--redo evalute: no such stage; did you mean 'evaluate'?"),
        ((*ALIGN, "--reuse", "nowhere"), "--reuse nowhere: expected the directory of a run"),
        (("report", "--out", "nowhere"), "nowhere: expected the directory of a run, found none"),
    ],
)
def test_mistakes_of_the_user(terminal, arguments, expected):
    assert terminal(*arguments) == 2
    assert terminal.err.startswith("naysay: error: ")
    assert expected in terminal.err
    assert terminal.err.count("\n") == 1
    assert terminal.ran == []


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (DataError("row 3:\n  empty"), 2, "naysay: error: row 3: empty"),
        (NonFiniteLossError("loss is NaN in step 3"), 1, "naysay: error: loss is NaN in step 3"),
        (StorageError(errno.ENOSPC, "run/x: the disk is full"), 2, "naysay: error: run/x: the disk is full"),
    ],
)
def test_errors_that_naysay_explains(terminal, error, code, expected):
    failing(terminal, "score", error)
    assert terminal(*ALIGN) == code
    assert one_line(terminal) == expected
    assert terminal(*ALIGN) == 0
    assert terminal.ran == ["score", "train", "evaluate", "report"]


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/weights.pt"), "run/weights.pt"),
        (RuntimeError("safetensors: I/O error: No space left on device (os error 28)"), "run"),
    ],
)
def test_a_full_disk_in_a_library_is_the_users_to_mend(terminal, error, place):
    failing(terminal, "train", error)
    assert terminal(*ALIGN) == 2
    assert one_line(terminal).startswith(f"naysay: error: {place}: the disk is full; free some space")


def test_out_of_memory_says_what_to_lower(terminal):
    failing(terminal, "train", MemoryError())
    assert terminal(*ALIGN) == 1
    assert "out of memory: lower sampling.batch_size, training.tokens_per_microbatch" in one_line(terminal)


def test_a_defect_is_one_line_and_its_traceback_a_file(terminal, monkeypatch):
    failing(terminal, "train", ZeroDivisionError("by zero\nindeed"))
    assert terminal(*ALIGN) == 1
    line = one_line(terminal)
    assert line.startswith("naysay: error: this is a bug in naysay (ZeroDivisionError: by zero indeed)")
    assert "run/traceback.txt" in line
    assert "fake_stages.py" in Path("run/traceback.txt").read_text()
    failing(terminal, "train", ZeroDivisionError("again"))
    monkeypatch.setenv("NAYSAY_TRACEBACK", "1")
    assert terminal(*ALIGN) == 1
    assert "Traceback (most recent call last)" in terminal.err


def test_a_defect_before_there_is_a_run_says_how_to_see_the_traceback(terminal, monkeypatch):
    def broken(options):
        raise ZeroDivisionError

    monkeypatch.setattr("naysay.cli.stages.resolve", broken)
    assert terminal(*ALIGN) == 1
    assert "(ZeroDivisionError); please report it with the traceback that NAYSAY_TRACEBACK=1 shows" in terminal.err


def test_an_interruption_says_how_to_continue_and_the_same_command_does(terminal):
    failing(terminal, "train", KeyboardInterrupt())
    assert terminal(*ALIGN) == 130
    assert one_line(terminal) == "naysay: interrupted; run the same command again to continue"
    assert terminal(*ALIGN) == 0
    assert terminal.ran == ["train", "evaluate", "report"]


def test_an_error_is_red_on_a_terminal_only(monkeypatch, capsys):
    print_error("x  y\n z")
    assert capsys.readouterr().err == "naysay: error: x  y z\n"
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    print_error("x")
    assert capsys.readouterr().err == "\x1b[31m\x1b[1mnaysay: error:\x1b[0m x\n"


DRIVER = """
    import signal, sys, time
    from pipeline.fake_stages import fake_stages
    from naysay.cli.main import main
    from naysay.pipeline import graph

    # A test run in the background (nohup, &) ignores SIGINT, and its children inherit that; a terminal does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stages = fake_stages()
    work = stages["train"].run
    def slow(config, run, **injected):
        print("training", flush=True)
        time.sleep(float(sys.argv[1]))
        return work(config, run, **injected)
    stages["train"].run = slow
    graph.stage_module = stages.__getitem__
    sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture
def process(tmp_path):
    """Starts the command line on fake stages in another process; `train` takes `seconds`."""
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    (tmp_path / "rejected.jsonl").write_text("bad answers")
    (tmp_path / "model").mkdir()
    tests = Path(__file__).parent.parent

    def start(seconds: float, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script), str(seconds), *arguments],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tests), "PATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_a_signal_ends_the_run_and_the_same_command_continues(process, signal_name):
    with process(60, *ALIGN) as first:
        assert first.stdout.readline() == "training\n"
        with process(0, *ALIGN) as second:
            assert second.wait(timeout=60) == 2
            assert "run: in use by another naysay process" in second.stderr.read()
        first.send_signal(getattr(signal, signal_name))
        code = first.wait(timeout=60)
        error = first.stderr.read()
    if signal_name == "SIGKILL":
        assert code == -signal.SIGKILL
    else:
        assert code == 130
        assert error.splitlines()[-1] == "naysay: interrupted; run the same command again to continue"
    with process(0, *ALIGN) as again:
        output, error = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "verdict" in output
    assert [line.split()[1:4] for line in error.splitlines()[:3]] == [["up", "to", "date"]] * 3


@pytest.mark.parametrize(
    "arguments", [["--help"], ["config", "show"], ["config", "schema"], ["ingest", "--out", "x", "no.csv"]]
)
def test_light_commands_load_neither_torch_nor_transformers(tmp_path, arguments):
    script = f"""
        import sys
        from naysay.cli.main import main
        code = main({arguments!r})
        heavy = sorted({{"torch", "transformers", "peft"}} & set(sys.modules))
        assert not heavy, heavy
        sys.exit(code)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "AssertionError" not in done.stderr
    assert done.returncode == (2 if "ingest" in arguments else 0)
    assert not (tmp_path / "x").exists()


def test_python_m_naysay_is_naysay(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "naysay", "trian"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "naysay: error: No such command 'trian'. Did you mean 'train'? (see naysay --help)\n"
