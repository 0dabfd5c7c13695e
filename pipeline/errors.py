"""Every error lmdali raises on purpose, and the exit code a command ends with.

    LmdaliError                     1
    ├── ConfigError                 2   an option or argument is wrong
    ├── InputError                  3   a source, file list or checkpoint was refused
    ├── StorageError                4   the disk is full, not writable, or failed
    ├── IntegrityError              5   stored bytes are not what the manifest says
    │   ├── ManifestError           5   the manifest itself is damaged or of another format
    │   ├── ShardError              5   a shard is missing, truncated or of another dataset
    │   └── RecordError             5   one record is damaged
    ├── LockedError                 6   another run holds the output
    ├── RemoteError                 7   a remote dataset cannot be reached, or is not what it was
    ├── MachineError                8   a package, driver or device is missing
    │   └── MissingExtraError       8   names the `pip install` line
    └── ThresholdError              9   the run worked, but a limit the user set was not met

A message says what was found, where, and what to do next, in one line. Exit codes 130 and 143 are those of SIGINT and
SIGTERM.
"""

from __future__ import annotations


class LmdaliError(Exception):
    """Root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(LmdaliError):
    """An option or argument that cannot work, alone or together with another."""

    exit_code = 2


class InputError(LmdaliError):
    """A source, file list, dataset argument or checkpoint that cannot be used."""

    exit_code = 3


class StorageError(LmdaliError):
    """The disk refused: full, read-only, or an I/O error."""

    exit_code = 4


class IntegrityError(LmdaliError):
    """Stored bytes differ from what was written."""

    exit_code = 5


class ManifestError(IntegrityError):
    """`manifest.json` is missing a field, was edited, or is of a newer format."""


class ShardError(IntegrityError):
    """A shard is missing, truncated, extended, or belongs to another dataset."""


class RecordError(IntegrityError):
    """One record does not decode or its CRC differs."""


class LockedError(LmdaliError):
    """Another run is writing to the same output."""

    exit_code = 6


class RemoteError(LmdaliError):
    """A remote dataset: not there, not allowed, out of reach for too long, or changed. Addresses have no credentials.

    Attributes:
        is_missing: there is no such file.
    """

    exit_code = 7
    is_missing = False


class MachineError(LmdaliError):
    """Something of the machine is missing: a device, a driver, a package version."""

    exit_code = 8


class MissingExtraError(MachineError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(package, extra, purpose)  # as they came: an error must survive the way out of a worker

    def __str__(self) -> str:
        package, extra, purpose = self.args
        return f"{purpose} needs the package {package!r}, which is not installed: {install_line(extra)}"


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'lmdali[{extra}]' (in a checkout: pip install '.[{extra}]')"


class ThresholdError(LmdaliError):
    """A limit that the user set was not met; the work itself was done."""

    exit_code = 9
