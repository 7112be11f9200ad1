"""Report pages that show and compare runs."""
