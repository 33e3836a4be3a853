"""What GIT-LLM costs, measured beside the way of the article; run ``python -m benchmarks``."""
