"""Which classes a suite declares for a task: what the server knows without having the images."""

from __future__ import annotations

from collections.abc import Mapping

from matu_flwr.names import composed
from matu_flwr.tasks.prompts import written_class_names
from matu_flwr.tasks.suite import Suite, TaskSpec


def declared_classes(spec: TaskSpec) -> tuple[str, ...]:
    """The class names of a task in the order of the labels, as far as they can be known without its files.

    Returns
    -------
    tuple of str
        Empty if only the files tell them.
    """
    from matu_flwr.tasks.loaders.generated import FAMILIES

    if spec.loader == "generated":
        family = FAMILIES.get(spec.options.get("family", ""))
        return family.classes if family else ()
    if spec.loader == "sklearn-digits":
        return tuple("0123456789")
    written = spec.options.get("classes")
    if not written and spec.loader == "torchvision":
        written = written_class_names().get(spec.options["dataset"])
        if isinstance(written, Mapping):
            written = list(written.values())
    # A mapping in a suite gives other names to some folders, and the files tell which others there are.
    if isinstance(written, Mapping) or not written:
        return ()
    # Accents are composed, as in the names that loaders give.
    return tuple(composed(str(name)) for name in written)


def declared_by(suite: Suite) -> dict[str, tuple[str, ...]]:
    """`declared_classes` of every task of a suite."""
    return {name: declared_classes(spec) for name, spec in suite.tasks.items()}
