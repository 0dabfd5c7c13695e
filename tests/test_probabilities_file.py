"""Files of probabilities: what is written is read, and nothing else is."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from lmdali.model.probabilities_file import (
    Probabilities,
    class_list_hash,
    load_probabilities,
    require_same_labels,
    save_probabilities,
)
from lmdali.pipeline.errors import ConfigError, InputError, IntegrityError


def some(**changes: object) -> Probabilities:
    values = np.random.default_rng(0).dirichlet(np.ones(3), 4).astype(np.float32)
    fields = {
        "values": values,
        "labels": np.array([0, 1, 2, 0]),
        "class_names": ("ant", "bee", "caf\xe9"),
        "dataset_digest": "d" * 64,
        "num_views": 10,
        "source": {"checkpoint": "best.pt", "step": 7},
    }
    return Probabilities(**fields | changes)  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save_probabilities(tmp_path / "new" / "p.npz", some())
    found = load_probabilities(tmp_path / "new" / "p.npz")
    assert np.array_equal(found.values, some().values) and np.array_equal(found.labels, some().labels)
    assert (found.class_names, found.num_views, found.source) == (some().class_names, 10, some().source)
    assert found.class_list_hash == class_list_hash(("ant", "bee", "caf\xe9"))


@pytest.mark.parametrize("at", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_any_damage_is_found(tmp_path: Path, at: float) -> None:
    path = tmp_path / "p.npz"
    save_probabilities(path, some())
    payload = bytearray(path.read_bytes())
    path.write_bytes(payload[: int(at * len(payload))])
    with pytest.raises(IntegrityError, match="damaged"):
        load_probabilities(path)
    place = payload.index(some().values.tobytes()) + int(at * some().values.nbytes)
    payload[place] ^= 1
    path.write_bytes(payload)
    with pytest.raises(IntegrityError, match="damaged"):
        load_probabilities(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_probabilities(tmp_path / "p.npz")
    np.savez(tmp_path / "other.npz", values=np.zeros(3))
    with pytest.raises(InputError, match="not of probabilities"):
        load_probabilities(tmp_path / "other.npz")
    with pytest.raises(ConfigError, match=r"ends in \.npz"):
        save_probabilities(tmp_path / "p.npy", some())
    (tmp_path / "text.npz").write_text("text")  # which NumPy takes for a pickle, and says how to run it
    with pytest.raises(IntegrityError, match="make it again with --save-probabilities") as caught:
        load_probabilities(tmp_path / "text.npz")
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize(
    "shape", ["(3,", "(99999999999999,)", "(3,) * 0 + (x for x in y)"], ids=["unfinished", "beyond memory", "no shape"]
)
def test_arrays_with_impossible_headers_are_damage(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("about.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(IntegrityError, match="damaged"):
        load_probabilities(tmp_path / "p.npz")


def test_what_it_is_of_must_be_told(tmp_path: Path) -> None:
    save_probabilities(tmp_path / "p.npz", some(source=None))
    with pytest.raises(IntegrityError, match="edited"):
        load_probabilities(tmp_path / "p.npz")


def test_a_class_list_that_was_edited_is_found(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    save_probabilities(path, some())
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["about"] = np.frombuffer(arrays["about"].tobytes().replace(b'"ant", "bee"', b'"bee", "ant"'), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(IntegrityError, match="edited"):
        load_probabilities(path)


def test_label_orders_are_told_apart() -> None:
    require_same_labels(("a", "b"), ("a", "b"), "one", "two")
    with pytest.raises(InputError, match=r"same classes in another order \(label 0 is 'b', not 'a'\)"):
        require_same_labels(("a", "b"), ("b", "a"), "one", "two")
    with pytest.raises(InputError, match="its 3 classes are not the 2 of two"):
        require_same_labels(("a", "b"), ("b", "a", "c"), "one", "two")
