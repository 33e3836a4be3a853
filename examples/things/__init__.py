"""Pictures of things: drawings and photographs with names, and how far a small model learns to name what it never saw.

``python -m examples.things`` fetches the pictures, makes rows, trains, scores and writes a page; see docs/things.md.
"""
