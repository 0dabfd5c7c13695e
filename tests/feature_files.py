"""Feature files made of given numbers, and what is said of codes, without a dataset or a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lmdali.model.codes_file import CodesInfo
from lmdali.model.features_file import Features, FeaturesPlan
from lmdali.model.features_writer import FeaturesWriter


def plan_for(rows: np.ndarray[Any, Any], **changes: Any) -> FeaturesPlan:
    fields = {
        "dataset": "/nowhere",
        "dataset_digest": "d" * 64,
        "source": "/nowhere/best.pt",
        "source_digest": "s" * 64,
        "num_records": len(rows),
        "dims": rows.shape[1],
        "precision": "float32",
        "image_size": 64,
        "batch_size": 4096,
        "device": "cpu",
    }
    return FeaturesPlan(**{**fields, **changes})


def write_features(directory: Path, rows: np.ndarray[Any, Any], **changes: Any) -> Features:
    """A finished feature file of `(n, dims)` rows; `changes` are fields of its plan."""
    writer = FeaturesWriter(directory, plan_for(rows, **changes))
    with writer.hold(resume=False, overwrite=False):
        batch = writer.plan.batch_size
        for start in range(0, len(rows), batch):
            writer.add(rows[start : start + batch].astype(np.float32))
        return writer.publish()


def codes_info(*, bits: int, num_records: int) -> CodesInfo:
    """Of codes of pixels."""
    return CodesInfo(
        bits=bits,
        num_records=num_records,
        dataset="/nowhere",
        dataset_digest="d" * 64,
        image_size=8,
        source="pixels",
        source_digest="pixels-32",
        encoder="/nowhere",
        encoder_digest="e" * 64,
    )
