"""Parts of a conversion become one dataset, whoever made them, wherever, and in whatever order."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import run
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kill_points import kill_script
from test_dataset_writer import PLAN, fill, fingerprints, written

from lmdali.pipeline import shard_output
from lmdali.pipeline.dataset_plan import DatasetPlan, Part
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError, LockedError
from lmdali.pipeline.files import file_sha256
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.output_lock import hold_part
from lmdali.tools import part_merge
from lmdali.tools.part_merge import merge_parts

SMALL = replace(PLAN, num_sources=17, shard_sources=3)  # six shards
COUNT = len(SMALL.shards())


def make_part(directory: Path, part: Part, plan: DatasetPlan = SMALL) -> Path:
    writer = DatasetWriter(directory, plan, part)
    with writer.hold(resume=False, overwrite=False):
        for shard in writer.unfinished():
            fill(writer, *shard)
    return directory


def three_parts(root: Path) -> list[Path]:
    return [make_part(root / f"part{number}", Part(number, 3)) for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return fingerprints(written(tmp_path_factory.mktemp("whole") / "out", SMALL))


@hypothesis_settings(max_examples=8)
@given(data=st.data(), count=st.integers(1, 5), move=st.booleans())
def test_any_number_of_parts_anywhere_and_in_any_order_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, expected: dict[str, str], data: st.DataObject, count: int, move: bool
) -> None:
    root = tmp_path_factory.mktemp("parts")
    parts = [Part(number, count) for number in range(1, count + 1)]
    homes = {part: root / data.draw(st.sampled_from(["out", "one", "two"]), str(part)) for part in parts}
    order = data.draw(st.permutations(SMALL.shards()))
    with ExitStack() as stack:  # all at work at the same time
        writers = [DatasetWriter(homes[part], SMALL, part) for part in parts]
        for writer in writers:
            stack.enter_context(writer.hold(resume=False, overwrite=False))
        for shard in order:
            (maker,) = (writer for writer in writers if shard in writer.shards())
            fill(maker, *shard)
    others = sorted({home for home in homes.values() if home.name != "out"})
    summary = merge_parts(root / "out", others, move=move, workers=2, quiet=True)
    assert fingerprints(root / "out") == expected
    assert summary.num_shards == COUNT
    in_others = [shard for shard in SMALL.shards() for part in parts if part.has(shard.name) and homes[part] in others]
    assert summary.brought == ({"moved" if move else "linked": len(in_others)} if in_others else {})
    for other in others:
        assert bool(list((other / "shards").iterdir())) != move or not in_others
    shutil.rmtree(root)


def test_another_file_system_gets_copies(
    tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = three_parts(tmp_path)

    def no_links(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    assert merge_parts(tmp_path / "out", parts, quiet=True).brought == {"copied": COUNT}
    assert fingerprints(tmp_path / "out") == expected
    assert all((part / "shards").exists() for part in parts)


def test_parts_on_a_read_only_disk_can_be_merged(tmp_path: Path, expected: dict[str, str]) -> None:
    parts = three_parts(tmp_path)
    for path in sorted(tmp_path.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = fingerprints(tmp_path)
    tmp_path.chmod(0o755)
    merge_parts(tmp_path / "out", parts, quiet=True)
    assert fingerprints(tmp_path / "out") == expected
    assert {name: value for name, value in fingerprints(tmp_path).items() if name in before} == before
    for path in tmp_path.rglob("*"):
        path.chmod(0o755)


def test_missing_shards_are_named_with_the_parts_that_make_them(tmp_path: Path) -> None:
    out = make_part(tmp_path / "out", Part(1, 3))
    other = make_part(tmp_path / "other", Part(3, 3))
    with pytest.raises(InputError, match=r"2 of 6 shards are missing: 00001 \(part 2/3\), 00004 \(part 2/3\): finish"):
        merge_parts(out, [other], quiet=True)
    assert not (out / "manifest.json").exists()
    make_part(out, Part(2, 3))
    assert merge_parts(out, [other], quiet=True).num_shards == COUNT


def test_a_merge_that_is_refused_leaves_no_trace_in_a_new_output(tmp_path: Path) -> None:
    parts, out = three_parts(tmp_path), tmp_path / "new" / "out"
    before = fingerprints(tmp_path)
    with pytest.raises(InputError, match=r"2 of 6 shards are missing"):
        merge_parts(out, parts[:2], quiet=True)
    (parts[2] / "shards" / "00099").mkdir()
    with pytest.raises(InputError, match="'00099' is no shard of the plan"):
        merge_parts(out, parts, quiet=True)
    (parts[2] / "shards" / "00099").rmdir()
    with hold_part(parts[2], Part(3, 3)), pytest.raises(LockedError):
        merge_parts(out, parts, quiet=True)
    assert not out.parent.exists() and fingerprints(tmp_path) == before
    assert merge_parts(out, parts, quiet=True).num_shards == COUNT


def test_what_is_staged_is_hashed_where_it_was_and_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = three_parts(tmp_path)
    hashed: list[int] = []

    def note(path: Path) -> str:
        hashed.append(path.stat().st_ino)
        return file_sha256(path)

    monkeypatch.setattr(shard_output, "file_sha256", note)
    merge_parts(tmp_path / "out", parts, quiet=True)
    assert set(Counter(hashed).values()) == {2}  # a link is the file that was hashed already
    assert len(hashed) == 2 * 3 * COUNT


def test_a_merged_dataset_merged_again_is_left_alone(tmp_path: Path, expected: dict[str, str]) -> None:
    parts = three_parts(tmp_path)
    assert not merge_parts(tmp_path / "out", parts, quiet=True).was_complete
    assert merge_parts(tmp_path / "out", parts, quiet=True).was_complete
    assert merge_parts(tmp_path / "out", [], quiet=True).was_complete
    assert fingerprints(tmp_path / "out") == expected


def test_a_merge_that_was_killed_in_its_very_last_step_is_finished(tmp_path: Path, expected: dict[str, str]) -> None:
    make_part(tmp_path / "out", Part(1, 1))
    merge_parts(tmp_path / "out", [], quiet=True)
    (tmp_path / "out/.staging").mkdir()
    (tmp_path / "out/.staging/lock").touch()
    assert merge_parts(tmp_path / "out", [], quiet=True).was_complete
    assert fingerprints(tmp_path / "out") == expected
    assert not (tmp_path / "out/.staging").exists()


def test_the_same_shard_twice_is_no_harm_and_another_one_is(tmp_path: Path, expected: dict[str, str]) -> None:
    parts = three_parts(tmp_path)
    shutil.copytree(parts[0], tmp_path / "again")
    shutil.copytree(parts[0], tmp_path / "other")
    shard = tmp_path / "other/shards/00003/shard.json"
    shutil.rmtree(shard.parent)
    writer = DatasetWriter(tmp_path / "other", SMALL, Part(1, 3))
    with writer.hold(resume=True, overwrite=False), writer.open_shard("00003", 9, 3) as made:
        made.put(9, "9.jpg", b"something else", label=0, height=4, width=4)
        made.publish({"plan": SMALL.fingerprint, "moments": writer.figures("00000").moments.to_json()})
    with pytest.raises(IntegrityError, match=r"other: its shard 00003 differs from that in .*part1"):
        merge_parts(tmp_path / "out", [*parts, tmp_path / "other"], quiet=True)
    merge_parts(tmp_path / "out", [*parts, tmp_path / "again"], quiet=True)
    assert fingerprints(tmp_path / "out") == expected


def test_damage_is_found_in_every_file_and_all_of_it_is_named(tmp_path: Path, expected: dict[str, str]) -> None:
    parts = three_parts(tmp_path)
    victims = [
        parts[0] / "shards/00000/data.mdb",
        parts[0] / "shards/00003/shard.json",
        parts[1] / ".staging/00001.records",
        parts[1] / ".staging/00004.npy",
        parts[2] / ".staging/00002.hashes",
    ]
    kept = {path: path.read_bytes() for path in victims}
    for path, content in kept.items():
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    (parts[2] / ".staging/00005.rejects").rename(tmp_path / "aside")
    with pytest.raises(IntegrityError, match="6 of 6 shards cannot be used") as caught:
        merge_parts(tmp_path / "out", parts, workers=1, quiet=True)
    for name in (
        "shards/00000/data.mdb",
        "00003/shard.json",
        "00001.records",
        "00004.npy",
        "00002.",
        "00005.rejects",
    ):
        assert name in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()
    for path, content in kept.items():
        path.write_bytes(content)
    (tmp_path / "aside").rename(parts[2] / ".staging/00005.rejects")
    merge_parts(tmp_path / "out", parts, quiet=True)
    assert fingerprints(tmp_path / "out") == expected


def test_offsets_that_were_lost_or_damaged_on_the_way_are_made_again(tmp_path: Path, expected: dict[str, str]) -> None:
    out = make_part(tmp_path / "out", Part(1, 2))
    other = make_part(tmp_path / "other", Part(2, 2))
    (out / "shards/00002/offsets.npy").unlink()
    (other / "shards/00001/offsets.npy").write_bytes(b"?")
    merge_parts(out, [other], quiet=True)
    assert fingerprints(out) == expected


def test_parts_of_other_plans_are_refused_and_what_differs_is_said(tmp_path: Path) -> None:
    one = make_part(tmp_path / "one", Part(1, 2))
    two = make_part(tmp_path / "two", Part(2, 2), replace(SMALL, recipe={"quality": 90, "seed": 0}))
    with pytest.raises(InputError, match=r"two: was made with other options: quality: 95 in .*one, 90 here"):
        merge_parts(tmp_path / "out", [one, two], quiet=True)
    assert not (tmp_path / "out").exists()


def test_directories_that_hold_no_parts_are_refused(tmp_path: Path) -> None:
    one = make_part(tmp_path / "one", Part(1, 1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no \.staging/plan\.json here"):
        merge_parts(one, [tmp_path / "empty"], quiet=True)
    with pytest.raises(InputError, match=r"nowhere: no \.staging/plan\.json here"):
        merge_parts(tmp_path / "nowhere", [], quiet=True)
    with pytest.raises(ConfigError, match="named twice"):
        merge_parts(one, [tmp_path / "empty" / ".." / "one"], quiet=True)
    (one / "shards" / "00099").mkdir()
    with pytest.raises(InputError, match="'00099' is no shard of the plan"):
        merge_parts(one, [], quiet=True)


def test_a_part_that_is_being_made_is_waited_for(tmp_path: Path) -> None:
    out = make_part(tmp_path / "out", Part(1, 2))
    with (
        hold_part(out, Part(2, 2)),
        pytest.raises(LockedError, match=rf"another run is writing here \(part 2/2: pid {os.getpid()} on "),
    ):
        merge_parts(out, [], quiet=True)
    other = make_part(tmp_path / "other", Part(2, 2))
    with hold_part(other, Part(2, 2)), pytest.raises(LockedError, match="other: another run is writing here"):
        merge_parts(out, [other], quiet=True)
    with (out / ".staging/lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(LockedError):
            merge_parts(out, [other], quiet=True)


KILLS = """
import shutil, sys
from pathlib import Path
from dataclasses import replace
from kill_points import kill_everywhere
from test_dataset_writer import fingerprints, written
from test_merge import PLAN, Part, make_part
from lmdali.tools.part_merge import merge_parts

plan, root, move = replace(PLAN, num_sources=5), Path(sys.argv[1]), sys.argv[2] == "move"
expected = fingerprints(written(root / "whole", plan))
make_part(root / "made/out", Part(1, 2), plan)
make_part(root / "made/other", Part(2, 2), plan)

def work(place):
    merge_parts(place / "out", [place / "other"], move=move, workers=1, quiet=True)

def check(place):
    assert fingerprints(place / "out") == expected, place

print(kill_everywhere(root, lambda place: shutil.copytree(root / "made", place), work, check))
"""


@pytest.mark.parametrize("how", ["link", "move"])
def test_a_merge_killed_at_any_file_operation_is_run_again_to_the_same_bytes(tmp_path: Path, how: str) -> None:
    kill_script(KILLS, tmp_path, how)


def test_parts_by_the_command_line_are_merged_to_the_bytes_of_an_undivided_conversion(
    tmp_path: Path, small_source: Path, make_dataset: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--size", "48", "-j1", "--quiet", "--max-bad", "1"]
    whole = make_dataset(small_source, tmp_path / "whole", size=48)
    out, other = tmp_path / "out", tmp_path / "other"
    assert run("convert", small_source, out, *options, "--part", "1/2", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    manifest = load_manifest(whole)
    assert (made["part"], made["num_shards"], made["total_shards"]) == ("1/2", 1, 1)
    assert (made["num_stored"], made["num_rejected"]) == (manifest.num_records, 3)
    assert "lmdali merge" in made["next"]
    assert not (out / "manifest.json").exists()
    assert run("convert", small_source, other, *options, "--part", "2/2") == 0
    assert "0 of 1" in capsys.readouterr().out
    assert run("convert", small_source, out, *options, "--part", "1/2") == 3
    assert "already holds some of part 1/2: add --resume" in capsys.readouterr().err
    assert run("convert", small_source, out, *options[:-1], "0.01", "--part", "1/2", "--resume") == 9
    assert "3 sources (7.5%) were rejected" in capsys.readouterr().err
    assert run("convert", small_source, out, *options, "--part", "3/2") == 2
    assert run("merge", out, other, "--json", "--quiet") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["manifest_digest"] == manifest.digest
    assert fingerprints(out) == fingerprints(whole)
    assert run("merge", out) == 0
    assert "was complete before" in capsys.readouterr().out
    assert run("convert", small_source, out, *options, "--part", "1/2", "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["resumed_shards"] == 1


def test_an_interrupted_merge_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    out = make_part(tmp_path / "out", Part(1, 1))
    monkeypatch.setattr(part_merge, "_bring_all", interrupted)
    assert run("merge", out) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
