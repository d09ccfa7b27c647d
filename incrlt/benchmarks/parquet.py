"""Lists of pictures as Parquet tables, and what they may unpack to: a file of some kilobytes can hold terabytes.

A text that a column repeats is written once (its dictionary), and values of nested columns are run lengths, so that
neither the file's size nor what it says of itself is a bound. Only flat columns are read, as dictionaries, and measured
before they become Python objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from incrlt.errors import UserError, short
from incrlt.files import LARGEST_LIST, MOST_LISTED, ordinary

Rows = list[tuple[object, ...]]


def read(place: Path) -> tuple[list[str], Rows]:
    """Return names of the flat columns, and the rows.

    Args:
        place: The file.

    Raises:
        UserError: pyarrow is missing, the file cannot be read, or it unpacks to more than ``LARGEST_LIST`` bytes or
            ``MOST_LISTED`` lines.
    """
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise UserError(f"reading {place} needs pyarrow: pip install pyarrow, or save it as CSV.") from error
    try:
        with ordinary(place) as file:
            flat, texts = _flat(parquet.ParquetFile(file))
            file.seek(0)
            table = parquet.ParquetFile(file, read_dictionary=texts).read(columns=flat)
            _check(table.num_rows, sum(_bytes(column) for column in table.columns))
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"the list {place} cannot be read ({short(error)}); write it anew.") from error
    columns = [column.to_pylist() for column in table.columns]
    return list(table.column_names), list(zip(*columns, strict=True))


def _flat(file: Any) -> tuple[list[str], list[str]]:
    """Return the columns that are not nested, and those of them that hold text.

    Raises:
        ValueError: The file itself says that it is too large.
    """
    import pyarrow.types as kinds  # type: ignore[import-not-found, import-untyped, unused-ignore]

    told = file.metadata
    unpacked = sum(told.row_group(number).total_byte_size for number in range(told.num_row_groups))
    _check(told.num_rows, unpacked)
    flat = [own for own in file.schema_arrow if not kinds.is_nested(own.type)]
    long = (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary)
    return [own.name for own in flat], [
        own.name for own in flat if any(is_long(own.type) for is_long in long)
    ]


def _bytes(column: Any) -> int:
    """Return what the values of a column take one by one."""
    import pyarrow.compute as compute  # type: ignore[import-not-found, import-untyped, unused-ignore]

    total = 0
    for chunk in column.chunks:
        if hasattr(chunk, "dictionary"):
            lengths = compute.take(compute.binary_length(chunk.dictionary), chunk.indices)
            total += compute.sum(lengths.cast("int64")).as_py() or 0
        else:
            total += chunk.nbytes
    return total


def _check(rows: int, size: int) -> None:
    if rows > MOST_LISTED or size > LARGEST_LIST:
        raise ValueError(f"it has {rows:,} lines of {size:,} bytes")
