"""Training steps of this AlexNet beside the same layers made of plain torch modules, in one run.

    python benchmarks/train_step.py [--device cpu] [--width 0.25] [--batch-size 32] [--seconds 10] [--precision float32]

"plain" is what one would write today: grouped convolutions, `nn.LocalResponseNorm`, `nn.Dropout` and `torch.optim.SGD`,
contiguous or channels last. It is the same amount of arithmetic up to the seam between the towers, which a torch
normalisation crosses. Windows take turns; the machine's CPU seconds per image are steadier than its clock.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmdali.model.alexnet import AlexNet
from lmdali.model.optim import PaperSGD, parameter_groups
from lmdali.model.presets import PRESETS
from lmdali.model.train_config import PRECISIONS, TrainConfig
from lmdali.model.train_step import TrainStep
from lmdali.pipeline.batch import Batch
from lmdali.tools.machine import machine_facts
from lmdali.tools.measurement import WindowPlan, measure
from lmdali.tools.report_table import print_table
from lmdali.tools.step_probes import ModelProbe, Step

_CLASSES = 10


def plain_network(width: float) -> nn.Module:
    """The paper's layers as torch has them."""
    c1, c2, c3, c4, c5, f6, f7 = replace(PRESETS["paper"].model, width=width).widths().values()

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

    return nn.Sequential(
        nn.ZeroPad2d((0, 3, 0, 3)),
        *(nn.Conv2d(3, c1, 11, stride=4), nn.ReLU(inplace=True), norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(c1, c2, 5, padding=2, groups=2), nn.ReLU(inplace=True), norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(c2, c3, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(c3, c4, 3, padding=1, groups=2), nn.ReLU(inplace=True)),
        *(nn.Conv2d(c4, c5, 3, padding=1, groups=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        nn.Flatten(),
        *(nn.Linear(c5 * 36, f6), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        *(nn.Linear(f6, f7), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.Linear(f7, _CLASSES),
    )


def plain_step(arguments: argparse.Namespace, layout: torch.memory_format) -> Step:
    """Forward, backward and update as an example script has them."""
    device, precision = torch.device(arguments.device), PRECISIONS[arguments.precision]
    model = plain_network(arguments.width).to(device=device, memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9, weight_decay=5e-4)

    def step(batch: Batch) -> Tensor:
        images = batch.images.contiguous(memory_format=layout)
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            logits = model(images)
        loss = functional.cross_entropy(logits.float(), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


def own_step(arguments: argparse.Namespace) -> Step:
    """The trainer's."""
    device = torch.device(arguments.device)
    config = replace(PRESETS["paper"].model, width=arguments.width, num_classes=_CLASSES)
    model = AlexNet(config).to(device=device, memory_format=torch.channels_last).train()
    optimizer = PaperSGD(parameter_groups(model, TrainConfig()), 1e-6)
    return TrainStep(model, optimizer, device=device, precision=PRECISIONS[arguments.precision], cuda_graph=True)


def main() -> None:
    """Parse, measure the three in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of the three")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="float32")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.batch_size, 3, 224, 224, generator=generator).mul_(70).to(device)
    labels = torch.randint(0, _CLASSES, (arguments.batch_size,), generator=generator).to(device)
    batch = Batch(images.contiguous(memory_format=torch.channels_last), labels, torch.arange(arguments.batch_size))
    steps = {
        "plain torch, contiguous": plain_step(arguments, torch.contiguous_format),
        "plain torch, channels last": plain_step(arguments, torch.channels_last),
        "lmdali": own_step(arguments),
    }
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    plan = WindowPlan(seconds=arguments.seconds)
    rates = measure([ModelProbe(step, batch) for step in steps.values()], plan, synchronize=wait)
    machine = machine_facts(device)
    print_table(
        f"{machine['gpu'] or machine['cpu']}, width {arguments.width:g}, batch {arguments.batch_size}, "
        f"{arguments.precision}",
        ("step", "images/s", "range", "CPU ms/image", "times plain"),
        [
            (
                name,
                f"{rate.images_per_second:,.0f}",
                f"{rate.low:,.0f}-{rate.high:,.0f}",
                f"{1e3 * rate.cpu_seconds_per_image:.2f}",
                f"{rates[0].cpu_seconds_per_image / rate.cpu_seconds_per_image:.2f}",
            )
            for name, rate in zip(steps, rates, strict=True)
        ],
    )


if __name__ == "__main__":
    main()
