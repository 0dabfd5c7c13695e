"""Objects of an S3 bucket, or of a store that speaks its protocol: written in parts, each with its hash beside it.

The hash of a file is the object's user metadata `lmdali-sha256`. It is set when the object begins, and an object
appears whole or not at all, so that whoever finds it with its size knows what was sent without reading it. That the
bytes came as they were sent is the packages' own checksum of every request.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

from lmdali.pipeline.errors import RemoteError
from lmdali.pipeline.fsspec_store import FsspecStore
from lmdali.pipeline.remote_retry import Attempts, RetryConfig, TransientError
from lmdali.pipeline.remote_store import RemoteStat

_HASH = "lmdali-sha256"
_PART_BYTES = 16 << 20
_MAX_PARTS = 9_000
"""S3 allows 10,000."""


class Claimed(NamedTuple):
    """A small object that somebody wrote under a condition.

    Attributes:
        data: its bytes.
        tag: changes with every write.
        age_seconds: since it was written, by the store's own clock.
    """

    data: bytes
    tag: str
    age_seconds: float


class S3Store(FsspecStore):
    """The objects below one prefix of a bucket. Credentials and endpoint are found as boto finds them.

    Args:
        address: `s3://bucket/prefix`.
        config: patience; the packages' own retries are switched off.
    """

    def __init__(self, address: str, config: RetryConfig) -> None:
        super().__init__(address, config, config_kwargs={"retries": {"total_max_attempts": 1}})
        self._bucket, _, self._prefix = self._root.partition("/")

    @property
    def _filesystem(self) -> Any:
        found = super()._filesystem
        found.retries = 1
        return found

    def stat(self, name: str) -> RemoteStat | None:
        """Size and hash of an object."""
        try:
            head = self._call(name, "head_object")
        except RemoteError as error:
            if error.is_missing:
                return None
            raise
        return RemoteStat(int(head["ContentLength"]), head.get("Metadata", {}).get(_HASH))

    def put(self, name: str, data: bytes) -> None:
        """Write a small object."""
        self._call(name, "put_object", Body=data, Metadata={_HASH: hashlib.sha256(data).hexdigest()})

    def put_file(self, name: str, path: Path, sha256: str, attempts: Attempts) -> None:
        """Write an object, a large one in parts, of which each is tried again for itself."""
        size, metadata = path.stat().st_size, {_HASH: sha256}
        if size <= _PART_BYTES:
            attempts.run(lambda: self._call(name, "put_object", Body=path.read_bytes(), Metadata=metadata))
            attempts.received(size)
            return
        # Parts of a killed run would be paid for until somebody removed them. Who may not list them leaves them.
        with suppress(RemoteError, TransientError):
            for upload in self._unfinished(name):
                self._call(name, "abort_multipart_upload", UploadId=upload)
        upload = attempts.run(lambda: self._call(name, "create_multipart_upload", Metadata=metadata))["UploadId"]
        try:
            parts = self._put_parts(name, path, upload, attempts)
            attempts.run(lambda: self._complete(name, upload, parts, RemoteStat(size, sha256)))
        except BaseException:
            with suppress(RemoteError, TransientError):
                self._call(name, "abort_multipart_upload", UploadId=upload)
            raise

    def remove(self, name: str) -> None:
        """Remove an object."""
        self._call(name, "delete_object")

    def create(self, name: str, data: bytes) -> str | None:
        """Write an object that is not there yet: its tag, or None where it is. A store without conditions writes."""
        try:
            return self._tag(self._call(name, "put_object", Body=data, IfNoneMatch="*"))
        except _NotSupportedError:
            return self._tag(self._call(name, "put_object", Body=data))
        except FileExistsError:
            return None

    def replace(self, name: str, data: bytes, tag: str) -> str | None:
        """Write an object over the one of this tag: the new tag, or None where it has another by now, or is gone."""
        try:
            return self._tag(self._call(name, "put_object", Body=data, IfMatch=tag))
        except _NotSupportedError:
            return self._tag(self._call(name, "put_object", Body=data))
        except FileExistsError:
            return None
        except RemoteError as error:
            if error.is_missing:
                return None
            raise

    def claimed(self, name: str) -> Claimed | None:
        """A small object with its tag and age; None where there is none."""
        try:
            head = self._call(name, "head_object")
            body = self.open(name, 0)
            data = b"".join(body.chunks)
        except RemoteError as error:
            if error.is_missing:
                return None
            raise
        now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
        return Claimed(data, self._tag(head), (now - head["LastModified"]).total_seconds())

    def _put_parts(self, name: str, path: Path, upload: str, attempts: Attempts) -> list[dict[str, Any]]:
        size = max(_PART_BYTES, -(-path.stat().st_size // _MAX_PARTS))
        parts: list[dict[str, Any]] = []
        with path.open("rb") as file:
            while chunk := file.read(size):
                number = len(parts) + 1

                def put(chunk: bytes = chunk, number: int = number) -> Any:
                    return self._call(name, "upload_part", UploadId=upload, PartNumber=number, Body=chunk)

                parts.append({"PartNumber": number, "ETag": attempts.run(put)["ETag"]})
                attempts.received(len(chunk))
        return parts

    def _complete(self, name: str, upload: str, parts: list[dict[str, Any]], whole: RemoteStat) -> None:
        try:
            self._call(name, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts})
        except (RemoteError, TransientError):
            # Once it is complete there is no such upload: the answer to an earlier try may have been lost.
            if self.stat(name) != whole:
                raise

    def _unfinished(self, name: str) -> list[str]:
        """Uploads of this very object that were begun and not completed."""
        key = self._key(name)
        found = self._translated(
            name,
            lambda: self._filesystem.call_s3(
                "list_multipart_uploads", Bucket=self._bucket, Prefix=key, timeout=self._config.read_timeout_seconds
            ),
        )
        return [upload["UploadId"] for upload in found.get("Uploads", []) if upload["Key"] == key]

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    @staticmethod
    def _tag(answer: Any) -> str:
        return str(answer["ETag"])

    def _call(self, name: str, method: str, **arguments: Any) -> Any:
        sent = len(arguments.get("Body", b""))
        seconds = self._config.read_timeout_seconds + sent / self._config.min_bytes_per_second
        with _conditions(f"{self.shown}/{name}"):
            return self._translated(
                name,
                lambda: self._filesystem.call_s3(
                    method, Bucket=self._bucket, Key=self._key(name), timeout=seconds, **arguments
                ),
            )


class _NotSupportedError(RemoteError):
    """The store does not know such a request."""


@contextmanager
def _conditions(shown: str) -> Iterator[None]:
    """What the store says of a condition: `FileExistsError` where it is not met."""
    try:
        yield
    except TransientError as error:
        cause = error.__context__
        answer = getattr(getattr(cause, "__cause__", None), "response", None) or {}
        if answer.get("Error", {}).get("Code") == "PreconditionFailed":
            raise FileExistsError(shown) from None
        if isinstance(cause, OSError) and cause.errno == errno.ENOSYS:
            raise _NotSupportedError(f"{shown}: the store does not know such a request ({error.reason})") from None
        raise
