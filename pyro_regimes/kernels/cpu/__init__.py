"""The recursions and Gaussian sums compiled for the CPU (numba); :mod:`.launch` calls them."""
