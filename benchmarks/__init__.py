"""Benchmarks of this package and of its peers in one process, with results compared first."""
