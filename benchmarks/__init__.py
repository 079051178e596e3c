"""Compares this library with its version 2.0 and with the bare executors.

`python -m benchmarks` runs the programs in `programs`, each in a fresh process of one
of two environments, and tells what they measured. Nothing here is imported there.
"""
