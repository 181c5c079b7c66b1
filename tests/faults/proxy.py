"""A proxy that can go silent or slow: half-open connections, as a lost host or a forgetful firewall leaves them."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path


class _Link:
    """One connection through the proxy. What is in `dropped`, requests or replies, is taken and goes nowhere."""

    def __init__(self, client: socket.socket, server: socket.socket, dropped: frozenset[str]) -> None:
        self.dropped = dropped
        self.delay_s = self.trickle_s = 0.0
        self._ends = client, server
        for source, target, what in ((client, server, "requests"), (server, client, "replies")):
            threading.Thread(target=self._pump, args=(source, target, what), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, what: str) -> None:
        with suppress(OSError):
            while some := source.recv(65_536):
                time.sleep(self.delay_s)
                if what not in self.dropped:
                    self._pass_on(some, target, what)
            if what not in self.dropped:
                target.shutdown(socket.SHUT_WR)

    def _pass_on(self, some: bytes, target: socket.socket, what: str) -> None:
        while some and what == "replies" and self.trickle_s:
            target.sendall(some[:1])
            some = some[1:]
            time.sleep(self.trickle_s)
        target.sendall(some)

    def close(self) -> None:
        for each in self._ends:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Proxy:
    """Passes everything on to the port `target` of 127.0.0.1, until it is told to be silent.

    Listens on a port of 127.0.0.1 too or, with `path`, on a Unix socket.
    """

    def __init__(self, target: int, path: Path | None = None) -> None:
        self._target = target
        self._dropped: frozenset[str] = frozenset()
        self._delay_s = self._trickle_s = 0.0
        self._links: list[_Link] = []
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.port: int = self._listener.getsockname()[1]
        else:
            self._listener = socket.create_server(str(path), family=socket.AF_UNIX)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def silence(self) -> None:
        """Every connection that there is, or that is made from now on, gets no answer any more."""
        self._drop("requests", "replies")

    def swallow_replies(self) -> None:
        """What is asked is still done, but nobody hears of it."""
        self._drop("replies")

    def delay(self, seconds: float) -> None:
        """Everything takes that much longer, each way."""
        self._delay_s = seconds
        for link in self._links:
            link.delay_s = seconds

    def trickle(self, seconds: float) -> None:
        """Answers come a byte at a time, so far apart."""
        self._trickle_s = seconds
        for link in self._links:
            link.trickle_s = seconds

    def heal(self) -> None:
        """New connections are passed on again, at once. Those that were silent stay dead, as they do in life."""
        self.delay(0)
        self.trickle(0)
        self._dropped = frozenset()

    def redirect(self, target: int) -> None:
        """New connections go to another server; those that there were are cut."""
        self._target = target
        self.cut()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.cut()

    def _drop(self, *what: str) -> None:
        self._dropped = frozenset(what)
        for link in self._links:
            link.dropped = self._dropped

    def cut(self) -> None:
        """End every connection that there is."""
        links, self._links = self._links, []
        for link in links:
            link.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except ConnectionRefusedError:
                    client.close()
                    continue
                link = _Link(client, server, self._dropped)
                link.delay_s, link.trickle_s = self._delay_s, self._trickle_s
                self._links.append(link)
