"""The DALI graph: what happens to the stored images of a batch inside NVIDIA DALI. The only file that imports it.

Inputs, fed by `DaliBackend` for every batch: "images", and for each view "crop_y_V", "crop_x_V" (fractions of the free
room), or where windows are resized "corner_V" and "sides_V" (pixels), "flip_V", and for float images "mean_V" (3
numbers per sample), and "std" (3 numbers per sample, for all views).
Outputs: one batch per view.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.backend import BatchPlan, OutputSpec
from lmdali.pipeline.errors import MissingExtraError
from lmdali.pipeline.pixel_transform import PixelTransform

try:
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline
except ImportError as error:
    raise MissingExtraError("nvidia-dali", "dali-cuda13", "the DALI backend") from error

HARDWARE_SHARE = 0.65
"""Of a batch's JPEGs, how many go to the GPU's decode engines; CUDA cores and DALI's threads take the others. It is
DALI's own default, not tuned by us: `benchmarks/gpu_check.py` measures other shares. (nvImageCodec rounds the engines'
part of a batch up to a multiple of their number; in a file or on a GPU that the engines do not know, they get none.)"""


def build_graph(size: int, transform: PixelTransform, spec: OutputSpec, *, num_threads: int, raw: bool) -> Pipeline:
    """Decode once where there is something to decode, then one `crop_mirror_normalize` per view.

    Args:
        size: side of the stored images, pixels.
        transform: the arithmetic.
        spec: form and place of the batches.
        num_threads: of DALI.
        raw: images come as (size, size, 3) uint8 pixels, not as JPEG files.
    """
    pipeline = _empty_graph(spec, num_threads)
    on_gpu = spec.device.type == "cuda"
    with pipeline:
        pixels = stored_pixels(size, raw=raw, on_gpu=on_gpu)
        if _subtracts_image(transform, spec):
            pixels = pixels - types.Constant(transform.mean, device="gpu" if on_gpu else "cpu")
        std = None if spec.holds_pixels else fn.external_source(name="std", dtype=types.FLOAT, ndim=1)
        pipeline.set_outputs(*[_view(pixels, std, view, transform, spec) for view in range(spec.num_views)])
    pipeline.build()
    return pipeline


def _empty_graph(spec: OutputSpec, num_threads: int) -> Pipeline:
    on_gpu = spec.device.type == "cuda"
    # DALI's dynamic executor, its default: outputs that outlive an iteration, and outputs bound to a stream. Depth 1,
    # because `schedule_run` first runs as often as that says, and would find no input; more runs may be queued anyway.
    return Pipeline(
        batch_size=spec.batch_size,
        num_threads=num_threads,
        device_id=(spec.device.index or 0) if on_gpu else None,
        prefetch_queue_depth=1,
    )


def _subtracts_image(transform: PixelTransform, spec: OutputSpec) -> bool:
    """Whether the mean goes away pixel by pixel, before the crop; any other mean goes with the arithmetic after it."""
    return not spec.holds_pixels and not transform.centered and transform.constant_mean is None


def graph_parts(transform: PixelTransform, spec: OutputSpec, *, raw: bool) -> tuple[str, ...]:
    """Names of the graphs that `build_part` can make for a form, each with one more step than the one before."""
    parts = ["input"] if raw else ["input", "decode"]
    parts.append("crop")
    if not spec.holds_pixels:
        parts.append("normalize")
    if _subtracts_image(transform, spec):
        parts.append("mean_image")
    return tuple(parts)


def build_part(
    part: str, size: int, transform: PixelTransform, spec: OutputSpec, *, num_threads: int, raw: bool
) -> tuple[Pipeline, OutputSpec | None]:
    """A graph that ends early: what a step costs is what it adds, for DALI has no timers of its own operators.

    Args:
        part: of `graph_parts`; the last of these is the whole graph.
        size, transform, spec, num_threads, raw: as for `build_graph`.

    Returns:
        The graph, and the form by which `feed_draws` feeds it; None where it takes images only.
    """
    if part in ("input", "decode"):
        pipeline = _empty_graph(spec, num_threads)
        with pipeline:
            if part == "input" and not raw:
                images = fn.external_source(name="images", dtype=types.UINT8, ndim=1, no_copy=True)
            else:
                images = stored_pixels(size, raw=raw, on_gpu=spec.device.type == "cuda")
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline, None
    if part == "crop":
        # The last graph for pixels has their layout; where arithmetic follows, that is what changes it.
        spec = spec if spec.holds_pixels else replace(spec, dtype="uint8", layout="NHWC")
    elif part == "normalize" and not transform.centered:
        transform = replace(transform, mean=np.zeros_like(transform.mean))
    return build_graph(size, transform, spec, num_threads=num_threads, raw=raw), spec


def feed_draws(
    pipeline: Pipeline, plan: BatchPlan, spec: OutputSpec, size: int, mean: NDArray[np.float32] | None
) -> None:
    """Give a graph its inputs besides "images".

    Args:
        pipeline: of `build_graph`.
        plan: of the batch.
        spec: that the graph was built for.
        size: side of the stored images, pixels.
        mean: (3,) `constant_mean` of the transform, or None.
    """
    params, views = plan.params, spec.num_views
    # crop_pos is a fraction of the free room; k / room comes back as offset k exactly (tests/test_dali.py).
    position = params.crop_yx.astype(np.float32) / np.float32(max(size - spec.crop_size, 1))
    for view in range(views):
        part = slice(view, None, views)
        if params.sides is None:
            pipeline.feed_input(f"crop_y_{view}", np.ascontiguousarray(position[part, 0]))
            pipeline.feed_input(f"crop_x_{view}", np.ascontiguousarray(position[part, 1]))
        else:
            pipeline.feed_input(f"corner_{view}", params.crop_yx[part].astype(np.int32))
            pipeline.feed_input(f"sides_{view}", params.sides[part].astype(np.int32))
        pipeline.feed_input(f"flip_{view}", params.flip[part].astype(np.int32))
        if not spec.holds_pixels:
            base = np.float32(0) if mean is None else mean
            pipeline.feed_input(f"mean_{view}", np.ascontiguousarray(base - plan.shifts[part]))
    if not spec.holds_pixels:
        # Per sample, because the scale may change with the epoch, and two epochs are in flight at its end.
        pipeline.feed_input("std", np.repeat(1 / plan.scale[None], len(position) // views, axis=0))


def stored_pixels(size: int, *, raw: bool, on_gpu: bool, hardware_share: float = HARDWARE_SHARE) -> Any:
    """The node of (size, size, 3) uint8 images, with the input "images" that is fed; to be called inside a graph.

    What is fed is not copied: it must stay as it is until the batch was taken out.

    Args:
        size: side of the stored images, pixels.
        raw: images come as pixels.
        on_gpu: decode, or copy, to the GPU.
        hardware_share: 0..1, see `HARDWARE_SHARE`.
    """
    if raw:
        stored = fn.external_source(name="images", dtype=types.UINT8, ndim=3, layout="HWC", no_copy=True)
        return stored.gpu() if on_gpu else stored
    encoded = fn.external_source(name="images", dtype=types.UINT8, ndim=1, no_copy=True)
    # The accurate IDCT and upsampling, as libjpeg-turbo's defaults are: the same pixels as the CPU backend on a CPU.
    exact: dict[str, Any] = {"use_fast_idct": False, "jpeg_fancy_upsampling": True, "adjust_orientation": False}
    if not on_gpu:
        return fn.decoders.image(encoded, device="cpu", output_type=types.RGB, **exact)
    return fn.decoders.image(
        encoded,
        device="mixed",
        output_type=types.RGB,
        hw_decoder_load=hardware_share,
        preallocate_width_hint=size,
        preallocate_height_hint=size,
        # Per thread; the defaults are for images of 16 MB and would pin half a gigabyte.
        device_memory_padding=16 * size * size,
        host_memory_padding=16 * size * size,
        # Threads bound to cores 0, 1, 2, ... would share them with those of every other rank of this machine.
        affine=False,
        **exact,
    )


def _view(pixels: Any, std: Any, view: int, transform: PixelTransform, spec: OutputSpec) -> Any:
    device = "gpu" if spec.device.type == "cuda" else "cpu"
    flip = fn.external_source(name=f"flip_{view}", dtype=types.INT32, ndim=0)
    arithmetic: dict[str, Any] = {}
    if not spec.holds_pixels:
        mean = fn.external_source(name=f"mean_{view}", dtype=types.FLOAT, ndim=1)
        arithmetic = {"mean": mean, "std": std}
    form = {"dtype": _output_dtype(spec), "output_layout": "CHW" if spec.layout == "NCHW" else "HWC", **arithmetic}
    cut = {"mirror": flip}
    if spec.resized:
        pixels = _resized(pixels, view, spec.crop_size)
    else:
        cut |= {
            name: fn.external_source(name=key, dtype=types.FLOAT, ndim=0)
            for name, key in (("crop_pos_y", f"crop_y_{view}"), ("crop_pos_x", f"crop_x_{view}"))
        }
        cut["crop"] = (spec.crop_size, spec.crop_size)
    if spec.holds_pixels or not transform.centered:
        return fn.crop_mirror_normalize(pixels, **cut, **form)
    # All views lose the same window, so it is subtracted from what is cut; uint8 until then, a quarter of the bytes.
    patch = fn.crop_mirror_normalize(pixels, **cut, dtype=types.UINT8, output_layout="HWC")
    window = np.ascontiguousarray(transform.central_mean(spec.crop_size))
    return fn.crop_mirror_normalize(patch - types.Constant(window, device=device), **form)


def _resized(pixels: Any, view: int, side: int) -> Any:
    """Windows cut out first, so that nothing beside them is seen, then resized by the triangle filter."""
    corner, sides = (
        fn.external_source(name=f"{name}_{view}", dtype=types.INT32, ndim=1) for name in ("corner", "sides")
    )
    window = fn.slice(pixels, corner, sides, axes=(0, 1), normalized_anchor=False, normalized_shape=False)
    return fn.resize(window, size=(side, side), interp_type=types.INTERP_TRIANGULAR, dtype=types.UINT8)


def _output_dtype(spec: OutputSpec) -> types.DALIDataType:
    if spec.holds_pixels:
        return types.UINT8
    # DALI has no bfloat16, and on a CPU it rounds float16 halfway cases away from zero (2 of 38,400 values of a test
    # image): both are made from float32 by torch, which rounds them to even, as a GPU does.
    return types.FLOAT16 if spec.dtype == "float16" and spec.device.type == "cuda" else types.FLOAT
