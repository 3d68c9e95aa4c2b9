"""Faults driven from outside: processes, files and signals against the command line.

`python -m tests.faults` makes every trial and ends in a table; `test_faults.py` makes a few of each kind.
"""
