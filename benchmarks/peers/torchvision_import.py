"""torchvision beside a CPU build of torch."""

from __future__ import annotations

from types import ModuleType

import torch

_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import torchvision even where its compiled operators do not load.

    PyPI's torchvision is built for PyPI's CUDA torch. Beside a CPU torch its import fails, because it registers fake
    versions of two detection operators that nobody has declared. Declaring them is enough for datasets and transforms
    of Pillow images, which need none of its compiled code.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)  # the declarations end with the object
        import torchvision
    module: ModuleType = torchvision
    return module
