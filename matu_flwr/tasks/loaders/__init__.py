"""Reads data sets: one loader for each kind of source."""

from matu_flwr.tasks.loaders.registry import LOADERS, Loader, check_options
from matu_flwr.tasks.loaders.sources import Request, Source, Split

__all__ = ["LOADERS", "Loader", "Request", "Source", "Split", "check_options"]
