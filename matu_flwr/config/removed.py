"""Settings that an earlier release had: folders of its runs still open, and somebody who types one learns why."""

from __future__ import annotations

from collections.abc import Mapping

from matu_flwr.config.closed import Scalar, SettingsError

RELEASE = "0.1.0"

KEYS: dict[str, str] = {
    "evaluate": "clients test what they receive just before they train on it",
    "train.optimizer": "the optimiser is AdamW",
    "backbone.last-blocks": "backbone.trainable is full or lora",
    "partition.classes-per-holder": "partition.split is dirichlet or iid",
}
"""For each key that is gone, in a few words, what holds today."""

CHOICES: dict[str, tuple[str, ...]] = {
    "evaluate": ("phase",),
    "train.optimizer": ("sgd",),
    "backbone.trainable": ("blocks",),
    "partition.split": ("pathological", "shard"),
}
"""Values that are gone, by key. What else these keys may have been is what holds today."""


def explained(key: str) -> str:
    """Text for a key that is gone: since when, and what holds today."""
    return f"setting {key!r} was removed after release {RELEASE}: {KEYS[key]}; leave it out"


def without_removed(stored: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the settings that a run has stored, by flat key, without the keys that are gone.

    Raises
    ------
    SettingsError
        A value is gone, so this release cannot do what the run did.
    """
    for key, gone in CHOICES.items():
        if stored.get(key) in gone:
            raise SettingsError(f"{key} = {stored[key]!r} was removed after release {RELEASE}: use that release")
    return {key: value for key, value in stored.items() if key not in KEYS}
