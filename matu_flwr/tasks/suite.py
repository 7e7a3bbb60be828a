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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError, field_validator

from matu_flwr.config.closed import Closed, explain
from matu_flwr.config.strict_yaml import YamlError, read_yaml
from matu_flwr.tasks.canary import Canary
from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders.registry import check_options
from matu_flwr.tasks.prompts import GENERAL, read_templates

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class _Part(Closed):
    """A mapping of a suite file; None = not said."""

    model_config = ConfigDict(strict=True)

    max_train: int | None = Field(None, ge=0, description="training images of a task at most; 0 = all")
    max_test: int | None = Field(None, ge=0, description="test images of a task at most; 0 = all")
    templates: Any = Field(None, description="a shipped list of prompts, or sentences with {} for the class name")

    def said(self, where: str, *others: str) -> dict[str, Any]:
        """What this part says of a task's fields."""
        names = [name for name in ("max_train", "max_test", *others) if getattr(self, name) is not None]
        found = {name: getattr(self, name) for name in names}
        return found | ({"templates": read_templates(self.templates, where)} if self.templates is not None else {})


class SuiteFile(_Part):
    """A suite as it stands in its file; each task is a `TaskEntry`."""

    name: str | None = Field(None, description="of the suite; the file's name if not given")
    description: str = Field("", description="what the suite is, in words")
    include: list[dict[str, list[str] | None]] = Field(
        default_factory=list, description="suites by name or path, or {SUITE: [TASK, ...]} for some of their tasks"
    )
    tasks: dict[Any, Any] = Field(default_factory=dict, description="the tasks, each as NAME: {loader: ...}")

    @field_validator("include", mode="before")
    @classmethod
    def _whole_suites(cls, value: Any) -> Any:
        """A suite's name alone means all of its tasks."""
        if not isinstance(value, list):
            return value
        return [{entry: None} if isinstance(entry, str) else entry for entry in value]


class TaskEntry(_Part):
    """A task as it stands in a suite file."""

    loader: str = Field(description="where the images come from, a name of matu_flwr.tasks.loaders.registry")
    options: dict[str, Any] | None = Field(None, description="of the loader")
    group: str = Field("", description="the same text for related tasks")
    split: str = Field("", description="how training and test images were told apart, in words")
    published: str = Field("", description="where the data set is published, in words")
    download: bool = Field(True, description="whether `matu data prepare` may fetch it")
    canary: Canary | None = None


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
        chain = " includes ".join((*including, name_or_path))
        raise TaskError(f"suite {including[0]}: {chain}: remove one of these includes")
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
        content = read_yaml(text)
    except YamlError as error:
        raise TaskError(f"suite {name_or_path} is not valid YAML: {error}") from None
    return _suite(content, (*including, name_or_path))


def _suite(content: object, sources: tuple[str, ...]) -> Suite:
    where = f"suite {sources[-1]}"
    file = _checked(SuiteFile, content, where)
    caps = file.model_copy(update={"templates": None}).said(where)
    tasks = {task: replace(spec, **caps) for task, spec in _included(file.include, where, sources).items()}
    if not (file.tasks or tasks):
        raise TaskError(f"{where}: key 'tasks' is missing, expected one or more tasks, each as `name: {{loader: ...}}`")
    defaults = file.said(where)
    for task, entry in file.tasks.items():
        if task in tasks:
            raise TaskError(
                f"{where}: task {task!r} comes from an included suite too, expected it once: give it another name, or "
                "include only some tasks: `include: [{SUITE: [TASK, ...]}]`"
            )
        tasks[str(task)] = _task(task, entry, defaults, where)
    return Suite(file.name or Path(sources[-1]).stem, file.description, tasks)


def _included(
    entries: Sequence[Mapping[str, list[str] | None]], where: str, sources: tuple[str, ...]
) -> dict[str, TaskSpec]:
    """The tasks of other suites, each once, in the order in which they are named."""
    found: dict[str, TaskSpec] = {}
    for entry in entries:
        for suite, names in entry.items():
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
    task = _checked(TaskEntry, entry, where)
    options = task.options or {}
    try:
        check_options(name, task.loader, options)
    except TaskError as error:
        raise TaskError(f"{where.removesuffix(f', task {name!r}')}: {error}") from None
    own = task.said(where, "group", "split", "published", "download", "canary")
    return TaskSpec(name=name, loader=task.loader, options=options, **{**defaults, **own})


_Kind = TypeVar("_Kind", bound=_Part)


def _checked(model: type[_Kind], content: object, where: str) -> _Kind:
    """`content` as `model` has it."""
    if not isinstance(content, dict):
        raise TaskError(
            f"{where}: found {content!r}, expected a mapping with keys among {', '.join(model.model_fields)}"
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise TaskError(f"{where}: {explain(error, model, 'key')}") from None
