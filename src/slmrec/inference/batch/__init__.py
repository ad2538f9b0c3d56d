"""Recommendation for files of histories."""
