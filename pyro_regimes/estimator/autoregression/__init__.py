"""Markov-switching autoregression in deviations from the mean of the regime."""
