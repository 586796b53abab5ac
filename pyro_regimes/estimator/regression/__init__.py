"""The parts of RegimeRegression, Markov-switching regression by formulas."""
