"""Expectation-maximisation: the public class, its loop, and the parts of one iteration."""
