"""What callers give for vectors and masks, as the tensors that the mathematics works with.

A tensor that already has the right form is taken as it is. Arrays of NumPy, and lists of numbers, become tensors;
where their memory has the right form it is shared.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from matu_flwr.merging.errors import MergeError
from matu_flwr.texts import short

FLATTEN = (
    "subtract the pre-trained tensors and flatten the difference: "
    "`ParameterLayout.of(pretrained).flatten({name: tuned[name] - pretrained[name] for name in pretrained})`, "
    "from matu_flwr.vectors"
)


def as_vector(value: Any, what: str, *, kept: tuple[torch.dtype, ...] = (torch.float32,)) -> Tensor:
    """Turn what a caller gave into a (d,) float32 tensor, without a gradient. Its length is not checked.

    Parameters
    ----------
    value : Tensor, ndarray, or list of numbers
        (d,) of any floating-point type: float64 is rounded, others are widened. Any strides and byte order. Whole
        numbers only in a list: as a tensor or an array they are codes or labels rather than a task vector.
    what : str
        What it is called in errors.
    kept : tuple of dtype
        Types of tensors that stay as they are.

    Raises
    ------
    MergeError
        It is of another type or shape; the text says what is wanted.
    """
    if isinstance(value, Tensor):
        return _of_tensor(value, what, kept)
    if isinstance(value, Mapping) or hasattr(value, "state_dict"):
        kind = f"a mapping of {len(value)} entries" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise MergeError(f"{what} is {kind}, expected one vector (d,) of floating-point numbers: {FLATTEN}")
    if isinstance(value, str | bytes) or not (hasattr(value, "__array__") or isinstance(value, list | tuple)):
        raise MergeError(f"{what} is {short(value)}, expected a tensor, an array or a list of numbers, (d,)")
    if isinstance(value, np.ma.MaskedArray):
        raise MergeError(f"{what} is a masked array, expected one without gaps: fill them with .filled()")
    try:
        array = np.asarray(value)
    # A list of lists of different lengths, or of something that is no number.
    except (RuntimeError, TypeError, ValueError) as error:
        raise MergeError(f"{what} cannot be read as numbers ({error}), expected (d,) floating-point numbers") from None
    is_list = isinstance(value, list | tuple)
    if array.dtype.kind not in ("fiu" if is_list else "f"):
        raise _wrong_type(what, f"of {array.dtype}", is_list)
    _check_shape(array.shape, what)
    with np.errstate(over="ignore"):  # infinity is found later, with its place
        plain = np.ascontiguousarray(array, np.float32)
    with warnings.catch_warnings():
        # PyTorch warns that memory may be read-only. Nothing here writes into what a caller gave.
        warnings.simplefilter("ignore")
        return torch.from_numpy(plain)


def _of_tensor(value: Tensor, what: str, kept: tuple[torch.dtype, ...]) -> Tensor:
    if value.layout != torch.strided:
        raise MergeError(f"{what} is a tensor of layout {value.layout}, expected a dense one: use .to_dense()")
    if not value.is_floating_point():
        raise _wrong_type(what, str(value.dtype), False)
    _check_shape(tuple(value.shape), what)
    plain = value.detach().resolve_neg()
    return plain if plain.dtype in kept else plain.float()


def _check_shape(shape: tuple[int, ...], what: str) -> None:
    if len(shape) != 1:
        hint = "one number is no vector" if not shape else "flatten it, with .reshape(-1)"
        raise MergeError(f"{what} has shape {shape}, expected (d,): {hint}")


def _wrong_type(what: str, found: str, is_list: bool) -> MergeError:
    hint = "" if is_list else ": convert it with .float(), or .astype('float32'), if its values are what you mean"
    return MergeError(f"{what} is {found}, expected floating-point numbers{hint}")


def as_mask(value: Any, what: str) -> Tensor:
    """Turn what a caller gave into a boolean tensor: a tensor as it is, an array or a list of booleans.

    Raises
    ------
    MergeError
        It is of another type.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_meta:
            raise MergeError(f"{what} is a tensor of layout {value.layout} on {value.device}, expected a dense one")
        return value
    try:
        array = np.asarray(value)
    # A list of lists of different lengths.
    except (RuntimeError, TypeError, ValueError) as error:
        raise MergeError(f"{what} cannot be read as booleans ({error}), expected booleans, (d,)") from None
    if array.dtype != np.bool_:
        raise MergeError(f"{what} is {short(type(value).__name__)} of {array.dtype}, expected booleans, (d,)")
    return torch.from_numpy(np.array(array))


def as_rescalers(values: Any, what: str) -> dict[str, Any]:
    """The numbers of a mapping by task: single ones of NumPy and PyTorch become Python's.

    What is no number stays, and is refused where it is used.

    Raises
    ------
    MergeError
        It is no mapping by task.
    """
    check_names(values, what)
    found = {}
    for task, value in values.items():
        single = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, np.ndarray) and value.size == 1
        found[task] = value.item() if single else value
    return found


def as_count(value: Any, what: str) -> int:
    """Turn a number of training examples into an int.

    Raises
    ------
    MergeError
        It is not a whole number of at least 1 and at most `MOST_EXAMPLES`.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 1 <= int(value) <= MOST_EXAMPLES:
        raise MergeError(f"{what} has {short(value)} examples, expected at least 1, and at most {MOST_EXAMPLES}")
    return int(value)


# The sum over thousands of clients still fits the 64 bits in which votes are counted.
MOST_EXAMPLES = 2**50


def check_names(names: Mapping[str, Any], what: str) -> None:
    """Refuse what is not a mapping by name."""
    if not isinstance(names, Mapping):
        raise MergeError(f"{what} is a {type(names).__name__}, expected a mapping by task, such as {{'scans': …}}")
    for name in names:
        if not isinstance(name, str):
            raise MergeError(f"{what} has the task {short(name)}, expected a name as text")
