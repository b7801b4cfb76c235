"""A second Python process that does a part of the work of a large file. What it reads and writes is on disk.

It is a plain `python -m`, not `multiprocessing`: a fork would copy the threads' locks of whoever called us, and a
spawned process would run the caller's script once more where that has no `if __name__ == "__main__"`.
"""

import gc
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from naysay.errors import NaysayError, WorkerError

Result = TypeVar("Result")
_SECONDS_TO_END = 5.0


class SecondProcess:
    """Calls functions of modules in another process, one at a time. Close it with `with`."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def __enter__(self) -> "SecondProcess":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        try:
            self._process.communicate(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def stop(self) -> None:
        """End it, whatever it is at. It may be writing a file, which it then removes."""
        self._process.terminate()

    def start(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Callable[[], Result]:
        """Begin a call; what is returned waits for its result, or raises what the call raised."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump((function, args, kwargs), stdin)
            stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

        def wait() -> Result:
            try:
                done, value = pickle.load(stdout)
            except (EOFError, pickle.UnpicklingError) as error:
                raise self._ended() from error
            if done:
                return value
            raise value

        return wait

    def _ended(self) -> WorkerError:
        return WorkerError(
            f"the second process of ingest ended before its work (exit code {self._process.wait()}; -9 mostly means "
            "that memory ran out); see what it printed, free some memory and run the same command again"
        )


def share(
    second: SecondProcess | None,
    function: Callable[..., Result],
    items: Iterable[Any],
    *,
    only_here: Mapping[str, Any] | None = None,
    arrived: Callable[[Result], None] = lambda result: None,
    **kwargs: Any,
) -> list[Result]:
    """Call `function(item, writer=..., **kwargs)` for each item: each process takes the next one when it is free.

    Args:
        second: None: all is done here.
        function: its `writer` is 0 here and 1 in the second process.
        only_here: arguments that the second process does not get.
        arrived: told each result of the second process.

    Returns:
        the results in the order of the items.

    Raises:
        what the call of an item raised; of several, that of the first.
    """
    left = deque(enumerate(items))
    found: dict[int, Result] = {}
    errors: dict[int, Exception] = {}

    def work(call: Callable[[Any], Result]) -> None:
        while left:
            try:
                number, item = left.popleft()
            except IndexError:  # the other one was faster
                return
            try:
                found[number] = call(item)
            except Exception as error:  # noqa: BLE001  # raised below, when the items before it are done
                errors[number] = error
                left.clear()

    def there(item: Any) -> Result:
        assert second is not None
        result = second.start(function, item, writer=1, **kwargs)()
        arrived(result)
        return result

    with ThreadPoolExecutor(1) as thread:
        if second is not None:
            thread.submit(work, there)
        finished = False
        try:
            work(lambda item: function(item, writer=0, **(only_here or {}), **kwargs))
            finished = True
        finally:
            left.clear()
            # Ctrl-C, which is not to wait for what the other one is at.
            if second is not None and not finished:
                second.stop()
    if errors:
        raise errors[min(errors)]
    return [found[number] for number in sorted(found)]


@contextmanager
def without_collection() -> Iterator[None]:
    """Python does not look for cycles meanwhile: there are none among the many tuples of rows."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def serve() -> None:
    """Do what the first process asks for until it goes away."""
    gc.disable()
    # Ctrl-C reaches both processes; the first one says so, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
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
