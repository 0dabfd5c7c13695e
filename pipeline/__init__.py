"""The data path at run time and the format it reads: shards, order, draws, loaders.

```python
from lmdali.pipeline import AugmentConfig, LoaderConfig, create_loader
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmdali.pipeline.errors import LmdaliError

if TYPE_CHECKING:
    from lmdali.pipeline.augment import AugmentConfig
    from lmdali.pipeline.batch import Batch, Loader
    from lmdali.pipeline.dataset_loader import DatasetLoader
    from lmdali.pipeline.eigenbasis import Eigenbasis, load_eigenbasis
    from lmdali.pipeline.loader import LoaderConfig, create_loader
    from lmdali.pipeline.loader_state import merge_states
    from lmdali.pipeline.manifest import Manifest, load_manifest

__all__ = [
    "AugmentConfig",
    "Batch",
    "DatasetLoader",
    "Eigenbasis",
    "LmdaliError",
    "Loader",
    "LoaderConfig",
    "Manifest",
    "create_loader",
    "load_eigenbasis",
    "load_manifest",
    "merge_states",
]

# Looked up when first used: torch takes two seconds to import, and converting or checking a dataset does without it.
# The others, because `lmdali doctor` must be able to begin where a package that they need is broken.
_HOMES = {
    "AugmentConfig": "augment",
    "Batch": "batch",
    "DatasetLoader": "dataset_loader",
    "Eigenbasis": "eigenbasis",
    "Loader": "batch",
    "LoaderConfig": "loader",
    "Manifest": "manifest",
    "create_loader": "loader",
    "load_eigenbasis": "eigenbasis",
    "load_manifest": "manifest",
    "merge_states": "loader_state",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
