"""The registered task (``m3it``)."""
