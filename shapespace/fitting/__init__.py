"""Codes of unseen scans: fitting with frozen weights."""
