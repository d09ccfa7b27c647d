"""Tables of counts C x C, one per experience: small ones as they are, large ones by their cells that are not 0.

A table of 10,000 classes has 100 million cells, of which no more hold anything than there are test images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from incrlt.errors import UserError

Counts = npt.NDArray[np.int64]
LARGE: Final = 1 << 20
"""Cells above which a table is held by those that are not 0: more than 1,024 classes."""


class Hits(NamedTuple):
    """Cells that are not 0, int64 [n] each, row by row.

    Attributes:
        true: Rows.
        predicted: Columns.
        images: Counts.
    """

    true: Counts
    predicted: Counts
    images: Counts


@dataclass(frozen=True, eq=False)
class Cells:
    """A large table.

    Attributes:
        size: Classes C.
        places: int64 [n], increasing: ``row * C + column`` of the cells that are not 0.
        images: int64 [n], their counts.
    """

    size: int
    places: Counts
    images: Counts

    def dense(self, dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
        """Return [C, C]; 800 MB of int64 at 10,000 classes."""
        table = np.zeros(self.size * self.size, dtype=dtype)
        table[self.places] = self.images
        return table.reshape(self.size, self.size)


class Tables(Sequence[Counts]):
    """The tables of a stream; an index gives one as read-only int64 [C_t, C_t].

    Args:
        held: Each as it is held, see :func:`held`.
    """

    def __init__(self, held: Iterable[Counts | Cells] = ()) -> None:
        self.held = tuple(held)
        self._hits: dict[int, Hits] = {}  # a report asks for them hundreds of times
        self._tested: dict[int, Counts] = {}

    def __len__(self) -> int:
        return len(self.held)

    @overload
    def __getitem__(self, t: int) -> Counts: ...

    @overload
    def __getitem__(self, t: slice) -> Tables: ...

    def __getitem__(self, t: int | slice) -> Counts | Tables:
        """Return a table, or some of them."""
        if isinstance(t, slice):
            return Tables(self.held[t])
        one = self.held[t]
        table = one.dense() if isinstance(one, Cells) else one.view()
        table.setflags(write=False)
        return table

    def shape(self, t: int) -> tuple[int, ...]:
        """Return what should be ``(C_t, C_t)``."""
        one = self.held[t]
        return (one.size, one.size) if isinstance(one, Cells) else one.shape

    def hits(self, t: int) -> Hits:
        """Return the cells that are not 0, read-only."""
        t = range(len(self))[t]
        if t not in self._hits:
            self._hits[t] = Hits(*map(_read_only, _hits(self.held[t])))
        return self._hits[t]

    def rows(self, t: int) -> Iterator[Counts]:
        """Yield int64 [C_t] for each class: what its images were taken for."""
        one = self.held[t]
        if not isinstance(one, Cells):
            yield from one
            return
        edges = np.searchsorted(one.places, np.arange(one.size + 1) * one.size).tolist()
        for true in range(one.size):
            own = slice(edges[true], edges[true + 1])
            row = np.zeros(one.size, dtype=np.int64)
            row[one.places[own] - true * one.size] = one.images[own]
            yield row

    def block(self, t: int, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]) -> Counts:
        """Return int64 [R, S]: the counts of some rows and columns, each named once and in increasing order."""
        one = self.held[t]
        if not isinstance(one, Cells):
            return one[np.ix_(rows, columns)]
        true, predicted, images = self.hits(t)
        asked = np.isin(true, rows) & np.isin(predicted, columns)
        places = np.searchsorted(rows, true[asked]), np.searchsorted(columns, predicted[asked])
        found = np.zeros((len(rows), len(columns)), dtype=np.int64)
        found[places] = images[asked]
        return found

    def right(self, t: int) -> Counts:
        """Return the right answers of each class, int64 [C_t]."""
        one = self.held[t]
        if not isinstance(one, Cells):
            return np.diag(one)
        true, predicted, images = self.hits(t)
        return summed(true[true == predicted], images[true == predicted], one.size)

    def tested(self, t: int) -> Counts:
        """Return the test images of each class, int64 [C_t], read-only."""
        t = range(len(self))[t]
        if t not in self._tested:
            one = self.held[t]
            many = (
                summed(self.hits(t).true, one.images, one.size) if isinstance(one, Cells) else one.sum(axis=1)
            )
            self._tested[t] = _read_only(many)
        return self._tested[t]


def _hits(one: Counts | Cells) -> Hits:
    if isinstance(one, Cells):
        return Hits(*np.divmod(one.places, one.size), one.images)
    true, predicted = np.nonzero(one)
    return Hits(true, predicted, one[true, predicted])


def _read_only(values: Counts) -> Counts:
    view = values.view()
    view.setflags(write=False)
    return view


def summed(classes: Counts, images: Counts, size: int) -> Counts:
    """Return the sum of ``images`` [n] for each of ``size`` classes, int64 [size]; ``classes`` [n] are below it."""
    found = np.zeros(size, dtype=np.int64)
    np.add.at(found, classes, images)
    return found


def as_tables(tables: Iterable[npt.ArrayLike | Cells], name: str) -> Tables:
    """Return tables as they are held.

    Raises:
        UserError: They are not whole non-negative numbers.
    """
    return tables if isinstance(tables, Tables) else Tables(held(table, name) for table in tables)


def held(values: npt.ArrayLike | Cells, name: str) -> Counts | Cells:
    """Return a table as it is held: the cells that are not 0 of a large one, else read-only int64.

    Raises:
        UserError: It does not hold whole non-negative numbers.
    """
    if isinstance(values, Cells):
        return values
    if not isinstance(values, np.ndarray) or values.size <= LARGE or not _is_square(values):
        return as_counts(values, name)
    if values.min() < 0:
        as_counts(values, name)  # raises
    flat = values.reshape(-1)
    places = np.flatnonzero(flat)
    return Cells(len(values), places, flat[places].astype(np.int64))


def _is_square(values: npt.NDArray[Any]) -> bool:
    whole = np.issubdtype(values.dtype, np.integer)
    return whole and values.ndim == 2 and values.shape[0] == values.shape[1]


def as_counts(values: npt.ArrayLike, name: str) -> Counts:
    """Return ``values`` as read-only int64.

    Raises:
        UserError: They are not whole non-negative numbers.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"{name} must be one table of whole numbers; its rows differ in length.") from error
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{name} must hold whole numbers; got {array.dtype}. Pass counts, not rates.")
    array = array.astype(np.int64)  # a copy, so that the caller's array stays writable
    if array.size and array.min() < 0:
        raise UserError(f"{name} must not be negative; the smallest value is {array.min()}.")
    array.setflags(write=False)
    return array


def smallest(values: Counts) -> npt.NDArray[Any]:
    """Return the counts in the smallest unsigned type that holds them: 4x less to compress."""
    return values.astype(_smallest_type(values))


def _smallest_type(values: Counts) -> np.dtype[Any]:
    return np.min_scalar_type(int(values.max(initial=0)))


def stored(one: Counts | Cells) -> npt.NDArray[Any]:
    """Return the array that a file holds: int64, or of a large table the smallest type, an eighth to unpack."""
    return one.dense(_smallest_type(one.images)) if isinstance(one, Cells) else one
