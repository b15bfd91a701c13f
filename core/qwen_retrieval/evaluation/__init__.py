"""Measuring quality: on data of one's own, and on the benchmarks of the paper."""
