"""Processors for LAVIS: from an image to pixel values, from a question to a prompt."""
