"""Who is who: unguessable ids for results, and the name of this process."""

import os
import socket
from collections import deque

__all__ = [
    "host_name",
    "is_of_this_process",
    "new_owner",
    "new_result_id",
    "this_process",
]

_BATCH = 64
_UUID_BYTES = 16

_drawn: deque[str] = deque()


def new_result_id() -> str:
    """The text of a fresh random UUID (RFC 9562, version 4). Any thread may call it.

    Each read of the system's random source lets another thread take over the
    interpreter, so one read serves many ids.
    """
    try:
        return _drawn.pop()
    except IndexError:
        digits = os.urandom(_BATCH * _UUID_BYTES).hex()
        ids = [
            _as_uuid4(digits[start : start + 32]) for start in range(0, len(digits), 32)
        ]
        _drawn.extend(ids[1:])
        return ids[0]


def _as_uuid4(digits: str) -> str:
    # As str(uuid.UUID(hex=digits, version=4)) has it, in a quarter of the time.
    variant = "89ab"[int(digits[16], 16) & 3]
    return (
        f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-"
        f"{variant}{digits[17:20]}-{digits[20:]}"
    )


def host_name() -> str:
    """This machine's name, as worker ids show it."""
    return socket.gethostname()


_this_process = ""


def this_process() -> str:
    """``host:pid`` of this process."""
    return _this_process


def new_owner() -> str:
    """``host:pid:token``: a name that no other owner of tasks has, before or after."""
    return f"{_this_process}:{os.urandom(8).hex()}"


def is_of_this_process(owner: str, /) -> bool:
    """Whether an owner of tasks is one of this process's."""
    return owner.startswith(_this_process + ":")


def _name_this_process() -> None:
    global _this_process
    _this_process = f"{host_name()}:{os.getpid()}"


def _after_fork() -> None:
    _drawn.clear()  # or the fork would hand out the ids of its parent
    _name_this_process()


_name_this_process()
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)
