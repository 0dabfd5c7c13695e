"""Whether a training and a validation set look like what they are given as: told, and never refused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from itertools import takewhile

from lmdali.pipeline.dataset_identity import DatasetIdentity
from lmdali.pipeline.dataset_place import Place, place_text

_MUCH_LARGER = 2
"""Validation sets are smaller than training sets nearly always; a few-shot training's is not."""

_TRAIN_WORDS = ("train", "trn")
_HELD_OUT_WORDS = ("val", "test", "dev", "eval")
_SWAPPED_KINDS = ("ilsvrc-val", "ilsvrc-train")
"""Kinds of the sources of TRAIN and VAL that leave no doubt."""


class SameDatasetWarning(UserWarning):
    """A network is validated on the very dataset that it is trained on."""


class SwappedDatasetsWarning(UserWarning):
    """Training and validation set seem to have changed places."""


def tell_of_pair(
    train: Place, val: Place, identities: tuple[DatasetIdentity, DatasetIdentity], *, stacklevel: int = 1
) -> None:
    """Warn where two datasets are hardly what was meant.

    Args:
        train: given as the training set.
        val: given as the validation set.
        identities: of both.
        stacklevel: of whom the warning is about, as of `warnings.warn`; 1 is the caller.

    Warns:
        SameDatasetWarning: both are one; people do that on purpose, to see whether a network can overfit.
        SwappedDatasetsWarning: their sizes, their names or what they were made of say that they are the wrong way
            round; a training on few of the samples that there are looks the same.
    """
    if identities[0].digest == identities[1].digest:
        warnings.warn(
            f"TRAIN and VAL are one dataset ({place_text(train)}): validation figures say nothing of images that were "
            "not trained on; give a VAL of other images, unless to overfit is what you want to see",
            SameDatasetWarning,
            stacklevel=stacklevel + 1,
        )
    elif sign := swap_sign(train, val, identities):
        warnings.warn(
            f"TRAIN and VAL may have changed places: {sign}; the training set comes first, the validation set second",
            SwappedDatasetsWarning,
            stacklevel=stacklevel + 1,
        )


def swap_sign(train: Place, val: Place, identities: tuple[DatasetIdentity, DatasetIdentity]) -> str:
    """What says that two datasets are the wrong way round, in words; empty where nothing does."""
    kinds = tuple(identity.source_kind for identity in identities)
    counts = tuple(identity.num_records for identity in identities)
    if kinds == _SWAPPED_KINDS:
        return f"TRAIN was made of {kinds[0]} archives, VAL of {kinds[1]}"
    first, second = _own_words(train, val), _own_words(val, train)
    if _is_held_out(first) and not _is_for_training(first) and _is_for_training(second) and not _is_held_out(second):
        return f"TRAIN is {place_text(train)}, VAL is {place_text(val)}"
    if counts[1] > _MUCH_LARGER * counts[0]:
        return f"TRAIN has {counts[0]:,} records, VAL {counts[1]:,}"
    return ""


def _is_held_out(words: Sequence[str]) -> bool:
    return any(word.startswith(_HELD_OUT_WORDS) for word in words)


def _is_for_training(words: Sequence[str]) -> bool:
    return any(word.startswith(_TRAIN_WORDS) for word in words)


def _own_words(place: Place, other: Place) -> list[str]:
    """Words of the folders that one place's path does not begin with as the other's does."""
    own, others = (place_text(each).partition("?")[0].lower().split("/") for each in (place, other))
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, others, strict=False)))
    return [word for part in own[same:] for word in re.split(r"[^a-z]+", part)]
