"""Synthetic people: body model, poses, virtual scanner, and datasets of scans with registrations."""
