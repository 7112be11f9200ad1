"""Fits of unseen scans: the code is optimized, the weights are frozen."""
