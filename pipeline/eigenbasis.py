"""The RGB covariance eigenbasis that PCA lighting needs, and the statistics of a dataset on disk.

The covariance is taken over all pixels of all training images together (Krizhevsky et al. 2012, section 4.1): the
familiar [0.2175, 0.0188, 0.0045] are its eigenvalues for pixels scaled to 0..1.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmdali.pipeline.errors import IntegrityError
from lmdali.pipeline.files import npy_bytes, read_json, seal, write_atomic, write_json
from lmdali.pipeline.moments import Moments
from lmdali.pipeline.path_kind import is_file

STATISTICS_FILE = "statistics.json"
MEAN_FILE = "mean.npy"

_FORMAT = "lmdali-statistics"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Mean and covariance eigenbasis of RGB pixels, in gray levels (0..255).

    Attributes:
        num_pixels: pixels behind the estimate.
        mean: (3,) float64, gray levels.
        covariance: (3, 3) float64, gray levels squared.
        eigenvalues: (3,) float64, descending, gray levels squared; their roots are standard deviations in gray levels.
        eigenvectors: (3, 3) float64, one per column; the component of largest magnitude of each is positive.
        mean_image: (H, W, 3) float32 gray levels, or None.
        dataset_digest: manifest digest of the dataset it was computed from, or "" for several or foreign ones.
    """

    num_pixels: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]
    mean_image: NDArray[np.float32] | None = None
    dataset_digest: str = ""

    @property
    def std(self) -> NDArray[np.float64]:
        """(3,) standard deviation of each channel, gray levels."""
        return np.sqrt(np.diag(self.covariance))

    @property
    def unit_eigenvalues(self) -> NDArray[np.float64]:
        """(3,) eigenvalues for pixels scaled to 0..1, the scale of the published constants."""
        return self.eigenvalues / 255.0**2


def solve(moments: Moments, dataset_digest: str = "") -> Eigenbasis:
    """Eigenbasis of exact moments: integer arithmetic up to one division, then `numpy.linalg.eigh` in float64.

    Raises:
        IntegrityError: there are no pixels.
    """
    n = moments.num_pixels
    if n == 0:
        raise IntegrityError("no pixels for an eigenbasis: the dataset has no stored records: convert others")
    sums = [int(s) for s in moments.sums]
    products = [[int(p) for p in row] for row in moments.products]
    # N * S2 - S1 S1ᵀ reaches 4.6e26 for ImageNet, past int64: Python integers, then one rounding.
    covariance = np.array([[(n * products[i][j] - sums[i] * sums[j]) / (n * n) for j in range(3)] for i in range(3)])
    eigenvalues, vectors = np.linalg.eigh(covariance)
    eigenvalues, vectors = np.maximum(eigenvalues[::-1], 0.0), vectors[:, ::-1]
    largest = np.argmax(np.abs(vectors).round(12), axis=0)
    vectors = vectors * np.sign(vectors[largest, range(3)])
    mean_image = None if moments.image_sums is None else (moments.image_sums / moments.num_images).astype(np.float32)
    mean = np.array([s / n for s in sums])
    return Eigenbasis(n, mean, covariance, eigenvalues, np.ascontiguousarray(vectors), mean_image, dataset_digest)


def save_statistics(directory: Path, moments: Moments, dataset_digest: str) -> Eigenbasis:
    """Write `statistics.json` and `mean.npy` (per-position int64 sums) of a dataset; returns the basis."""
    basis = solve(moments, dataset_digest)
    document = describe(basis, moments)
    if moments.image_sums is not None:
        payload = npy_bytes(moments.image_sums)
        write_atomic(directory / MEAN_FILE, payload)
        document["mean_image"] = {
            "file": MEAN_FILE,
            "sha256": hashlib.sha256(payload).hexdigest(),
            "content": "int64 sums of each channel at each position, (height, width, 3); divide by num_images",
        }
    write_json(directory / STATISTICS_FILE, seal(document))
    return basis


def describe(basis: Eigenbasis, moments: Moments) -> dict[str, Any]:
    """Everything about a basis as JSON, units and conventions spelled out."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "manifest_digest": basis.dataset_digest,
        "channel_order": "RGB",
        "value_range": [0, 255],
        "covariance_of": "all pixels of all images, divided by N",
        "moments": moments.to_json(),
        "mean": basis.mean.tolist(),
        "std": basis.std.tolist(),
        "covariance": basis.covariance.tolist(),
        "eigenvalues": basis.eigenvalues.tolist(),
        "eigenvalue_roots": np.sqrt(basis.eigenvalues).tolist(),
        "eigenvectors": basis.eigenvectors.tolist(),
        "units": {
            "mean": "gray levels",
            "std": "gray levels",
            "covariance": "gray levels squared",
            "eigenvalues": "gray levels squared (variances)",
            "eigenvalue_roots": "gray levels (standard deviations)",
            "eigenvectors": "unit length, one per column; the component of largest magnitude is positive",
        },
        "unit_scale": {
            "value_range": [0, 1],
            "eigenvalues": basis.unit_eigenvalues.tolist(),
            "eigenvalue_roots": np.sqrt(basis.unit_eigenvalues).tolist(),
        },
    }


def load_moments(directory: Path) -> tuple[Moments, str]:
    """Moments and manifest digest of a dataset's `statistics.json`.

    Raises:
        IntegrityError: the file is missing, damaged, or does not agree with its mean image.
    """
    path = directory / STATISTICS_FILE
    if not is_file(path):
        raise IntegrityError(f"{path}: no such file: run `lmdali pca {directory}` to write it")
    document = read_json(path)
    try:
        if document["format"] != _FORMAT or document["version"] > _VERSION or document["channel_order"] != "RGB":
            raise IntegrityError(f"{path}: not statistics that this version reads: run `lmdali pca` again")
        image_sums = None
        if "mean_image" in document:
            payload = (directory / MEAN_FILE).read_bytes()
            if hashlib.sha256(payload).hexdigest() != document["mean_image"]["sha256"]:
                raise IntegrityError(
                    f"{directory / MEAN_FILE}: differs from the hash in {STATISTICS_FILE}: run `lmdali pca`"
                )
            image_sums = np.lib.format.read_array(io.BytesIO(payload), allow_pickle=False)
        return Moments.from_json(document["moments"], image_sums), str(document["manifest_digest"])
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise IntegrityError(f"{path}: {error!r}: run `lmdali pca {directory}` to write it again") from error


def load_eigenbasis(directory: Path) -> Eigenbasis:
    """Eigenbasis of a dataset, computed again from its exact moments (so nothing rounded or edited is trusted)."""
    moments, digest = load_moments(directory)
    return solve(moments, digest)
