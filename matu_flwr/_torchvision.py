"""Import torchvision beside a torch whose build does not match torchvision's compiled operators.

A torchvision wheel built for CUDA does not load its C++ operators beside a CPU-only torch, and then the import of
torchvision stops at "operator torchvision::nms does not exist". Neither data sets nor models of this project call those
operators: declaring their signatures is enough. Where the wheels match, nothing is declared.
"""

from __future__ import annotations

import importlib
import sys

_OPERATORS = ("torchvision::nms", "torchvision::qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def ensure_importable() -> None:
    """Import torchvision; if its compiled operators cannot load, declare them and import it again."""
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        from torch.library import define

        # The failed import leaves submodules behind; a second import would take them half-initialised.
        for module in [name for name in list(sys.modules) if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        for operator in _OPERATORS:
            define(operator, _SCHEMA)  # torch keeps these definitions alive for the life of the process
        importlib.import_module("torchvision")
