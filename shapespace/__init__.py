"""Learned shape spaces of human bodies from raw 3-D scans."""
