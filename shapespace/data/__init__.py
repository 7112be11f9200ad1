"""From scan files to batches."""
