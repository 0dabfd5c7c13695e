"""Things with threads and mapped files, which stay in the process that made them."""

from __future__ import annotations

import os
from typing import NoReturn

from lmdali.pipeline.errors import ConfigError

_NO_DATA_LOADER = "it yields batches, made by its own threads, and needs no torch.utils.data.DataLoader around it"


class ProcessBound:
    """Neither a fork nor a pickle nor a copy takes the threads along that such a thing works with."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def __reduce__(self) -> NoReturn:
        """What pickle and copy ask; `torch.utils.data.DataLoader` with workers that are spawned does, for example.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"a {type(self).__name__} has threads and mapped files, which cannot be copied or sent to another process: "
            f"pass the LoaderConfig, and call create_loader in the process that iterates; {_NO_DATA_LOADER}"
        )

    def __getitem__(self, index: object) -> NoReturn:
        """What a `torch.utils.data.DataLoader` asks of a dataset, which this is not.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"a {type(self).__name__} has no item {index!r}, for it yields batches: iterate over it (`for images, "
            "labels in loader`), without a torch.utils.data.DataLoader around it"
        )

    def _is_own_process(self) -> bool:
        return os.getpid() == self._process

    def _require_own_process(self) -> None:
        """A forked child has no threads: what it asks for would never come."""
        if not self._is_own_process():
            raise ConfigError(
                f"this loader was made in process {self._process}, used in {os.getpid()}: call create_loader in the "
                f"process that iterates; {_NO_DATA_LOADER}"
            )
