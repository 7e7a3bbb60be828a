"""An experiment is a YAML file with the settings of a run.

A section can be written as a nested mapping or with dotted keys::

    suite: real-12
    rounds: 10
    matu: {preset: paper, kappa: 0}
    train.lr: 1e-4

This module only reads the file. `Settings.from_run_config` checks its keys and values like those of any other setting.
Relative paths in the file begin in the file's own folder; see `matu_flwr.config.locations`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matu_flwr.config.closed import SettingsError
from matu_flwr.config.locations import absolute_paths
from matu_flwr.config.strict_yaml import YamlError, read_yaml_file


def read_experiment(path: Path) -> dict[str, Any]:
    """Read an experiment file into flat keys such as "matu.kappa". Neither keys nor values are checked.

    Paths are made absolute.

    Raises
    ------
    SettingsError
        The file does not exist, cannot be read or is not valid YAML. Or it does not hold a mapping, gives a setting
        twice, or names another experiment.
    """
    try:
        # A pipe or a device would keep the reader waiting.
        if path.exists() and not path.is_file():
            raise SettingsError(f"experiment file {path} is not a file: give the path of a YAML file")
        content = read_yaml_file(path)
    except FileNotFoundError:
        where = "" if path.is_absolute() else f"; a relative path begins where Flower runs, here {Path.cwd()}"
        raise SettingsError(f"experiment file {path} does not exist: check its name{where}") from None
    except OSError as error:
        raise SettingsError(f"experiment file {path} cannot be read: {error.strerror}") from None
    except YamlError as error:
        raise SettingsError(f"experiment file {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise SettingsError(f"experiment file {path} {found}, expected a mapping of settings")
    flat: dict[str, Any] = {}
    for key, value in content.items():
        for name, inner in value.items() if isinstance(value, dict) else [("", value)]:
            full = f"{key}.{name}" if name != "" else str(key)
            # The YAML reader finds equal keys, but `matu: {kappa: 0}` and `matu.kappa: 0` become equal only here.
            if full in flat:
                raise SettingsError(f"experiment file {path}: setting {full!r} is given twice: remove one of them")
            flat[full] = inner
    if "experiment" in flat:
        raise SettingsError(f"experiment file {path} names another experiment: put all settings into one file")
    return flat | absolute_paths(flat, path.absolute().parent)
