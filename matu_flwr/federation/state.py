"""The state of a strategy as a checkpoint stores it: JSON, and tensors by name.

A strategy lists the attributes that it needs from round to round in `kept`. Their values may be tensors, heads, unified
or separate vectors, numbers, text or None. They may also be dictionaries of these, whose keys are text or tuples of
text. Of a head or of vectors every field is stored, whatever fields it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from matu_flwr.backbones import LinearHead
from matu_flwr.merging import PackedMasks, SeparateTaskVectors, UnifiedTaskVector
from matu_flwr.texts import Brief, listed, short

Described = dict[str, Any]

KEPT_TYPES = {"head": LinearHead, "unified": UnifiedTaskVector, "separate": SeparateTaskVectors}
"""The dataclasses that a strategy may keep, by the name of their kind in the JSON."""


class StrategyStateError(Brief, TypeError):
    """An attribute of a strategy that a checkpoint cannot hold or would miss, or a stored one that is not whole."""


def describe(owner: object, names: Iterable[str]) -> tuple[Described, dict[str, Tensor]]:
    """The named attributes as JSON that refers to tensors by name, and these tensors.

    A tensor that several attributes share appears once. Equal attributes give equal JSON, in whatever order the entries
    of their dictionaries came.

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
        for kind, kept_type in KEPT_TYPES.items():
            if isinstance(value, kept_type):
                # By name: a field that is None or a number stands beside those that hold tensors.
                parts = _parts(value)
                return {kind: {"dict": [[name, walk(part, _join(path, name))] for name, part in parts.items()]}}
        if isinstance(value, Mapping):
            return {
                "dict": [
                    [list(key) if isinstance(key, tuple) else key, walk(value[key], _join(path, key))]
                    for key in sorted(value, key=lambda key: (isinstance(key, tuple), key))
                ]
            }
        raise StrategyStateError(
            f"{path} of {type(owner).__name__} is a {type(value).__name__}, expected tensors, heads, unified vectors, "
            "numbers, text, or dictionaries of them"
        )

    return {name: walk(getattr(owner, name), name) for name in names}, tensors


def restore(owner: object, described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Set the attributes of `owner` to what `describe` gave; StrategyStateError as from `values_of`."""
    for name, value in values_of(described, tensors).items():
        setattr(owner, name, value)


def values_of(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Turn what `describe` gave into values again, by the name of the attribute.

    Raises
    ------
    StrategyStateError
        The JSON does not have the form that `describe` gives, a tensor that it names is missing, a tensor is not named
        or has NaN or infinity, or the parts of a head or a vector do not fit one another.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise StrategyStateError(f"tensor {short(name)} of the state has NaN or infinity")
    used: set[str] = set()
    values = {}
    for name, value in described.items():
        try:
            values[name] = _value(value, tensors, used)
        # Whatever a changed file can make of the JSON: a list in the place of a mapping, a number in that of a name.
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            reason = f"no tensor {error}" if isinstance(error, KeyError) else str(error)
            raise StrategyStateError(f"{short(name)} of the state is not as it was written: {reason}") from error
    if unused := sorted(tensors.keys() - used):
        raise StrategyStateError(f"no attribute of the state has the tensors {listed(unused)}")
    return values


def _value(found: Any, tensors: Mapping[str, Tensor], used: set[str]) -> Any:
    if found is None or isinstance(found, bool | int | float | str):
        return found
    ((kind, inner),) = found.items()
    if kind == "tensor":
        used.add(inner)
        return tensors[inner]
    if kind == "dict":
        return {tuple(k) if isinstance(k, list) else k: _value(v, tensors, used) for k, v in inner}
    if kind not in KEPT_TYPES:
        raise ValueError(f"found a {short(kind)}, expected tensor, dict, {', '.join(KEPT_TYPES)}")
    return _built(kind, _value(inner, tensors, used))


def _parts(value: Any) -> dict[str, Any]:
    """The fields of one of `KEPT_TYPES` by name; masks as bits."""
    parts = {field.name: getattr(value, field.name) for field in fields(value)}
    if "masks" in parts:
        masks = parts.pop("masks")
        parts["bits"] = (masks if isinstance(masks, PackedMasks) else PackedMasks.of(masks, value.d)).bits
    return parts


def _built(kind: str, parts: dict[str, Any]) -> Any:
    """The inverse of `_parts`, with a check that the parts fit one another."""
    if kind == "unified":
        # A checkpoint of an earlier release has no `opposites`; then the field's default holds.
        d = _check_vector("vector", parts["vector"])
        masks = PackedMasks(parts.pop("bits"), d)
        if not masks.keys() == parts["rescalers"].keys() >= parts.get("opposites", {}).keys():
            raise ValueError("masks and rescalers are of different tasks")
        for rescaler in (*parts["rescalers"].values(), *parts.get("opposites", {}).values()):
            if not isinstance(rescaler, float | int) or not 0 <= rescaler < torch.inf:
                raise ValueError(f"a rescaler is {short(rescaler)}, expected a finite number of 0 or more")
        return UnifiedTaskVector(masks=masks, **parts)
    if kind == "head":
        weight, bias = parts["weight"], parts["bias"]
        if not (weight.dtype == bias.dtype == torch.float32 and weight.dim() == 2 and bias.shape == weight.shape[:1]):
            raise ValueError(
                f"a head has weight {tuple(weight.shape)} of {weight.dtype} and bias {tuple(bias.shape)} of "
                f"{bias.dtype}, expected (C, F) and (C,) of torch.float32"
            )
    if kind == "separate":
        for task, vector in parts["vectors"].items():
            _check_vector(task, vector)
    return KEPT_TYPES[kind](**parts)


def _check_vector(name: str, vector: Tensor) -> int:
    """Check the form of a task vector; returns its length."""
    if vector.dim() != 1 or vector.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"vector {short(name)} has shape {tuple(vector.shape)} of {vector.dtype}, expected (d,) of torch.float32 "
            "or torch.bfloat16"
        )
    return vector.shape[0]


def _join(path: str, key: str | tuple[str, ...]) -> str:
    return "/".join([path, *((key,) if isinstance(key, str) else key)])


def _holds_tensors(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensors(inner) for inner in value.values())
    if isinstance(value, list | tuple | set):
        return any(_holds_tensors(inner) for inner in value)
    return isinstance(value, (Tensor, *KEPT_TYPES.values()))
