"""Torch and numpy on points, fields and meshes; knows nothing of learning."""
