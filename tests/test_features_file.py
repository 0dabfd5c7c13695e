from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from feature_files import plan_for, write_features

from lmdali.model.features_file import load_features
from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError
from lmdali.pipeline.files import seal, write_json

ROWS = np.random.default_rng(0).normal(size=(9000, 3)).astype(np.float32)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    features = write_features(tmp_path / "f", ROWS)
    assert len(features) == 9000
    assert [len(block) for block in features.blocks(5000)] == [5000, 3192, 808]
    assert (np.concatenate(list(features.blocks())) == ROWS).all()
    some = np.array([8999, 0, 8192, 8191, 0])
    assert (features.rows(some) == ROWS[some]).all()
    assert isinstance(next(features.blocks()), np.memmap)


def test_float16_rounds_once(tmp_path: Path) -> None:
    features = write_features(tmp_path / "f", ROWS, precision="float16")
    assert (np.concatenate(list(features.blocks())) == ROWS.astype(np.float16)).all()
    assert (tmp_path / "f" / "shards" / "00001.npy").stat().st_size == 128 + 808 * 3 * 2


def test_the_shards_are_plain_numpy_files(tmp_path: Path) -> None:
    write_features(tmp_path / "f", ROWS)
    assert (np.load(tmp_path / "f" / "shards" / "00001.npy") == ROWS[8192:]).all()


def test_the_digest_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    one = write_features(tmp_path / "a", ROWS, dataset="/here")
    two = write_features(tmp_path / "b", ROWS, dataset="/there")
    assert one.digest == two.digest == load_features(tmp_path / "a").digest
    assert write_features(tmp_path / "c", ROWS + 1).digest != one.digest
    assert write_features(tmp_path / "d", ROWS, source_digest="t" * 64).digest != one.digest


def test_shards_hold_whole_batches() -> None:
    for batch_size in (1, 3, 128, 8192, 10_000):
        plan = plan_for(np.empty((30_000, 2)), batch_size=batch_size)
        assert plan.shard_records % batch_size == 0
        assert sum(count for _, count in plan.shards()) == 30_000
        assert all(count == plan.shard_records for _, count in plan.shards()[:-1])


def test_another_model_is_refused(tmp_path: Path) -> None:
    features = write_features(tmp_path / "f", ROWS)
    features.require_same_source(plan_for(ROWS[:5]), Path("x"))
    with pytest.raises(InputError, match="both must come from one checkpoint"):
        features.require_same_source(plan_for(ROWS, source_digest="t" * 64), Path("x"))


def test_damage_is_found_before_it_is_searched(tmp_path: Path) -> None:
    write_features(tmp_path / "f", ROWS)
    shard = tmp_path / "f" / "shards" / "00001.npy"
    whole = shard.read_bytes()
    for damaged in (whole[:-1], whole[:60], b"", b"\x80\x04K\x01."):
        shard.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"00001\.npy"):
            load_features(tmp_path / "f")
    np.save(shard, ROWS[:808].astype(np.float64))
    with pytest.raises(IntegrityError, match="float64, expected"):
        load_features(tmp_path / "f")
    shard.unlink()
    with pytest.raises(IntegrityError, match=r"00001\.npy"):
        load_features(tmp_path / "f")


def test_what_is_no_finished_feature_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no features\.json here"):
        load_features(tmp_path)
    write_features(tmp_path / "f", ROWS)
    path = tmp_path / "f" / "features.json"
    document = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"dims": 3', '"dims": 4'))
    with pytest.raises(IntegrityError, match="edited or damaged"):
        load_features(tmp_path / "f")
    del document["digest"], document["plan"]["dims"]
    write_json(path, seal(document))
    with pytest.raises(IntegrityError, match="dims"):
        load_features(tmp_path / "f")
    write_json(path, seal({**document, "version": 2}))
    with pytest.raises(InputError, match="version 1"):
        load_features(tmp_path / "f")


def test_a_record_that_is_not_finite_is_named_in_whichever_block_it_is(tmp_path: Path) -> None:
    rows = np.arange(30, dtype=np.float32).reshape(10, 3)
    directory = write_features(tmp_path / "f", rows).directory
    damaged = np.load(directory / "shards" / "00000.npy", mmap_mode="r+")
    damaged[7, 1] = np.inf
    damaged.flush()
    blocks = load_features(directory).finite_blocks(3)
    assert np.concatenate([next(blocks), next(blocks)]).tolist() == rows[:6].tolist()
    with pytest.raises(InputError, match="record 7: its features are not finite"):
        next(blocks)


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ConfigError, match="precision"):
        plan_for(ROWS, precision="float64")
    with pytest.raises(ConfigError, match="at least one"):
        plan_for(ROWS[:0])
