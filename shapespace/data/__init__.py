"""Raw datasets, preprocessing, the scan store, and batches for training."""
