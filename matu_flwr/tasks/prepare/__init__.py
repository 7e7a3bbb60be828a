"""Getting a suite's data sets, and looking them over."""

from matu_flwr.tasks.prepare.check import Checked, check_suite
from matu_flwr.tasks.prepare.prepare import Prepared, prepare_suite

__all__ = ["Checked", "Prepared", "check_suite", "prepare_suite"]
