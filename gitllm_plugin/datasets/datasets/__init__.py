"""Map-style data sets."""
