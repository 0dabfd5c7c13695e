from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from feature_files import plan_for, write_features
from kill_points import kill_everywhere

from lmdali.model.features_file import INDEX_FILE, Features, FeaturesPlan, load_features
from lmdali.model.features_writer import FeaturesWriter
from lmdali.pipeline.errors import InputError, IntegrityError, LockedError

ROWS = np.random.default_rng(0).normal(size=(9000, 2)).astype(np.float32)
BATCH = 4096


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def go_on(directory: Path, plan: FeaturesPlan | None = None, *, stop_at: int = 9000) -> Features | None:
    """Write what is missing, up to a record at which the run ends as if it had been killed."""
    writer = FeaturesWriter(directory, plan or plan_for(ROWS))
    with writer.hold(resume=True, overwrite=False):
        for start in range(writer.num_done, stop_at, BATCH):
            writer.add(ROWS[start : start + BATCH])
        return writer.publish() if stop_at == 9000 else None


def test_a_stopped_run_goes_on_at_its_last_shard_to_the_same_bytes(tmp_path: Path) -> None:
    write_features(tmp_path / "whole", ROWS)
    for stop_at, done in ((1, 0), (4097, 8192), (8193, 9000)):
        out = tmp_path / f"cut{stop_at}"
        go_on(out, stop_at=stop_at)
        with pytest.raises(InputError, match=r"no features\.json"):
            load_features(out)
        writer = FeaturesWriter(out, plan_for(ROWS))
        with writer.hold(resume=True, overwrite=False):
            assert writer.num_done == done
        go_on(out)
        assert files(out) == files(tmp_path / "whole")
        go_on(out)  # finished: nothing is left to do
        assert files(out) == files(tmp_path / "whole")


def test_killed_at_any_file_operation_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    write_features(tmp_path / "whole", ROWS)
    want = files(tmp_path / "whole")

    def check(place: Path) -> None:
        assert files(place) == want

    points = kill_everywhere(tmp_path / "killed", lambda place: None, go_on, check)
    assert points > 8


def test_content_is_neither_mixed_nor_replaced_unasked(tmp_path: Path) -> None:
    write_features(tmp_path / "f", ROWS)
    for flags, part in (({}, "finished feature file: add --resume"), ({"resume": True}, "dims 3 instead of 2")):
        writer = FeaturesWriter(tmp_path / "f", plan_for(np.ones((9000, 3))))
        with (
            pytest.raises(InputError, match=part),
            writer.hold(resume=bool(flags), overwrite=False),
        ):
            pass
    writer = FeaturesWriter(tmp_path / "f", plan_for(np.ones((5, 3))))
    with writer.hold(resume=False, overwrite=True):
        writer.add(np.ones((5, 3), np.float32))
        assert len(writer.publish()) == 5


def test_an_index_of_a_search_is_content_of_ours(tmp_path: Path) -> None:
    write_features(tmp_path / "f", ROWS)
    index = tmp_path / "f" / INDEX_FILE
    index.write_bytes(b"of these rows")
    (tmp_path / "f" / f".{INDEX_FILE}.1a2b.tmp").write_bytes(b"killed")
    writer = FeaturesWriter(tmp_path / "f", plan_for(ROWS))
    with writer.hold(resume=True, overwrite=False):
        writer.publish()
    assert index.exists() and not list((tmp_path / "f").glob(".*.tmp"))
    with writer.hold(resume=False, overwrite=True):
        assert not index.exists()


def test_foreign_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    for place in (tmp_path, tmp_path / "precious.txt"):
        writer = FeaturesWriter(place, plan_for(ROWS))
        with pytest.raises(InputError, match="choose another output"), writer.hold(resume=False, overwrite=True):
            pass
    assert (tmp_path / "precious.txt").read_text() == "x"


def test_two_runs_do_not_write_to_one_place(tmp_path: Path) -> None:
    first, second = (FeaturesWriter(tmp_path / "f", plan_for(ROWS)) for _ in range(2))
    with (
        first.hold(resume=False, overwrite=False),
        pytest.raises(LockedError),
        second.hold(resume=True, overwrite=False),
    ):
        pass


def test_numbers_that_cannot_be_kept_are_refused(tmp_path: Path) -> None:
    rows = np.array([[1.0, 70_000.0]], np.float32)
    writer = FeaturesWriter(tmp_path / "f", plan_for(rows, precision="float16"))
    with writer.hold(resume=False, overwrite=False):
        with pytest.raises(InputError, match="--precision float32"):
            writer.add(rows)
        with pytest.raises(InputError, match="not finite"):
            writer.add(np.array([[1.0, np.nan]], np.float32))


def test_missing_and_surplus_rows_are_found(tmp_path: Path) -> None:
    writer = FeaturesWriter(tmp_path / "f", plan_for(ROWS[:2]))
    with writer.hold(resume=False, overwrite=False):
        writer.add(ROWS[:1])
        with pytest.raises(IntegrityError, match="0 of 2"):
            writer.publish()
        writer.add(ROWS[1:2])
        with pytest.raises(IntegrityError, match="more rows"):
            writer.add(ROWS[2:3])
