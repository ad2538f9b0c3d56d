"""Packed (variable-length) batches: one sequence without padding, in which all users share the prompt."""
