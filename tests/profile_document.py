"""A profile as `lmdali profile run --json` prints it, with known numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lmdali.tools.measurement import Rate
from lmdali.tools.suggestion import Suggestion
from lmdali.tools.throughput import Setting, ThroughputReport
from lmdali.tools.verdict import Verdict
from lmdali.tools.what_if import Prediction

NOISE = (1.0, 0.96, 1.04, 0.98, 1.02)


def rate(per_second: float, stages: dict[str, float | None] | None = None) -> Rate:
    """A rate of five windows, up to 4 % from their median."""
    windows = tuple(per_second * factor for factor in NOISE)
    return Rate(
        images_per_second=per_second,
        low=min(windows),
        high=max(windows),
        per_window=windows,
        steps=50,
        step_seconds=32 / per_second,
        cpu_seconds_per_image=1 / per_second,
        stage_seconds_per_image=stages or {},
    )


def profile_report(*, loader: float = 2000.0, step: float = 800.0, **setting: Any) -> ThroughputReport:
    """A report of a JPEG dataset on a machine with a GPU; `setting` replaces fields of that."""
    base = Setting(
        dataset="photos/<train>",
        dataset_digest="d" * 64,
        num_samples=1_281_167,
        encoding="jpeg",
        mean_record_bytes=25_000.0,
        batch_size=32,
        steps_per_epoch=40_036,
        num_threads=8,
        backend="cpu",
        backend_reason="it was faster",
        order="shuffled",
        prefetch=3,
        verify="first",
        decoded_cache_bytes=0,
        readahead_bytes=64_000_000,
        device="cuda:0",
        dtype="float32",
        layout="NCHW",
        augment="random crops of 224, normalize mean_image, lighting eigenvalues",
        model="AlexNet",
        num_parameters=62_378_344,
    )
    stages = {"plan": 1e-5, "read": 1e-4, "decode": 9e-4, "augment": 3e-4, "copy": None, "wait": 5e-4}
    return ThroughputReport(
        setting=replace(base, **setting),
        read=rate(150_000),
        decode=rate(2_500),
        decode_one_thread=rate(700),
        memory_copy=None,
        loader=rate(loader, stages),
        model=rate(1_000),
        together=rate(step),
        time_to_first_batch_seconds=0.75,
        epoch_gap_seconds=0.004,
        verdict=Verdict(
            bound="INPUT-BOUND",
            stage="decode",
            data_stall=0.2,
            shared_cores=False,
            reason="steps wait for decoding & more",
            advice="Use more CPUs (-j).",
        ),
        suggestion=Suggestion(
            option="-j 16",
            changes={"num_threads": 16},
            predicted_images_per_second=990.0,
            baseline_images_per_second=step,
            why="Decoding scales with threads.",
        ),
        machine={
            "system": "Linux 6",
            "cpu": "Some Processor",
            "num_cpus": 16,
            "memory_bytes": 64_000_000_000,
            "load_average": 0.1,
            "gpu": "Some GPU",
            "gpu_memory_bytes": 80_000_000_000,
            "torch_threads": 8,
            "python": "3.11.7",
            "packages": {"lmdali": "0.1.0", "numpy": "2.4.6"},
        },
        optimizer=rate(5_000),
        what_if=(
            Prediction(
                question="cpus=16",
                baseline_images_per_second=step,
                predicted_images_per_second=995.0,
                limit="the model",
            ),
            Prediction(question="raw", baseline_images_per_second=step, predicted_images_per_second=None),
        ),
        cautions=("the dataset fits into memory",),
    )
