"""Integer columns as Parquet: the same numbers give the same bytes (with one pyarrow)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]


def parquet_bytes(
    columns: Mapping[str, Column],
    *,
    counters: Iterable[str] = (),
    streams: bool = False,
    level: int | None = None,
) -> bytes:
    """The file with these columns, flat and equally long.

    Args:
        counters: the columns that count, which are kept as differences.
        streams: keep the others as streams of single bytes, not as a dictionary and its indices:
            less for numbers that look random, with a high `level`.
        level: of the compression; None: quick.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoding = dict.fromkeys(columns, "BYTE_STREAM_SPLIT") if streams else {}
    encoding |= dict.fromkeys(counters, "DELTA_BINARY_PACKED")
    buffer = io.BytesIO()
    pq.write_table(
        pa.table(dict(columns)),
        buffer,
        compression="zstd",
        compression_level=level,
        use_dictionary=[name for name in columns if name not in encoding] or False,
        column_encoding=encoding or None,
        store_schema=False,
    )
    return buffer.getvalue()


def parquet_columns(
    data: bytes,
    names: Iterable[str],
    optional: Iterable[str] = (),
    most_rows: int | None = None,
    *,
    nothing_else: bool = False,
) -> dict[str, Column]:
    """The columns of a file by name.

    Args:
        optional: columns that may be missing.
        most_rows: a file that has more is refused before they are read.
        nothing_else: a file with other columns, or with notes, is refused.

    Raises:
        ValueError: it's no such file, or a column is missing, has gaps or is not of integers.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        rows = file.metadata.num_rows
        if most_rows is not None and rows > most_rows:
            raise ValueError(f"it has {rows} rows, {most_rows} at the most were expected")
        there = file.schema_arrow.names
        wanted = [*names, *(name for name in optional if name in there)]
        if nothing_else and (set(there) - set(wanted) or file.metadata.metadata):
            raise ValueError("it holds more than was asked for")
        table = file.read(columns=wanted, use_threads=False)
        columns = {name: table.column(name) for name in wanted}
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ValueError(str(error)) from error
    for name, column in columns.items():
        if column.null_count or not pa.types.is_integer(column.type):
            raise ValueError(f"its column {name} is not of whole numbers")
    return {name: column.to_numpy() for name, column in columns.items()}


def narrow(values: NDArray[np.int64], dtype: type[np.integer[Any]]) -> Column:
    """The values, flat, in fewer bits; ValueError where they don't fit."""
    few = np.ascontiguousarray(values, dtype=dtype).ravel()
    if (few != values.ravel()).any():
        raise ValueError(f"labels or class ids do not fit into {np.dtype(dtype).name}")
    return few
