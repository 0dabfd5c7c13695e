"""`lmdali report`: a run as one HTML file that needs nothing else, from disk or anywhere."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from lmdali.model.checkpoint import BEST_NAME, Checkpoint
from lmdali.model.features_file import load_features
from lmdali.model.trainer import CHECKPOINT_DIR
from lmdali.pipeline.dataset_place import Place, parse_place, place_manifest, place_shown
from lmdali.pipeline.errors import ConfigError, InputError, LmdaliError
from lmdali.pipeline.output_file import write_output
from lmdali.pipeline.path_kind import exists, is_dir
from lmdali.pipeline.release import lmdali_version
from lmdali.tools.checkpoint_network import open_network, read_checkpoint
from lmdali.tools.dataset_argument import DATASET
from lmdali.tools.evaluate import EvalConfig, evaluate_networks
from lmdali.tools.evaluation_page import errors_part, evaluation_sections
from lmdali.tools.evaluation_report import EvalReport
from lmdali.tools.figure_neighbours import NeighboursConfig, figure_neighbours
from lmdali.tools.html_page import Section, figure, page, paragraph, picture
from lmdali.tools.loader_options import LoaderOptions, loader_options
from lmdali.tools.output_argument import OUTPUT_FILE
from lmdali.tools.page_sheets import prediction_sheet
from lmdali.tools.record_pictures import spread_indices
from lmdali.tools.run_sections import (
    RunRecord,
    curves_section,
    data_section,
    kernels_section,
    machine_section,
    read_run,
    result_section,
    settings_section,
)

FEATURES_DIR = "features"
_PREDICTIONS = 8


@dataclass(frozen=True, kw_only=True)
class ReportConfig(LoaderOptions):
    """What goes into a report, and what `LoaderOptions` says of the loader.

    Attributes:
        val: dataset for errors and predictions; None means the run's validation set, if it is where it was.
        views: of each image, 1 or 10.
        features: feature file of the run's network, for neighbours; None means `features` in the run, if it is there.
        names: synset file, see `readable_classes`.
        device: auto, cpu or cuda:N.
        quiet: no progress.
    """

    val: Place | None = None
    views: int = 1
    features: Path | None = None
    names: Path | None = None
    device: str = "auto"
    quiet: bool = False


def write_report(run_dir: Path, out: Path, config: ReportConfig | None = None) -> list[str]:
    """Write a run's report.

    Args:
        run_dir: of `lmdali train`, finished or not.
        out: the HTML file.
        config: see `ReportConfig`.

    Returns:
        What is not in it, and why, one line each.

    Raises:
        ConfigError: the name of `out` is no page's.
        InputError: no run, or a dataset or feature file that does not go with it.
        IntegrityError: something is damaged.
        StorageError: the file cannot be written.
    """
    config = config or ReportConfig()
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{out}: the name of a page ends in .html")
    best = run_dir / CHECKPOINT_DIR / BEST_NAME
    stored = read_checkpoint(run_dir)[1] if exists(best) else None
    run = read_run(run_dir, stored)
    left_out: list[str] = []
    sections = [result_section(run)]
    if run.epochs:
        sections.append(curves_section(run))
    if stored is None:
        left_out.append(f"kernels, predictions and neighbours: {best} is not there, no epoch was finished")
    else:
        sections.append(kernels_section(stored))
        sections += _network_sections(run, config, left_out)
    sections += [data_section(run), settings_section(run)]
    if run.facts is not None:
        sections.append(machine_section(run.facts))
    if left_out:
        sections.append(Section(title="Not in this report", body="".join(map(paragraph, left_out))))
    document = page(
        f"Run {run_dir.resolve().name}",
        sections,
        subtitle=_subtitle(run, stored),
        footer=f"lmdali {lmdali_version()}",
    )
    write_output(out, document.encode())
    return left_out


def _network_sections(run: RunRecord, config: ReportConfig, left_out: list[str]) -> list[Section]:
    """What the best checkpoint says of datasets."""
    sections = []
    val = config.val or _own_validation_set(run, config, left_out)
    if val is not None:
        options = {name: getattr(config, name) for name in ("views", "names", "device", "quiet")}
        arguments = EvalConfig(**options, **config.loader_arguments())
        report = evaluate_networks(val, [run.run_dir], arguments)
        views = "one central view" if config.views == 1 else "the mean of ten views"
        told = f"The best checkpoint on {place_shown(val)}, {views} of each image."
        if run.facts is not None and report.probabilities.dataset_digest == run.facts.val_digest:
            told += " It was chosen by its error on them: expect a little more on others."
        body = paragraph(told) + errors_part(report)
        sections += [Section(title="Evaluation", body=body), *evaluation_sections(report), _predictions(report)]
    features = config.features or run.run_dir / FEATURES_DIR
    if config.features is None and not is_dir(features):
        left_out.append(f"neighbours: no {features}: `lmdali features TRAIN {run.run_dir} {features}` makes it")
        return sections
    try:
        sections.append(_neighbours(run, features, config))
    except LmdaliError as error:
        if config.features is not None:
            raise
        left_out.append(f"neighbours: {error}")
    return sections


def _own_validation_set(run: RunRecord, config: ReportConfig, left_out: list[str]) -> Place | None:
    if run.facts is None:
        left_out.append("errors and predictions: the run does not say which its validation set is: give it with --val")
        return None
    val = parse_place(run.facts.val)
    try:
        same = place_manifest(val, cache_dir=config.cache_dir).digest == run.facts.val_digest
    except LmdaliError:
        same = False
    if not same:
        left_out.append(f"errors and predictions: {val} is no longer the run's validation set: give it with --val")
    return val if same else None


def _predictions(report: EvalReport) -> Section:
    indices = spread_indices(_PREDICTIONS, report.analysis.num_samples)
    sheet = prediction_sheet(
        report,
        indices,
        "Images at even distances, with the five most probable labels. The true class is below each; its bar is red.",
    )
    return Section(title="Predictions", body=sheet)


def _neighbours(run: RunRecord, features: Path, config: ReportConfig) -> Section:
    found = load_features(features).plan
    network = open_network(run.run_dir, device="cpu", cache_dir=config.cache_dir)
    if found.source_digest != network.digest:
        raise InputError(
            f"{features}: features of another network ({found.source}, {found.source_digest[:12]}) than the best of "
            f"{run.run_dir} ({network.digest[:12]}): compute them again"
        )
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "neighbours.webp"
        cache: dict[str, Any] = {"cache_dir": config.cache_dir, "cache_bytes": config.cache_bytes}
        settings = NeighboursConfig(names=config.names, pixels=False, quiet=True, **cache)
        document = figure_neighbours(features, (), sheet, settings)
        told = "; ".join(
            f"{entry['name']}: {', '.join(near['name'] for near in entry['neighbours'])}"
            for entry in document["queries"]
        )
        body = figure(
            picture(sheet, f"queries and the images nearest to them: {told}"),
            "Nearest in the last hidden layer, by Euclidean distance; queries at even distances.",
        )
    return Section(title="Neighbours", body=body)


def _subtitle(run: RunRecord, stored: Checkpoint | None) -> str:
    parts = [] if stored is None else [f"{len(stored.class_names)} classes"]
    if run.facts is not None:
        parts.insert(0, f"{Path(run.facts.train).name}, validated on {Path(run.facts.val).name}")
        parts.append(f"last started {run.facts.sessions[-1]['started']}")
    return "; ".join(parts)


_DEFAULTS = ReportConfig()


@click.command("report")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--out", type=OUTPUT_FILE, required=True, help="The HTML file to write.")
@click.option(
    "--val",
    type=DATASET,
    default=_DEFAULTS.val,
    help="Dataset for errors and predictions.  [default: the run's validation set]",
)
@click.option(
    "--views",
    type=click.Choice(["1", "10"]),
    default=str(_DEFAULTS.views),
    show_default=True,
    help="Central crop, or ten crops with averaged probabilities.",
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    default=_DEFAULTS.features,
    help="Feature file of the run's best network, for neighbours.  [default: RUN_DIR/features, if there]",
)
@click.option("--names", type=click.Path(path_type=Path), help="Synset file: lines of CLASS NAME, SYNONYM, ...")
@click.option("--device", default=_DEFAULTS.device, show_default=True, help="auto, cpu or cuda:N.")
@loader_options
@click.option("--quiet", is_flag=True, default=_DEFAULTS.quiet, help="No progress.")
def command(run_dir: Path, out: Path, views: str, **options: Any) -> None:
    """Write the run RUN_DIR as one HTML file: curves, errors, pictures, data, settings, machine.

    The file loads nothing and runs nothing: it can be mailed, or opened from disk.
    """
    left_out = write_report(run_dir, out, ReportConfig(views=int(views), **options))
    print(out)
    for line in left_out:
        print(f"not in it: {line}")
