"""A folder of hostile files through the real command: each is stored or rejected by name, and nothing else happens."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from hostile_images import STORED, hostile_files, write_hostile_folder

from lmdali.pipeline.decode import decode_source
from lmdali.pipeline.manifest import load_manifest
from lmdali.pipeline.record_codec import decode_stored
from lmdali.pipeline.shard_reader import ShardReader
from lmdali.pipeline.table_reader import read_rows
from lmdali.pipeline.tables import printable
from lmdali.tools.conversion import ConvertConfig
from lmdali.tools.resize import resize_and_crop


def test_every_hostile_file_is_stored_or_rejected_by_name(tmp_path: Path) -> None:
    expected = write_hostile_folder(tmp_path / "source" / "class")
    command = [sys.executable, "-m", "lmdali.tools", "convert", tmp_path / "source", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, command), "--size", "32", "--encoding", "raw", "-j2", "--json", "--quiet", "--max-bad", "1"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert summary["num_stored"] + summary["num_rejected"] == len(expected)
    rejects = {row["source"]: row for row in read_rows(tmp_path / "out" / "rejects.parquet")}
    records = {row["source"]: row for row in read_rows(tmp_path / "out" / "records.parquet")}
    names = {name: printable("class/" + name.decode("utf-8", "surrogateescape")) for name in expected}
    found = {name: rejects[text]["reason"] if text in rejects else STORED for name, text in names.items()}
    assert found == expected
    assert all(text.isprintable() for text in (*rejects, *records))
    files = hostile_files()
    reader = ShardReader(tmp_path / "out", load_manifest(tmp_path / "out"))
    for name, (content, outcome) in files.items():
        row = (records if outcome == STORED else rejects)[names[name]]
        assert (row["source_bytes"], row["source_sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        if outcome == STORED:
            pixels = resize_and_crop(decode_source(content).pixels, ConvertConfig(size=32).resize())
            data = reader.read(row["index"], lambda record: bytes(record.data))
            assert (decode_stored(data, 32) == pixels).all()
            assert (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) == pixels).all()
