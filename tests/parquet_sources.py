"""Parquet files as the Hugging Face Hub has them, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def hub_table(
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    paths: Sequence[str | None] | None = None,
    names: Sequence[str] | None = None,
) -> Any:
    """`image: struct<bytes, path>` and `label: int64`, with class names in the schema's metadata."""
    paths = paths if paths is not None else [None] * len(images)
    pictures = [{"bytes": data, "path": path} for data, path in zip(images, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(pictures, kind), "label": pa.array(labels, pa.int64())})
    if names is None:
        return table
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path: Path, table: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path
