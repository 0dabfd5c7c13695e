"""What windows of random area and aspect cost, beside crops of one size and beside libraries that make them.

    python benchmarks/resized.py DATASET [--seconds 2] [--rounds 5] [--threads N] [--batch-size 128]

Batches of uint8 pixels, NHWC, by each backend that is here. "simplejpeg + OpenCV" decodes and resizes the loader's own
windows with as many threads (INTER_LINEAR, which is not antialiased), "Pillow" as torchvision's transform of a PIL
image does it; neither of them has an order to keep or a batch to fill. Contestants take turns; ratios are medians over
rounds of windows beside each other. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from overheads import pixel_loader
from PIL import Image

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import BackendName
from lmdali.pipeline.cpu_budget import usable_cpus
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.release import has_dali
from lmdali.pipeline.resized_crop import draw_windows
from lmdali.tools.ceilings import ThreadedProbe, sample_records
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import Probe, Rate, WindowPlan, measure
from lmdali.tools.report_table import print_table
from lmdali.tools.step_probes import LoaderProbe

Resize = Callable[[bytes, tuple[int, int, int, int]], object]
"""From a JPEG file and the y, x, height and width of a window to the patch."""

_SIDE = AugmentConfig.crop_size
_SAMPLE_BYTES = 32_000_000


def by_opencv(data: bytes, window: tuple[int, int, int, int]) -> NDArray[Any]:
    """A patch."""
    y, x, height, width = window
    pixels = simplejpeg.decode_jpeg(data)
    return cv2.resize(pixels[y : y + height, x : x + width], (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR)


def by_pillow(data: bytes, window: tuple[int, int, int, int]) -> Image.Image:
    """A patch."""
    y, x, height, width = window
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return image.crop((x, y, x + width, y + height)).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)


def library_probe(dataset: Path, resize: Resize, num_threads: int) -> Probe:
    """Threads that go round some records with the loader's own windows."""
    sample, size = sample_records(dataset, max_bytes=_SAMPLE_BYTES), load_manifest(dataset).image_size
    augment = AugmentConfig.resized()
    drawn = draw_windows(0, 0, np.arange(len(sample)), size, augment.min_area, augment.max_aspect)
    windows = [(y, x, height, width) for y, x, height, width in np.concatenate(drawn, axis=1).tolist()]

    def work(first: int, stop: int) -> None:
        for at in range(first, stop):
            resize(sample[at % len(sample)], windows[at % len(sample)])

    return ThreadedProbe(work, num_threads)


def run_benchmark(config: LoaderConfig, plan: WindowPlan) -> dict[str, Rate]:
    """Rates by name, after an epoch of each loader; the first is that of crops of one size."""
    resized = replace(AugmentConfig.resized(), normalize="none")
    probes: dict[str, Probe] = {}
    backends: list[BackendName] = ["cpu"]
    if has_dali():
        backends.append("dali")
    with ExitStack() as stack:
        for backend in backends:
            for name, augment in (("crops", config.augment), ("resized windows", resized)):
                varied = replace(config, augment=augment, backend=backend)
                loader = stack.enter_context(create_loader(varied, rank=0, world_size=1))
                for _ in loader:
                    pass
                probes[f"{name}, {backend} backend"] = LoaderProbe(loader)
        dataset = Path(config.dataset)
        probes["resized windows, simplejpeg + OpenCV"] = library_probe(dataset, by_opencv, config.threads)
        probes["resized windows, Pillow"] = library_probe(dataset, by_pillow, config.threads)
        return dict(zip(probes, measure(list(probes.values()), plan), strict=True))


def rows(rates: dict[str, Rate]) -> list[dict[str, Any]]:
    """One row per contestant, with ratios to the first."""
    first = next(iter(rates.values()))
    return [
        {
            "contestant": name,
            "images_per_second": rate.images_per_second,
            "rate_ratio": float(np.median(np.array(rate.per_window) / np.array(first.per_window))),
            "cpu_seconds_per_image": rate.cpu_seconds_per_image,
        }
        for name, rate in rates.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a window")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args(arguments)
    if load_manifest(options.dataset).encoding != "jpeg":
        raise SystemExit(f"{options.dataset}: the libraries here decode JPEG: give a dataset of encoding jpeg")
    cv2.setNumThreads(0)
    config = pixel_loader(options.dataset, options.batch_size, options.threads)
    found = rows(run_benchmark(config, WindowPlan(seconds=options.seconds, windows=options.rounds)))
    print_table(
        f"{options.threads} threads, batches of {options.batch_size}, uint8",
        ("", "images/s", "ratio", "CPU us an image"),
        [
            (
                row["contestant"],
                f"{row['images_per_second']:,.0f}",
                f"{row['rate_ratio']:.2f}",
                f"{1e6 * row['cpu_seconds_per_image']:,.0f}",
            )
            for row in found
        ],
    )
    print(json.dumps({"machine": machine_facts(torch.device("cpu")), "rows": found}, allow_nan=False))


if __name__ == "__main__":
    main()
