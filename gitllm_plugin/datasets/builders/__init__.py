"""Builders: from a configuration to the data sets of its splits."""
