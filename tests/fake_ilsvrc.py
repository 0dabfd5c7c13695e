"""Small archives in the shape of those of ILSVRC2010 and ILSVRC2012, for tests.

The class table of a kit is a real MATLAB file. Its ids are in no order of the WordNet ids, its rows in no order of the
ids, and between the classes are synsets that are none.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest

GOLDEN_TRUTH = (490, 361, 171, 822, 297, 482)
"""How the ground truth of the validation images of 2012 begins."""
GOLDEN_LABELS = (65, 970, 230, 809, 516, 57)
"""The labels that everybody trains with, for the same images; 65 is n01751748."""


def wnids(count: int = 1000) -> list[str]:
    """Sorted; number 65 is n01751748."""
    return [f"n{1_751_748 + 1000 * (number - 65):08d}" for number in range(count)]


def wnids_by_id(count: int = 1000, seed: int = 0) -> list[str]:
    """WordNet ids in the order of the ids 1 to `count`; with 1000 classes the golden ids have their golden labels."""
    names = wnids(count)
    order = np.random.default_rng(seed).permutation(count).tolist()
    if count == 1000:
        for number, label in zip(GOLDEN_TRUTH, GOLDEN_LABELS, strict=True):
            other = order.index(label)
            order[number - 1], order[other] = order[other], order[number - 1]
    return [names[label] for label in order]


@cache
def jpeg(number: int) -> bytes:
    """The bytes of a picture like no other."""
    random = np.random.default_rng(number)
    coarse = random.integers(0, 256, (3, 4, 3), np.uint8)
    pixels = cv2.resize(coarse, (24 + number % 9, 20 + number % 7), interpolation=cv2.INTER_LINEAR)
    return bytes(cv2.imencode(".jpg", pixels)[1].tobytes())


def tar_bytes(members: Iterable[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def train_images(classes: Sequence[str], per_class: int = 4) -> dict[str, dict[str, bytes]]:
    """Class -> file name -> picture."""
    return {
        wnid: {f"{wnid}_{7 * n + 1}.JPEG": jpeg(label * per_class + n) for n in range(per_class)}
        for label, wnid in enumerate(classes)
    }


def numbered_images(count: int, prefix: str = "ILSVRC2012_val") -> dict[str, bytes]:
    """File name -> picture."""
    return {f"{prefix}_{number:08d}.JPEG": jpeg(10_000 + number) for number in range(1, count + 1)}


def shuffled(images: Mapping[str, bytes], seed: int = 3) -> list[tuple[str, bytes]]:
    """Files in an order of their own."""
    items = list(images.items())
    return [items[index] for index in np.random.default_rng(seed).permutation(len(items))]


def write_train_tar(path: Path, images: Mapping[str, Mapping[str, bytes]]) -> Path:
    """A tar of class tars, neither of them in order."""
    classes = {f"{wnid}.tar": tar_bytes(shuffled(files)) for wnid, files in images.items()}
    path.write_bytes(tar_bytes(shuffled(classes)))
    return path


def write_train_folder(path: Path, images: Mapping[str, Mapping[str, bytes]]) -> Path:
    """What unpacking gives: a folder for each class."""
    for wnid, files in images.items():
        (path / wnid).mkdir(parents=True)
        for name, data in files.items():
            (path / wnid / name).write_bytes(data)
    return path


def meta_mat(by_id: Sequence[str], challenge: str = "ILSVRC2012", *, internal: int = 40, seed: int = 4) -> bytes:
    """The class table: `by_id` has ids from 1 on, and inner synsets those after them."""
    savemat = pytest.importorskip("scipy.io", reason="scipy is the extra 'imagenet'").savemat
    fields = (f"{challenge}_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height")
    rows = [(float(n), wnid, f"word {n}", "what it is", 0.0, np.zeros(0), 0.0) for n, wnid in enumerate(by_id, 1)]
    rows += [
        (float(len(by_id) + n), f"n{n:08d}", "thing", "a thing", 2.0, np.array([1.0, 2.0]), 3.0)
        for n in range(1, internal + 1)
    ]
    table = np.zeros((len(rows), 1), dtype=[(name, object) for name in fields])
    for position, row in enumerate(np.random.default_rng(seed).permutation(len(rows)).tolist()):
        table[position, 0] = rows[row]
    out = io.BytesIO()
    savemat(out, {"synsets": table})
    return out.getvalue()


def ground_truth(ids: Sequence[int]) -> bytes:
    """One id a line."""
    return "".join(f"{number}\n" for number in ids).encode()


def write_devkit(path: Path, meta: bytes, truth: bytes, challenge: str = "ILSVRC2012") -> Path:
    """A kit: compressed, plain, or unpacked, as the name says."""
    folder = {"ILSVRC2012": "ILSVRC2012_devkit_t12", "ILSVRC2010": "devkit-1.0"}[challenge]
    files = {"readme.txt": b"read me", "data/meta.mat": meta, f"data/{challenge}_validation_ground_truth.txt": truth}
    if path.suffix in (".gz", ".tar"):
        data = tar_bytes((f"{folder}/{name}", content) for name, content in files.items())
        path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path
