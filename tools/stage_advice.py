"""What to do about the stage where most of a loader's time goes; nothing that is so already."""

from __future__ import annotations


def stage_advice(stage: str | None, *, encoding: str | None, dtype: str | None, verify: str | None, more: str) -> str:
    """A sentence or two.

    Args:
        stage: of `StageTimers`, or `FETCH_STAGE`; None where it is not known.
        encoding: of the records, "jpeg" or "raw"; None where the loader is not ours.
        dtype: of the batches.
        verify: when CRCs are compared.
        more: what would do more of the same work at a time, in words.
    """
    if encoding is None and stage is None:
        return _OUTSIDE
    for kind in (encoding, dtype, verify, ""):
        if kind is not None and (found := _ADVICE.get((stage, kind))) is not None:
            return found.format(more=more)
    return _UNKNOWN_STAGE


_ADVICE: dict[tuple[str | None, str], str] = {
    ("decode", "jpeg"): (
        "Decoding JPEG takes most of the loader's time: use {more}, the dali backend where there is a GPU, "
        "--decoded-cache-bytes where memory can hold pixels, or convert with --encoding raw, which needs no decoding; "
        "both take 0.2 MB for an image of 256 pixels."
    ),
    ("read", "raw"): (
        "Reading takes most of the loader's time: put the dataset on a local disk or into memory (/dev/shm), store "
        "JPEG instead of raw pixels, or use --order block where the disk reads in sequence much faster than at random."
    ),
    ("read", ""): (
        "Reading takes most of the loader's time: put the dataset on a local disk or into memory (/dev/shm), or use "
        "--order block where the disk reads in sequence much faster than at random."
    ),
    ("fetch", ""): (
        "Waiting for shards takes most of the loader's time: let more of them come at once (--fetches), give the cache "
        "room for all of them so that later epochs fetch none (--cache-bytes), use --order block, which needs few at "
        "a time, or bring the dataset here before the run (`lmdali stage`)."
    ),
    ("augment", "uint8"): "Cropping takes most of the loader's time: use {more}.",
    ("augment", ""): (
        "Cropping and normalising takes most of the loader's time: use dtype uint8 with the mean subtracted on the "
        "device, or {more}."
    ),
    **dict.fromkeys(
        (("copy", "jpeg"), ("copy", "raw"), ("copy", "uint8")),
        "Copying to the device takes most of the loader's time, and what crosses the bus is uint8 already: look at "
        "what else uses the bus, and which of its lanes the device has.",
    ),
    ("copy", ""): "Copying to the device takes most of the loader's time: use dtype uint8, a quarter of float32.",
    ("verify", "always"): "Comparing CRCs takes most of the loader's time: --verify first does it once a record.",
    ("verify", ""): (
        "Comparing CRCs takes most of the loader's time, in the first epoch only: later ones go on without. Where the "
        "dataset was just checked (`lmdali verify`), --verify never leaves it out."
    ),
    ("collate", ""): (
        "The consumer's own work on each finished batch takes most of the loader's time, and threads cannot share it: "
        "use a larger batch (-b), and look at what else runs in that thread."
    ),
    ("plan", ""): "Order and draws take most of the loader's time: use a larger batch (-b).",
}
_OUTSIDE = (
    "What this loader waits for cannot be seen from outside: try more workers, and the same pictures in a dataset of "
    "ours (`lmdali convert`, `lmdali profile run DATASET`), whose stages have names."
)
_UNKNOWN_STAGE = (
    "This backend does not tell decoding from augmenting: compare the decode ceiling above, and try more threads (-j)."
)
