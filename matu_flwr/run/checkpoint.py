"""Checkpoints: the whole state of a run's server after a round, in two files.

    <out-dir>/checkpoints/round-000007.safetensors    the strategy's tensors
    <out-dir>/checkpoints/round-000007.json           everything else, and the SHA-256 of both files

The JSON file is written last. A checkpoint counts only if both files are there, match their checksums and hold what a
checkpoint holds; otherwise the checkpoint before it is used. Each file is replaced in one step (`matu_flwr.files`). The
checksums detect incomplete and altered files, but not forged ones: whoever can write to the folder can also write new
checksums.

The state of random generators need not be stored: every draw of a run gets a new seed, made of the run's seed, the
round, the client and the task.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging import WARNING
from pathlib import Path
from typing import Annotated, Any, NotRequired

from flwr.common.logger import log
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from matu_flwr import digests
from matu_flwr.config.settings import Scalar
from matu_flwr.federation.state import StrategyStateError, values_of
from matu_flwr.files import TEMPORARY, replacing, sync_folder, write_json
from matu_flwr.run.history import HistoryMark
from matu_flwr.texts import Brief, short

FOLDER = "checkpoints"
FORMAT = 1
STORED_AS = {"run_name": "experiment"}  # fields whose key in the file is another: the format is older than the name
NAME = re.compile(r"round-([0-9]{6,})\.json")

Count = Annotated[int, Field(strict=True, ge=0)]
Seconds = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


class Held(TypedDict):
    """What one client holds: its partition, and for each of its tasks what a resumed run must find again.

    `key` and `registered` say to which key its name is bound; release 0.1.0 wrote neither.
    """

    partition: Annotated[int, Field(strict=True)]
    tasks: dict[str, dict[str, int | str | list[int]]]
    key: NotRequired[str]
    registered: NotRequired[bool]


class CheckpointError(Brief, RuntimeError):
    """A checkpoint cannot be written, found or read, or a run cannot resume from it; the text says which and why."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run's server after a round of training.

    Attributes
    ----------
    round : int
        Last finished round. 0 means that the clients are registered and no round has been trained yet.
    rounds : int
        Number of rounds of the whole run.
    attempt : int
        How often the run had been resumed.
    time : str
        When the checkpoint was written, in UTC, ISO 8601.
    run_name : str
        Name under which the clients keep their own state.
    fingerprint : str
        SHA-256 of the pre-trained weights θ_p and of the layout of a task vector.
    settings : dict
        All settings of the run, by flat key.
    federation : dict
        What each client holds, by client; see `run.resume.federation`.
    history : HistoryMark
        End of the history when the checkpoint was written. The accuracy of this round comes after it.
    seconds : float
        How long the run had taken so far.
    described : dict
        The strategy's state, with the names of its tensors in their places; see `federation.state`.
    """

    round: Count
    rounds: Count
    attempt: Count
    time: str
    run_name: str
    fingerprint: str
    settings: dict[str, Scalar]
    federation: dict[str, Held]
    history: HistoryMark
    seconds: Seconds
    described: dict[str, Any]


def checkpoint_path(out_dir: Path, round_: int) -> Path:
    """Return the path of the JSON file of a round's checkpoint."""
    return out_dir / FOLDER / f"round-{round_:06d}.json"


def checkpoints(out_dir: Path) -> list[Path]:
    """List the JSON files of a run's checkpoints, newest first, readable or not; empty if there are none.

    Raises
    ------
    CheckpointError
        The folder cannot be listed.
    """
    folder = out_dir / FOLDER
    try:
        found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{folder}, the folder of checkpoints, cannot be read: {error.strerror}") from error
    return sorted(found, key=_round_of, reverse=True)


# --- writing -------------------------------------------------------------------------------------------------------


def write_checkpoint(out_dir: Path, state: Checkpoint, tensors: Mapping[str, Tensor], keep: int) -> Path:
    """Write a checkpoint, then remove all but the last `keep` (1 or more). Returns the path of its JSON file.

    Raises
    ------
    CheckpointError
        The checkpoint cannot be written, for instance because the disk is full. The one before is still there.
    """
    path = checkpoint_path(out_dir, state.round)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Checkpoints of later rounds are left from before the run was resumed at an earlier one. A later resume would
        # take them for the newest of this attempt.
        remove(out_dir, lambda round_: round_ > state.round)
        digest = _write_tensors(path.with_suffix(".safetensors"), tensors)
        content = {"format": FORMAT, **_plain(state), "layout": _layout(tensors), "tensors": digest}
        write_json(path, {**content, "sha256": digests.of_json(content)})
        # Old checkpoints go last, when the new one is safe.
        remove(out_dir, lambda round_: round_ <= state.round - keep)
    except (OSError, SafetensorError) as error:
        left = [other for other in checkpoints(out_dir) if _round_of(other) < state.round]
        raise CheckpointError(
            f"the checkpoint of round {state.round} cannot be written to {path.parent}: {error}; make room there, then "
            + (f"resume from {out_dir}" if left else "start the run again: it has no checkpoint yet")
        ) from error
    return path


def remove(out_dir: Path, chosen: Callable[[int], bool]) -> None:
    """Remove the checkpoints of the rounds for which `chosen` is true, and files that a killed process left behind."""
    folder = out_dir / FOLDER
    for path in checkpoints(out_dir):
        if chosen(_round_of(path)):
            _unlink(path)
    # The JSON files must be gone from the disk before their tensors: a JSON file alone is a broken checkpoint.
    sync_folder(folder)
    there = {path.stem for path in checkpoints(out_dir)}
    for path in folder.iterdir():
        if path.suffix == TEMPORARY or (path.suffix == ".safetensors" and path.stem not in there):
            _unlink(path)


def _unlink(path: Path) -> None:
    """Remove what stands where a checkpoint's file belongs, also if that is a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write the tensors in one step. Returns the SHA-256 of the file."""
    with replacing(path) as temporary:
        save_file(_without_shared_memory(tensors), temporary)
        return digests.of_file(temporary)


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, copying those that share memory with others, because safetensors refuses them."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().contiguous()
        memory = plain.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(memory.data_ptr())
        found[name] = plain
    return found


def _plain(state: Checkpoint) -> dict[str, Any]:
    """Fields as they stand in the file."""
    return {STORED_AS.get(name, name): value for name, value in vars(state).items()} | {"history": vars(state.history)}


# --- reading -------------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the JSON file of a checkpoint, and check its checksum and the form of everything in it.

    Raises
    ------
    CheckpointError
        The file cannot be read, was altered, is not of the round in its name, or was written by a release with another
        format.
    """
    content = _content(path)
    fields = {name: content.get(STORED_AS.get(name, name)) for name in Checkpoint.__dataclass_fields__}
    try:
        found = _CHECKPOINT.validate_python(fields)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, e['loc']))} = {short(e['input'])}: {e['msg']}" for e in error.errors()]
        raise CheckpointError(f"checkpoint {path} is not what a run writes: {'; '.join(reasons)}") from error
    if path.name != checkpoint_path(path.parent.parent, found.round).name:
        raise CheckpointError(f"checkpoint {path} is of round {found.round}, expected the round in its name")
    return found


_CHECKPOINT = TypeAdapter(Checkpoint)


def _content(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint, whose checksum and format are those of a file of this release."""
    try:
        _check_file(path)
        content = json.loads(path.read_bytes(), object_pairs_hook=_no_key_twice)
        if not isinstance(content, dict):
            raise ValueError(f"expected a mapping, found a {type(content).__name__}")
        if not isinstance(stored := content.pop("sha256", None), str):
            raise ValueError("it has no sha256 of its own")
        found = digests.of_json(content)
    # RecursionError: thousands of nested brackets. ValueError: anything else that is no JSON.
    except (OSError, RecursionError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({_told(error)})") from error
    if stored != found:
        raise CheckpointError(
            f"checkpoint {path} is incomplete or was changed: its SHA-256 is {found}, expected {short(stored)}"
        )
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {short(content.get('format'))}, expected {FORMAT}: another release of "
            "matu-flwr wrote it; resume the run with that release"
        )
    return content


def _check_file(path: Path) -> None:
    # Reading a pipe would wait for ever.
    if path.exists() and not path.is_file():
        raise OSError("it is a folder, a pipe or a device, expected a file")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice among {short([key for key, _ in pairs])}")
    return found


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors that belong to the JSON file `path` and check them against the checksum in it.

    Raises
    ------
    CheckpointError
        The tensors' file cannot be read, was altered, or does not hold the tensors that the JSON file lists.
    """
    file = path.with_suffix(".safetensors")
    content = _content(path)
    try:
        _check_file(file)
        found = digests.of_file(file)
        if found != content.get("tensors"):
            raise CheckpointError(
                f"checkpoint {file} is incomplete or was changed: its SHA-256 is {found}, not "
                f"{short(content.get('tensors'))}"
            )
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {file} cannot be read ({_told(error)})") from error
    there = _layout(tensors)
    wanted = content.get("layout", there)  # checkpoints of earlier releases have none
    if there != wanted:
        listed = wanted if isinstance(wanted, dict) else {}
        name = next((name for name in sorted({*there, *listed}) if there.get(name) != listed.get(name)), "")
        raise CheckpointError(
            f"checkpoint {file} does not have the tensors that {path.name} lists: {short(name)} is "
            f"{there.get(name, 'missing')}, expected {short(listed.get(name, 'none of this name'))}"
        )
    return tensors


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())}


def find_checkpoint(
    named: Path, skipped: Callable[[str], None] | None = None
) -> tuple[Path, Checkpoint, dict[str, Tensor]]:
    """Find the checkpoint to resume from: the newest good one of a run, or exactly the one that is named.

    A broken checkpoint is skipped with one line that says which and why, and the one before it is taken. If the broken
    one was named, that is an error.

    Parameters
    ----------
    named : Path
        Output folder of a run, its folder of checkpoints, or one of the two files of a checkpoint.
    skipped : callable, optional
        Is told the line about each checkpoint that is skipped. Not given: the line is logged as a warning.

    Returns
    -------
    tuple
        The run's output folder, the checkpoint, and its tensors by name.

    Raises
    ------
    CheckpointError
        No checkpoint can be used; the text lists what is wrong with each.
    """
    say = skipped or (lambda line: log(WARNING, "%s", line))
    try:
        is_folder = named.is_dir()
        if named.suffix in (".json", ".safetensors") and not is_folder:
            path = named.with_suffix(".json")
            return path.parent.parent, *_read(path)
        out_dir = named.parent if named.name == FOLDER else named
        if not out_dir.is_dir():
            raise CheckpointError(
                f"{out_dir} does not exist: expected the output folder of a run; give an absolute path (relative paths "
                f"start from the folder in which Flower runs, which is {Path.cwd()})"
            )
    except OSError as error:  # a folder on the way that may not be entered, or a name that is too long
        raise CheckpointError(f"{named} cannot be looked at: {error.strerror}") from error
    found, reasons = checkpoints(out_dir), []
    for path in found:
        try:
            return out_dir, *_read(path)
        except CheckpointError as error:
            reasons.append(str(error))
            say(f"{error}; trying the checkpoint before it")
    if not found:
        raise CheckpointError(
            f"{out_dir} has no checkpoint: the run ended before its first round, or ran with keep-checkpoints = 0; "
            "start a new run"
        )
    raise CheckpointError("no checkpoint can be used:" + "".join(f"\n  {reason}" for reason in reasons))


def _read(path: Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Read both files of a checkpoint, and check that the strategy's state can be made of them."""
    state, tensors = read_checkpoint(path), read_tensors(path)
    try:
        values_of(state.described, tensors)
    except StrategyStateError as error:
        raise CheckpointError(f"checkpoint {path} is not what a run writes: {error}") from error
    return state, tensors


def _round_of(path: Path) -> int:
    found = NAME.fullmatch(path.name)
    assert found is not None, f"{path} comes from checkpoints()"
    return int(found[1])
