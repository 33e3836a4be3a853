"""Data sets for LAVIS."""
