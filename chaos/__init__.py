"""Disturbs the library in all the ways at once, and counts what comes of it.

`python -m chaos` runs thousands of tasks in worker processes while another process
kills those at random, waiters come and go, and web workers that wait for tasks of their
own are recycled. Then every task has to have one outcome, the right one, and nothing
may be left. For Linux, whose ``/proc`` tells what there is.
"""
