"""Streams of OpenAI's own client inside a cap: each is charged by the usage in its last event.

uv run python examples/openai_streaming.py

The model's stand-in is a server in this process. For the real one leave `base_url` out, and say who you are.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai

from daycap import CapExceeded, Wallet, format_usd, usd
from daycap.httpx_transport import MeteredTransport

WORDS = ["Every", "word", "of", "this", "comes", "as", "an", "event", "of", "its", "own", "."]


def main() -> None:
    with provider() as base_url, Wallet.from_env(caps={"agent-7": usd("0.01")}, environ={}) as wallet:
        # These two lines are all that daycap needs; every call of this client is metered from here on.
        http_client = openai.DefaultHttpxClient(transport=MeteredTransport(wallet, agent="agent-7"))
        client = openai.OpenAI(base_url=base_url, api_key="none", http_client=http_client)
        try:
            while True:
                print(answer(client), "", format_usd(spent(wallet)), flush=True)
        except CapExceeded as refused:
            print("stopped:", refused)


def answer(client: openai.OpenAI) -> str:
    """The words of one stream, as they come."""
    words = client.chat.completions.create(
        model="gpt-4o",
        messages=[{"role": "user", "content": "What does a stream cost?"}],
        max_completion_tokens=400,  # What the call holds; it is charged by its usage.
        stream=True,
        stream_options={"include_usage": True},  # Without it a stream is charged all that it held.
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in words if chunk.choices)


def spent(wallet: Wallet) -> int:
    """Micros, once all that was finalized is booked."""
    wallet.flush()
    return wallet.spent("agent-7").micros


class Answers(BaseHTTPRequestHandler):
    """A stream of words, and what they cost, as the model would say it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for word in WORDS:
            self.say({"choices": [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}]})
        self.say({"choices": [], "usage": {"prompt_tokens": 14, "completion_tokens": 100, "total_tokens": 114}})
        self.wfile.write(b"data: [DONE]\n\n")

    def say(self, event: dict[str, Any]) -> None:
        whole = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", **event}
        self.wfile.write(f"data: {json.dumps(whole)}\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@contextmanager
def provider() -> Iterator[str]:
    """A server on this machine, and where it is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


if __name__ == "__main__":
    main()
