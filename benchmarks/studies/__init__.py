"""Studies: statistical properties of the estimates, on simulated data."""
