"""Pictures and questions in, answers out: a trained model as a person uses it. Knows nothing of LAVIS."""
