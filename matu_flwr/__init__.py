"""matu-flwr: Many-Task Federated Fine-Tuning via Unified Task Vectors (MaTU, arXiv 2502.06376) as a Flower app."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from matu_flwr.merging import (
    ClientUpdate,
    MergeError,
    MergeOptions,
    MergeResult,
    UnifiedTaskVector,
    aggregate,
    unify,
)

if TYPE_CHECKING:
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
    """Import `load_finetuned` when it is asked for: the mathematics alone needs neither timm nor torchvision."""
    if name == "load_finetuned":
        from matu_flwr.models.finetuned import load_finetuned

        return load_finetuned
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
