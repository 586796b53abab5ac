"""Where the expectations of an EM iteration come from."""
