"""A trained model as an endpoint that OpenAI's clients speak to. Knows nothing of LAVIS."""
