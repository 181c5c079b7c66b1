"""A model's provider as far as a client library can tell: a server on 127.0.0.1 that answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler], None]


def answer(status: int, body: Any, **headers: str) -> Answer:
    def write(handler: BaseHTTPRequestHandler) -> None:
        content = json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(content)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return write


def stream(events: list[Any], *, broken: bool = False) -> Answer:
    """Events in pieces of 7 bytes; without the chunk that ends them if `broken`."""

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream; charset=utf-8")
        handler.send_header("transfer-encoding", "chunked")
        handler.end_headers()
        text = ""
        for event in events:
            name = f"event: {event['type']}\n" if isinstance(event, dict) and "type" in event else ""
            text += f"{name}data: {event if isinstance(event, str) else json.dumps(event)}\n\n"
        content = text.encode()
        for piece in (content[at : at + 7] for at in range(0, len(content), 7)):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if broken:
            handler.close_connection = True
        else:
            handler.wfile.write(b"0\r\n\r\n")

    return write


class Provider:
    """A server that answers as the test says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        """One for each request; the last stays."""
        self.asked: list[tuple[dict[str, str], bytes]] = []
        self.stay = threading.Event()
        """Set, to let go of requests that get no answer."""
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                provider.asked.append(({name.lower(): value for name, value in self.headers.items()}, body))
                say = provider.answers.pop(0) if len(provider.answers) > 1 else provider.answers[0]
                try:
                    say(self)
                except OSError:
                    self.close_connection = True  # Whoever asked has gone.

            def do_GET(self) -> None:
                answer(200, {"object": "list", "data": []})(self)

            def log_message(self, *_: Any) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def never(self, _: BaseHTTPRequestHandler) -> None:
        """No answer until the test ends."""
        self.stay.wait(60)

    def close(self) -> None:
        self.stay.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
