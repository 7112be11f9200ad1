"""Synthetic people: body, virtual scanner."""
