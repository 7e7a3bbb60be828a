"""What settings, experiments and suites share: strict models, and the error texts for a wrong key or value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from matu_flwr.texts import Brief, short

Scalar = bool | int | float | str
"""The types a setting may have: those that Flower's run config can hold."""


MOST = 10
"""Problems that the text of one error lists."""


class SettingsError(Brief, ValueError):
    """A setting that does not exist, or whose value is not allowed. The text names the key, the value and the range."""


def kebab(name: str) -> str:
    """Turn a Python field name into a settings key: `min_tasks` becomes "min-tasks"."""
    return name.replace("_", "-")


class Closed(BaseModel):
    """A frozen pydantic model that refuses unknown keys, infinity and NaN, and true or false in place of a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python's True is an int, so pydantic would read `rounds: true` as one round.
        kind = cls.model_fields[info.field_name].annotation if info.field_name else None
        if isinstance(value, bool) and kind in (int, float):
            word = "integer" if kind is int else "number"
            raise PydanticCustomError("no_number", f"Input should be a valid {word}, not true or false")
        return value


def unknown(what: str, key: str, known: Iterable[str]) -> str:
    """Text for an unknown key. It suggests the most similar known key, or lists all known keys if none is similar."""
    choices = list(known)
    near = difflib.get_close_matches(key, choices, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(choices)}"
    return f"unknown {what} {key!r}; {hint}"


def explain(error: ValidationError, model: type[BaseModel], what: str) -> str:
    """Turn pydantic's error into one line that lists every problem: the key, the value found and what was expected.

    Parameters
    ----------
    error : ValidationError
        What `model` raised.
    model : type of BaseModel
        The model that was to be filled. The descriptions of its fields are quoted.
    what : str
        The word for a key in the text: "setting" or "key".
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
        # YAML reads an unquoted 2024 as a number, also where a name was meant.
        if item["type"] == "string_type" and isinstance(item["input"], int | float):
            message += " (put it in quotes)"
        value = short(item["input"], 200)
        found.append(f"{what} {key!r} = {value}: {message}" + (f" ({description})" if description else ""))
    more = [f"and {len(found) - MOST} more problems"] if len(found) > MOST else []
    return "; ".join(found[:MOST] + more)


# pydantic's types of error for a key without a field, and for a key that is not text, such as 3.
_UNKNOWN = ("extra_forbidden", "invalid_key")


def _keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by the key that a person writes: the alias where there is one."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _owner(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """Follow a path of keys down the nested models. Stops at the last model, where a key leads to a plain value."""
    for part in path:
        field = _keys(model).get(part)
        # A nested model may be optional (`Canary | None`). Then it is one of the types in the annotation.
        kinds = (get_args(field.annotation) or (field.annotation,)) if field else ()
        inside = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inside:
            break
        model = inside[0]
    return model


def _description(model: type[BaseModel], path: list[str]) -> str:
    """Description of the key at the end of a path. If it has none, that of the nearest key above it; else ""."""
    for end in reversed(range(len(path))):
        field = _keys(_owner(model, path[:end])).get(path[end])
        if field and field.description:
            return field.description
    return ""
