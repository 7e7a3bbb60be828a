"""Suites of image-classification tasks, their images, and which client holds which of them."""

from matu_flwr.tasks.cache import TaskData
from matu_flwr.tasks.datasets import load_site_task, load_task, site_tasks
from matu_flwr.tasks.errors import TaskError
from matu_flwr.tasks.partition.partition import Share, client_shares, deal, manifest, split_by_label, split_evenly
from matu_flwr.tasks.suite import Suite, TaskSpec, available_suites, load_suite

__all__ = [
    "Share",
    "Suite",
    "TaskData",
    "TaskError",
    "TaskSpec",
    "available_suites",
    "client_shares",
    "deal",
    "load_site_task",
    "load_suite",
    "load_task",
    "manifest",
    "site_tasks",
    "split_by_label",
    "split_evenly",
]
