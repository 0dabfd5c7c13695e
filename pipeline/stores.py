"""Which store an address has: HTTP, a local folder, S3, or what fsspec knows."""

from __future__ import annotations

from pathlib import Path

from lmdali.pipeline.errors import ConfigError
from lmdali.pipeline.file_store import FileStore
from lmdali.pipeline.remote_address import file_address_path, is_remote, redacted, scheme_of
from lmdali.pipeline.remote_retry import RetryConfig
from lmdali.pipeline.remote_store import Store, WritableStore


def open_store(address: str, config: RetryConfig | None = None) -> Store:
    """The store of an address: http(s) and file need no package, others what fsspec asks for.

    Raises:
        MissingExtraError: fsspec, or its package for this scheme, is not installed.
        InputError: nobody knows the scheme.
    """
    if scheme_of(address) in ("http", "https"):
        from lmdali.pipeline.http_store import HttpStore

        return HttpStore(address, config or RetryConfig())
    return open_writable_store(address, config)


def open_writable_store(address: str, config: RetryConfig | None = None) -> WritableStore:
    """The store of an address, to write to.

    Raises:
        ConfigError: it is one of http(s).
        MissingExtraError, InputError: as of `open_store`.
    """
    scheme, patience = scheme_of(address), config or RetryConfig()
    if scheme in ("http", "https"):
        raise ConfigError(
            f"{redacted(address)}: plain HTTP cannot be written to: give the bucket behind it (s3://bucket/folder), or "
            "a path"
        )
    if scheme == "file":
        return FileStore(file_address_path(address))
    if scheme in ("s3", "s3a"):
        from lmdali.pipeline.s3_store import S3Store

        return S3Store(address, patience)
    from lmdali.pipeline.fsspec_store import FsspecStore

    return FsspecStore(address, patience)


def store_of(dataset: str, config: RetryConfig | None = None) -> Store:
    """The store of a dataset that is given by its address or by its path."""
    return open_store(dataset, config) if is_remote(dataset) else FileStore(Path(dataset).absolute())
