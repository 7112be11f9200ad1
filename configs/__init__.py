"""Configurations as package data; each states only its differences."""
