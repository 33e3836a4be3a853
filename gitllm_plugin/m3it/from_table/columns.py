"""Which of a table's columns are which; and those that nothing reads, so that none is lost without a word."""

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from gitllm_plugin.config import nearest
from gitllm_plugin.errors import DataError
from gitllm_plugin.m3it.from_table.settings import ALSO, COLUMNS, NEEDED
from gitllm_plugin.m3it.problems import RowError

_LIKE_ENOUGH = 0.85  # "qestion", "answers"; not "question_id"
_SHOWN = 20


class ColumnFinder:
    """Finds columns by name, whatever their case and the blanks around them, and remembers which were not read.

    Args:
        names: the table's own names, where they are not those of COLUMNS.
    """

    def __init__(self, names: Mapping[str, str] | None):
        self._names = {column: (names or {}).get(column, column) for column in COLUMNS}
        self._given = dict(names or {})
        self._seen: set[str] = set()
        self._unread: Counter[str] = Counter()
        self._known: dict[tuple[str, ...], tuple[dict[str, int], list[str]]] = {}

    def find(self, header: Sequence[str], place: str) -> dict[str, int]:
        """Find the columns of a header, or of a JSON object's keys.

        Returns:
            Where each column stands that is there, from 0.

        Raises:
            RowError: a needed column is not there, a name stands twice, or a name is nearly that of a column that is
                not there; all of it.
        """
        key = tuple(header)
        if key not in self._known:
            self._known[key] = self._find(header, place)
        found, unread = self._known[key]
        self._seen.update(found)
        self._unread.update(unread)
        return found

    def fits(self, header: Sequence[str]) -> bool:
        """Tell whether the needed columns are there: the header is then likely to have been cut at the right places."""
        return all(self._positions(header, column) for column in NEEDED)

    def check_given(self, table: str) -> None:
        """Check that the names that were given are somewhere.

        Raises:
            DataError: one is not.
        """
        missing = [f"{column}={name}" for column, name in self._given.items() if column not in self._seen]
        if missing:
            raise DataError(f"{table} has no column of that name: {', '.join(missing)}. Correct it or leave it out")

    @property
    def wanted(self) -> list[str]:
        """The names of the columns that are read where they are there."""
        return list(self._names.values())

    def unread(self) -> list[str]:
        """List the columns that nothing reads, the most frequent first."""
        names = [repr(name) if name.strip() else "one without a name" for name, _ in self._unread.most_common()]
        return names if len(names) <= _SHOWN else [*names[:_SHOWN], f"and {len(names) - _SHOWN} more"]

    def pass_over(self, names: Sequence[str]) -> None:
        """Note what of a row that has no columns is not read."""
        self._unread.update(names)

    def _positions(self, header: Sequence[str], column: str) -> list[int]:
        wanted = self._names[column]
        exact = [index for index, name in enumerate(header) if name == wanted]
        # A name that was given chooses one of `File` and `file`; else they are one name, twice.
        if column in self._given and exact:
            return exact
        found = [index for index, name in enumerate(header) if _plain(name) == _plain(wanted)]
        if not found and column in ALSO and column not in self._given:
            found = [index for index, name in enumerate(header) if _plain(name) in ALSO[column]]
        return found

    def _find(self, header: Sequence[str], place: str) -> tuple[dict[str, int], list[str]]:
        positions = {column: self._positions(header, column) for column in COLUMNS}
        read = {index for found in positions.values() for index in found}
        rest = [name for index, name in enumerate(header) if index not in read]
        faults = []
        for column, found in positions.items():
            if len(found) > 1:
                twice = " and ".join(repr(header[index]) for index in found)
                faults.append(f"{column!r} stands {len(found)} times, as {twice}; give each its own name")
            elif not found and column in NEEDED:
                known = ", ".join(header[:_SHOWN]) or "none"
                name = nearest(self._names[column], rest) or "NAME"
                faults.append(
                    f"there is no column {self._names[column]!r}; the columns are {known}. "
                    f"Name yours with --columns {column}={name}"
                )
        absent = [column for column, found in positions.items() if not found and column not in NEEDED]
        for name in rest:
            meant = next((column for column in absent if _is_slip(name, column)), None)
            if meant is not None:
                faults.append(
                    f"nothing reads the column {name!r}; did you mean {meant!r}? Call it so, or --columns "
                    f"{meant}={name}, or rename it if it is something else"
                )
        if faults:
            raise RowError("missing_key", "; ".join(faults), place)
        return {column: found[0] for column, found in positions.items() if found}, rest


def _plain(name: str) -> str:
    # A second byte order mark, of a file that was saved as UTF-8 twice, is not seen by anyone.
    return name.replace("\ufeff", "").strip().casefold()


def _is_slip(name: str, column: str) -> bool:
    name = _plain(name)
    if len(column) < 3:  # everything short is like `id`
        return False
    # An exchange of two letters costs difflib more than it is.
    return SequenceMatcher(None, name, column).ratio() >= _LIKE_ENOUGH or sorted(name) == sorted(column)
