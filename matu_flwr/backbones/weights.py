"""Finds, reads and loads files of pre-trained weights."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from matu_flwr.backbones.errors import BackboneError, first_line
from matu_flwr.texts import listed, short

logger = logging.getLogger(__name__)

ENDINGS = (".safetensors", ".bin", ".pt", ".pth")

# Names under which checkpoints of training programs keep a model's tensors, in the order in which they are taken: an
# average over the training (EMA, DINO's teacher) before the last step.
CONTAINERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher"),  # timm, DINO
    *("state_dict", "model_state_dict", "model_state", "model", "module", "student"),  # Lightning, MAE
    *("network", "net", "backbone", "encoder", "visual", "weights", "params"),
)
# Entries within entries that are looked into.
_DEEPEST = 10
# Beginnings of files that people take for weights by mistake, and what to do.
FOREIGN = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the weights: run `git lfs pull`, or download the file"),
    (b"/annex/objects", "is a pointer of git-annex, not the weights: run `git annex get`, or download the file"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it first"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes them: expected a safetensors or torch file"),
    (b"\x93NUMPY", "is a NumPy array: expected a safetensors or torch file"),
    (b"GGUF", "is a GGUF file of quantised numbers: expected a safetensors or torch file"),
    (b"%PDF", "is a PDF: expected a safetensors or torch file"),
)


def place_for(name: str, folder: Path) -> Path | None:
    """The weights file for a model in `folder`: its name with the first of `ENDINGS` that exists; None if none does."""
    return next((path for ending in ENDINGS if (path := folder / f"{name}{ending}").is_file()), None)


def read(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors or torch file, by name. Code in the file is not run.

    In a checkpoint of a training program the model's tensors are one entry of several. The entry is found by its name
    (`CONTAINERS`), and a line in the log says which was taken.

    Raises
    ------
    BackboneError
        The file does not exist, cannot be read, holds something else than tensors, or is no weights file at all; the
        text says what it is.
    """
    try:
        _check_file(path)
        found = load_safetensors(path) if _is_safetensors(path) else _load_torch(path)
    except BackboneError:
        raise
    # Damaged and foreign files raise errors of safetensors, pickle or zip, which have no common base class.
    except Exception as error:
        # PyTorch's own message would advise to load the file in a way that runs the code in it.
        if "TorchScript" in str(error):
            raise BackboneError(
                f"weights file {path} is a TorchScript archive, which can hold code: if you trust it, load it yourself "
                "and save its state_dict() as a safetensors file"
            ) from error
        # Its text for what is no pickle at all advises the same, or is one number.
        unread = isinstance(error, pickle.UnpicklingError | KeyError | IndexError)
        told = "it is neither" if unread else first_line(error)
        raise BackboneError(
            f"weights file {path} cannot be read: {told}; expected a safetensors or torch file"
        ) from error
    return _tensors_in(found, path)


def _check_file(path: Path) -> None:
    """Refuse, by what it is, what cannot be a weights file."""
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in ENDINGS)
        raise BackboneError(
            f"weights file {path} is a folder: name the file in it"
            + (f", one of {listed(inside)}" if inside else "; it has no file of tensors")
        )
    if not path.is_file():
        raise BackboneError(
            f"weights file {path} does not exist; backbone.weights takes 'pretrained', 'random' or the absolute path "
            "of a safetensors or torch file"
        )
    with path.open("rb") as file:
        begin = file.read(2**16)
    if not begin.strip(b"\0"):
        what = f"holds only zeros, {path.stat().st_size} bytes" if begin else "is empty"
        raise BackboneError(f"weights file {path} {what}: the download or the copy broke off; fetch it again")
    text = begin.lstrip()
    for mark, told in FOREIGN:
        if text.startswith(mark):
            raise BackboneError(f"weights file {path} {told}")
    if text[:1] == b"<":
        raise BackboneError(
            f"weights file {path} is a web page or XML, not the weights; it begins {short(text[:60])}: download the "
            "file itself"
        )
    if text[:1] == b"{":
        raise BackboneError(f"weights file {path} {_json(path)}")


def _json(path: Path) -> str:
    """What a JSON file is."""
    try:
        shards = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return "is a JSON text, not the weights: expected a safetensors or torch file"
    return (
        f"is the index of {len(shards)} files ({listed(shards)}): load them yourself and save all tensors as one "
        "safetensors file"
    )


def _is_safetensors(path: Path) -> bool:
    """By its content: files are often called .bin or .pt, whatever they are."""
    with path.open("rb") as file:
        begin = file.read(9)
    return path.suffix == ".safetensors" or begin[8:] == b"{"


def _load_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise
        raise BackboneError(
            f"weights file {path} holds {named[1]} besides tensors, and reading that would run code: if you trust the "
            "file, load it yourself and save the model's state_dict() as a safetensors file"
        ) from error


def _tensors_in(found: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name, out of the entry of a training program's checkpoint that has them."""
    taken: list[str] = []
    # A pickled mapping may hold itself.
    while isinstance(found, Mapping) and not all(isinstance(value, Tensor) for value in found.values()):
        name = next((name for name in CONTAINERS if isinstance(found.get(name), Mapping)), None)
        if name is None or len(taken) == _DEEPEST:
            break
        taken.append(f"{name!r} of {listed(map(str, found), 8)}")
        found = found[name]
    if not isinstance(found, Mapping):
        what = "the whole model" if isinstance(found, nn.Module) else f"a {type(found).__name__}"
        raise BackboneError(f"weights file {path} holds {what}, expected tensors by name: save its state_dict()")
    others = [f"{name}: {type(value).__name__}" for name, value in found.items() if not isinstance(value, Tensor)]
    if others or not found:
        what = f"entries that are no tensors, {listed(others)}" if others else "no tensors"
        raise BackboneError(
            f"weights file {path} holds {what}; expected the tensors of a model by name, or an entry such as "
            "'state_dict' or 'model' with them"
        )
    if taken:
        logger.warning("weights file %s: taking entry %s", path, ", and in it ".join(taken))
    return {str(name): tensor for name, tensor in found.items()}


def tensor_digest(tensors: Mapping[str, Tensor], beginning: bytes = b"") -> str:
    """SHA-256 (hex) of `beginning`, followed by each tensor's name and bytes, in the order of the names."""
    digest = hashlib.sha256(beginning)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_file(module: nn.Module, path: Path, name: str, *, drop: tuple[str, ...]) -> None:
    """Load a weights file into `module`. The file must have every tensor of the module, and no others.

    All names in the file may begin with the same prefix, such as `model.` or `backbone.`. Then the tensors with that
    prefix are taken, and a line in the log says so. Numbers of any floating type become float32.

    Parameters
    ----------
    module : nn.Module
        A model of timm.
    path : Path
        Safetensors or torch file.
    name : str
        Name of the backbone, for errors.
    drop : tuple of str
        Layers in the file that the module does not have and that are left out: a classifier.

    Raises
    ------
    BackboneError
        The file cannot be read, its tensors do not fit the module, or one is of integers or has NaN or infinity.
    """
    state = read(path)
    wanted = module.state_dict()
    parts = [_fit(module, state, prefix, wanted, drop) for prefix in _prefixes(state, len(wanted))]
    fitting = [part for part in parts if part.fits]
    if not fitting:
        nearest = min(parts, key=lambda part: part.wrong)
        where = f" The nearest are those under {nearest.prefix!r}:" if nearest.prefix else ""
        raise BackboneError(f"weights file {path} does not fit backbone {name!r}:{where} {nearest.told}")
    part = fitting[0]
    if len(fitting) > 1 and (part.prefix or fitting[1].prefix):
        part = _preferred(fitting, path, name)
    if part.prefix:
        logger.warning(
            "weights file %s: taking the %d tensors under %r, and leaving out %d others",
            *(path, part.of_prefix, part.prefix, len(state) - part.of_prefix),
        )
    _check_numbers(part, wanted, path)
    module.load_state_dict(part.tensors)


@dataclass(frozen=True)
class _Part:
    """The tensors of a file under one prefix, in the layout of a module, and how they differ from what it needs."""

    prefix: str
    of_prefix: int
    tensors: Mapping[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]
    failure: str = ""

    @property
    def fits(self) -> bool:
        return not self.wrong

    @property
    def wrong(self) -> int:
        """Number of differences; more than any number if the tensors cannot even be brought into the layout."""
        return 10**9 if self.failure else len(self.missing) + len(self.unexpected) + len(self.misshaped)

    @property
    def told(self) -> str:
        if self.failure:
            return self.failure
        found = (("missing", self.missing), ("unexpected", self.unexpected), ("of another shape", self.misshaped))
        return "; ".join(f"{what} are {listed(names)}" for what, names in found if names)


def _prefixes(state: Mapping[str, Tensor], wanted: int) -> Iterator[str]:
    """No prefix, and each that at least half as many names begin with as the module has tensors."""
    counts: dict[str, int] = {}
    for name in state:
        words = name.split(".")
        for depth in range(1, min(len(words), 6)):
            prefix = ".".join(words[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    yield ""
    # Shallow ones first. There can be no more than a few: each takes half of a model.
    yield from [p for p in sorted(counts, key=lambda p: p.count(".")) if 2 * counts[p] >= wanted][:16]


def _fit(
    module: nn.Module, state: Mapping[str, Tensor], prefix: str, wanted: Mapping[str, Tensor], drop: tuple[str, ...]
) -> _Part:
    """Bring the tensors under a prefix into the module's layout, and compare them with what it needs."""
    under = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    # timm can load a file itself. But without a classifier it ignores tensors that do not fit, so that a model could
    # keep random weights without a word.
    #
    # A family of models in timm may have a filter. It converts the layouts of OpenAI and open_clip to timm's, and
    # resizes position embeddings.
    family = sys.modules[type(module).__module__]
    convert: Callable[..., dict[str, Tensor]] | None = getattr(family, "checkpoint_filter_fn", None)
    try:
        found = convert(dict(under), module) if convert is not None else under
    # A filter that is given another model's file can fail with any exception.
    except Exception as error:
        return _Part(prefix, len(under), {}, [], [], [], f"{type(error).__name__}: {first_line(error)}")
    dropped = tuple(f"{layer}." for layer in drop)
    found = {key: value for key, value in found.items() if not key.startswith(dropped)}
    return _Part(
        prefix,
        len(under),
        found,
        missing=[key for key in wanted if key not in found],
        unexpected=[key for key in found if key not in wanted],
        misshaped=[
            f"{key} {tuple(found[key].shape)}, expected {tuple(wanted[key].shape)}"
            for key in wanted
            if key in found and found[key].shape != wanted[key].shape
        ],
    )


def _preferred(fitting: list[_Part], path: Path, name: str) -> _Part:
    """Of several models in one file the averaged one: DINO's teacher, or one that is called EMA."""
    averaged = [part for part in fitting if re.search(r"teacher|(^|[._])ema([._]|$)|_ema|momentum", part.prefix)]
    if len(averaged) != 1:
        raise BackboneError(
            f"weights file {path} holds {len(fitting)} models that fit backbone {name!r}, under "
            f"{listed(part.prefix for part in fitting)}: save the one that you mean as a safetensors file"
        )
    return averaged[0]


def _check_numbers(part: _Part, wanted: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not of floating point where the module has such, and NaN and infinity, by name."""
    for key, tensor in part.tensors.items():
        if not wanted[key].is_floating_point():
            continue
        named = f"weights file {path}: tensor {part.prefix + key!r}"
        if tensor.is_meta:
            raise BackboneError(f"{named} is on the device meta, which holds no numbers: save the loaded weights")
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            raise BackboneError(f"{named} is of {kind}, expected floating-point numbers: save the weights unquantised")
        if not bool(torch.isfinite(tensor.float()).all()):
            bad = int((~torch.isfinite(tensor.float())).sum())
            raise BackboneError(
                f"{named} has NaN or infinity in {bad} of {tensor.numel()} places: the training that wrote it "
                "diverged, or the file is damaged; use weights from before that"
            )


def missing_download(name: str, config: dict[str, Any], folder: Path, error: Exception) -> str:
    """Text of the error after a failed download: which file to get, and where to put it."""
    hub, file = config.get("hf_hub_id"), config.get("hf_hub_filename") or "model.safetensors"
    if not hub and not config.get("url"):
        return (
            f"timm knows no published weights of {name!r} ({first_line(error)}): set backbone.weights to the path of "
            "a file of your own, or to random"
        )
    source = f"{file} of the Hugging Face model {hub}" if hub else config.get("url") or "the published weights"
    return (
        f"the pre-trained weights of {name!r} could not be downloaded ({first_line(error)}); fetch {source} "
        f"on another machine and put it at {folder / name}.safetensors (or .bin, .pt), or set "
        "backbone.weights to its path"
    )
