"""Expectation-maximisation: the public class, its loop, and the steps of an iteration."""
