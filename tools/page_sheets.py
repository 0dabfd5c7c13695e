"""Sheets of pictures, drawn in memory, as parts of a page of `html_page`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lmdali.model.pen import Pixels
from lmdali.model.picture_file import encode_picture
from lmdali.model.prediction_figure import draw_predictions, rank_classes
from lmdali.tools.evaluation_report import EvalReport
from lmdali.tools.html_page import embedded_picture, figure
from lmdali.tools.record_pictures import central_crop, read_records

_PHOTO_QUALITY = 88
_SHOWN_SIDE = 224


def photo_sheet(pixels: Pixels, description: str, caption: str = "") -> str:
    """Photographs: a WebP of about a tenth of the PNG's bytes."""
    return figure(
        embedded_picture(encode_picture(pixels, ".webp", quality=_PHOTO_QUALITY), ".webp", description), caption
    )


def exact_sheet(pixels: Pixels, description: str, caption: str) -> str:
    """Every pixel as it is: a PNG."""
    return figure(embedded_picture(encode_picture(pixels, ".png"), ".png", description), caption)


def prediction_sheet(report: EvalReport, indices: Sequence[int], caption: str) -> str:
    """Records with their five most probable labels, the true one below each picture and its bar in red.

    Args:
        report: on the dataset of the records.
        indices: record numbers, at least one.
        caption: below the sheet.
    """
    records = read_records(report.dataset, indices, cache_dir=report.cache_dir, cache_bytes=report.cache_bytes)
    probabilities, class_names = torch.from_numpy(report.probabilities.values), report.class_names
    crops = central_crop(records.pixels, min(_SHOWN_SIDE, records.manifest.image_size))
    predictions = [
        rank_classes(crop, label, probabilities[index], class_names)
        for crop, label, index in zip(crops, records.labels, records.indices, strict=True)
    ]
    told = "; ".join(
        f"record {index}: {class_names[p.label]}, most probable {class_names[p.top[0]]}"
        for index, p in zip(records.indices, predictions, strict=True)
    )
    return photo_sheet(draw_predictions(predictions), f"pictures with their five most probable labels: {told}", caption)
