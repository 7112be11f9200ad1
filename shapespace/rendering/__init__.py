"""Pictures, animations and plots of meshes, without a display."""
