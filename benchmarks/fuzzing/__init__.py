"""Damaged and rewritten inputs for every reader of vadis; see `benchmarks/fuzz.py`."""
