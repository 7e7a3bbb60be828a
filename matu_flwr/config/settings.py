"""All settings of a run. Each has a type, a range and a default, and is checked before anything starts.

Values come from four places. A later place overrides an earlier one:

1. the defaults in this file and in `sections.py`. `make settings` copies them to `[tool.flwr.app.config]` of
   pyproject.toml, because Flower accepts only keys that it finds there;
2. a preset (`matu.preset`);
3. the YAML file that `experiment` names;
4. what a person typed: options of `matu run`, or `--run-config` of `flwr run`. A typed value counts even if it equals
   the default (`given_values` tells such a value from one that nobody typed).

A key is the field's name with hyphens. A section's name and a dot come first: `matu.relation-weight`. Keys of this form
are called flat keys.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from matu_flwr.config import removed
from matu_flwr.config.closed import Scalar, SettingsError, explain, kebab, unknown
from matu_flwr.config.experiment import read_experiment
from matu_flwr.config.presets import PRESETS
from matu_flwr.config.sections import (
    BackboneSettings,
    DittoSettings,
    FedBabuSettings,
    FedPerSettings,
    FedProxSettings,
    FedRepSettings,
    MatFLSettings,
    MatuSettings,
    PartitionSettings,
    PrivacySettings,
    RobustSettings,
    ScreenSettings,
    Section,
    TaskArithmeticSettings,
    TiesSettings,
    TrainSettings,
    WireSettings,
)

__all__ = [
    "DEFAULTS",
    "PRESETS",
    "SERVER_ONLY",
    "Scalar",
    "Settings",
    "SettingsError",
    "asked_for",
    "check_keys",
    "given_values",
    "named",
    "parse_run_config",
]


class Settings(Section):
    """All settings of one run.

    The class methods raise `SettingsError` for an unknown key (with the most similar known key) and for a value that
    is not allowed (with its range).
    """

    experiment: str = Field("", description="path of a YAML file with settings; '' = none")
    suite: str = Field("offline", min_length=1, description="name of a shipped suite, or path of a suite file")
    strategy: str = Field(
        "matu", min_length=1, description="name of the method; matu_flwr.strategies.available() lists all"
    )
    rounds: int = Field(30, ge=1, description="number of federated rounds")
    seed: int = Field(
        0, ge=0, lt=2**31, description="seed of everything random: weights, partition, choice of clients, batches"
    )
    data_dir: str = Field("", description="folder with the data sets; '' = $MATU_DATA_DIR")
    cache_dir: str = Field(
        "", description="folder for decoded images; '' = $XDG_CACHE_HOME/matu-flwr or ~/.cache/matu-flwr"
    )
    state_dir: str = Field(
        "", description="folder for clients' own files; '' = $XDG_STATE_HOME/matu-flwr or ~/.local/state/matu-flwr"
    )
    out_dir: str = Field(
        "", description="folder for the run's output; '' = runs/<time>-<suite>-<strategy> in the folder Flower runs in"
    )
    resume_from: str = Field(
        "", description="folder of an earlier run, or one of its checkpoints, to continue; '' = start a new run"
    )
    keep_checkpoints: int = Field(
        2, ge=0, description="how many rounds' checkpoints to keep; clients keep as many of their own states; 0 = none"
    )
    fraction_train: float = Field(1.0, gt=0, le=1, description="share of the clients that train in each round")
    min_nodes: int = Field(
        2,
        ge=1,
        description="the run starts when this many clients can take part, and stops if fewer give a usable reply in a "
        "round (if fewer are asked: if one of them does not)",
    )
    min_clients: int = Field(
        1,
        ge=1,
        description="a round changes a task only if the replies of at least this many of its holders are usable",
    )
    max_tasks_total: int = Field(
        48, ge=0, description="largest number of tasks of a run; tasks of the suite are always admitted; 0 = no limit"
    )
    max_tasks_per_client: int = Field(
        16, ge=0, description="largest number of tasks outside the suite that a client may have; 0 = no limit"
    )
    bind_names: bool = Field(
        False,
        description="a client's name stays with the key of its node, also in a resumed run; needs nodes with keys of "
        "their own. Keys that were registered with --name are bound in any case",
    )
    node_timeout: float = Field(
        300.0, gt=0, description="seconds to wait for min-nodes usable clients, and for each node to announce its tasks"
    )
    round_timeout: float = Field(
        3600.0, gt=0, description="seconds after which a client that has not answered counts as failed"
    )
    max_failed_fraction: float = Field(
        0.5, ge=0, le=1, description="the run stops if more than this share of a round's clients fail"
    )
    window: int = Field(
        4, ge=1, description="how many messages may be on their way at once; more need more memory at the server"
    )
    evaluate_every: int = Field(
        1, ge=1, description="test in every n-th round; the start and the end are always tested"
    )
    server_evaluate: bool = Field(
        True, description="whether the server tests each task vector on its own test sets after the last round"
    )
    partition: PartitionSettings = PartitionSettings()
    backbone: BackboneSettings = BackboneSettings()
    train: TrainSettings = TrainSettings()
    wire: WireSettings = WireSettings()
    screen: ScreenSettings = ScreenSettings()
    robust: RobustSettings = RobustSettings()
    privacy: PrivacySettings = PrivacySettings()
    matu: MatuSettings = MatuSettings()
    fedprox: FedProxSettings = FedProxSettings()
    fedper: FedPerSettings = FedPerSettings()
    fedrep: FedRepSettings = FedRepSettings()
    fedbabu: FedBabuSettings = FedBabuSettings()
    ditto: DittoSettings = DittoSettings()
    matfl: MatFLSettings = MatFLSettings()
    task_arithmetic: TaskArithmeticSettings = TaskArithmeticSettings()
    ties: TiesSettings = TiesSettings()

    @classmethod
    def from_run_config(cls, given: Mapping[str, Scalar]) -> Settings:
        """Build the settings of a run from the values that a person gave, by flat key.

        Applies the preset and the experiment file, and checks that the settings fit together. A given value overrides
        both, even if it equals the default. Flower hands an app a value for every key: pass them through
        `given_values` first.

        Raises
        ------
        SettingsError
            An unknown key, a value that is not allowed, or two settings that contradict each other.
        """
        return cls.from_flat(asked_for(given)).checked()

    def checked(self) -> Settings:
        """Return these settings, after a check that they do not contradict each other.

        Raises
        ------
        SettingsError
            Two settings contradict each other.
        """
        if self.partition.min_tasks > self.partition.max_tasks:
            raise SettingsError(
                f"partition.min-tasks = {self.partition.min_tasks} is larger than partition.max-tasks = "
                f"{self.partition.max_tasks}; raise max-tasks or lower min-tasks"
            )
        if self.backbone.linearised and self.train.precision == "bfloat16":
            raise SettingsError(
                "backbone.linearised = true with train.precision = bfloat16: the linearised model computes in float32 "
                "only; set train.precision to float32"
            )
        if self.matu.error_feedback and self.matu.payload != "update":
            raise SettingsError(
                "matu.error-feedback = true with matu.payload = 'vector': whole vectors are sent in every round, so "
                "there is no earlier loss to make up for; set matu.payload to update, or error-feedback to false"
            )
        if self.robust.trim != RobustSettings().trim and self.robust.mean != "trimmed":
            raise SettingsError(
                f"robust.trim = {self.robust.trim} with robust.mean = {self.robust.mean!r}: only the trimmed mean "
                "trims; set robust.mean to trimmed"
            )
        self._check_privacy()
        return self

    def _check_privacy(self) -> None:
        """Refuse privacy settings that look as if they protected somebody and do not."""
        privacy = self.privacy
        if privacy.noise_multiplier == 0:
            if privacy != PrivacySettings():
                raise SettingsError(
                    f"privacy.clip-norm = {privacy.clip_norm:g}, privacy.delta = {privacy.delta:g} with "
                    "privacy.noise-multiplier = 0: without noise there is no privacy; set privacy.noise-multiplier "
                    "above 0, or leave out the other privacy settings"
                )
            return
        if privacy.clip_norm == 0:
            raise SettingsError(
                f"privacy.noise-multiplier = {privacy.noise_multiplier:g} with privacy.clip-norm = 0: the noise is "
                "a multiple of clip-norm; set privacy.clip-norm, the largest norm allowed for a task's update"
            )
        if self.train.heads == "local":
            raise SettingsError(
                "privacy.noise-multiplier > 0 with train.heads = 'local': a local head is trained without noise, and "
                "the test results that clients report would reveal something of it; set train.heads to average "
                "(heads are clipped and get noise, like the update) or to zero-shot (heads are frozen)"
            )

    @classmethod
    def from_flat(cls, values: Mapping[str, Scalar]) -> Settings:
        """Build settings from flat keys such as "matu.kappa". Keys that are not given keep their defaults.

        Raises
        ------
        SettingsError
            An unknown key or a value that is not allowed. Contradictions are found by `checked`.
        """
        check_keys(values)
        nested: dict[str, Any] = {}
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            (nested.setdefault(section, {}) if section else nested)[name] = value
        try:
            return cls.model_validate(nested)
        except ValidationError as error:
            raise SettingsError(explain(error, cls, "setting")) from None

    def flat(self) -> dict[str, Scalar]:
        """Every setting's value by flat key, the defaults included."""
        flat: dict[str, Scalar] = {}
        for key, value in self.model_dump(by_alias=True).items():
            if isinstance(value, dict):
                flat.update({f"{key}.{name}": inner for name, inner in value.items()})
            else:
                flat[key] = value
        return flat

    def given(self) -> set[str]:
        """Flat keys that were given to `from_flat`, also those whose value equals the default."""
        found: set[str] = set()
        for name in self.model_fields_set:
            value, key = getattr(self, name), kebab(name)
            found |= {f"{key}.{kebab(n)}" for n in value.model_fields_set} if isinstance(value, Section) else {key}
        return found

    def changed(self) -> dict[str, Scalar]:
        """The settings whose values differ from their defaults, by flat key, in the order of the keys."""
        return {key: value for key, value in sorted(self.flat().items()) if value != DEFAULTS[key]}

    def for_clients(self) -> dict[str, Scalar]:
        """The settings that the server sends to clients: those that differ from their defaults, less `SERVER_ONLY`."""
        return {k: v for k, v in self.flat().items() if v != DEFAULTS[k] and k not in SERVER_ONLY}


# Paths on the server's disk: they mean nothing to clients and are not sent.
SERVER_ONLY = ("out-dir", "experiment", "resume-from")
DEFAULTS: dict[str, Scalar] = Settings().flat()


def given_values(run_config: Mapping[str, Scalar], typed: Collection[str]) -> dict[str, Scalar]:
    """Pick the values that a person chose from Flower's run config, which has a value for every key.

    Parameters
    ----------
    run_config : mapping
        What Flower hands to an app: the values of `pyproject.toml`, overridden by those that were typed.
    typed : collection of str
        Flat keys that were typed. In a ServerApp these are the keys of `grid.run.override_config`.

    Returns
    -------
    dict
        The typed values, and the values that differ from the defaults because somebody edited `pyproject.toml`.
    """
    check_keys(run_config)
    return {key: value for key, value in run_config.items() if key in typed or value != DEFAULTS[key]}


def named(given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The given values together with those of the experiment file, by flat key. Given values win.

    Raises
    ------
    SettingsError
        A key is unknown, or the experiment file cannot be read or has a value that is not allowed.
    """
    check_keys(given)
    path = given.get("experiment")
    return {**(_checked_experiment(Path(str(path))) if path else {}), **given}


def asked_for(given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """All values that were chosen, by flat key. Given values override the experiment file, and that the preset."""
    chosen = named(given)
    return {**PRESETS.get(str(chosen.get("matu.preset", "")), {}), **chosen}


def check_keys(values: Mapping[str, object]) -> None:
    """Raise `SettingsError` if a flat key is unknown.

    The text suggests the most similar known key. Of a key that an earlier release had, it says what holds today.
    """
    for key in values:
        if key in removed.KEYS:
            raise SettingsError(removed.explained(key))
        if key not in DEFAULTS:
            raise SettingsError(unknown("setting", key, DEFAULTS))


def parse_run_config(items: Iterable[str]) -> dict[str, Scalar]:
    """Read `KEY=VALUE` items, as `flwr run` takes them. Values have TOML's types, but text needs no quotes."""
    values: dict[str, Scalar] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise SettingsError(f"run config {item!r}: expected KEY=VALUE, such as rounds=10")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text.strip()
    return values


def _checked_experiment(path: Path) -> dict[str, Scalar]:
    values = read_experiment(path)
    try:
        Settings.from_flat(values)
    except SettingsError as error:
        raise SettingsError(f"experiment file {path}: {error}") from None
    return values
