"""Operators inside DALI: the arithmetic of differences, and graphs that end early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from profile_document import rate

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import OutputSpec
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.tools.augment_probe import first_plan
from lmdali.tools.dali_operators import operator_costs
from lmdali.tools.profiler import ProfileConfig, profile_dataset
from lmdali.tools.stage_parts import stage_parts
from lmdali.tools.throughput_tables import print_report

PAPER = AugmentConfig(crop_size=24)


def test_a_step_costs_what_it_adds() -> None:
    decode = replace(rate(500), per_window=(500, 250, 500), cpu_seconds_per_image=0.003)
    crop = replace(rate(400), per_window=(400, 200, 400), cpu_seconds_per_image=0.004)
    first, second = operator_costs({"decode": decode, "crop": crop}, 8)
    assert (first.name, first.graph_images_per_second, first.seconds_per_image) == ("decode", 500, 0.002)
    assert second.seconds_per_image == pytest.approx(0.0005)  # a slow round changes both sides
    assert second.batch_seconds == pytest.approx(0.004)
    assert second.cpu_seconds_per_image == pytest.approx(0.001)


@pytest.mark.dali
class TestWithDali:
    @pytest.fixture(autouse=True)
    def dali(self) -> None:
        pytest.importorskip("nvidia.dali", reason="no nvidia-dali wheel here")

    @pytest.mark.parametrize(
        ("augment", "dtype", "raw", "parts"),
        [
            (PAPER, "float32", False, ["input", "decode", "crop", "normalize", "mean_image"]),
            (
                AugmentConfig(crop_size=24, normalize="channel_mean"),
                "float32",
                False,
                ["input", "decode", "crop", "normalize"],
            ),
            (AugmentConfig(crop_size=24, normalize="none", lighting="none"), "uint8", True, ["input", "crop"]),
        ],
    )
    def test_the_last_graph_is_the_backends_own(
        self,
        small_jpeg_dataset: Path,
        small_raw_dataset: Path,
        augment: AugmentConfig,
        dtype: str,
        raw: bool,
        parts: list[str],
    ) -> None:
        from lmdali.pipeline.dali_graph import build_part, feed_draws, graph_parts

        dataset = small_raw_dataset if raw else small_jpeg_dataset
        spec = OutputSpec(5, 1, 24, dtype, "NCHW", torch.device("cpu"))  # type: ignore[arg-type]
        transform, plan = first_plan(dataset, augment, 5, seed=0)
        assert list(graph_parts(transform, spec, raw=raw)) == parts
        form = {"augment": augment, "dtype": dtype, "order": "sequential"}
        config = LoaderConfig(dataset=dataset, batch_size=5, backend="dali", num_threads=1, **form)
        with create_loader(config, rank=0, world_size=1) as loader:
            batch = next(iter(loader))
        shapes = []
        for part in parts:
            pipeline, form = build_part(part, 48, transform, spec, num_threads=1, raw=raw)
            pipeline.feed_input("images", fed_images(dataset, raw))
            if form is not None:
                feed_draws(pipeline, plan, form, 48, transform.constant_mean)
            pipeline.schedule_run()
            (output,) = pipeline.share_outputs()
            shapes.append(tuple(output.at(0).shape))
            whole = np.stack([np.array(output.at(i)) for i in range(5)]) if part == parts[-1] else None
            pipeline.release_outputs()
        assert np.array_equal(whole, batch.images.numpy())
        if not raw:
            assert shapes[1:3] == [(48, 48, 3), (24, 24, 3)]

    def test_a_profile_of_the_dali_backend_names_operators(
        self, small_jpeg_dataset: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = ProfileConfig(batch_size=8, num_threads=1, steps=10, device="cpu", backend="dali")
        report = profile_dataset(small_jpeg_dataset, config, model=None, augment=PAPER, quiet=True)
        document = report.to_json()
        names = [cost["name"] for cost in document["dali_operators"]]
        assert names == ["input", "decode", "crop", "normalize", "mean_image"]
        assert sum(cost["cpu_seconds_per_image"] for cost in document["dali_operators"]) > 0
        print_report(replace(report, machine=report.machine | {"cpu": "Some Processor"}))
        printed = capsys.readouterr().out
        assert "inside DALI" in printed and "subtract the mean image" in printed
        html = stage_parts({"read": 1e-4}, None, document["dali_operators"])
        assert "Inside DALI" in html and "subtract the mean image" in html
        plain = profile_dataset(
            small_jpeg_dataset, replace(config, backend="cpu"), model=None, augment=PAPER, quiet=True
        )
        assert plain.dali_operators is None


def fed_images(dataset: Path, raw: bool) -> list[np.ndarray]:
    reader = ShardReader(dataset, load_manifest(dataset))
    files = [reader.read(index, lambda record: bytes(record.data)) for index in range(5)]
    return [decode_stored(data, 48).copy() if raw else np.frombuffer(data, np.uint8) for data in files]
