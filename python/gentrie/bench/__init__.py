"""Benchmarks that an installed gentrie can run, and the harness that all of its benchmarks share.

Nothing here is imported by the rest of the package but by the command line. ``harness`` measures and
writes, ``baselines`` holds what gentrie is compared with, ``table_a2`` is RecLM-cgen's Table A2.
"""
