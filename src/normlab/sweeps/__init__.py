"""Sweeps: many runs from one command line, each in a process of its own, started by one of Hydra's launchers.

`planning` says which runs there are and what each is to do; `sweep` starts the launcher and tells how they stand;
`job` is what the launcher calls for each run, on whatever machine; `record` is the folder through which they meet.
"""
