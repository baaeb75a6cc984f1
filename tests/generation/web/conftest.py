"""A server of a small model with random weights, in a thread of the tests' process."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest

from generation.infill import BlankFiller
from generation.web.limits import Limits
from tests.helpers.small_models import TINY_COMMAND_IDS, WordTokenizer, random_model

pytest.importorskip("uvicorn", reason="the extra web is not installed")

PROGRAM = ("python", "generate_samples.py", "--load-pretrained", "my model")


@dataclass
class WebServer:
    """Where the server listens, what it fills with, and the thread behind it."""

    port: int
    filler: BlankFiller
    guard: Any

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def service(self) -> Any:
        return self.guard.service

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> HTTPResponse:
        """Return the answer to a request, its body in ``text``; bytes are sent as they are, an iterator in parts."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if body is None or isinstance(body, bytes | Iterator) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        response.text = response.read().decode()
        connection.close()
        return response

    def fill(self, text: str, **fields: Any) -> dict[str, Any]:
        """Return the answer to a request that is filled."""
        response = self.ask("POST", "/api/fill", {"text": text, **fields})
        assert response.status == 200, response.text
        return json.loads(response.text)

    def stream(self, text: str, **fields: Any) -> list[dict[str, Any]]:
        """Return the messages of a stream."""
        response = self.ask("POST", "/api/fill", {"text": text, "stream": True, **fields})
        assert response.status == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]

    def wait_until_idle(self) -> None:
        """Return when nothing is filled any more."""
        for _ in range(1000):
            if not (self.service.working or self.service.waiting or self.service.filler.samples.rows):
                return
            time.sleep(0.01)
        raise AssertionError(f"still at work: {self.service.working}")


@contextlib.contextmanager
def serve(**limits: Any) -> Iterator[WebServer]:
    from generation.web.app import build_app, build_server

    words = WordTokenizer(TINY_COMMAND_IDS, num_tokens=58, unknown_id=0)
    filler = BlankFiller(random_model(vocab_size=58), words)
    app = build_app(filler, limits=Limits(**limits), name="words", program=PROGRAM, allowed_hosts=["words.example"])
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = build_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield WebServer(listener.getsockname()[1], filler, app)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="package")
def server() -> Iterator[WebServer]:
    with serve() as running:
        yield running


@pytest.fixture
def server_with() -> Callable[..., contextlib.AbstractContextManager[WebServer]]:
    """Return what starts a server with other limits."""
    return serve
