"""A TCP proxy between an exporter and a collector that does to connections what networks and proxies do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

FAULTS = ("refuse", "black-hole", "slow", "reset", "unavailable", "garbage", "flood")
_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 11\r\n\r\nunavailable"
_SLOW_SECONDS = 0.05


class FaultProxy:
    """Listens on a free loopback port and passes on to a collector, or fails as it is told; a context manager.

    Args:
        upstream: The collector's port on 127.0.0.1.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.accepted = 0
        self._fault = ""
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._closed = False
        self._listener = self._listen(0)
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        _shut(self._listener)
        self._drop_all()

    def become(self, fault: str) -> None:
        """Treat new connections so from now on, and break those that are open; an empty text is a working proxy."""
        was, self._fault = self._fault, fault
        if fault == "refuse":
            _shut(self._listener)
        elif was == "refuse":
            self._listener = self._listen(self.port)
        self._drop_all()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection, self._fault), daemon=True).start()

    def _serve(self, connection: socket.socket, fault: str) -> None:
        with contextlib.suppress(OSError):
            if fault == "reset":
                connection.recv(1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif fault == "unavailable":
                connection.recv(65_536)
                connection.sendall(_UNAVAILABLE)
            elif fault == "garbage":
                connection.sendall(b"\x16\x00\xff\r\n" * 100)
            elif fault == "flood":
                while True:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 65_536)
            elif fault == "black-hole":
                while not self._closed and self._fault == fault:
                    time.sleep(_SLOW_SECONDS)
            else:
                self._pass_on(connection, _SLOW_SECONDS if fault == "slow" else 0)
        self._drop(connection)

    def _pass_on(self, connection: socket.socket, delay: float) -> None:
        with socket.create_connection(("127.0.0.1", self.upstream), timeout=10) as upstream:
            upstream.settimeout(None)
            with self._lock:
                self._connections.add(upstream)
            back = threading.Thread(target=_pump, args=(upstream, connection, delay), daemon=True)
            back.start()
            _pump(connection, upstream, delay)
            _shut(upstream)
            with self._lock:
                self._connections.discard(upstream)

    def _drop_all(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for each in connections:
            _shut(each, close=False)

    def _drop(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close()


def _pump(source: socket.socket, target: socket.socket, delay: float) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            time.sleep(delay)
            target.sendall(data)
    _shut(target, close=False)


def _shut(sock: socket.socket, *, close: bool = True) -> None:
    # A thread that waits in accept() or recv() is woken by shutdown() alone.
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    if close:
        sock.close()
