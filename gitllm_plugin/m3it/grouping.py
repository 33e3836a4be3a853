"""Groups of examples that show the same pictures, so that these are encoded once for several texts."""

from collections.abc import Iterable

ALL_TEXTS = 2**31 - 1
"""More texts than an image has: all of them stand in one group."""


def group_by_image(image_keys: Iterable[str], texts_per_image: int) -> list[list[int]]:
    """Groups examples by their image key.

    Args:
        image_keys: the key of each example, in order. Examples with an empty key have no image, share nothing
            and stay alone.
        texts_per_image: the most examples in one group, at least 1.

    Returns:
        Groups of example indices. Each example is in exactly one group; within a group indices rise; groups
        are ordered by their first example.
    """
    groups: list[list[int]] = []
    open_group: dict[str, list[int]] = {}
    for index, key in enumerate(image_keys):
        group = open_group.get(key) if key else None
        if group is not None and len(group) < texts_per_image:
            group.append(index)
        else:
            open_group[key] = [index]
            groups.append(open_group[key])
    return groups
