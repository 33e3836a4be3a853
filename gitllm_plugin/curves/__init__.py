"""Loss curves of runs: read from their folders, drawn beside each other."""
