"""Does it learn? Recipes and ablations of the full network, some thousand steps each, on a small real dataset.

    python benchmarks/learning.py TRAIN VAL [--steps 2000] [--seeds 3] [--device cuda:0] [--width 1] [--keep-gain]
                                      [--only NAME ...] [--json FILE] [--plot FILE]

Every run has the same number of steps of the same batch; schedules are squeezed into them, and its curve is measured
with one central view at ten places. What differs is the recipe: the presets, and the preset `original2012` without one
of its parts, as in the paper's sections 3, 4 and 7. The spread over seeds is printed beside each figure: differences
below it say nothing.

In a network of less than full width the paper's weights of 0.01 meet fewer inputs, so each layer's output is smaller
and it stays at chance level for longer than anybody waits. With --keep-gain they are wider by the root of 1 / width,
and a layer begins as in the full network.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

import torch
from learning_plot import save_curves

from lmdali.model.alexnet import AlexNet
from lmdali.model.evaluator import evaluate
from lmdali.model.initialisation import INITIALISATIONS
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.presets import PRESETS, Preset
from lmdali.model.rates import LearningRates
from lmdali.model.schedule import create_schedule
from lmdali.model.train_config import PRECISIONS
from lmdali.model.train_step import TrainStep
from lmdali.model.variants import BASELINE, choose_variants
from lmdali.pipeline.dataset_loader import DatasetLoader
from lmdali.pipeline.loader import LoaderConfig, create_loader
from lmdali.pipeline.manifest import load_manifest
from lmdali.tools.machine import machine_facts
from lmdali.tools.report_table import print_table

_PLACES = 10
_CACHE_BYTES = 4_000_000_000


def recipes() -> dict[str, Preset]:
    """Name -> recipe; the paper's experiments change one thing of `original2012`."""
    base = PRESETS["original2012"]
    changed = {variant.name: recipe for variant, recipe in choose_variants(None, base) if variant.name != BASELINE}
    return {**{name: PRESETS[name] for name in ("paper", "original2012", "caffe", "fast")}, **changed}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: top-1 accuracy (0..1) after each tenth of the steps, and how it went."""

    accuracy: tuple[float, ...]
    first_loss: float
    last_loss: float
    images_per_second: float


def restore_gain(model: AlexNet, preset: Preset) -> None:
    """Make weights that begin at one width whatever the layer as much wider as their inputs are fewer."""
    if INITIALISATIONS[preset.model.init].std is not None:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(".weight") and name != "conv1.weight":  # whose inputs are the picture's three
                    weight.mul_(preset.model.width**-0.5)


def learn(
    preset: Preset, train: Path, val: Path, *, steps: int, seed: int, device: torch.device, keep_gain: bool = False
) -> Run:
    """Train `steps` steps and measure at ten places."""
    epochs = preset.train.epochs
    augment = preset.augment
    if augment.lighting_epochs is not None:
        passes = steps * preset.batch_size / load_manifest(train).num_records
        augment = replace(augment, lighting_epochs=round(augment.lighting_epochs * passes / epochs))
    loaders = LoaderConfig(
        dataset=train,
        batch_size=preset.batch_size,
        seed=seed,
        augment=augment,
        order=preset.order,
        layout="NHWC",
        decoded_cache_bytes=_CACHE_BYTES,
        backend="cpu",
    )
    quiet = replace(
        loaders,
        dataset=val,
        augment=augment.evaluation(),
        order="sequential",
        basis=train,
    )
    with (
        create_loader(loaders, device, rank=0, world_size=1) as loader,
        create_loader(quiet, device, rank=0, world_size=1) as val_loader,
    ):
        torch.manual_seed(seed)
        model = AlexNet(replace(preset.model, num_classes=len(loader.class_names)), seed=seed)
        if keep_gain:
            restore_gain(model, preset)
        model = model.to(device=device, memory_format=torch.channels_last).train()
        optimizer = PaperSGD(parameter_groups(model, preset.train), preset.train.lr)
        rates = LearningRates(preset.train, create_schedule(preset.train.schedule, epochs))
        precision = PRECISIONS[preset.train.precision]
        step = TrainStep(model, optimizer, device=device, precision=precision, cuda_graph=preset.train.cuda_graph)
        accuracy, losses, trained = [], [], 0.0
        batches = _endless(loader)
        for place in range(_PLACES):
            start = perf_counter()
            for number in range(place * steps // _PLACES, (place + 1) * steps // _PLACES):
                rates.apply(optimizer, epochs * number / steps)
                losses.append(step(next(batches))[0])
            losses[-1].item()
            trained += perf_counter() - start
            accuracy.append(1 - evaluate(model, val_loader, device, precision=precision).top1_error)
    return Run(
        accuracy=tuple(accuracy),
        first_loss=float(losses[0]),
        last_loss=float(torch.stack(losses[-20:]).mean()),
        images_per_second=steps * preset.batch_size / trained,
    )


def _endless(loader: DatasetLoader) -> Any:
    while True:
        yield from loader


def main() -> None:
    """Parse, train everything, print; the figures go to FILE as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--keep-gain", action="store_true", help="weights of the full network's gain")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precision", choices=list(PRECISIONS), help="of every recipe")
    parser.add_argument("--only", nargs="+", metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    found: dict[str, list[Run]] = {}
    for seed in range(arguments.seeds):
        for name, recipe in recipes().items():
            if arguments.only and name not in arguments.only:
                continue
            changes: dict[str, Any] = {"precision": arguments.precision} if arguments.precision else {}
            preset = recipe.changed(model={"width": arguments.width}, train=changes, batch_size=arguments.batch_size)
            run = learn(
                preset,
                arguments.train,
                arguments.val,
                steps=arguments.steps,
                seed=seed,
                device=device,
                keep_gain=arguments.keep_gain,
            )
            found.setdefault(name, []).append(run)
            print(f"{name}, seed {seed}: top-1 {run.accuracy[-1]:.1%}, loss {run.last_loss:.3f}", flush=True)
            if arguments.json:
                arguments.json.write_text(_document(arguments, device, found), encoding="utf-8")
    print_table(
        f"{arguments.steps} steps of {arguments.batch_size}, width {arguments.width:g}, {arguments.seeds} seeds",
        ("recipe", "top-1, %", "best, %", "last loss", "images/s"),
        [_row(name, runs) for name, runs in found.items()],
    )
    if arguments.plot:
        curves = {name: [run.accuracy for run in runs] for name, runs in found.items()}
        save_curves(curves, arguments.steps, arguments.plot)


def _row(name: str, runs: list[Run]) -> tuple[str, ...]:
    def shown(values: list[float]) -> str:
        return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")

    return (
        name,
        shown([100 * run.accuracy[-1] for run in runs]),
        shown([100 * max(run.accuracy) for run in runs]),
        f"{mean(run.last_loss for run in runs):.3f}",
        f"{mean(run.images_per_second for run in runs):,.0f}",
    )


def _document(arguments: argparse.Namespace, device: torch.device, found: dict[str, list[Run]]) -> str:
    runs = {name: [run.__dict__ for run in of_name] for name, of_name in found.items()}
    settings = {name: getattr(arguments, name) for name in ("steps", "batch_size", "width", "keep_gain", "precision")}
    return json.dumps({"machine": machine_facts(device), **settings, "runs": runs}, indent=1)


if __name__ == "__main__":
    main()
