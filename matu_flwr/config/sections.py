"""The sections of `Settings`: one class per part of a run, and one per method with options of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from matu_flwr.config.closed import Closed, kebab
from matu_flwr.merging.options import (
    Agreement,
    Combine,
    EpsilonUnit,
    Magnitude,
    MeanKind,
    Reconstruction,
    RelationWeight,
    Signs,
    Similarity,
    VectorDtype,
)


class Section(Closed):
    """A part of the settings; keys are spelled with hyphens."""

    model_config = ConfigDict(alias_generator=kebab, populate_by_name=True)


class PartitionSettings(Section):
    """Who holds which tasks and which images."""

    deal: Literal["even", "dirichlet", "ring"] = Field(
        "even", description="tasks to clients: equal numbers of holders, popularity drawn by Dirichlet, or neighbours"
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


class BackboneSettings(Section):
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


class TrainSettings(Section):
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


class WireSettings(Section):
    """What travels."""

    vector_dtype: VectorDtype = Field("bfloat16", description="vectors on the wire; int8, int4: docs/lab/wire.md")
    compression: Literal["none", "zstd"] = Field("zstd", description="of vectors and masks on the wire; loses nothing")


class RobustSettings(Section):
    """What bounds a client's influence at the server; docs/bad-clients.md has the formulas."""

    clip_norm: float = Field(0.0, ge=0, description="C: L2 norm of what a client sends for a task, at most; 0 = any")
    clip_factor: float = Field(0.0, ge=0, description="the same bound as a multiple of the round's median; 0 = any")
    head_clip_norm: float = Field(0.0, ge=0, description="L2 norm of a head's change in a round, at most; 0 = any")
    max_examples: int = Field(
        0, ge=0, description="images that a client counts for at most, per task; 1 = all alike, 0 = its own word"
    )
    mean: MeanKind = Field("weighted", description="over a task's holders: by images, or coordinate-wise and robust")
    trim: float = Field(0.2, gt=0, lt=0.5, description="of mean = trimmed: share left out at each end")


class PrivacySettings(Section):
    """Client-side differential privacy; docs/bad-clients.md says what it protects and what not."""

    noise_multiplier: float = Field(0.0, ge=0, description="noise of standard deviation σ · clip-norm; 0 = no privacy")
    clip_norm: float = Field(0.0, ge=0, description="S: L2 norm of a task's update and its head's, together, at most")
    delta: float = Field(1e-5, gt=0, lt=1, description="δ for which ε is reported")


class MatuSettings(Section):
    """MaTU's switches; see `MergeOptions` and docs/method.md."""

    preset: Literal["", "paper"] = Field("", description="'paper' = our reading of the published method")
    payload: Literal["vector", "update"] = Field("update", description="compress task vectors, or this round's updates")
    magnitude: Magnitude = Field("mean", description="of a unified vector: largest that agrees, or mean over tasks")
    reconstruction: Reconstruction = Field("complete", description="read a cleared mask bit as 0 or as −λ₋ τ")
    downlink: Literal["client", "global"] = Field("client", description="unify each client's tasks, or all tasks")
    rho: float = Field(0.4, ge=0, le=1, description="ρ, sign agreement from which a parameter counts")
    kappa: int = Field(3, ge=0, description="κ, related tasks at most; 0 = no cross-task step")
    epsilon: float = Field(3.0, description="ε, least similarity of a related task, in epsilon-unit")
    epsilon_unit: EpsilonUnit = Field("z", description="ε as similarity in [0, 1] or as a standard score")
    agreement: Agreement = Field("none", description="how agreement makes the aggregated mask")
    similarity: Similarity = Field("all", description="normalise by all parameters or by the common support")
    signs: Signs = Field("complete", description="read a cleared mask bit as 0 or as the opposite sign")
    relation_weight: RelationWeight = Field("excess", description="weight of a related task: S or max(0, 2S − 1)")
    combine: Combine = Field("mean", description="cross-task step: weighted mean or sum")
    error_feedback: bool = Field(
        False, description="clients add what their compression lost in earlier rounds; with payload = update"
    )
    modulators: bool = Field(True, description="masks and rescalers; off = everybody gets the unified vector as it is")


class FedProxSettings(Section):
    """FedProx."""

    mu: float = Field(-1.0, ge=-1, description="μ of μ/2 ‖θ − θ_global‖²; has to be given, try 0.001 to 1")


class FedPerSettings(Section):
    """FedPer."""

    blocks: int = Field(1, ge=0, description="K: transformer blocks from the last that stay at the client")


class FedRepSettings(Section):
    """FedRep."""

    head_share: float = Field(0.5, gt=0, le=1, description="share of a round's steps that train heads alone")


class FedBabuSettings(Section):
    """FedBABU."""

    fine_tune: int = Field(10, ge=1, description="steps that fine-tune a head before a test")


class DittoSettings(Section):
    """Ditto."""

    strength: float = Field(0.1, ge=0, description="λ of λ/2 ‖v − w‖²: pull of personal models to the global one")


class MatFLSettings(Section):
    """MaT-FL."""

    mixing: Literal["grouping", "soft"] = Field("grouping", description="equal weights in clusters, or by similarity")
    groups: int = Field(2, ge=1, description="clusters of mixing = grouping")
    threshold: float = Field(0.0, gt=-1, le=1, description="th of mixing = soft: weights ∝ max(cos + th, 0)")


class TaskArithmeticSettings(Section):
    """Task arithmetic."""

    scale: float = Field(0.3, gt=0, description="λ of θ_p + λ Σ τ")


class TiesSettings(Section):
    """TIES-Merging."""

    keep: float = Field(0.2, gt=0, le=1, description="share of a vector's parameters that survives trimming")
    scale: float = Field(1.0, gt=0, description="of the merged vector")
