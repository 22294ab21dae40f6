"""What ``gentrie gpu-check`` measures: ``suite.SUITE`` lists the benchmarks, each module holds one.

Every benchmark checks its results once before it times them, measures peers that are importable beside ours in the
same run, in turns, and says so where one is not.
"""
