"""Pictures, plots and films of meshes, without a display."""
