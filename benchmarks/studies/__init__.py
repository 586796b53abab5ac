"""Studies of the statistical behaviour of estimates, on simulated data."""
