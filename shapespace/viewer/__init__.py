"""Interactive viewer in the browser (extra `view`)."""
