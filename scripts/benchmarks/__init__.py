"""What `scripts/benchmark.py` measures, a module each, and what they share."""
