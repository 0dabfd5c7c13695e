"""Power cuts at any moment of a conversion, simulated: see power_cut.py for what a disk may hold after one.

In every state: where `manifest.json` is, everything it names is there, byte for byte; where it is not, a shard that
counts as finished is whole with all that is staged for it. A sample is put down as real files and really resumed.
`LMDALI_POWER_CUTS` sets how many states are tried in all.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_shim import KILL, ForkServer, fork_server
from power_cut import Disk, below, put_down, read_log
from storage_states import STATISTICS, content, finished_shards, wrong_shards

STATES = int(os.environ.get("LMDALI_POWER_CUTS", "24000"))
RESUMED = max(60, STATES // 500)

State = dict[str, bytes | None]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with fork_server() as server:
        yield server


@pytest.fixture(scope="module")
def made(server: ForkServer) -> dict[int, dict[str, bytes]]:
    """By JPEG quality: every file of the dataset that an uninterrupted run makes."""
    files = {}
    for quality in (95, 80):
        out = server.root / "whole"
        assert server.run("convert", out=str(out), quality=quality).code == 0
        files[quality] = content(out)
        shutil.rmtree(out)
    return files


class PowerCuts:
    """Cuts the power again and again in the course of one log.

    Args:
        server: converts and resumes.
        made: the datasets that may be found.
        log: what was done in `server.root`.
        states: how many to try.
        place: the folder of the dataset in `server.root`.
    """

    def __init__(
        self, server: ForkServer, made: dict[int, dict[str, bytes]], log: Path, states: int, place: str = "out/"
    ) -> None:
        self.server, self.made, self.place = server, made, place
        self.operations = list(read_log(log))
        assert len(self.operations) > 8, "the shim saw too little to mean anything"
        self.share = max(1, states // (2 * len(self.operations)))
        self.dice = random.Random(6)
        self.states = self.published = self.with_shards = self.resumed = 0

    def replay(self, disks: tuple[Disk, Disk], *, resume_share: float = RESUMED / STATES) -> None:
        """Go through the log on a usual and on a strict disk, which hold what was there before."""
        for disk in disks:
            for number, operation in enumerate(self.operations):
                disk.apply(operation)
                now = below(disk.now(), self.place)
                for _ in range(self.share):
                    state = disk.crashed(self.dice)
                    try:
                        self.judge(below(state, self.place), now)
                        if self.dice.random() < resume_share:
                            self.resume(state)
                    except AssertionError as error:
                        raise AssertionError(f"after operation {number}, {operation[:6]}: {error}") from error

    def judge(self, state: State, now: State) -> None:
        """Assert that a state below the output is harmless; `now` is what the running system sees at that time."""
        self.states += 1
        found = {name: data for name, data in state.items() if data is not None}
        if "manifest.json" in state:
            self.published += 1
            # `lmdali pca` writes the statistics again beside a manifest, and readers check them for themselves.
            wrong = [
                sorted(name for name, data in files.items() if found.get(name) != data and name not in STATISTICS)
                for files in self.made.values()
            ]
            assert [] in wrong, f"a manifest is there, and not what it names: {wrong}"
            return
        if ".staging/plan.json" not in state:  # then --resume starts from nothing, which `resume` shows
            return
        assert not (wrong := wrong_shards(found, *self.made.values())), f"finished shards are not whole: {wrong}"
        for shard in finished_shards(state):
            self.with_shards += 1
            for name in (f".staging/{shard}.{kind}" for kind in ("records", "rejects", "npy", "hashes")):
                assert found.get(name, "missing") == now.get(name), f"{name} is not whole, its shard is finished"

    def resume(self, state: State) -> None:
        """Put a state down as files and finish the conversion from there."""
        self.resumed += 1
        put_down(state, self.server.root)
        out = self.server.root / "out"
        for quality, files in self.made.items():
            done = self.server.run("convert", out=str(out), quality=quality, resume=True)
            if not (done.error == "InputError" and "other options" in done.message):
                assert (done.code, done.error, done.message) == (0, "", "")
                found = content(out)
                assert found == files, sorted(name for name in found | files if found.get(name) != files.get(name))
                break
        else:
            raise AssertionError("neither conversion can be resumed")
        shutil.rmtree(out, ignore_errors=True)


def disks(root: Path) -> tuple[Disk, Disk]:
    return Disk(root), Disk(root, strict=True)


def test_a_conversion(server: ForkServer, made: dict[int, dict[str, bytes]], tmp_path: Path) -> None:
    before = disks(server.root)
    out = server.root / "out"
    assert server.run("convert", out=str(out), log=tmp_path / "log").code == 0
    shutil.rmtree(out)
    cuts = PowerCuts(server, made, tmp_path / "log", STATES // 2)
    cuts.replay(before)
    assert cuts.published > 100 and cuts.with_shards > 100 and cuts.resumed > 10
    print(f"{cuts.states} states, {cuts.published} with a manifest, {cuts.resumed} resumed, 0 wrong")


def test_a_conversion_that_was_killed_and_resumed_before(
    server: ForkServer, made: dict[int, dict[str, bytes]], tmp_path: Path
) -> None:
    """What the first run had not yet synced when it died is still not synced when the second one relies on it."""
    kinds = server.run("convert", out=str(server.root / "out")).kinds
    shutil.rmtree(server.root / "out")
    # After each rename and before the sync that follows it, where names are in doubt.
    points = [number + 1 for number in range(1, len(kinds)) if kinds[number - 1 : number + 1] == "rs"]
    assert len(points) > 10
    states = 0
    for point in points:
        log = tmp_path / f"log{point}"
        before = disks(server.root)
        out = server.root / "out"
        assert server.run("convert", out=str(out), log=log, action=KILL, at=point).code == -9
        assert server.run("convert", out=str(out), log=log, resume=True).error == ""
        shutil.rmtree(out)
        cuts = PowerCuts(server, made, log, STATES // (4 * len(points)))
        cuts.replay(before)
        states += cuts.states
        assert cuts.published
    print(f"{len(points)} kills, {states} states, 0 wrong")


def test_overwriting_a_dataset_with_another(
    server: ForkServer, made: dict[int, dict[str, bytes]], tmp_path: Path
) -> None:
    """At every moment there is the old dataset, whole, or the new one, or none that looks whole."""
    out = server.root / "out"
    assert server.run("convert", out=str(out), quality=80).code == 0
    before = disks(server.root)
    assert server.run("convert", out=str(out), overwrite=True, log=tmp_path / "log").code == 0
    shutil.rmtree(out)
    cuts = PowerCuts(server, made, tmp_path / "log", STATES // 4)
    cuts.replay(before)
    assert cuts.published > 100 and cuts.resumed > 5
    print(f"{cuts.states} states, {cuts.published} with a manifest, {cuts.resumed} resumed, 0 wrong")


@pytest.mark.parametrize("apart", [False, True])
def test_parts_and_their_merge(
    server: ForkServer, made: dict[int, dict[str, bytes]], tmp_path: Path, apart: bool
) -> None:
    before = disks(server.root)
    out = server.root / "out"
    assert server.run("parts", out=str(out), apart=apart, log=tmp_path / "log").error == ""
    shutil.rmtree(out)
    cuts = PowerCuts(server, {95: made[95]}, tmp_path / "log", STATES // 16, "out/all/")
    cuts.replay(before, resume_share=0)
    assert cuts.published > 2 and cuts.with_shards > 100
    print(f"{cuts.states} states, {cuts.published} with a manifest, 0 wrong")


def test_the_model_finds_the_fault_where_nothing_is_synced(
    server: ForkServer, made: dict[int, dict[str, bytes]], tmp_path: Path
) -> None:
    """The same conversion with its syncs taken out of the log must look bad, or this file proves nothing."""
    before = disks(server.root)
    out = server.root / "out"
    assert server.run("convert", out=str(out), log=tmp_path / "log").code == 0
    shutil.rmtree(out)
    cuts = PowerCuts(server, made, tmp_path / "log", 2000)
    cuts.operations = [operation for operation in cuts.operations if operation.kind != "s"]
    with pytest.raises(AssertionError, match=r"not what it names|not whole"):
        cuts.replay(before, resume_share=0)
