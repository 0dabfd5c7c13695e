"""The parts of a run's report that its own files tell: result, curves, kernels, data and order, settings, machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdali.model.alexnet_config import AlexNetConfig
from lmdali.model.checkpoint import Checkpoint
from lmdali.model.journal import EPOCH_FIGURES, METRICS_FILE, best_epoch, read_metrics
from lmdali.model.kernel_figure import chroma_energy, draw_tower_kernels, tower_kernels
from lmdali.pipeline.json_keys import require_keys
from lmdali.tools.html_page import (
    KeyFigure,
    Section,
    callout,
    details,
    figure,
    heading,
    key_figures,
    pairs,
    paragraph,
    table,
)
from lmdali.tools.page_sheets import exact_sheet
from lmdali.tools.run_facts import RECIPE_SECTIONS, RunFacts, load_run_facts
from lmdali.tools.svg_chart import Line, line_chart

_SECTION_NAMES = dict(zip(RECIPE_SECTIONS, ("Network", "Training", "Augmentation", "Loader"), strict=True))
_TIMES = dict.fromkeys(("images_per_second", "stall", "seconds"), "a number")
_LINE_KEYS = {
    "step": {},
    "epoch": {**dict.fromkeys(EPOCH_FIGURES, "a number"), "images_per_second": "a number"},
    "warning": {"text": "a text"},
    "failure": {"step": "a whole number", "loss": "a text", "lr": "a number"},
}
"""What is told of each kind of line; of the last one its step and times, too."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run directory holds.

    Attributes:
        run_dir: the directory.
        records: lines of its journal.
        facts: of its `run.json`, or None.
        checkpoint: its best one, or None.
    """

    run_dir: Path
    records: Sequence[Mapping[str, Any]]
    facts: RunFacts | None
    checkpoint: Checkpoint | None

    @property
    def epochs(self) -> list[Mapping[str, Any]]:
        """The lines of finished epochs."""
        return [record for record in self.records if record["kind"] == "epoch"]


def read_run(run_dir: Path, checkpoint: Checkpoint | None) -> RunRecord:
    """Read a run directory.

    Raises:
        InputError: it is none, or a file of it was edited or damaged.
        IntegrityError: its journal is damaged.
    """
    path = run_dir / METRICS_FILE
    records = read_metrics(path)
    for number, record in enumerate(records, start=1):
        last = {"step": "a whole number", **_TIMES} if number == len(records) else {}
        kinds = {**_LINE_KEYS.get(str(record["kind"]), {}), **last}
        require_keys(record, kinds, where=f"{path}, line {number}", cure="put it right, or remove the line")
    return RunRecord(
        run_dir=run_dir,
        records=records,
        facts=load_run_facts(run_dir),
        checkpoint=checkpoint,
    )


def result_section(run: RunRecord) -> Section:
    """The numbers to see first, and what went wrong."""
    figures, epochs = [], run.epochs
    if epochs:
        best, last = best_epoch(epochs), epochs[-1]
        figures += [
            KeyFigure(
                label="best top-1 error",
                value=f"{100 * best['val_top1_error']:.2f} %",
                note=f"validation, epoch {best['epoch'] + 1}; top-5 {100 * best['val_top5_error']:.2f} %",
            ),
            KeyFigure(
                label="last top-1 error",
                value=f"{100 * last['val_top1_error']:.2f} %",
                note=f"validation; top-5 {100 * last['val_top5_error']:.2f} %, loss {last['val_loss']:.4f}",
            ),
        ]
    if run.records:
        last = run.records[-1]
        figures += [
            KeyFigure(label="trained", value=f"{len(epochs)} epochs", note=f"{last['step']:,} steps"),
            KeyFigure(
                label="rate",
                value=f"{last['images_per_second']:,.0f} images/s",
                note=f"{100 * last['stall']:.1f} % waiting for data; {_duration(last['seconds'])} in all",
            ),
        ]
    if run.checkpoint is not None:
        count = sum(weight.numel() for weight in run.checkpoint.model.values())
        figures.append(KeyFigure(label="parameters", value=f"{count:,}"))
    boxes = [_trouble(record) for record in run.records if record["kind"] in ("warning", "failure")]
    if not epochs:
        boxes.append(callout("No finished epoch", ["There are no curves and no result yet."], tone="warn"))
    return Section(title="Result", body=key_figures(figures) + "".join(boxes))


def curves_section(run: RunRecord) -> Section:
    """Loss, errors and learning rate over epochs. There must be a finished epoch."""
    epochs = run.epochs
    rates = [record["lr"] for record in epochs]
    plots = [
        heading("Loss"),
        figure(line_chart(_both(epochs, "loss", 1), x_label="epoch", y_label="nats", description="loss over epochs")),
        heading("Top-1 error"),
        figure(
            _error_chart(epochs, 1),
            "Training values are taken while an epoch goes on, with dropout and augmentation; validation values at its "
            "end, with one central view.",
        ),
        heading("Top-5 error"),
        figure(_error_chart(epochs, 5)),
        heading("Learning rate of the weights"),
        figure(
            line_chart(
                [Line(name="learning rate", points=[(record["epoch"] + 1, record["lr"]) for record in epochs])],
                x_label="epoch",
                y_label="at the epoch's end",
                description="learning rate over epochs",
                logarithmic=_in_steps(rates),
                from_zero=not _in_steps(rates),
                height=200,
            )
        ),
    ]
    columns = ("epoch", "loss", "top-1, %", "top-5, %", "val loss", "val top-1, %", "val top-5, %", "rate", "images/s")
    return Section(title="Curves", body="".join(plots) + details("every epoch", table(columns, _epoch_rows(epochs))))


def kernels_section(checkpoint: Checkpoint) -> Section:
    """The first layer, tower by tower (figure 3 of the paper)."""
    weights = checkpoint.model["conv1.weight"]
    towers = AlexNetConfig.from_json(checkpoint.model_config).groups
    energies = [chroma_energy(kernels) for kernels in tower_kernels(weights, towers)]
    told = ", ".join(f"{energy:.3f}" for energy in energies)
    sheet = exact_sheet(
        draw_tower_kernels(weights, towers, scale=4),
        f"the {len(weights)} kernels of the first layer; chroma energy {told}",
        "Gray levels are the same for all kernels. Chroma energy is the part of the squared weights that is colour: 0 "
        "for gray kernels. In the paper one tower became colour-agnostic, the other colour-specific.",
    )
    return Section(title="First-layer kernels", body=sheet)


def data_section(run: RunRecord) -> Section:
    """Which data, in which order."""
    rows: list[tuple[object, object]] = []
    if run.facts is not None:
        facts = run.facts
        rows += [("training set", facts.train), ("its digest", facts.train_digest)]
        rows += [("validation set", facts.val), ("its digest", facts.val_digest)]
    elif run.checkpoint is not None:
        rows += [("training set", run.checkpoint.loader_config.get("dataset"))]
        rows += [("its digest", run.checkpoint.manifest_digest)]
    if run.checkpoint is not None:
        names = run.checkpoint.class_names
        rows.append(("classes", f"{len(names)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"))
    told = (
        "One number for the samples, crops, flips and lighting of an epoch, of all ranks together. Equal numbers mean "
        "equal input, in the same order; lmdali order TRAIN --epoch N --digest says them in advance, given the run's "
        "seed, batch and order."
    )
    digests = [(record["epoch"], record["digest"]) for record in run.epochs if record.get("digest")]
    order = paragraph(told) + details(
        f"order digests of {len(digests)} epochs", table(("epoch, from 0", "digest"), digests, text_columns=2)
    )
    return Section(title="Data and order", body=pairs(rows) + (order if digests else ""))


def settings_section(run: RunRecord) -> Section:
    """Every setting, and where it came from."""
    recipe = None if run.facts is None else run.facts.recipe
    if recipe is not None:
        origins = recipe["origins"]
        parts = [heading(f"Preset {recipe['preset']}")] if recipe.get("preset") else []
        sections = {name: recipe[name] for name in _SECTION_NAMES}
    elif run.checkpoint is not None:
        stored = run.checkpoint
        origins, parts = {}, [paragraph("As the checkpoint has them; this run did not keep their origins.")]
        sections = {
            "model": stored.model_config,
            "train": stored.train_config,
            "augment": stored.loader_config["augment"],
        }
    else:
        return Section(title="Settings", body=paragraph("This run kept none."))
    for name, values in sections.items():
        rows = [(key, _shown(value), origins.get(name, {}).get(key, "checkpoint")) for key, value in values.items()]
        rows.sort(key=lambda row: row[2] in ("default", "checkpoint"))  # what was chosen first; stable within
        parts += [heading(_SECTION_NAMES[name]), table(("setting", "value", "from"), rows, text_columns=3)]
    return Section(title="Settings", body="".join(parts))


def machine_section(facts: RunFacts) -> Section:
    """Each session and its machine."""
    parts = []
    for session in facts.sessions:
        machine = dict(session["machine"])
        packages = machine.pop("packages", {})
        rows: list[tuple[object, object]] = [(name, session[name]) for name in session if name != "machine"]
        rows += [(name.replace("_", " "), value) for name, value in machine.items() if value is not None]
        rows.append(("packages", ", ".join(f"{name} {found}" for name, found in packages.items())))
        parts += [heading(f"Session from step {session['step']:,}"), pairs(rows)]
    return Section(title="Machine", body="".join(parts))


def _in_steps(rates: Sequence[float]) -> bool:
    """Whether rates fall in a few steps, each a factor: a curve like the cosine's would drown in its last decades."""
    return len(set(rates)) <= 6 and min(rates) > 0


def _error_chart(epochs: Sequence[Mapping[str, Any]], k: int) -> str:
    lines, told = _both(epochs, f"top{k}_error", 100), f"top-{k} error over epochs"
    return line_chart(lines, x_label="epoch", y_label="%", description=told, from_zero=True)


def _both(epochs: Sequence[Mapping[str, Any]], name: str, factor: float) -> list[Line]:
    return [
        Line(name=label, points=[(record["epoch"] + 1, factor * record[f"{kind}_{name}"]) for record in epochs])
        for kind, label in (("train", "training"), ("val", "validation"))
    ]


def _epoch_rows(epochs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            str(record["epoch"] + 1),
            *(
                value
                for kind in ("train", "val")
                for value in (
                    f"{record[f'{kind}_loss']:.4f}",
                    f"{100 * record[f'{kind}_top1_error']:.2f}",
                    f"{100 * record[f'{kind}_top5_error']:.2f}",
                )
            ),
            f"{record['lr']:.3g}",
            f"{record['images_per_second']:,.0f}",
        )
        for record in epochs
    ]


def _trouble(record: Mapping[str, Any]) -> str:
    if record["kind"] == "warning":
        return callout("Warning", [str(record["text"])], tone="warn")
    told = f"Step {record['step']}: the loss was {record['loss']} at learning rate {record['lr']:g}."
    return callout("Diverged", [told], tone="bad")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
