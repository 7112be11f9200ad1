"""Packaged training configs; each YAML file has the differences from the defaults."""
