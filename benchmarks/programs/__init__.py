"""What is measured: small programs that run in either environment.

Each is called as ``python -m benchmarks.programs.NAME CONTENDER ARGUMENTS``, the
arguments being a JSON object, and prints its figures as one JSON object. Its project
is `settings` and `tasks`, the same for all contenders.
"""
