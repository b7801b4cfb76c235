"""An OpenAI-compatible server in this process that misbehaves as it is told."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, int], "str | tuple[int, str]"]
"""(the question, how often it came before) -> the text, or (status, body)."""


class FakeServer:
    def __init__(self, answer: Answer):
        self.answer = answer
        self.seen: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def reply(self, body: dict[str, Any], key: str) -> tuple[int, bytes]:
        question = body["messages"][-1]["content"]
        with self.lock:
            before = sum(row["messages"] == body["messages"] for row in self.seen)
            self.seen.append(body)
            self.keys.add(key)
        found = self.answer(question, before)
        if isinstance(found, tuple):
            return found[0], found[1].encode()
        message = {"role": "assistant", "content": found}
        usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        return 200, json.dumps(answer).encode()


@contextmanager
def serving(answer: Answer) -> Iterator[FakeServer]:
    server = FakeServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with server.lock:
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, data = server.reply(body, self.headers.get("Authorization", ""))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Retry-After", "0.01")
            with suppress(ConnectionError):  # a client that stops early hangs up
                self.end_headers()
                self.wfile.write(data)
            with server.lock:
                server.at_once -= 1

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
