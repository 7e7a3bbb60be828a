"""What settings, experiments and suites share: closed models, and the words that refuse a wrong key or value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Scalar = bool | int | float | str
"""What a setting may be: the values that Flower's run config can hold."""


class SettingsError(ValueError):
    """A setting that does not exist or has an impossible value; the text names the key, the value and the range."""


def kebab(name: str) -> str:
    """A field's name as Flower's run config spells it."""
    return name.replace("_", "-")


class Closed(BaseModel):
    """Frozen, and closed: a key that it does not know is an error, and so is true or false in the place of a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would read `rounds: true` as one round
        kind = cls.model_fields[info.field_name].annotation if info.field_name else None
        if isinstance(value, bool) and kind in (int, float):
            word = "integer" if kind is int else "number"
            raise PydanticCustomError("no_number", f"Input should be a valid {word}, not true or false")
        return value


def unknown(what: str, key: str, known: Iterable[str]) -> str:
    """Say that a key is not known, with the nearest one that is, or else with all of them."""
    choices = list(known)
    near = difflib.get_close_matches(key, choices, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(choices)}"
    return f"unknown {what} {key!r}; {hint}"


def explain(error: ValidationError, model: type[BaseModel], what: str) -> str:
    """All that is wrong, in one line: for each value its key, what was found and what is expected.

    Parameters
    ----------
    error : ValidationError
        Of `model`.
    model : type of BaseModel
        Its fields' descriptions say what a key means.
    what : str
        A key is called this: "setting" or "key".
    """
    found = []
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        key, description = ".".join(path), _description(model, path)
        if item["type"] in _UNKNOWN:
            known = _keys(_owner(model, path[:-1]))
            found.append(unknown(what, key, [".".join([*path[:-1], one]) for one in known]))
            continue
        message = item["msg"][0].lower() + item["msg"][1:]
        if item["type"] == "string_type" and isinstance(item["input"], int | float):
            message += " (put it in quotes)"
        found.append(f"{what} {key!r} = {item['input']!r}: {message}" + (f" ({description})" if description else ""))
    return "; ".join(found)


_UNKNOWN = ("extra_forbidden", "invalid_key")  # no field of that name; a key that is no text, such as 3


def _keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by key, as a person writes it."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _owner(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model that a path of keys leads to, as far as there are models on it."""
    for part in path:
        field = _keys(model).get(part)
        kinds = (get_args(field.annotation) or (field.annotation,)) if field else ()
        inside = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inside:
            break
        model = inside[0]
    return model


def _description(model: type[BaseModel], path: list[str]) -> str:
    """What the key means that a path leads to, or the last one on it that says so."""
    for end in reversed(range(len(path))):
        field = _keys(_owner(model, path[:end])).get(path[end])
        if field and field.description:
            return field.description
    return ""
