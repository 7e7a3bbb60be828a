"""Every knob of a run: typed, bounded, frozen, and validated before anything starts.

Values come from four places; the later one wins: the defaults below (which stand again in `[tool.flwr.app.config]`,
because Flower accepts only keys that it finds there), a preset of the strategy, the optional YAML file named by
`experiment`, and `flwr run --run-config`. A run-config value counts as given when it differs from its default.
Flower's keys are the field names with hyphens, sections before a dot: `matu.relation-weight`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from matu_flwr.merging import MergeOptions
from matu_flwr.merging.options import Agreement, Combine, EpsilonUnit, RelationWeight, Signs, Similarity

Scalar = bool | int | float | str


class SettingsError(ValueError):
    """A setting that does not exist or has an impossible value; the text names the key, the value and the range."""


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=_kebab, populate_by_name=True, allow_inf_nan=False
    )


class PartitionSettings(_Section):
    """Who holds which tasks and which images."""

    deal: Literal["even", "dirichlet"] = Field(
        "even", description="tasks to clients: equal numbers of holders, or popularity of tasks drawn by Dirichlet"
    )
    min_tasks: int = Field(1, ge=1, description="least number of tasks a client holds")
    max_tasks: int = Field(3, ge=1, description="largest number; exceeded only if a task had no holder otherwise")
    task_alpha: float = Field(1.0, gt=0, description="of deal = dirichlet; small = a few tasks have most holders")
    split: Literal["dirichlet", "iid", "pathological", "shard"] = Field(
        "dirichlet", description="a task's images to its holders; the last two by flwr-datasets (extra 'hub')"
    )
    alpha: float = Field(0.5, gt=0, description="Dirichlet over labels among a task's holders; small = skewed")
    classes_per_holder: int = Field(2, ge=1, description="of split = pathological (classes) and shard (shards)")
    min_examples: int = Field(16, ge=1, description="training images that every holder of a task gets at least")


class BackboneSettings(_Section):
    """The model that all clients fine-tune, and which of its parameters are in the task vector."""

    name: str = Field("vit_mini_clip_32", min_length=1, description="the small default or any timm model")
    weights: str = Field(
        "pretrained",
        description="'pretrained' = shipped or timm's, 'random' = from the seed, else a safetensors or torch file",
    )
    image_size: int = Field(0, ge=0, le=1024, description="pixels, square; 0 = the model's own")
    trainable: Literal["full", "lora", "blocks"] = Field(
        "full", description="the task vector: all parameters, LoRA adapters (extra 'lora'), or the last blocks"
    )
    last_blocks: int = Field(1, ge=1, description="K of trainable = blocks: transformer blocks from the last")
    linearised: bool = Field(False, description="train f(x; θ_p) + J(θ − θ_p) instead of f(x; θ)")
    lora_rank: int = Field(16, ge=1, description="rank of an adapter")
    lora_alpha: float = Field(32.0, gt=0, description="an adapter is scaled by alpha / rank")
    lora_targets: str = Field("qkv,attn.proj,fc1,fc2", min_length=1, description="names of the layers with an adapter")
    heads_file: str = Field(
        "", description="zero-shot heads written by `matu heads`; '' = through the text tower of the backbone"
    )


class TrainSettings(_Section):
    """Local fine-tuning of one task in one round."""

    steps: int = Field(10, ge=1, description="optimiser steps per task and round")
    batch_size: int = Field(32, ge=1, description="images per step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="made anew every round; sgd has momentum 0.9")
    lr: float = Field(1e-3, gt=0, description="learning rate of the backbone")
    head_lr: float = Field(1e-2, gt=0, description="learning rate of a linear head")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="learning rates over the steps of all rounds; cosine falls to 0 in the last"
    )
    warmup: float = Field(0.0, ge=0, le=1, description="share of all steps in which the rates rise from 0")
    weight_decay: float = Field(0.0, ge=0, description="backbone and head; decoupled with adamw")
    clip_norm: float = Field(1.0, ge=0, description="clip the L2 norm of the backbone's gradient; 0 = do not")
    threads: int = Field(1, ge=0, description="CPU threads of a client; 0 = all. Other numbers round differently")
    heads: Literal["average", "local", "zero-shot"] = Field(
        "average", description="linear: mean over a task's holders, or kept; or frozen, from the class names"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto = the GPU that the node's resources give, else the CPU"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of activations; weights stay float32")


class WireSettings(_Section):
    """What travels."""

    vector_dtype: Literal["float32", "bfloat16"] = Field("float32", description="unified vectors on the wire")


class MatuSettings(_Section):
    """MaTU's switches; see `MergeOptions` and docs/method.md."""

    preset: Literal["", "paper", "no-cross-task", "no-modulators", "no-agreement", "masked-signs", "complete-signs"] = (
        Field("", description="'paper' = our reading of the published method; the others are ablations")
    )
    payload: Literal["vector", "update"] = Field("update", description="compress task vectors, or this round's updates")
    downlink: Literal["client", "global"] = Field("client", description="unify each client's tasks, or all tasks")
    rho: float = Field(0.4, ge=0, le=1, description="ρ, sign agreement from which a parameter counts")
    kappa: int = Field(3, ge=0, description="κ, related tasks at most; 0 = no cross-task step")
    epsilon: float = Field(3.0, description="ε, least similarity of a related task, in epsilon-unit")
    epsilon_unit: EpsilonUnit = Field("z", description="ε as similarity in [0, 1] or as a standard score")
    agreement: Agreement = Field("threshold-or-soft", description="how agreement makes the aggregated mask")
    similarity: Similarity = Field("all", description="normalise by all parameters or by the common support")
    signs: Signs = Field("complete", description="read a cleared mask bit as 0 or as the opposite sign")
    relation_weight: RelationWeight = Field("excess", description="weight of a related task: S or max(0, 2S − 1)")
    combine: Combine = Field("mean", description="cross-task step: weighted mean or sum")
    error_feedback: bool = Field(
        False, description="clients add what their compression lost in earlier rounds; with payload = update"
    )
    modulators: bool = Field(True, description="masks and rescalers; off = everybody gets the unified vector as it is")

    def merge_options(self) -> MergeOptions:
        """The part that `merging.aggregate` reads."""
        names = MergeOptions.__dataclass_fields__
        return MergeOptions(**{name: getattr(self, name) for name in names})


class FedProxSettings(_Section):
    """FedProx."""

    mu: float = Field(-1.0, ge=-1, description="μ of μ/2 ‖θ − θ_global‖²; has to be given, try 0.001 to 1")


class FedPerSettings(_Section):
    """FedPer."""

    blocks: int = Field(1, ge=0, description="K: transformer blocks from the last that stay at the client")


class FedRepSettings(_Section):
    """FedRep."""

    head_share: float = Field(0.5, gt=0, le=1, description="share of a round's steps that train heads alone")


class FedBabuSettings(_Section):
    """FedBABU."""

    fine_tune: int = Field(10, ge=1, description="steps that fine-tune a head before a test")


class DittoSettings(_Section):
    """Ditto."""

    strength: float = Field(0.1, ge=0, description="λ of λ/2 ‖v − w‖²: pull of personal models to the global one")


class MatFLSettings(_Section):
    """MaT-FL."""

    mixing: Literal["grouping", "soft"] = Field("grouping", description="equal weights in clusters, or by similarity")
    groups: int = Field(2, ge=1, description="clusters of mixing = grouping")
    threshold: float = Field(0.0, gt=-1, le=1, description="th of mixing = soft: weights ∝ max(cos + th, 0)")


class TaskArithmeticSettings(_Section):
    """Task arithmetic."""

    scale: float = Field(0.3, gt=0, description="λ of θ_p + λ Σ τ")


class TiesSettings(_Section):
    """TIES-Merging."""

    keep: float = Field(0.2, gt=0, le=1, description="share of a vector's parameters that survives trimming")
    scale: float = Field(1.0, gt=0, description="of the merged vector")


# MaTU's variants. `paper` is our reading of the published method; docs/method.md says what is published and what is
# read into it. The others take one part away from the default, or read it differently.
PRESETS: dict[str, dict[str, Scalar]] = {
    "no-cross-task": {"matu.kappa": 0},
    "no-modulators": {"matu.modulators": False},
    "no-agreement": {"matu.agreement": "none"},
    "masked-signs": {"matu.signs": "masked"},
    "complete-signs": {"matu.signs": "complete"},
    "paper": {
        "matu.payload": "vector",
        "matu.epsilon": 0.5,
        "matu.epsilon-unit": "similarity",
        "matu.signs": "masked",
        "matu.relation-weight": "similarity",
        "matu.combine": "mean",
    },
}


class Settings(_Section):
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
    server_evaluate: bool = Field(True, description="after the last round the server tests τ^t on its own test sets")
    partition: PartitionSettings = PartitionSettings()
    backbone: BackboneSettings = BackboneSettings()
    train: TrainSettings = TrainSettings()
    wire: WireSettings = WireSettings()
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
        given = given_values(run_config)
        experiment = str(given.get("experiment", ""))
        from_file = read_experiment(Path(experiment)) if experiment else {}
        merged = {**from_file, **given}
        preset = str(merged.get("matu.preset", ""))
        return cls.from_flat({**PRESETS.get(preset, {}), **merged}).checked()

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
        return self

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
        return {k: v for k, v in self.flat().items() if v != DEFAULTS[k] and k not in ("out-dir", "experiment")}


DEFAULTS: dict[str, Scalar] = Settings().flat()


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
        field = next((f for name, f in model.model_fields.items() if _kebab(name) == part), None)
        if field is None:
            return ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
            continue
        return field.description or ""
    return ""
