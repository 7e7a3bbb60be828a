"""Import torchvision even if its compiled operators do not match the installed torch.

A torchvision wheel built for CUDA cannot load its C++ operators together with a CPU-only torch. Its import then fails
with "operator torchvision::nms does not exist". This project's data sets and models do not call those operators, so it
is enough to declare their signatures. If the wheels match, nothing is declared.
"""

from __future__ import annotations

import importlib
import sys

_OPERATORS = ("torchvision::nms", "torchvision::qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def ensure_importable() -> None:
    """Import torchvision. If its compiled operators cannot be loaded, declare them and import it again."""
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        from torch.library import define

        # The failed import leaves submodules behind, which a second import would use although they are incomplete.
        for module in [name for name in list(sys.modules) if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        for operator in _OPERATORS:
            # The result need not be kept: torch holds these definitions until the process ends.
            define(operator, _SCHEMA)
        importlib.import_module("torchvision")
