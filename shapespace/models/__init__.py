"""Families: ways of turning a code into a shape, one file and one class each."""
