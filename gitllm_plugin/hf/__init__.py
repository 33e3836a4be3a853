"""An exported folder behind transformers' own names: ``AutoConfig``, ``AutoProcessor``, ``pipeline`` and the like.

Thin classes over ``modeling``, without arithmetic of their own. They are imported while transformers itself is being
imported, so that they import nothing of this package that imports transformers before they are used.
"""
