"""Everything that finds, repairs, patches or launches LAVIS; the only place that does."""
