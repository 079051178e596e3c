"""The program that kills: ``python -m chaos.killer PID SEED SECONDS [servers]``.

Every so many seconds it sends SIGKILL to a worker process at random, of the process of
that id or of one that descends from it, and prints which it was. It ends when its
standard input does.
"""

import os
import random
import select
import signal
import sys

from .processes import find_servers, find_workers

_SERVERS_EVERY = 20
"""One in so many kills hits a fork server, where these are to be killed too."""


def _kill(pid: int, server: int | None) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # It is the same process still: the number may have been another's before.
        if server is None or pid in find_workers(server):
            print(pid, flush=True)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def main() -> None:
    _, root, seed, seconds, *what = sys.argv
    chance = random.Random(f"killer {seed}")
    while not select.select([sys.stdin], [], [], float(seconds))[0]:
        servers = sorted(find_servers(int(root)))
        if what and servers and chance.randrange(_SERVERS_EVERY) == 0:
            _kill(chance.choice(servers), None)
            continue
        workers = sorted(
            (pid, server) for server in servers for pid in find_workers(server)
        )
        if workers:
            _kill(*chance.choice(workers))


if __name__ == "__main__":
    main()
