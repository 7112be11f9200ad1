"""Metrics, scores and baselines."""
