"""The registered runner (``git_llm``) and the parts it is made of.

``git_llm.py`` trains and evaluates; ``run.py`` builds what a run is made of, in the order in which the parts depend on
each other; ``loop.py`` is a step. ``length.py`` knows nothing of the rest: all counting of epochs, iterations and
steps is there.
"""
