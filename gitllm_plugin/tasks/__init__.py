"""Tasks: ``m3it``, and those of LAVIS's that a GIT-LLM can do, each asked as it asks."""
