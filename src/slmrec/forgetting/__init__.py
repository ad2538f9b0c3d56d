"""Forgetting: users are removed from the folder of a run."""
