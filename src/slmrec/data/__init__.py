"""Interactions: sources, preparation, the prepared data set and its batches."""
