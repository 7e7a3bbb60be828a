"""Experiments: a YAML file with the settings of a run.

Sections are nested mappings or dotted keys, as you like::

    suite: real-12
    rounds: 10
    matu: {preset: paper, kappa: 0}
    train.lr: 1e-4

`Settings.from_run_config` checks keys and values as those of any setting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matu_flwr.config.closed import SettingsError
from matu_flwr.config.strict_yaml import YamlError, read_yaml


def read_experiment(path: Path) -> dict[str, Any]:
    """Values of an experiment file by flat key, as they stand there: neither keys nor values are checked.

    Raises
    ------
    SettingsError
        No such file, no valid YAML, no mapping, or a setting that is given twice.
    """
    if not path.is_file():
        raise SettingsError(
            f"experiment file {path} does not exist; give an absolute path (relative ones are resolved where Flower "
            f"runs, here {Path.cwd()})"
        )
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"experiment file {path} cannot be read: {error.strerror}") from None
    except (YamlError, UnicodeDecodeError) as error:
        raise SettingsError(f"experiment file {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"experiment file {path} holds a {type(content).__name__}, expected a mapping of settings")
    flat: dict[str, Any] = {}
    for key, value in content.items():
        for name, inner in value.items() if isinstance(value, dict) else [("", value)]:
            full = f"{key}.{name}" if name != "" else str(key)
            if full in flat:
                raise SettingsError(f"experiment file {path}: setting {full!r} is given twice: take one of them out")
            flat[full] = inner
    if "experiment" in flat:
        raise SettingsError(f"experiment file {path} names another experiment: put all settings into one file")
    return flat
