"""Which split a row is in: a function of the picture files that were given, and of nothing else in the table.

Rows that share a picture are linked, and so are those that are linked to one of them; what is linked is in one split.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gitllm_plugin.m3it.from_table.settings import SPLITS, FromTable
from gitllm_plugin.m3it.problems import RowError


@dataclass(frozen=True)
class Shown:
    """What a row shows.

    Attributes:
        pictures: SHA-256 of each file.
        whole: SHA-256 of all files one after another.
        given: the split that the table says, or empty.
        place: of the row, for messages.
    """

    pictures: Sequence[bytes]
    whole: bytes
    given: str
    place: str


class Dealer:
    """Deals rows to splits.

    Args:
        rows: all of them, in the order of the table.
        settings: the shares.
    """

    def __init__(self, rows: Sequence[Shown], settings: FromTable):
        self._rows, self._settings = rows, settings
        self._parent: dict[bytes, bytes] = {}
        for row in rows:
            for picture in row.pictures:
                self._join(row.pictures[0], picture)
        self._given: dict[bytes, set[str]] = {}
        best: dict[bytes, tuple[int, int, bytes, bytes]] = {}
        for row in rows:
            root = self._root(row.pictures[0])
            if row.given:
                self._given.setdefault(root, set()).add(row.given)
            # One of the linked rows stands for all: of those with the most pictures, so that further questions about
            # some of these pictures change nothing. Which one, its last bytes say, so that its first, which are its
            # place, stay evenly spread.
            rank = (-len(set(row.pictures)), len(row.pictures), row.whole[8:], row.whole[:8])
            best[root] = min(best.get(root, rank), rank)
        self._place = {root: int.from_bytes(rank[-1], "big") / 2**64 for root, rank in best.items()}

    def deal(self, row: Shown) -> str:
        """Choose a row's split.

        Raises:
            RowError: the table gives it none, and several to the rows that share its pictures.
        """
        if row.given:
            return row.given
        root = self._root(row.pictures[0])
        given = self._given.get(root, set())
        if len(given) > 1:
            raise RowError(
                "wrong_value",
                f"it has no split, and rows that share its pictures are in {' and '.join(sorted(given))}; give it one",
                row.place,
            )
        if given:
            return next(iter(given))
        if self._place[root] < self._settings.test:
            return "test"
        return "val" if self._place[root] < self._settings.test + self._settings.val else "train"

    def describe(self, splits: Sequence[str]) -> Iterable[str]:
        """Say what of the splits may not be as it was meant.

        Args:
            splits: of each row.
        """
        places: dict[bytes, set[str]] = {}
        for row, split in zip(self._rows, splits, strict=True):
            for picture in row.pictures:
                places.setdefault(picture, set()).add(split)
        several = sum(len(found) > 1 for found in places.values())
        if several:
            yield f"pictures in more than one split, as they were given: {several:,}"
        shares = {"val": self._settings.val, "test": self._settings.test}
        shares["train"] = 1 - sum(shares.values())
        if shares["train"] == 1 or all(row.given for row in self._rows):
            return
        groups = Counter(self._root(picture) for picture in places)
        most = max(groups.values(), default=0)
        linked = f", of which {most:,} are linked by rows that show several" if most > 1 else ""
        for split in SPLITS:
            if shares[split] > 0 and split not in splits:
                yield (
                    f"{split} is empty: a share of {shares[split]:.3g} of {len(places):,} pictures{linked} came to "
                    "none. Take more pictures or a larger share, or say it: a column 'split', folders train and val"
                )
        if most > 1 and 2 * most > len(places):
            yield (
                f"{most:,} of {len(places):,} pictures are linked by rows that show several and are in one split, so "
                "the shares cannot be those that were asked for; a column 'split' can cut them"
            )

    def _root(self, picture: bytes) -> bytes:
        root = picture
        while self._parent.setdefault(root, root) != root:
            root = self._parent[root]
        while self._parent[picture] != root:  # the next look is short
            self._parent[picture], picture = root, self._parent[picture]
        return root

    def _join(self, one: bytes, other: bytes) -> None:
        self._parent[self._root(one)] = self._root(other)
