"""Ranking protocols, metrics and statistics."""
