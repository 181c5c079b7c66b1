"""Keep streams of OpenAI's client inside a cap: each is charged by the usage in its last event.

.venv/bin/python examples/openai_streaming.py

A server in this process stands in for the model. For the real one, drop `base_url` and set your API key.
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
    """Return the text of one stream."""
    words = client.chat.completions.create(
        model="gpt-4o",
        messages=[{"role": "user", "content": "What does a stream cost?"}],
        max_completion_tokens=400,  # Sets the hold; the call is charged by its usage.
        stream=True,
        stream_options={"include_usage": True},  # Without this a stream is charged its whole hold.
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in words if chunk.choices)


def spent(wallet: Wallet) -> int:
    """Return what was spent, in micros, once everything finalized is settled."""
    wallet.flush()
    return wallet.spent("agent-7").micros


class Answers(BaseHTTPRequestHandler):
    """Answers with a stream of words and their usage, as the model would."""

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
    """Run a local server; yield its base URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


if __name__ == "__main__":
    main()
