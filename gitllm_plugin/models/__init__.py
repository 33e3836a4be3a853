"""Models, registered with LAVIS."""
