"""Estimates of the steps and the cost of a run before it starts."""
