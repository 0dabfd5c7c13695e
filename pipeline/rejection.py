"""Why one source image is not stored: the named reasons, and the exception that carries one."""

from __future__ import annotations

from enum import StrEnum

from lmdali.pipeline.errors import InputError


class Rejection(StrEnum):
    """Why a source was not stored. The names go into `rejects.parquet` and are part of the format."""

    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    UNSUPPORTED = "unsupported"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_BYTES = "too_many_bytes"
    VANISHED = "vanished"
    DANGLING_LINK = "dangling_link"
    NOT_A_FILE = "not_a_file"
    PERMISSION_DENIED = "permission_denied"
    READ_FAILED = "read_failed"
    DECODER_CRASHED = "decoder_crashed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"


class SourceRejected(InputError):
    """One source image cannot be stored.

    Attributes:
        reason: the named reason.
        detail: one line for people, without the path: whoever knows it adds it.
    """

    def __init__(self, reason: Rejection, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
