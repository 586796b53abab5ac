"""Forward-backward, Viterbi and sampling on plain tensors; callers use :mod:`.ops`."""
