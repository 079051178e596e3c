"""Whole messages over a pair of connected sockets."""

import os
import select
import socket
import struct
import time
from typing import Self

__all__ = ["MessagePipe"]

_LENGTH = struct.Struct("!Q")
_CHUNK = 65_536
_LOOK_S = 0.0002
_BRISK_S = 0.0005


class MessagePipe:
    """One end. One thread at a time may send, and one may receive.

    As `multiprocessing.connection.Connection`, but for one system call where that
    makes two: each lets another thread take the interpreter, and has to wait for it
    again. And while messages come one right after the other, `receive` looks for the
    next for a moment before it sleeps: a thread that has slept, be it for some
    microseconds, needs several times as long for its work afterwards, since its CPU
    has cooled down meanwhile. With messages that take longer nothing is spent so.
    """

    __slots__ = ("_is_brisk", "_received", "_socket")

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._received = b""
        self._is_brisk = True

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Both ends of a new pipe."""
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        """The file descriptor of this end."""
        return self._socket.fileno()

    def send(self, data: bytes, /) -> None:
        """Blocks while the pipe is full. Raises OSError when nobody can receive."""
        header = _LENGTH.pack(len(data))
        if len(data) <= _CHUNK:
            self._socket.sendall(header + data)
        else:
            self._socket.sendall(header)
            self._socket.sendall(data)

    def send_at_once(self, data: bytes, /) -> bool:
        """Send a message of less than a page, unless it would block; then False.

        So short a one is sent as a whole or not at all. Raises as `send`.
        """
        try:
            self._socket.send(_LENGTH.pack(len(data)) + data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def receive(self) -> bytes:
        """Blocks until a message is there. Raises EOFError when none can come."""
        received = self._received
        while len(received) < _LENGTH.size:
            received += self._more()
        (length,) = _LENGTH.unpack_from(received)
        end = _LENGTH.size + length
        if len(received) < end:
            received += self._exactly(end - len(received))
        self._received = received[end:]
        return received[_LENGTH.size : end]

    def is_readable(self, *, timeout_s: float) -> bool:
        """Whether `receive` would not block, waiting so many seconds for it."""
        if self._received:
            return True
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def hang_up(self) -> None:
        """Have a blocked `receive` of this end raise, once it has what was sent."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """A second call does nothing."""
        self._socket.close()

    def _more(self) -> bytes:
        began = time.monotonic()
        data = self._look(until=began + _LOOK_S) if self._is_brisk else b""
        if not data:
            data = self._socket.recv(_CHUNK)
            if not data:
                raise EOFError
        self._is_brisk = time.monotonic() - began < _BRISK_S
        return data

    def _look(self, *, until: float) -> bytes:
        """What comes before that time, without sleeping."""
        while time.monotonic() < until:
            try:
                return self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                os.sched_yield()  # the other end may want this very CPU
        return b""

    def _exactly(self, length: int) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view, flags=socket.MSG_WAITALL)
            if not count:
                raise EOFError
            view = view[count:]
        return data
