"""Forward-backward, Viterbi and sampling on plain tensors. Use them through :mod:`.ops`."""
