"""The stages of a chain one after the other, each in its own directory, continued where they stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TextIO

from lmdali.model.checkpoint import CheckpointDirectory
from lmdali.model.parallel import Ranks
from lmdali.model.trainer import CHECKPOINT_DIR
from lmdali.pipeline.dataset_place import place_shown
from lmdali.pipeline.errors import InputError
from lmdali.pipeline.files import storage_errors, write_json
from lmdali.pipeline.json_keys import read_keys
from lmdali.pipeline.path_kind import is_file
from lmdali.tools.initial_weights import checkpoint_file
from lmdali.tools.report_table import print_pairs, print_table
from lmdali.tools.stages import Stage
from lmdali.tools.train_job import TrainJob, ranks_of, train_dataset

STAGE_FILE = "stage.json"
_STAGE_KEYS = {
    "settings": "an object",
    "report": "an object or null",
    "report.best_top1_error": "a number or null or nothing",
    **dict.fromkeys(("report.epochs", "report.seconds"), "a number or nothing"),
}
"""In each stage's directory: what it was told, and once it has finished, how it went."""

_BOOKKEEPING = {
    "channels_last",
    "cuda_graph",
    "log_steps",
    "checkpoint_seconds",
    "checkpoint_steps",
    "keep_checkpoints",
    "tensorboard",
}
"""Fields of the training that do not change what comes out of it."""

StageState = Literal["finished", "finished earlier", "stopped", "not begun"]


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """How one stage went.

    Attributes:
        name: of the stage.
        state: `finished earlier` was found so, and was not trained again.
        report: `TrainReport.to_json()`, or None if it was not begun.
    """

    name: str
    state: StageState
    report: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class ChainReport:
    """How a chain went.

    Attributes:
        run_dir: the chain's.
        outcomes: of all stages, in their order.
        stopped_by: number of the signal that ended it early, or None.
    """

    run_dir: Path
    outcomes: tuple[StageOutcome, ...]
    stopped_by: int | None

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values."""
        stages = [{"name": done.name, "state": done.state, "report": done.report} for done in self.outcomes]
        return {"run_dir": str(self.run_dir), "stages": stages, "stopped_by": self.stopped_by}


def run_chain(stages: Sequence[Stage], given: Mapping[str, Any], *, progress: TextIO | None = None) -> ChainReport:
    """Train all stages that have not finished yet, until the end or a signal; all ranks of a job call this.

    Args:
        stages: the chain.
        given: fields of `TrainJob` that all stages share; each has a directory of its name below `run_dir`, and
            `resume` goes on with the chain there, if there is one.
        progress: see `train_dataset`.

    Returns:
        The same on every rank.

    Raises:
        InputError: `run_dir` holds a chain that is not resumed, or a finished stage with other settings.
        LmdaliError: whatever training raises.
    """
    # The ranks meet once for all stages: torchrun's store keeps what the first meeting left, and a second one in it
    # would wait for addresses that nobody listens at any more.
    with ranks_of(given) as ranks:
        return _run_chain(stages, given, ranks, progress if ranks.is_first else None)


def _run_chain(stages: Sequence[Stage], given: Mapping[str, Any], ranks: Ranks, progress: TextIO | None) -> ChainReport:
    run_dir, resume = Path(given["run_dir"]), given.get("resume", False)
    # One rank looks, and before any begins: the others might find what it has written since.
    found = ranks.on_first(lambda: [_finished(stage, run_dir / stage.name, resume=resume) for stage in stages])
    outcomes: list[StageOutcome] = []
    stopped_by: int | None = None
    for stage, known in zip(stages, found, strict=True):
        if known is not None:
            outcomes.append(StageOutcome(name=stage.name, state="finished earlier", report=known))
            continue
        if stopped_by is not None:
            outcomes.append(StageOutcome(name=stage.name, state="not begun", report=None))
            continue
        if progress is not None:
            print(f"stage {stage.name} ({len(outcomes) + 1} of {len(stages)})", file=progress, flush=True)
        job = _job(stage, stages, given)
        ranks.on_first(partial(_write, stage, job.run_dir, None))
        trained = train_dataset(job, progress)
        stopped_by = trained.result.stopped_by
        if stopped_by is None:
            ranks.on_first(partial(_write, stage, job.run_dir, trained.to_json()))
        state: StageState = "finished" if stopped_by is None else "stopped"
        outcomes.append(StageOutcome(name=stage.name, state=state, report=trained.to_json()))
    return ChainReport(run_dir=run_dir, outcomes=tuple(outcomes), stopped_by=stopped_by)


def print_plan(stages: Sequence[Stage]) -> None:
    """What a chain would do, one table for each stage."""
    for stage in stages:
        preset, train = stage.recipe.preset, stage.recipe.preset.train
        rates = [f"lr {train.lr:g}, {train.schedule}"]
        if train.bias_lr is not None or train.bias_schedule is not None:
            rate = train.lr if train.bias_lr is None else train.bias_lr
            rates.append(f"biases {rate:g}, {train.bias_schedule or 'likewise'}")
        rows = [
            (
                "training set",
                f"{place_shown(stage.train_set)}: {stage.num_train:,} images of {stage.num_classes:,} classes",
            ),
            ("validation set", f"{place_shown(stage.val_set)}: {stage.num_val:,} images"),
            ("preset", stage.recipe.name),
            ("begins with", _told_source(stage)),
            ("copied", ", ".join(stage.copied) or "nothing"),
            ("at random", ", ".join(stage.fresh) or "nothing"),
            ("rates", "; ".join(rates)),
            ("rates of layers", train.layer_lr or "the same"),
            ("epochs, batch", f"{train.epochs}, {preset.batch_size}"),
        ]
        print_pairs(f"stage {stage.name}", rows)


def print_chain(report: ChainReport) -> None:
    """How a chain went, one line for each stage."""
    rows = []
    for done in report.outcomes:
        result = done.report or {}
        best = result.get("best_top1_error")
        accuracy = "" if best is None else f"{100 * (1 - best):.2f} %"
        rows.append(
            (done.name, done.state, str(result.get("epochs", 0)), accuracy, f"{result.get('seconds', 0):.0f} s")
        )
    print_table(f"chain {report.run_dir}", ("stage", "state", "epochs", "best top-1 accuracy", "time"), rows)


def _told_source(stage: Stage) -> str:
    if stage.init_from is None:
        return "random weights"
    return f"{stage.init_from}, {stage.init_checkpoint} checkpoint, layers {stage.init_layers}"


def _job(stage: Stage, stages: Sequence[Stage], given: Mapping[str, Any]) -> TrainJob:
    run_dir = Path(given["run_dir"])
    fields: dict[str, Any] = {
        **given,
        **stage.recipe.loader,
        "train": stage.train_set,
        "val": stage.val_set,
        "run_dir": run_dir / stage.name,
        "preset": stage.recipe.preset,
        "recipe": stage.recipe.to_json(),
        "init_from": _beginning(stage, stages, run_dir),
        "init_layers": stage.init_layers,
    }
    return TrainJob(**fields)


def _beginning(stage: Stage, stages: Sequence[Stage], run_dir: Path) -> Path | None:
    if stage.init_from is None:
        return None
    if all(other.name != stage.init_from for other in stages):
        return checkpoint_file(Path(stage.init_from))
    earlier = run_dir / stage.init_from
    last = CheckpointDirectory(earlier / CHECKPOINT_DIR).paths()[-1:]
    if stage.init_checkpoint == "best" or not last:
        return checkpoint_file(earlier)
    return last[0]


def _identity(stage: Stage) -> dict[str, Any]:
    """What a stage's outcome depends on, one flat object."""
    values = stage.recipe.values()
    facts: dict[str, Any] = {"training set": stage.digests[0], "validation set": stage.digests[1]}
    facts |= {name: getattr(stage, name) for name in ("init_from", "init_checkpoint", "init_layers")}
    facts |= {f"model.{name}": value for name, value in values["model"].items()}
    facts |= {f"train.{name}": value for name, value in values["train"].items() if name not in _BOOKKEEPING}
    facts |= {f"augment.{name}": value for name, value in values["augment"].items()}
    facts |= {f"loader.{name}": values["loader"][name] for name in ("batch_size", "order", "drop_last")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}


def _finished(stage: Stage, directory: Path, *, resume: bool) -> dict[str, Any] | None:
    """The report of a stage that has finished, or None."""
    path = directory / STAGE_FILE
    if not is_file(path):
        return None
    if not resume:
        raise InputError(f"{directory}: holds a stage: continue the chain with --resume, or use another --run-dir")
    known = read_keys(path, _STAGE_KEYS, cure="remove it, and --resume goes on with the stage's last checkpoint")
    report: dict[str, Any] | None = known["report"]
    if report is None:
        return None
    then, now = known["settings"], _identity(stage)
    changed = [f"{name} {then.get(name)!r} -> {now[name]!r}" for name in now if then.get(name) != now[name]]
    if changed:
        raise InputError(f"{directory}: finished with other settings: {'; '.join(changed)}: use another --run-dir")
    return report


def _write(stage: Stage, directory: Path, report: dict[str, Any] | None) -> None:
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / STAGE_FILE, {"name": stage.name, "settings": _identity(stage), "report": report})
