"""Gaussian densities, their weighted sums, and the chain that has them as observations."""
