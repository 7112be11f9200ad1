"""File formats, and everything that reads and writes files."""
