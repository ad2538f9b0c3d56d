"""Recommendation from trained models."""
