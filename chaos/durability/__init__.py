"""Kills a whole web server again and again, and counts what became of its tasks.

`python -m chaos.durability` starts a server whose tasks are kept in a store that
outlives it, has clients enqueue, sends SIGKILL to all its processes at a random moment,
and starts it again. Then every task of which a client was told has to have ended: well,
or with WorkerLost where it was running when its server was killed.
"""
