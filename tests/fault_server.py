"""The process that fault_shim.ForkServer forks children from: `python fault_server.py ROOT SOURCE`."""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import pyarrow.dataset  # noqa: F401  # what parquet imports when it first reads; not in every child
from click.testing import CliRunner
from fault_shim import Shim

from lmdali.pipeline.dataset_plan import DatasetPlan, Part
from lmdali.pipeline.dataset_writer import DatasetWriter
from lmdali.tools.conversion import ConvertConfig, make_plan, shard_jobs
from lmdali.tools.part_merge import merge_parts
from lmdali.tools.pca import command as pca_command
from lmdali.tools.shard_making import make_shard
from lmdali.tools.sources import Source, open_source

SHARD_SOURCES = 20


@cache
def planned(source: str, quality: int) -> tuple[Source, ConvertConfig, DatasetPlan]:
    """A plan of three shards; made once in the server, before it forks."""
    opened, config = open_source(source), ConvertConfig(size=32, quality=quality)
    return opened, config, replace(make_plan(opened, config), shard_sources=SHARD_SOURCES)


def convert(out: str, source: str, quality: int = 95, resume: bool = False, overwrite: bool = False) -> int:
    """What `lmdali convert` does between its option parsing and its report, without worker processes."""
    opened, config, plan = planned(source, quality)
    writer = DatasetWriter(Path(out), plan)
    if resume and writer.is_complete():
        writer.tidy()
        return 0
    with writer.hold(resume=resume, overwrite=overwrite):
        left = writer.unfinished()
        for job in shard_jobs(opened, config, writer):
            make_shard(job)
        writer.publish()
    return len(left)


def parts(out: str, source: str, apart: bool) -> int:
    """Both halves of a conversion by `--part`, in one directory or `apart`, and their merge into `out`/all."""
    opened, config, plan = planned(source, 95)
    merged = Path(out, "all")
    places = [Path(out, "first"), Path(out, "second")] if apart else [merged, merged]
    for number, place in enumerate(places, 1):
        writer = DatasetWriter(place, plan, Part(number, len(places)))
        if not writer.is_complete():
            with writer.hold(resume=True, overwrite=False):
                for job in shard_jobs(opened, config, writer):
                    make_shard(job)
    return merge_parts(merged, places if apart else [], workers=1, quiet=True).num_records


def pca(out: str, source: str) -> int:
    """`lmdali pca --recompute`, which writes the statistics of a dataset again."""
    result = CliRunner().invoke(pca_command, [out, "--recompute", "--json", "--quiet"], catch_exceptions=True)
    if result.exception is not None:
        raise result.exception
    return 0


WORK = {"convert": convert, "parts": parts, "pca": pca}


def child(request: dict[str, Any], shim: Shim, root: str, source: str, out: int) -> None:
    """Work with the shim armed, and send what came of it through the pipe `out`."""
    shim.arm(root, **request["fault"])
    report: dict[str, Any] = {}
    try:
        report["answer"] = WORK[request["work"]](source=source, **request["arguments"])
    except BaseException as error:
        report |= {"error": type(error).__name__, "message": str(error)}
    report["kinds"] = shim.disarm()
    os.write(out, json.dumps(report).encode())


def main() -> None:
    """Serve until the pipe closes."""
    root, source = sys.argv[1:3]
    shim = Shim()
    cv2.setNumThreads(1)
    for quality in (95, 80):
        planned(source, quality)
    gc.freeze()
    for line in sys.stdin:
        receive, send = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                child(json.loads(line), shim, root, source, send)
            finally:
                os._exit(0)
        os.close(send)
        with os.fdopen(receive, "rb") as pipe:
            text = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"code": code, **(json.loads(text) if text else {})}), flush=True)


if __name__ == "__main__":
    main()
