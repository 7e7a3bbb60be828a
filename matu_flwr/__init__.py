"""matu-flwr: Many-Task Federated Fine-Tuning via Unified Task Vectors (MaTU, arXiv 2502.06376) as a Flower app."""

from importlib.metadata import PackageNotFoundError, version

from matu_flwr.merging import (
    ClientUpdate,
    MergeError,
    MergeOptions,
    MergeResult,
    UnifiedTaskVector,
    aggregate,
    unify,
)

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
    "unify",
]
