"""Variants of a recipe, trained with the same seeds and budget one after the other; none that ended is repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from lmdali.model.journal import METRICS_FILE, read_metrics
from lmdali.model.layer_plan import layer_plans
from lmdali.model.presets import Preset
from lmdali.model.run_lock import ABLATION_FILE, make_run_directory
from lmdali.model.variants import Variant, choose_variants
from lmdali.pipeline.dataset_place import Place, place_manifest
from lmdali.pipeline.errors import ConfigError, InputError, LmdaliError
from lmdali.pipeline.files import write_json
from lmdali.pipeline.json_keys import read_keys
from lmdali.pipeline.path_kind import exists, is_file
from lmdali.tools.image_errors import ImageErrors, image_errors
from lmdali.tools.loader_options import LoaderOptions
from lmdali.tools.recipe import Recipe
from lmdali.tools.train_job import TrainJob, train_dataset

RESULT_FILE = "result.json"
_RESULT_KEYS = {
    "variant": "a text",
    "seed": "a whole number",
    "epochs": "a whole number",
    **dict.fromkeys(("top1_error", "top5_error", "loss"), "a number or null"),
    "failure": "a text or null",
}


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """What to train.

    Attributes:
        train: training set.
        val: validation set.
        run_dir: gets a folder for each variant, with one for each seed, and the plan.
        recipe: that all variants change.
        variants: names of `VARIANTS`; None for all that change anything of the recipe. The baseline is always one.
        seeds: trainings of each variant, with the recipe's seed and the numbers after it.
        device: auto, cpu or cuda:N.

    Raises:
        ConfigError: no seed.
    """

    train: Place
    val: Place
    run_dir: Path
    recipe: Recipe
    variants: tuple[str, ...] | None = None
    seeds: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"seeds must be at least 1, found {self.seeds}")


@dataclass(frozen=True, kw_only=True)
class VariantRun:
    """How one training ended. Errors are those of the last epoch's validation, 0..1.

    Attributes:
        variant: its name.
        seed: of everything.
        epochs: that were finished.
        top1_error: None if it failed.
        top5_error: likewise.
        loss: likewise, nats.
        failure: why it failed, or None.
    """

    variant: str
    seed: int
    epochs: int
    top1_error: float | None
    top5_error: float | None
    loss: float | None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class AblationReport:
    """Everything that was trained, in earlier calls too.

    Attributes:
        variants: that were asked for, the baseline first.
        parameters: of each of them, in the same order.
        runs: those that have ended, variant by variant.
        num_val: images that errors were measured on.
        image_errors: by variant and seed, what each image's errors are; of runs that have them.
        stopped_by: number of the signal that ended this early, or None.
    """

    variants: tuple[Variant, ...]
    parameters: tuple[int, ...]
    runs: tuple[VariantRun, ...]
    num_val: int
    stopped_by: int | None
    image_errors: Mapping[tuple[str, int], ImageErrors] = field(default_factory=dict)


def run_ablation(config: AblationConfig, progress: TextIO | None = None) -> AblationReport:
    """Train what has not ended yet, all variants of a seed before the next seed.

    Args:
        config: what to train.
        progress: stream for progress lines, None for silence.

    Raises:
        ConfigError: a variant that there is not, or that cannot work with the recipe.
        InputError: a dataset that cannot be used, or `run_dir` holds an ablation of another recipe or other datasets,
            or a file of it was edited or damaged.
        IntegrityError: a run's file is damaged.
        LmdaliError: whatever training raises but a loss that is not finite, which is a result.
    """
    chosen = choose_variants(config.variants, config.recipe.preset)
    first = config.recipe.preset.train.seed
    _require_plan(config)
    stopped_by: int | None = None
    runs: dict[tuple[str, int], VariantRun] = {}
    of_images: dict[tuple[str, int], ImageErrors] = {}
    total = len(chosen) * config.seeds
    for seed in range(first, first + config.seeds):
        for variant, preset in chosen:
            directory = config.run_dir / variant.name / f"seed-{seed}"
            known = _ended(directory)
            if known is None and stopped_by is None:
                if progress is not None:
                    print(f"{variant.name}, seed {seed} ({len(runs) + 1} of {total})", file=progress, flush=True)
                known, stopped_by = _train(config, variant, preset, seed, directory, progress)
            if known is None:
                continue
            runs[variant.name, seed] = known
            if known.failure is None and stopped_by is None:
                errors = _image_errors(config, directory)
                of_images |= {} if errors is None else {(variant.name, seed): errors}
    cache_dir = config.recipe.loader["cache_dir"]
    num_classes = len(place_manifest(config.train, cache_dir=cache_dir).class_names)
    return AblationReport(
        variants=tuple(variant for variant, _ in chosen),
        parameters=tuple(_count_parameters(preset, num_classes) for _, preset in chosen),
        runs=tuple(run for variant, _ in chosen for (name, _), run in runs.items() if name == variant.name),
        num_val=place_manifest(config.val, cache_dir=cache_dir).num_records,
        stopped_by=stopped_by,
        image_errors=of_images,
    )


def _image_errors(config: AblationConfig, directory: Path) -> ImageErrors | None:
    known = {field.name for field in dataclasses.fields(LoaderOptions)}
    arguments = {name: value for name, value in config.recipe.loader.items() if name in known}
    return image_errors(directory, config.val, device=config.device, loader_arguments=arguments)


def _train(
    config: AblationConfig, variant: Variant, preset: Preset, seed: int, directory: Path, progress: TextIO | None
) -> tuple[VariantRun | None, int | None]:
    """How a training ended, or None and the signal that stopped it."""
    job = TrainJob(
        train=config.train,
        val=config.val,
        run_dir=directory,
        preset=preset.changed(train={"seed": seed}),
        resume=True,
        device=config.device,
        **config.recipe.loader,
    )
    failure = None
    try:
        result = train_dataset(job, progress).result
        if result.stopped_by is not None:
            return None, result.stopped_by
    except LmdaliError as error:
        if type(error) is not LmdaliError:  # only a loss that is not finite has no class of its own
            raise
        failure = str(error)
    last = [record for record in read_metrics(directory / METRICS_FILE) if record["kind"] == "epoch"][-1:]
    figures = {
        name: last[0][f"val_{name}"] if last and failure is None else None
        for name in ("top1_error", "top5_error", "loss")
    }
    run = VariantRun(
        variant=variant.name, seed=seed, epochs=last[0]["epoch"] + 1 if last else 0, failure=failure, **figures
    )
    write_json(directory / RESULT_FILE, dataclasses.asdict(run))
    return run, None


def _ended(directory: Path) -> VariantRun | None:
    path = directory / RESULT_FILE
    if not is_file(path):
        return None
    document = read_keys(path, _RESULT_KEYS, cure="remove it, and the run is read again")
    return VariantRun(**{name: document[name] for name in _RESULT_KEYS})


def _require_plan(config: AblationConfig) -> None:
    """Write down what all runs share, or compare it with what an earlier call wrote.

    Raises:
        InputError: it differs, was edited or damaged, or `run_dir` holds a dataset or one training.
    """
    cache_dir = config.recipe.loader["cache_dir"]
    plan = {
        "train_digest": place_manifest(config.train, cache_dir=cache_dir).digest,
        "val_digest": place_manifest(config.val, cache_dir=cache_dir).digest,
        **_flat(config.recipe.values()),
    }
    path = config.run_dir / ABLATION_FILE
    if not is_file(path):
        if exists(config.run_dir / METRICS_FILE):
            raise InputError(f"{config.run_dir}: holds a run of `lmdali train`: choose another --run-dir")
        make_run_directory(config.run_dir)
        write_json(path, {"settings": plan})
        return
    cure = "use another --run-dir, or remove it where all runs beside it have the settings that are asked for now"
    known = read_keys(path, {"settings": "an object"}, cure=cure)["settings"]
    changed = [f"{name} {known.get(name)!r} -> {plan[name]!r}" for name in plan if known.get(name) != plan[name]]
    if changed:
        raise InputError(
            f"{config.run_dir}: holds an ablation with other settings: {'; '.join(changed)}: use another --run-dir"
        )


def _flat(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Settings by section and name, as JSON gives them back; how a loader works is no part of a result."""
    return {
        f"{section}.{name}": list(value) if isinstance(value, tuple) else value
        for section, values in sections.items()
        for name, value in values.items()
        if section != "loader" or name in ("batch_size", "order", "drop_last")
    }


def _count_parameters(preset: Preset, num_classes: int) -> int:
    plans = layer_plans(dataclasses.replace(preset.model, num_classes=num_classes))
    return sum(plan.num_parameters for plan in plans.values())


def ended_errors(runs: Sequence[VariantRun], variant: str, name: str) -> dict[int, float]:
    """Seed -> error of a variant, for the runs that have one.

    Args:
        runs: of a report.
        variant: its name.
        name: `top1_error`, `top5_error` or `loss`.
    """
    return {run.seed: getattr(run, name) for run in runs if run.variant == variant and getattr(run, name) is not None}
