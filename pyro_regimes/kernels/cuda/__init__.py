"""The recursions compiled for CUDA devices (Triton); :mod:`.launch` calls them."""
