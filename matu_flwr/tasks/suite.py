"""Suites: named lists of image-classification tasks, in YAML.

A suite is a shipped file (`available_suites`) or one of your own. For example::

    name: farm
    description: two sets of leaf photographs
    max_train: 1000          # per task, a stratified seeded subset; 0 = all; a task may set its own
    tasks:
      corn-leaf: {loader: folder, group: plants, options: {path: corn_leaf}}

`path` is relative to the data folder (``MATU_DATA_DIR`` or the run's ``data-dir``), or absolute. The keys of a suite
are `name`, `description`, `max_train`, `max_test` and `tasks`; the keys of a task are `loader`, `group`, `options`,
`max_train` and `max_test`. Which `options` a loader takes stands in `matu_flwr.tasks.loaders`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders import LOADERS, check_options

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_SUITE_KEYS = ("name", "description", "max_train", "max_test", "tasks")
_TASK_KEYS = ("loader", "group", "options", "max_train", "max_test")


@dataclass(frozen=True)
class TaskSpec:
    """Where one task comes from.

    Attributes
    ----------
    name : str
        Lower-case letters, digits, ``_`` and ``-``; starts with a letter or digit.
    loader : str
        Key of the loader registry: ``sklearn-digits``, ``generated``, ``torchvision``, ``folder`` or ``npz``.
    options : mapping of str to Any
        The loader's own options.
    group : str
        Label shared by related tasks, e.g. ``digits``; empty if nothing is known. Never used by a method: it is what
        a learned task graph is compared with.
    max_train, max_test : int
        Most images taken, as a stratified seeded subset; 0 = all.
    """

    name: str
    loader: str
    options: Mapping[str, Any]
    group: str = ""
    max_train: int = 0
    max_test: int = 0


@dataclass(frozen=True)
class Suite:
    """A named list of tasks.

    Attributes
    ----------
    name, description : str
        What the file says.
    tasks : dict of str to TaskSpec
        In the order of the file.
    """

    name: str
    description: str
    tasks: dict[str, TaskSpec]


def available_suites() -> list[str]:
    """Names of the suites that are shipped with the package, sorted."""
    folder = resources.files("matu_flwr.tasks") / "suites"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_suite(name_or_path: str) -> Suite:
    """Read a shipped suite by its name, or any suite by the path of its YAML file.

    Raises
    ------
    TaskError
        For an unknown name or key, a missing file, and whatever in the file is not as the schema says.
    """
    if name_or_path in available_suites():
        text = (resources.files("matu_flwr.tasks") / "suites" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif Path(name_or_path).suffix in (".yaml", ".yml"):
        try:
            text = Path(name_or_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(
                f"suite file {name_or_path} cannot be read: {error}; give the path of a YAML file"
            ) from None
    else:
        raise TaskError(
            f"unknown suite {name_or_path!r}: {nearest(name_or_path, available_suites())}; "
            "or give the path of a file that ends in .yaml"
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TaskError(f"suite {name_or_path} is not valid YAML: {error}") from None
    return _suite(content, name_or_path)


def _suite(content: object, source: str) -> Suite:
    where = f"suite {source}"
    fields = _mapping(content, where, _SUITE_KEYS)
    name = fields.get("name", Path(source).stem)
    description = fields.get("description", "")
    for key, value in (("name", name), ("description", description)):
        if not isinstance(value, str):
            raise TaskError(f"{where}: key {key!r} is {value!r}, expected text")
    entries = fields.get("tasks")
    if not isinstance(entries, dict) or not entries:
        raise TaskError(
            f"{where}: key 'tasks' is {entries!r}, expected one or more tasks, each as `name: {{loader: ...}}`"
        )
    caps = {key: _cap(fields.get(key, 0), key, where) for key in ("max_train", "max_test")}
    return Suite(name, description, {str(task): _task(task, entry, caps, where) for task, entry in entries.items()})


def _task(name: object, entry: object, caps: dict[str, int], where: str) -> TaskSpec:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TaskError(
            f"{where}: {name!r} is no name for a task, expected lower-case letters, digits, '_' and '-' "
            "(quote a name that is a number)"
        )
    where = f"{where}, task {name!r}"
    fields = _mapping(entry, where, _TASK_KEYS)
    loader = fields.get("loader")
    if not isinstance(loader, str) or loader not in LOADERS:
        raise TaskError(f"{where}: key 'loader' is {loader!r}, {nearest(str(loader), LOADERS)}")
    group = fields.get("group", "")
    if not isinstance(group, str):
        raise TaskError(f"{where}: key 'group' is {group!r}, expected text")
    options = _mapping(fields.get("options") or {}, f"{where}, options", tuple(LOADERS[loader].options))
    check_options(name, loader, options)
    return TaskSpec(
        name=name,
        loader=loader,
        options=options,
        group=group,
        **{key: _cap(fields.get(key, cap), key, where) for key, cap in caps.items()},
    )


def _mapping(content: object, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    """`content` as a dict whose keys are all known."""
    if not isinstance(content, dict):
        raise TaskError(f"{where}: found {content!r}, expected a mapping with keys among {', '.join(known)}")
    for key in content:
        if key not in known:
            raise TaskError(f"{where}: unknown key {key!r}: {nearest(str(key), known)}")
    return content


def _cap(value: object, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TaskError(f"{where}: key {key!r} is {value!r}, expected a number of images, 0 for all")
    return value
