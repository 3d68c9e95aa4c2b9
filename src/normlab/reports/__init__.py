"""What is read from the folders of runs, and from nothing else."""
