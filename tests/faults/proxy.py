"""A TCP proxy that can go silent: half-open connections, as a lost host or a forgetful firewall leaves them."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class _Link:
    """One connection through the proxy. Once silent it stays so: bytes are taken and dropped, both ways."""

    def __init__(self, client: socket.socket, server: socket.socket, silent: bool) -> None:
        self.silent = silent
        self._ends = client, server
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while some := source.recv(65_536):
                if not self.silent:
                    target.sendall(some)
            if not self.silent:
                target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in self._ends:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Proxy:
    """Listens on a port of 127.0.0.1 and passes everything on to `target`, until it is told to be silent."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._silent = False
        self._links: list[_Link] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def silence(self) -> None:
        """Every connection that there is, or that is made from now on, gets no answer any more."""
        self._silent = True
        for link in self._links:
            link.silent = True

    def heal(self) -> None:
        """New connections are passed on again. The old ones stay dead, as they do in life."""
        self._silent = False

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for link in self._links:
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
                self._links.append(_Link(client, server, self._silent))
