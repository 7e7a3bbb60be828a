"""Downloads and checks the data sets of a suite."""

from matu_flwr.tasks.prepare.check import Checked, check_suite
from matu_flwr.tasks.prepare.prepare import Prepared, prepare_suite

__all__ = ["Checked", "Prepared", "check_suite", "prepare_suite"]
