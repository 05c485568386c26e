"""Benchmarks against other programs: run `python -m tests.benchmarks data|train|eval|limits`; see README.md.

In: pictures of the user, or drawn ones. Out: a table, OUT/NAME.json with every round, and OUT/NAME.png.
Each contender runs in a fresh process in every round; a contender that does not deliver the same work is void.
"""
