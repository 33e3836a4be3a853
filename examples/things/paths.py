"""Names of what one step writes and another reads."""

ENCODER = "image_encoder"
"""A Hugging Face folder."""

PROJECTION = "projection.pth"
"""A checkpoint for ``model.finetuned``: the projection, and LoRA at its beginning."""
