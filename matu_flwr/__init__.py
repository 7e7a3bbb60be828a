"""matu-flwr: Many-Task Federated Fine-Tuning via Unified Task Vectors (MaTU, arXiv 2502.06376) as a Flower app."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matu_flwr.merging import (
        ClientUpdate,
        MergeError,
        MergeOptions,
        MergeResult,
        UnifiedTaskVector,
        aggregate,
        unify,
    )
    from matu_flwr.models.finetuned import load_finetuned

try:
    __version__ = version("matu-flwr")
except PackageNotFoundError:  # run from a Flower app bundle whose package is not installed
    __version__ = "0.1.0"

__all__ = [
    "ClientUpdate",
    "MergeError",
    "MergeOptions",
    "MergeResult",
    "UnifiedTaskVector",
    "__version__",
    "aggregate",
    "load_finetuned",
    "unify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import matu_flwr` alone needs no PyTorch, which takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "models.finetuned" if name == "load_finetuned" else "merging"
    found = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, for completion."""
    return __all__
