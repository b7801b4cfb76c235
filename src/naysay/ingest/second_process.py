"""A second Python process that does a part of the work of a large file. What it reads and writes is on disk.

It is a plain `python -m`, not `multiprocessing`: a fork would copy the threads' locks of whoever called us, and a
spawned process would run the caller's script once more where that has no `if __name__ == "__main__"`.
"""

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from naysay.errors import NaysayError

Result = TypeVar("Result")


class SecondProcess:
    """Calls functions of modules in another process, one at a time. Close it with `with`."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def __enter__(self) -> "SecondProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Callable[[], Result]:
        """Begin a call; what is returned waits for its result, or raises what the call raised."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        pickle.dump((function, args, kwargs), stdin)
        stdin.flush()

        def wait() -> Result:
            try:
                done, value = pickle.load(stdout)
            except EOFError as error:
                raise ChildProcessError("the second process of ingest ended before its work; see its output") from error
            if done:
                return value
            raise value

        return wait


def serve() -> None:
    """Do what the first process asks for until it goes away."""
    gc.disable()
    # What the work prints must not get between the answers.
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            function, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = (True, function(*args, **kwargs))
        except NaysayError as error:  # raised again by whoever asked
            answer = (False, error)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    serve()
