"""GIT-LLM beside GIT, BLIP and BLIP-2: equal tiny sizes, random weights, the same pictures, steps and score.

``python -m examples.compare`` trains all four and prints a table. Nothing is downloaded.
"""
