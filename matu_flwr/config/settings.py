"""Every knob of a run: typed, bounded, frozen, and validated before anything starts.

Values come from four places; the later one wins:

1. the defaults below, which stand again in `[tool.flwr.app.config]`, because Flower accepts only keys that it finds
   there (`make settings` writes them);
2. a preset of the strategy (`matu.preset`);
3. the YAML file that `experiment` names;
4. what somebody typed: options of `matu run`, and `--run-config` of `flwr run`. A typed value wins even where it equals
   its default (`given_values` says how it is told apart).

Flower's keys are the field names with hyphens, sections before a dot: `matu.relation-weight`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

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

    Raises
    ------
    SettingsError
        From the class methods, for unknown keys (with the nearest match) and impossible values (with their range).
    """

    experiment: str = Field("", description="a YAML file with settings; '' = none")
    suite: str = Field("offline", min_length=1, description="a shipped suite's name or a suite file")
    strategy: str = Field("matu", min_length=1, description="see matu_flwr.strategies.available()")
    rounds: int = Field(30, ge=1, description="federated rounds")
    seed: int = Field(0, ge=0, lt=2**31, description="of everything random: model, partition, sampling, batches")
    data_dir: str = Field("", description="folder of the data sets; '' = $MATU_DATA_DIR")
    cache_dir: str = Field("", description="decoded images; '' = $XDG_CACHE_HOME/matu-flwr or ~/.cache/matu-flwr")
    state_dir: str = Field("", description="clients' own files; '' = $XDG_STATE_HOME/matu-flwr or ~/.local/state/…")
    out_dir: str = Field("", description="artefacts of the run; '' = runs/<time>-<suite>-<strategy> where Flower runs")
    resume_from: str = Field("", description="folder of a run or one checkpoint of it, to go on from; '' = a new run")
    keep_checkpoints: int = Field(
        2, ge=0, description="rounds that can be gone back to; clients keep as many of their own states. 0 = none"
    )
    fraction_train: float = Field(1.0, gt=0, le=1, description="share of the clients that train in a round")
    min_nodes: int = Field(2, ge=1, description="wait until so many nodes are connected")
    node_timeout: float = Field(
        300.0, gt=0, description="seconds to wait for min-nodes, and for nodes to say who they are"
    )
    round_timeout: float = Field(
        3600.0, gt=0, description="seconds until a client that has not answered counts as lost"
    )
    max_failed_fraction: float = Field(0.5, ge=0, le=1, description="stop the run if a larger share of a round failed")
    window: int = Field(4, ge=1, description="messages in flight: bounds the server's memory")
    evaluate: Literal["ride", "phase"] = Field(
        "ride", description="clients test what they receive before they train, or in a phase of its own every round"
    )
    evaluate_every: int = Field(
        1, ge=1, description="rounds between two tests; the start and the end are always tested"
    )
    server_evaluate: bool = Field(True, description="after the last round the server tests τ^t on its own test sets")
    partition: PartitionSettings = PartitionSettings()
    backbone: BackboneSettings = BackboneSettings()
    train: TrainSettings = TrainSettings()
    wire: WireSettings = WireSettings()
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
        """Settings of a run from what somebody gave, with the preset and the experiment file applied.

        Every value of `given` counts, also one that equals its default. Flower hands an app all keys: take
        `given_values` of them first.
        """
        return cls.from_flat(asked_for(given)).checked()

    def checked(self) -> Settings:
        """These settings, if they go together.

        Raises
        ------
        SettingsError
            Two of them do not.
        """
        if self.partition.min_tasks > self.partition.max_tasks:
            raise SettingsError(
                f"partition.min-tasks = {self.partition.min_tasks} is larger than partition.max-tasks = "
                f"{self.partition.max_tasks}"
            )
        if self.backbone.linearised and self.train.precision == "bfloat16":
            raise SettingsError(
                "backbone.linearised = true with train.precision = bfloat16: forward-mode products are computed in "
                "float32 only; set train.precision to float32"
            )
        if self.matu.error_feedback and self.matu.payload != "update":
            raise SettingsError(
                "matu.error-feedback = true with matu.payload = 'vector': a vector is sent anew in every round and "
                "owes nothing to earlier ones; set matu.payload to update"
            )
        if self.robust.trim != RobustSettings().trim and self.robust.mean != "trimmed":
            raise SettingsError(
                f"robust.trim = {self.robust.trim} with robust.mean = {self.robust.mean!r}: only the trimmed mean "
                "trims; set robust.mean to trimmed"
            )
        self._check_privacy()
        return self

    def _check_privacy(self) -> None:
        """Refuse what would promise privacy and not keep it."""
        privacy = self.privacy
        if privacy.noise_multiplier == 0:
            if privacy != PrivacySettings():
                raise SettingsError(
                    f"privacy.clip-norm = {privacy.clip_norm:g}, privacy.delta = {privacy.delta:g} with "
                    "privacy.noise-multiplier = 0: without noise there is no privacy; give privacy.noise-multiplier"
                )
            return
        if privacy.clip_norm == 0:
            raise SettingsError(
                f"privacy.noise-multiplier = {privacy.noise_multiplier:g} needs privacy.clip-norm, the largest norm "
                "of a task's update, and none was given: the noise is a multiple of it"
            )
        if self.train.heads == "local":
            raise SettingsError(
                "privacy.noise-multiplier > 0 with train.heads = 'local': a local head is trained without noise, and "
                "the test counts that clients report would tell of it; set train.heads to average (clipped and noised "
                "with the update) or to zero-shot (frozen)"
            )

    @classmethod
    def from_flat(cls, values: Mapping[str, Scalar]) -> Settings:
        """Settings from flat keys such as "matu.kappa"; keys not given keep their defaults."""
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
        """All values by flat key."""
        flat: dict[str, Scalar] = {}
        for key, value in self.model_dump(by_alias=True).items():
            if isinstance(value, dict):
                flat.update({f"{key}.{name}": inner for name, inner in value.items()})
            else:
                flat[key] = value
        return flat

    def given(self) -> set[str]:
        """Flat keys whose values were given to `from_flat`; the others are at their defaults."""
        found: set[str] = set()
        for name in self.model_fields_set:
            value, key = getattr(self, name), kebab(name)
            found |= {f"{key}.{kebab(n)}" for n in value.model_fields_set} if isinstance(value, Section) else {key}
        return found

    def changed(self) -> dict[str, Scalar]:
        """Values that differ from their defaults, by flat key, sorted."""
        return {key: value for key, value in sorted(self.flat().items()) if value != DEFAULTS[key]}

    def for_clients(self) -> dict[str, Scalar]:
        """What the server tells the clients: values that differ from the defaults, without the server's own paths."""
        return {k: v for k, v in self.flat().items() if v != DEFAULTS[k] and k not in SERVER_ONLY}


SERVER_ONLY = ("out-dir", "experiment", "resume-from")  # clients are not told: paths of the server
DEFAULTS: dict[str, Scalar] = Settings().flat()


def given_values(run_config: Mapping[str, Scalar], typed: Collection[str]) -> dict[str, Scalar]:
    """What somebody gave of a run config that has a value for every key, as Flower hands it to an app.

    Parameters
    ----------
    run_config : mapping
        Flower's: the app's `pyproject.toml`, and over it what was typed.
    typed : collection of str
        Keys that were typed, the override of the run: `grid.run.override_config` in a ServerApp.

    Returns
    -------
    dict
        Typed values; and those that differ from the defaults here, because somebody changed them in `pyproject.toml`.
    """
    check_keys(run_config)
    return {key: value for key, value in run_config.items() if key in typed or value != DEFAULTS[key]}


def named(given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """What somebody named, by flat key: the experiment file, and over it what was given.

    Raises
    ------
    SettingsError
        An unknown key; an experiment file that cannot be read, or with an impossible value.
    """
    check_keys(given)
    path = given.get("experiment")
    return {**(_checked_experiment(Path(str(path))) if path else {}), **given}


def asked_for(given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """All that was chosen, by flat key: the preset, over it the experiment file, over it what was given."""
    chosen = named(given)
    return {**PRESETS.get(str(chosen.get("matu.preset", "")), {}), **chosen}


def check_keys(values: Mapping[str, object]) -> None:
    """Refuse unknown flat keys, with the nearest match."""
    for key in values:
        if key not in DEFAULTS:
            raise SettingsError(unknown("setting", key, DEFAULTS))


def parse_run_config(items: Iterable[str]) -> dict[str, Scalar]:
    """Values of `KEY=VALUE` items, typed as TOML types them; text needs no quotes."""
    values: dict[str, Scalar] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals:
            raise SettingsError(f"run config {item!r}: expected KEY=VALUE")
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
