"""The state of a strategy as a checkpoint stores it: JSON, and tensors by name.

A strategy lists the attributes that it needs from round to round in `kept`. Their values may be tensors, heads, unified
vectors, numbers, text or None. They may also be dictionaries of these, whose keys are text or tuples of text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.merging import PackedMasks, UnifiedTaskVector

Described = dict[str, Any]


class StrategyStateError(TypeError):
    """A checkpoint cannot hold an attribute of the strategy, or would miss one that holds tensors."""


def describe(owner: object, names: Iterable[str]) -> tuple[Described, dict[str, Tensor]]:
    """The named attributes as JSON that refers to tensors by name, and these tensors.

    A tensor that several attributes share appears once.

    Raises
    ------
    StrategyStateError
        A value is of a kind that cannot be stored, or a public attribute that is not named holds tensors.
    """
    names = tuple(names)
    for name, value in vars(owner).items():
        if not name.startswith("_") and name not in names and _holds_tensors(value):
            raise StrategyStateError(
                f"{type(owner).__name__}.{name} holds tensors and is not named in {type(owner).__name__}.kept: a run "
                f"resumed from a checkpoint would lose it; add it, or call it _{name} if every round makes a new one"
            )
    tensors: dict[str, Tensor] = {}
    known: dict[int, str] = {}

    def walk(value: Any, path: str) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Tensor):
            name = known.setdefault(id(value), path)
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, LinearHead):
            return {"head": walk({**value.tensors(), "zero_shot": value.zero_shot}, path)}
        if isinstance(value, UnifiedTaskVector):
            masks = value.masks
            bits = (masks if isinstance(masks, PackedMasks) else PackedMasks.of(masks, value.d)).bits
            parts = {"vector": value.vector, "bits": dict(bits), "rescalers": dict(value.rescalers)}
            return {"unified": walk(parts, path)}
        if isinstance(value, Mapping):
            return {
                "dict": [[list(k) if isinstance(k, tuple) else k, walk(v, _join(path, k))] for k, v in value.items()]
            }
        raise StrategyStateError(
            f"{path} of {type(owner).__name__} is a {type(value).__name__}, expected tensors, heads, unified vectors, "
            "numbers, text, or dictionaries of them"
        )

    return {name: walk(getattr(owner, name), name) for name in names}, tensors


def restore(owner: object, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Set the attributes of `owner` to what `describe` gave."""
    for name, value in described.items():
        setattr(owner, name, _value(value, tensors))


def _value(found: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(found, dict):
        return found
    ((kind, inner),) = found.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "head":
        return LinearHead(**_value(inner, tensors))
    if kind == "unified":
        parts = _value(inner, tensors)
        masks = PackedMasks(parts["bits"], parts["vector"].shape[0])
        return UnifiedTaskVector(parts["vector"], masks, parts["rescalers"])
    return {tuple(k) if isinstance(k, list) else k: _value(v, tensors) for k, v in inner}


def _join(path: str, key: str | tuple[str, ...]) -> str:
    return "/".join([path, *((key,) if isinstance(key, str) else key)])


def _holds_tensors(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensors(inner) for inner in value.values())
    if isinstance(value, list | tuple | set):
        return any(_holds_tensors(inner) for inner in value)
    return isinstance(value, Tensor | LinearHead | UnifiedTaskVector)
