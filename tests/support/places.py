"""Empty places for the files of data sets."""

from pathlib import Path

from matu_flwr.tasks import available_suites, load_suite
from matu_flwr.tasks.prepare.prepare import folder_of


def data_folder(folder: Path) -> Path:
    """Make a data folder with an empty place for every task of the shipped suites."""
    for suite in available_suites():
        for spec in load_suite(suite).tasks.values():
            if place := folder_of(spec, folder):
                place.mkdir(parents=True, exist_ok=True)
    return folder
