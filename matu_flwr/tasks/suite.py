"""Suites: named lists of image-classification tasks in YAML files.

Some suites are shipped (`available_suites`), and you can write your own. For example::

    name: farm
    description: two sets of leaf photographs, and digits
    include: [{paper-8: [mnist]}]   # some tasks of another suite; its name or path alone means all its tasks
    max_train: 1000          # training images of each task at most, 0 = all; a task may set its own number
    templates: plants        # for prompts: the name of a shipped list, or sentences with {} for the class name
    tasks:
      corn-leaf: {loader: folder, group: plants, options: {path: corn_leaf}}

A suite has the keys `name`, `description`, `include`, `max_train`, `max_test`, `templates` and `tasks`. A task has the
keys `loader`, `group`, `options`, `max_train`, `max_test`, `templates`, `split`, `published`, `download` and `canary`.
`SuiteFile` and `TaskEntry` say what they mean. `matu_flwr.tasks.loaders.registry` lists the `options` of each loader,
and `matu_flwr.tasks.canary` explains canaries. A `path` is absolute, or relative to the data folder (``MATU_DATA_DIR``
or the run's ``data-dir``).

Included tasks come before the file's own. They stay as they are, except that caps (`max_train`, `max_test`) of the
including file hold for them too.
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
from matu_flwr.config.strict_yaml import YamlError, read_yaml, read_yaml_file
from matu_flwr.tasks.canary import Canary
from matu_flwr.tasks.errors import TaskError, nearest
from matu_flwr.tasks.loaders.registry import check_options
from matu_flwr.tasks.prompts import GENERAL, read_templates
from matu_flwr.texts import short

# Suites that may include each other one after the other.
_DEEPEST = 20
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class _Part(Closed):
    """The keys that a suite and a task have in common. None means that the key is not given."""

    model_config = ConfigDict(strict=True)

    max_train: int | None = Field(None, ge=0, description="largest number of training images of a task; 0 = all")
    max_test: int | None = Field(None, ge=0, description="largest number of test images of a task; 0 = all")
    templates: Any = Field(
        None, description="prompt templates: the name of a shipped list, or sentences with {} for the class name"
    )

    def given_fields(self, where: str, *others: str) -> dict[str, Any]:
        """The fields of a `TaskSpec` that are given here: caps, templates, and those named in `others`."""
        names = [name for name in ("max_train", "max_test", *others) if getattr(self, name) is not None]
        found = {name: getattr(self, name) for name in names}
        return found | ({"templates": read_templates(self.templates, where)} if self.templates is not None else {})


class SuiteFile(_Part):
    """A suite as its file has it. Each value of `tasks` is read as a `TaskEntry`."""

    name: str | None = Field(None, description="name of the suite; by default the file's name")
    description: str = Field("", description="what the suite is, in words")
    include: list[dict[str, list[str] | None]] = Field(
        default_factory=list, description="names or paths of other suites, or {SUITE: [TASK, ...]} for some tasks"
    )
    tasks: dict[Any, Any] = Field(default_factory=dict, description="the tasks, each as NAME: {loader: ...}")

    @field_validator("include", mode="before")
    @classmethod
    def _whole_suites(cls, value: Any) -> Any:
        # A suite's name alone stands for all of its tasks.
        if not isinstance(value, list):
            return value
        return [{entry: None} if isinstance(entry, str) else entry for entry in value]


class TaskEntry(_Part):
    """A task as a suite file has it."""

    loader: str = Field(
        description="how the images are read: the name of a loader, listed in matu_flwr.tasks.loaders.registry"
    )
    options: dict[str, Any] | None = Field(None, description="options of the loader")
    group: str = Field("", description="a label that related tasks share")
    split: str = Field("", description="how the images were split into training and test images, in words")
    published: str = Field("", description="where the data set is published, in words")
    download: bool = Field(
        True, description="whether `matu data prepare` may download it; false if only a subset is meant"
    )
    canary: Canary | None = None


@dataclass(frozen=True)
class TaskSpec:
    """Where the images of one task come from, and how they are used.

    Attributes
    ----------
    name : str
        Lower-case letters, digits, ``_`` and ``-``; starts with a letter or digit.
    loader : str
        Key of the loader registry: ``sklearn-digits``, ``generated``, ``torchvision``, ``folder``, ``npz`` or ``hub``.
    options : mapping of str to Any
        The loader's own options.
    group : str
        A label that related tasks share, such as ``digits``; "" if none is known. No method uses it. A task graph that
        was learnt is compared with it.
    max_train, max_test : int
        Largest numbers of images to use; 0 = all. They are chosen by the seed, and classes keep their shares.
    templates : tuple of str
        Prompt templates, each with one ``{}`` for the class name.
    split : str
        How the images were split into training and test images, in words.
    published : str
        Where the data set is published, in words.
    download : bool
        Whether `matu data prepare` may download it.
    canary : Canary or None
        Facts by which wrong files are noticed.
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
        Name and description of the suite.
    tasks : dict of str to TaskSpec
        The tasks by name: included ones first, then the file's own in their order.
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
        The suite is unknown, its file cannot be read, or the file has an unknown key or a value that is not allowed.
    """
    return _load(name_or_path, (), {})


def _load(name_or_path: str, including: tuple[str, ...], known: dict[str, Suite]) -> Suite:
    """Read a suite.

    Parameters
    ----------
    name_or_path : str
        The suite.
    including : tuple of str
        The suites whose includes led here, outermost first.
    known : dict of str to Suite
        Suites that were read before, by the real path of their file: many files that include each other twice would
        otherwise be read again and again.
    """
    itself = _identity(name_or_path)
    if itself in map(_identity, including):
        circle = " includes ".join((*including, name_or_path))
        raise TaskError(f"suite {including[0]}: {circle}: remove one of these includes")
    if len(including) == _DEEPEST:
        raise TaskError(
            f"suite {including[0]}: more than {_DEEPEST} suites include each other one after the other, the last is "
            f"{name_or_path}: put their tasks into fewer files"
        )
    if itself not in known:
        known[itself] = _suite(_content(name_or_path), (*including, name_or_path), known)
    return known[itself]


def _identity(name_or_path: str) -> str:
    """The same text for all ways to write the path of one file."""
    if Path(name_or_path).suffix not in (".yaml", ".yml"):
        return name_or_path
    return str(Path(name_or_path).resolve())


def _content(name_or_path: str) -> object:
    """What the file of a suite holds."""
    if name_or_path in available_suites():
        return read_yaml((resources.files("matu_flwr.tasks") / "suites" / f"{name_or_path}.yaml").read_text("utf-8"))
    elif Path(name_or_path).suffix in (".yaml", ".yml"):
        try:
            return read_yaml_file(Path(name_or_path))
        except OSError as error:
            raise TaskError(
                f"suite file {name_or_path} cannot be read: {error.strerror}; give the path of a YAML file"
            ) from None
        except YamlError as error:
            raise TaskError(f"suite {name_or_path} is not valid YAML: {error}") from None
    raise TaskError(
        f"unknown suite {name_or_path!r}: {nearest(name_or_path, available_suites())}; "
        "or give the path of a file that ends in .yaml"
    )


def _suite(content: object, sources: tuple[str, ...], known: dict[str, Suite]) -> Suite:
    where = f"suite {sources[-1]}"
    file = _checked(SuiteFile, content, where)
    caps = file.model_copy(update={"templates": None}).given_fields(where)
    tasks = {task: replace(spec, **caps) for task, spec in _included(file.include, where, sources, known).items()}
    if not (file.tasks or tasks):
        raise TaskError(f"{where}: key 'tasks' is missing, expected one or more tasks, each as `name: {{loader: ...}}`")
    defaults = file.given_fields(where)
    for task, entry in file.tasks.items():
        if task in tasks:
            raise TaskError(
                f"{where}: task {task!r} is also in an included suite, expected it once: give it another name, or "
                "include only some tasks: `include: [{SUITE: [TASK, ...]}]`"
            )
        tasks[str(task)] = _task(task, entry, defaults, where)
    return Suite(file.name or Path(sources[-1]).stem, file.description, tasks)


def _included(
    entries: Sequence[Mapping[str, list[str] | None]], where: str, sources: tuple[str, ...], known: dict[str, Suite]
) -> dict[str, TaskSpec]:
    """The tasks of included suites, each once, in the order in which the file names them."""
    found: dict[str, TaskSpec] = {}
    for entry in entries:
        for suite, names in entry.items():
            # A relative path starts from the folder of the file that includes it.
            beside = Path(suite).suffix in (".yaml", ".yml")
            tasks = _load(str(Path(sources[-1]).parent / suite) if beside else suite, sources, known).tasks
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
            f"{where}: {name!r} cannot be a task's name, expected lower-case letters, digits, '_' and '-' "
            "(put a name that is a number in quotes)"
        )
    where = f"{where}, task {name!r}"
    task = _checked(TaskEntry, entry, where)
    options = task.options or {}
    try:
        check_options(name, task.loader, options)
    # The error names the task itself, so only the suite is put in front.
    except TaskError as error:
        raise TaskError(f"{where.removesuffix(f', task {name!r}')}: {error}") from None
    own = task.given_fields(where, "group", "split", "published", "download", "canary")
    return TaskSpec(name=name, loader=task.loader, options=options, **{**defaults, **own})


_Kind = TypeVar("_Kind", bound=_Part)


def _checked(model: type[_Kind], content: object, where: str) -> _Kind:
    """Read `content` as a `model`; `where` begins the text of an error."""
    if not isinstance(content, dict):
        raise TaskError(
            f"{where}: found {short(content)}, expected a mapping with keys among {', '.join(model.model_fields)}"
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise TaskError(f"{where}: {explain(error, model, 'key')}") from None
