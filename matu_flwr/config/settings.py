"""Every knob of a run: typed, bounded, frozen, and validated before anything starts.

Values come from four places; the later one wins: the defaults below (which stand again in `[tool.flwr.app.config]`,
because Flower accepts only keys that it finds there), a preset of the strategy, the optional YAML file named by
`experiment`, and `flwr run --run-config`. A run-config value counts as given when it differs from its default.
Flower's keys are the field names with hyphens, sections before a dot: `matu.relation-weight`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

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
    kebab,
)

Scalar = bool | int | float | str


class SettingsError(ValueError):
    """A setting that does not exist or has an impossible value; the text names the key, the value and the range."""


# MaTU's variants. `paper` is our reading of the published method; docs/method.md says what is published and what is
# read into it. The others take one part away from the default, or read it differently.
PRESETS: dict[str, dict[str, Scalar]] = {
    "no-cross-task": {"matu.kappa": 0},
    "no-modulators": {"matu.modulators": False},
    "agreement": {"matu.agreement": "threshold-or-soft"},
    "no-agreement": {"matu.agreement": "none"},
    "masked-signs": {"matu.signs": "masked"},
    "complete-signs": {"matu.signs": "complete"},
    "masked-reconstruction": {"matu.magnitude": "max", "matu.reconstruction": "masked"},
    "paper": {
        "matu.payload": "vector",
        "matu.magnitude": "max",
        "matu.reconstruction": "masked",
        "matu.agreement": "threshold-or-soft",
        "matu.epsilon": 0.5,
        "matu.epsilon-unit": "similarity",
        "matu.signs": "masked",
        "matu.relation-weight": "similarity",
        "matu.combine": "mean",
        "wire.vector-dtype": "float32",
        "wire.compression": "none",
    },
}


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
    def from_run_config(cls, run_config: Mapping[str, Scalar]) -> Settings:
        """Settings of a run from Flower's run config, with the preset and the experiment file applied."""
        return cls.from_flat(asked_for(run_config)).checked()

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
        if not privacy.on:
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
            raise SettingsError(_explain(error)) from None

    def backbone_arguments(self) -> dict[str, Any]:
        """Arguments of `create_backbone`."""
        return {**self.backbone.model_dump(exclude={"heads_file"}), "seed": self.seed}

    def flat(self) -> dict[str, Scalar]:
        """All values by flat key."""
        flat: dict[str, Scalar] = {}
        for key, value in self.model_dump(by_alias=True).items():
            if isinstance(value, dict):
                flat.update({f"{key}.{name}": inner for name, inner in value.items()})
            else:
                flat[key] = value
        return flat

    def for_clients(self) -> dict[str, Scalar]:
        """What the server tells the clients: values that differ from the defaults, without the server's own paths."""
        return {k: v for k, v in self.flat().items() if v != DEFAULTS[k] and k not in SERVER_ONLY}


SERVER_ONLY = ("out-dir", "experiment", "resume-from")  # clients are not told: paths of the server
DEFAULTS: dict[str, Scalar] = Settings().flat()


def asked_for(run_config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """What somebody chose, by flat key: the preset, over it the experiment file, over it the run config."""
    given = given_values(run_config)
    experiment = str(given.get("experiment", ""))
    merged = {**(read_experiment(Path(experiment)) if experiment else {}), **given}
    return {**PRESETS.get(str(merged.get("matu.preset", "")), {}), **merged}


def given_values(run_config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The run-config values that differ from their defaults; unknown keys are refused."""
    check_keys(run_config)
    return {key: value for key, value in run_config.items() if value != DEFAULTS[key]}


def check_keys(values: Mapping[str, object]) -> None:
    """Refuse unknown flat keys, with the nearest match."""
    for key in values:
        if key not in DEFAULTS:
            near = difflib.get_close_matches(key, DEFAULTS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(DEFAULTS)}"
            raise SettingsError(f"unknown setting {key!r}; {hint}")


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


def read_experiment(path: Path) -> dict[str, Scalar]:
    """Flat values of a YAML experiment file: a mapping of settings, sections as nested mappings or dotted keys."""
    if not path.is_file():
        raise SettingsError(
            f"experiment file {path} does not exist; give an absolute path (relative ones are resolved where Flower "
            f"runs, here {Path.cwd()})"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"experiment file {path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"experiment file {path} holds a {type(content).__name__}, expected a mapping of settings")
    flat: dict[str, Scalar] = {}
    for key, value in content.items():
        for name, inner in value.items() if isinstance(value, dict) else [("", value)]:
            flat[f"{key}.{name}" if name else str(key)] = inner
    try:
        check_keys(flat)
    except SettingsError as error:
        raise SettingsError(f"experiment file {path}: {error}") from None
    return flat


def _explain(error: ValidationError) -> str:
    """One line per wrong value: key, value, what is expected."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        description = _description(key)
        lines.append(
            f"setting {key!r} = {item['input']!r}: {item['msg'].lower()}" + (f" ({description})" if description else "")
        )
    return "; ".join(lines)


def _description(key: str) -> str:
    model: type[BaseModel] = Settings
    for part in key.split("."):
        field = next((f for name, f in model.model_fields.items() if kebab(name) == part), None)
        if field is None:
            return ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
            continue
        return field.description or ""
    return ""
