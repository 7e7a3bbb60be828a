"""Suites: named lists of image-classification tasks, in YAML.

A suite is a shipped file (`available_suites`) or one of your own. For example::

    name: farm
    description: two sets of leaf photographs, and digits
    include: [{paper-8: [mnist]}]   # all tasks of another suite by its name or path, or some of them
    max_train: 1000          # per task, a stratified seeded subset; 0 = all; a task may set its own
    templates: plants        # for prompts: a shipped list, or sentences with {} for the class name
    tasks:
      corn-leaf: {loader: folder, group: plants, options: {path: corn_leaf}}

`path` is relative to the data folder (``MATU_DATA_DIR`` or the run's ``data-dir``), or absolute. The keys of a suite
are `name`, `description`, `include`, `max_train`, `max_test`, `templates` and `tasks`; the keys of a task are `loader`,
`group`, `options`, `max_train`, `max_test`, `templates`, `split`, `published`, `download` (false: `matu data prepare`
does not fetch it, because a subset is meant) and `canary`. Which `options` a loader takes stands in
`matu_flwr.tasks.loaders.registry`, what a canary is in `matu_flwr.tasks.canary`.

Included tasks come first, as they are; but a cap that the including file sets holds for them too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from matu_flwr.tasks.canary import Canary, read_canary
from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders.registry import LOADERS, check_options
from matu_flwr.tasks.prompts import GENERAL, read_templates

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_CAPS = ("max_train", "max_test")
_TEXTS = ("group", "split", "published")
_SUITE_KEYS = ("name", "description", "include", *_CAPS, "templates", "tasks")
_TASK_KEYS = ("loader", "options", *_CAPS, "templates", *_TEXTS, "download", "canary")


@dataclass(frozen=True)
class TaskSpec:
    """Where one task comes from.

    Attributes
    ----------
    name : str
        Lower-case letters, digits, ``_`` and ``-``; starts with a letter or digit.
    loader : str
        Key of the loader registry: ``sklearn-digits``, ``generated``, ``torchvision``, ``folder``, ``npz`` or ``hub``.
    options : mapping of str to Any
        The loader's own options.
    group : str
        Label shared by related tasks, e.g. ``digits``; empty if nothing is known. Never used by a method: it is what
        a learned task graph is compared with.
    max_train, max_test : int
        Most images taken, as a stratified seeded subset; 0 = all.
    templates : tuple of str
        Prompt templates, each with one ``{}`` for the class name.
    split : str
        In words, how training and test images were told apart.
    published : str
        In words, where the data set is published.
    download : bool
        Whether `matu data prepare` may fetch it.
    canary : Canary or None
        What the files must look like.
    """

    name: str
    loader: str
    options: Mapping[str, Any]
    group: str = ""
    max_train: int = 0
    max_test: int = 0
    templates: tuple[str, ...] = GENERAL
    split: str = ""
    published: str = ""
    download: bool = True
    canary: Canary | None = None


@dataclass(frozen=True)
class Suite:
    """A named list of tasks.

    Attributes
    ----------
    name, description : str
        What the file says.
    tasks : dict of str to TaskSpec
        Included ones first, then in the order of the file.
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
    return _load(name_or_path, ())


def _load(name_or_path: str, including: tuple[str, ...]) -> Suite:
    """Read a suite that was included by the others, outermost first."""
    if name_or_path in including:
        raise TaskError(f"suite {including[0]}: {' includes '.join((*including, name_or_path))}: take one of them out")
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
    return _suite(content, (*including, name_or_path))


def _suite(content: object, sources: tuple[str, ...]) -> Suite:
    where = f"suite {sources[-1]}"
    fields = _mapping(content, where, _SUITE_KEYS)
    name = _text(fields, "name", where, Path(sources[-1]).stem)
    description = _text(fields, "description", where)
    defaults: dict[str, Any] = {key: _cap(fields[key], key, where) for key in _CAPS if key in fields}
    tasks = {
        task: replace(spec, **defaults) for task, spec in _included(fields.get("include", []), where, sources).items()
    }
    entries = fields.get("tasks", {} if tasks else None)
    if not isinstance(entries, dict) or not (entries or tasks):
        raise TaskError(
            f"{where}: key 'tasks' is {entries!r}, expected one or more tasks, each as `name: {{loader: ...}}`"
        )
    if "templates" in fields:
        defaults["templates"] = read_templates(fields["templates"], where)
    for task, entry in entries.items():
        if task in tasks:
            raise TaskError(
                f"{where}: task {task!r} comes from an included suite too, expected it once: give it another name, or "
                "include only some tasks: `include: [{SUITE: [TASK, ...]}]`"
            )
        tasks[str(task)] = _task(task, entry, defaults, where)
    return Suite(name, description, tasks)


def _included(entries: object, where: str, sources: tuple[str, ...]) -> dict[str, TaskSpec]:
    """The tasks of other suites, each once, in the order in which they are named."""
    if not isinstance(entries, list):
        raise TaskError(
            f"{where}: key 'include' is {entries!r}, expected a list of suites, or of `{{SUITE: [TASK, ...]}}`"
        )
    found: dict[str, TaskSpec] = {}
    for entry in entries:
        wanted = {entry: None} if isinstance(entry, str) else entry
        if not isinstance(wanted, dict) or not all(
            isinstance(suite, str) and (names is None or isinstance(names, list)) for suite, names in wanted.items()
        ):
            raise TaskError(
                f"{where}: 'include' has {entry!r}, expected the name of a suite, or `{{SUITE: [TASK, ...]}}`"
            )
        for suite, names in wanted.items():
            # a relative path starts from the folder of the file that names it
            beside = Path(suite).suffix in (".yaml", ".yml")
            tasks = _load(str(Path(sources[-1]).parent / suite) if beside else suite, sources).tasks
            for name in tasks if names is None else names:
                if name not in tasks:
                    raise TaskError(f"{where}: 'include' names task {name!r} of {suite}: {nearest(str(name), tasks)}")
                if name in found and found[name] != tasks[name]:
                    raise TaskError(
                        f"{where}: task {name!r} comes from two included suites and differs between them, expected it "
                        "once: include only some tasks of one of them: `include: [{SUITE: [TASK, ...]}]`"
                    )
                found[name] = tasks[name]
    return found


def _task(name: object, entry: object, defaults: dict[str, Any], where: str) -> TaskSpec:
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
    texts: dict[str, Any] = {key: _text(fields, key, where) for key in _TEXTS}
    options = _mapping(fields.get("options") or {}, f"{where}, options", tuple(LOADERS[loader].options))
    check_options(name, loader, options)
    own: dict[str, Any] = {key: _cap(fields[key], key, where) for key in _CAPS if key in fields}
    if "templates" in fields:
        own["templates"] = read_templates(fields["templates"], where)
    if "download" in fields:
        if not isinstance(fields["download"], bool):
            raise TaskError(f"{where}: key 'download' is {fields['download']!r}, expected true or false")
        own["download"] = fields["download"]
    if "canary" in fields:
        own["canary"] = read_canary(fields["canary"], where)
    return TaskSpec(name=name, loader=loader, options=options, **texts, **{**defaults, **own})


def _mapping(content: object, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    """`content` as a dict whose keys are all known."""
    if not isinstance(content, dict):
        raise TaskError(f"{where}: found {content!r}, expected a mapping with keys among {', '.join(known)}")
    for key in content:
        if key not in known:
            raise TaskError(f"{where}: unknown key {key!r}: {nearest(str(key), known)}")
    return content


def _text(fields: dict[str, Any], key: str, where: str, default: str = "") -> str:
    value = fields.get(key, default)
    if not isinstance(value, str):
        raise TaskError(f"{where}: key {key!r} is {value!r}, expected text")
    return value


def _cap(value: object, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TaskError(f"{where}: key {key!r} is {value!r}, expected a number of images, 0 for all")
    return value
