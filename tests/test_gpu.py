"""What only a GPU can show; every test here has a twin on the CPU in another file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmdali.pipeline.augment import AugmentConfig
from lmdali.pipeline.backend import BackendName
from lmdali.pipeline.batch import Batch
from lmdali.pipeline.gpu_kernels import has_gpu_kernels
from lmdali.pipeline.host_to_device import upload_together
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.release import has_dali

ARITHMETIC = [replace(AugmentConfig.original2012(), mean_window=window) for window in ("aligned", "center")]
"""Everything at once: a mean image or its window, lighting and a scale."""

HAS_DALI = has_dali()
NEEDS_DALI = [pytest.mark.dali, pytest.mark.skipif(not HAS_DALI, reason="no nvidia-dali wheel here")]
BACKENDS = ["cpu", pytest.param("dali", marks=NEEDS_DALI)]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # of drivers and libraries that differ from machine to machine
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device here: run benchmarks/gpu_check.py on a GPU"
    ),
]


def needs_dali(test: Any) -> Any:
    """For a test of DALI alone."""
    for mark in NEEDS_DALI:
        test = mark(test)
    return test


def batches(config: LoaderConfig, device: str) -> list[Batch]:
    with create_loader(config, device=device) as loader:
        return list(loader)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "tolerance"), [("raw", 1e-3), ("jpeg", 1.0)])
@pytest.mark.parametrize("augment", ARITHMETIC, ids=["aligned", "center"])
def test_batches_on_the_gpu_are_those_of_the_cpu(
    raw_dataset: Path, jpeg_dataset: Path, augment: AugmentConfig, backend: BackendName, kind: str, tolerance: float
) -> None:
    dataset = raw_dataset if kind == "raw" else jpeg_dataset
    config = LoaderConfig(dataset=dataset, batch_size=16, augment=augment, backend="cpu")
    here, there = batches(config, "cpu"), batches(replace(config, backend=backend), "cuda:0")
    assert len(here) == len(there) > 0
    for expected, found in zip(here, there, strict=True):
        assert found.images.device == found.labels.device == torch.device("cuda", 0)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.labels.cpu(), expected.labels)
        # Decoders of JPEG may differ by a gray level here and there; raw pixels only by the order of float additions.
        difference = (found.images.cpu() - expected.images).abs()
        assert float(difference.mean() if kind == "jpeg" else difference.max()) < tolerance


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["raw", "jpeg"])
@pytest.mark.parametrize("augment", ARITHMETIC, ids=["aligned", "center"])
def test_what_cpu_threads_decode_and_the_gpu_normalises_is_exact(
    raw_dataset: Path, jpeg_dataset: Path, augment: AugmentConfig, kind: str, dtype: Any, layout: Any
) -> None:
    config = LoaderConfig(
        dataset=raw_dataset if kind == "raw" else jpeg_dataset,
        batch_size=16,
        augment=augment,
        backend="cpu",
        dtype=dtype,
        layout=layout,
    )
    here, there = batches(config, "cpu"), batches(config, "cuda:0")
    for expected, found in zip(here, there, strict=True):
        assert found.images.is_contiguous() and found.images.dtype == expected.images.dtype
        assert torch.equal(found.images.cpu(), expected.images)


def test_kernels_run_here() -> None:
    """Or all that follows shows torch's operations alone."""
    pytest.importorskip("triton", reason="torch brought no Triton here")
    assert has_gpu_kernels(torch.device("cuda:0"))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("normalize", ["channel_mean", "channel_mean_std", "none"])
@pytest.mark.parametrize("crop", ["random", "ten"])
def test_every_normalisation_is_exact_for_one_view_and_for_ten(
    raw_dataset: Path, normalize: Any, layout: Any, crop: Any
) -> None:
    lighting: Any = "roots" if crop == "random" else "none"
    augment = AugmentConfig(crop=crop, flip=crop == "random", lighting=lighting, normalize=normalize)
    config = LoaderConfig(dataset=raw_dataset, batch_size=8, augment=augment, backend="cpu", layout=layout)
    for expected, found in zip(batches(config, "cpu"), batches(config, "cuda:0"), strict=True):
        assert torch.equal(found.images.cpu(), expected.images)
        assert torch.equal(found.labels.cpu(), expected.labels)


def test_arrays_arrive_together_in_the_order_of_the_stream() -> None:
    device = torch.device("cuda:0")
    arrays = [np.arange(5), np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3), np.empty(0, np.int64)]
    for _ in range(50):  # pinned memory is used again, and not before it was read
        found = upload_together(arrays, device)
        torch.cuda._sleep(100_000)
    for tensor, array in zip(found, arrays, strict=True):
        assert torch.equal(tensor.cpu(), torch.from_numpy(array))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_held_batch_is_not_overwritten_by_later_ones(
    raw_dataset: Path, jpeg_dataset: Path, backend: BackendName, kind: str
) -> None:
    config = LoaderConfig(
        dataset=raw_dataset if kind == "raw" else jpeg_dataset,
        batch_size=8,
        augment=AugmentConfig.pixels(),
        dtype="uint8",
        backend=backend,
    )
    with create_loader(config, device="cuda:0") as loader:
        copies = [batch.images.clone() for batch in loader]
        loader.set_epoch(0)
        held = [batch.images for batch in loader]
        for epoch in range(1, 4):
            loader.set_epoch(epoch)
            for batch in loader:
                del batch
    assert all(torch.equal(one, other) for one, other in zip(copies, held, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("own_stream", [False, True])
def test_a_batch_that_is_dropped_while_the_gpu_still_reads_it_stays_whole(
    raw_dataset: Path, backend: BackendName, own_stream: bool
) -> None:
    """The consumer's stream is kept busy, so that every batch is gone on the host long before it is read."""
    config = LoaderConfig(dataset=raw_dataset, batch_size=8, augment=AugmentConfig.pixels(), backend=backend)
    consumer = torch.cuda.Stream(0) if own_stream else torch.cuda.default_stream(0)
    with create_loader(config, device="cuda:0") as loader, torch.cuda.stream(consumer):
        expected = [batch.images.double().sum().item() for batch in loader]
        loader.set_epoch(0)
        sums = []
        for batch in loader:
            torch.cuda._sleep(50_000_000)
            sums.append(batch.images.double().sum())
            del batch
        assert [total.item() for total in sums] == expected


@pytest.mark.parametrize("augment", [AugmentConfig.paper(), *ARITHMETIC], ids=["paper", "aligned", "center"])
def test_cpu_threads_feed_the_gpu_without_a_wait_of_the_host(raw_dataset: Path, augment: AugmentConfig) -> None:
    config = LoaderConfig(dataset=raw_dataset, batch_size=8, augment=augment, backend="cpu")
    with create_loader(config, device="cuda:0") as loader:
        torch.cuda.set_sync_debug_mode("error")
        try:
            taken = [batch.labels for batch in loader]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(taken) > 0


@needs_dali
def test_dalis_memory_reaches_torch_without_a_copy(raw_dataset: Path) -> None:
    config = LoaderConfig(dataset=raw_dataset, batch_size=8, backend="dali")
    with create_loader(config, device="cuda:0") as loader:
        before = torch.cuda.memory_allocated(0)
        held = [batch.images for batch in loader]
        assert torch.cuda.memory_allocated(0) - before < held[0].nbytes, "torch allocated the images"


@needs_dali
def test_the_faster_way_to_decode_is_measured_once(
    jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = LoaderConfig(dataset=jpeg_dataset, batch_size=16)
    with create_loader(config, device="cuda:0") as first, create_loader(config, device="cuda:0") as second:
        assert first.backend_name == second.backend_name
        assert "images/s on CPU threads" in first.backend_reason and "images/s on the GPU" in first.backend_reason
        assert second.backend_reason == first.backend_reason.replace("measured now", "measured before")
    required = replace(config, required_images_per_second=1e-3)
    with create_loader(required, device="cuda:0") as loader:
        assert loader.backend_name == "cpu"


@pytest.mark.parametrize("parallel", ["none", "towers"])
def test_training_runs_on_the_gpu_and_goes_on_there(jpeg_dataset: Path, tmp_path: Path, parallel: Any) -> None:
    from lmdali.model.fused_features import suits
    from lmdali.model.presets import PRESETS
    from lmdali.tools.checkpoint_network import open_network
    from lmdali.tools.train_job import TrainJob, train_dataset

    def train(epochs: int) -> Any:
        recipe = PRESETS["small"].changed(train={"epochs": epochs}, batch_size=16)
        place = {"device": "cuda:0"} if parallel == "none" else {"parallel": "towers", "devices": "cuda:0,cuda:0"}
        return train_dataset(
            TrainJob(
                train=jpeg_dataset, val=jpeg_dataset, run_dir=tmp_path / "run", preset=recipe, resume=True, **place
            )
        )

    first, second = train(3), train(6)
    assert (first.result.epochs, second.result.epochs) == (3, 6)
    assert second.result.steps == 2 * first.result.steps > 0
    assert first.result.weights_sha256 != second.result.weights_sha256
    assert first.device == second.device and "cuda:0" in first.device
    network = open_network(tmp_path / "run", device="cuda:0")
    with torch.no_grad():
        images = torch.randn(2, 3, 224, 224, device="cuda:0") * 70
        assert suits(network.model, images), "what was trained is asked through the kernels that trained it"
        assert network.model(images).isfinite().all()


@pytest.mark.parametrize("devices", ["cuda:0,cuda:0", "cpu,cuda:0", "cuda:0,cpu", "cuda:0,cuda:1"])
def test_two_towers_are_the_network_of_one_device(devices: str) -> None:
    from lmdali.model.alexnet import AlexNet, AlexNetConfig
    from lmdali.model.towers import TowerAlexNet, merge_state

    first, second = (torch.device(name) for name in devices.split(","))
    if second.index is not None and second.index >= torch.cuda.device_count():
        pytest.skip(f"{devices}: this machine has {torch.cuda.device_count()} GPU")
    config = AlexNetConfig(width=1 / 16, num_classes=5, init="lecun", lrn_place="before_first_relu", map_norm=True)
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(1)).double().to(first) * 70
    single = AlexNet(config, seed=3).double().to(first).train()
    towers = TowerAlexNet(config, (first, second), seed=3).double().train()
    found = []
    for net in (single, towers):
        torch.manual_seed(11)  # of the CPU's and of every GPU's generator: the masks are the first device's
        logits = net(images)
        logits.square().sum().backward()
        found.append((logits.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}))
    (want, want_grads), (got, got_grads) = found
    assert got.device == first
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    merged = merge_state(got_grads, config)
    assert list(merged) == list(want_grads)
    for name, grad in want_grads.items():
        assert (merged[name] - grad.cpu()).abs().max() <= 1e-9 * grad.abs().max().cpu(), name


@pytest.mark.parametrize("preset", ["paper", "original2012", "caffe", "fast"])
def test_a_step_as_one_graph_is_the_step(preset: str) -> None:
    from lmdali.model.alexnet import AlexNet
    from lmdali.model.optim import PaperSGD, parameter_groups
    from lmdali.model.presets import PRESETS
    from lmdali.model.train_config import PRECISIONS
    from lmdali.model.train_step import TrainStep

    recipe = PRESETS[preset].changed(model={"width": 1 / 8, "num_classes": 10})
    generator = torch.Generator().manual_seed(0)
    device = torch.device("cuda", torch.cuda.device_count() - 1)  # where there are several, not the current one
    batch = Batch(
        (torch.randn(16, 3, 224, 224, generator=generator) * 70).to(device),
        torch.randint(0, 10, (16,), generator=generator).to(device),
        torch.arange(16),
    )
    found = []
    for graph in (False, True):
        model = AlexNet(recipe.model, seed=1).to(device=device, memory_format=torch.channels_last).train()
        optimizer = PaperSGD(parameter_groups(model, recipe.train), 0.001)
        step = TrainStep(
            model,
            optimizer,
            device=device,
            precision=PRECISIONS[recipe.train.precision],
            cuda_graph=graph,
        )
        torch.manual_seed(5)
        losses = []
        for number in range(8):
            for group in optimizer.param_groups:
                group["lr"] = 0.001 if number < 5 else 0.0001
            losses.append(float(step(batch)[0]))
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert len(set(found[0])) == len(found[0])


def test_the_last_smaller_batch_of_an_epoch_has_a_graph_of_its_own() -> None:
    from lmdali.model.alexnet import AlexNet
    from lmdali.model.optim import PaperSGD, parameter_groups
    from lmdali.model.presets import PRESETS
    from lmdali.model.train_step import TrainStep

    recipe = PRESETS["paper"].changed(model={"width": 1 / 8, "num_classes": 10})
    generator = torch.Generator().manual_seed(0)
    epoch = [
        Batch(
            (torch.randn(size, 3, 224, 224, generator=generator) * 70).cuda(),
            torch.randint(0, 10, (size,), generator=generator).cuda(),
            torch.arange(size),
        )
        for size in (16, 16, 6)
    ]
    found = []
    for graph in (False, True):
        model = AlexNet(recipe.model, seed=1).to(device="cuda:0", memory_format=torch.channels_last).train()
        optimizer = PaperSGD(parameter_groups(model, recipe.train), 0.001)
        step = TrainStep(model, optimizer, device=torch.device("cuda:0"), cuda_graph=graph)
        torch.manual_seed(5)
        found.append([float(step(batch)[0]) for _ in range(6) for batch in epoch])
        if step._graphed is not None:
            graphs = list(step._graphed._shapes.values())
            assert [graph.pool is not None for graph in graphs] == [True, True]
            assert graphs[0].pool == graphs[1].pool
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert len(set(found[0])) == len(found[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_resized_windows_on_the_gpu_are_those_of_the_cpu(
    raw_dataset: Path, jpeg_dataset: Path, backend: BackendName, kind: str
) -> None:
    config = LoaderConfig(
        dataset=raw_dataset if kind == "raw" else jpeg_dataset,
        batch_size=16,
        augment=replace(AugmentConfig.resized(), normalize="channel_mean", lighting="eigenvalues"),
        backend="cpu",
    )
    for expected, found in zip(
        batches(config, "cpu"), batches(replace(config, backend=backend), "cuda:0"), strict=True
    ):
        difference = (found.images.cpu() - expected.images).abs()
        assert torch.equal(found.indices, expected.indices)
        # The windows are resized on the CPU by the cpu backend; DALI has a filter of its own.
        assert float(difference.max()) == 0 if backend == "cpu" else float(difference.mean()) < 1


def test_the_doctor_finds_the_gpu_and_loads_and_trains_on_it() -> None:
    from lmdali.tools.gpu_checks import gpu_findings
    from lmdali.tools.trial import trial_findings

    found = {finding.what: finding for finding in [*gpu_findings(), *trial_findings()]}
    assert not [finding for finding in found.values() if finding.verdict == "problem"]
    assert {"torch", "cuda:0", "load on cuda:0", "train on cuda:0"} <= set(found)
    assert ("load by DALI on cuda:0" in found) == HAS_DALI


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_profile_is_made_on_the_gpu(raw_dataset: Path, jpeg_dataset: Path, backend: BackendName, kind: str) -> None:
    from lmdali.tools.profile_config import ProfileConfig
    from lmdali.tools.profiler import profile_dataset

    config = ProfileConfig(device="cuda:0", backend=backend, batch_size=16, width=1 / 8, steps=10, what_if=("gpus=2",))
    report = profile_dataset(raw_dataset if kind == "raw" else jpeg_dataset, config, quiet=True)
    rates = {"loader": report.loader, "copy": report.device_copy, "model": report.model, "both": report.together}
    assert [name for name, rate in rates.items() if rate is None or not rate.images_per_second > 0] == []
    assert report.machine["gpu"] and report.setting.backend == backend
    assert (report.dali_operators is not None) == (backend == "dali")


def test_ten_views_are_evaluated_as_on_the_cpu(jpeg_dataset: Path) -> None:
    from lmdali.model.alexnet import AlexNet, AlexNetConfig
    from lmdali.model.evaluator import evaluate

    config = LoaderConfig(
        dataset=jpeg_dataset, batch_size=7, augment=AugmentConfig.ten_crop(), order="sequential", backend="cpu"
    )
    model = AlexNet(AlexNetConfig(num_classes=4, width=1 / 8), seed=1)
    found = []
    for device in ("cpu", "cuda:0"):
        model = model.to(device=device, memory_format=torch.channels_last)
        with create_loader(config, device=device) as loader:
            found.append(evaluate(model, loader, device, keep_probabilities=True))
    assert found[0].num_samples == found[1].num_samples == 60
    assert found[1].probabilities is not None and found[0].probabilities is not None
    assert torch.allclose(found[1].probabilities, found[0].probabilities, atol=1e-2)
    assert found[1].labels is not None and torch.equal(found[1].labels, found[0].labels)
