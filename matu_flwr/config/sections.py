"""The sections of `Settings`: one class for each part of a run, and one for each method that has its own options."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from matu_flwr.choices import (
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
from matu_flwr.config.closed import Closed, kebab


class Section(Closed):
    """A part of the settings. In files and on the command line its fields are spelled with hyphens."""

    model_config = ConfigDict(alias_generator=kebab, populate_by_name=True)


class PartitionSettings(Section):
    """Who holds which tasks and which images."""

    deal: Literal["even", "dirichlet", "ring"] = Field(
        "even",
        description="how tasks are given to clients: even = all tasks have about as many holders, dirichlet = some "
        "tasks have more, ring = client i holds neighbouring tasks",
    )
    min_tasks: int = Field(1, ge=1, description="smallest number of tasks of a client")
    max_tasks: int = Field(
        3, ge=1, description="largest number of tasks of a client; exceeded only if a task would have no holder"
    )
    task_alpha: float = Field(
        1.0, gt=0, description="with deal = dirichlet: a small value gives most holders to a few tasks"
    )
    split: Literal["dirichlet", "iid"] = Field(
        "dirichlet",
        description="how a task's images are split among its holders: by label, or evenly (iid)",
    )
    alpha: float = Field(
        0.5, gt=0, description="with split = dirichlet: a small value gives holders very different labels"
    )
    min_examples: int = Field(16, ge=1, description="smallest number of training images of a task at a holder")


class BackboneSettings(Section):
    """The model that all clients fine-tune, and which of its parameters are trained and make up the task vector."""

    name: str = Field("vit_mini_clip_32", min_length=1, description="the small default model, or any model of timm")
    weights: str = Field(
        "pretrained",
        description="'pretrained' = shipped with the package or timm's; 'random' = drawn from the seed; or the path of "
        "a safetensors or torch file",
    )
    image_size: int = Field(
        0, ge=0, le=1024, description="side of the square images in pixels; 0 = what the model was trained with"
    )
    trainable: Literal["full", "lora"] = Field(
        "full", description="what is trained: all parameters, or LoRA adapters (needs the extra 'lora')"
    )
    linearised: bool = Field(
        False, description="train the model's linear approximation at the start, f(x; θ_p) + J(θ − θ_p), not f(x; θ)"
    )
    lora_rank: int = Field(16, ge=1, description="rank of a LoRA adapter")
    lora_alpha: float = Field(32.0, gt=0, description="a LoRA adapter's output is scaled by lora-alpha / lora-rank")
    lora_targets: str = Field(
        "qkv,attn.proj,fc1,fc2",
        min_length=1,
        description="names of the layers that get an adapter, separated by commas",
    )
    heads_file: str = Field(
        "", description="file of zero-shot heads, made by `matu heads`; '' = make them with the backbone's text tower"
    )


class TrainSettings(Section):
    """Local fine-tuning of one task in one round."""

    steps: int = Field(
        10, ge=1, description="steps of AdamW per task and round; the optimiser's state starts anew in every round"
    )
    batch_size: int = Field(32, ge=1, description="images per step")
    lr: float = Field(1e-3, gt=0, description="learning rate of the backbone")
    head_lr: float = Field(1e-2, gt=0, description="learning rate of a linear head")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="how the learning rates change over the steps of all rounds; cosine falls to 0"
    )
    warmup: float = Field(0.0, ge=0, le=1, description="share of all steps during which the learning rates rise from 0")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of backbone and head, decoupled from the gradient")
    clip_norm: float = Field(
        1.0, ge=0, description="largest L2 norm of the backbone's gradient, longer ones are clipped; 0 = no clipping"
    )
    threads: int = Field(
        1, ge=0, description="CPU threads of a client; 0 = all; results differ by rounding between numbers of threads"
    )
    heads: Literal["average", "local", "zero-shot"] = Field(
        "average",
        description="average = a linear head, averaged over a task's holders; local = a linear head that stays at its "
        "client; zero-shot = a frozen head made from the class names",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where clients compute; auto = on a GPU if the process sees one, else on the CPU"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of activations; weights stay float32"
    )


class WireSettings(Section):
    """How vectors and masks are encoded for the network."""

    vector_dtype: VectorDtype = Field(
        "bfloat16", description="dtype in which vectors are sent; int8 and int4 are explained in docs/lab/wire.md"
    )
    compression: Literal["none", "zstd"] = Field(
        "zstd", description="lossless compression of the vectors and masks that are sent"
    )


class RobustSettings(Section):
    """Limits on how much one client can influence the server's result. docs/bad-clients.md has the formulas."""

    clip_norm: float = Field(
        0.0, ge=0, description="C, the largest L2 norm of what a client sends for a task; 0 = no limit"
    )
    clip_factor: float = Field(
        0.0, ge=0, description="the same limit, as a multiple of the round's median norm; 0 = no limit"
    )
    head_clip_norm: float = Field(
        0.0, ge=0, description="largest L2 norm of the change of a head in one round; 0 = no limit"
    )
    max_examples: int = Field(
        0,
        ge=0,
        description="largest number of images per task that a client counts for; 1 = all clients count alike, 0 = as "
        "many as the client says",
    )
    mean: MeanKind = Field(
        "weighted",
        description="mean over a task's holders: weighted by images, or the median or trimmed mean per parameter",
    )
    trim: float = Field(
        0.2, gt=0, lt=0.5, description="with mean = trimmed: share of the values that is left out at each end"
    )


class ScreenSettings(Section):
    """Which replies are too far from the rest of the round to be used. docs/bad-clients.md has the rule."""

    factor: float = Field(
        10.0, ge=0, description="a reply is refused if an update in it is so many times the round's median; 0 = never"
    )
    jump: float = Field(
        10.0,
        ge=0,
        description="a merged vector or head is rolled back if it is so many times what its parts allow; 0 = only if "
        "it is not finite",
    )


class PrivacySettings(Section):
    """Differential privacy, added at the clients. docs/privacy.md says what it protects and what it does not."""

    noise_multiplier: float = Field(
        0.0, ge=0, description="σ; the noise has standard deviation σ · clip-norm; 0 = no noise, no privacy"
    )
    clip_norm: float = Field(
        0.0, ge=0, description="S, the largest L2 norm of a task's update together with that of its head"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="the δ for which the privacy loss ε is reported")


class MatuSettings(Section):
    """MaTU's switches. docs/method.md explains them step by step; `MergeOptions` lists those of the server."""

    preset: Literal["", "paper"] = Field("", description="'paper' = our reading of the published method; '' = none")
    payload: Literal["vector", "update"] = Field(
        "update", description="what is unified and sent: whole task vectors, or their changes in this round"
    )
    magnitude: Magnitude = Field(
        "mean",
        description="magnitudes of a unified vector: the largest among tasks with the elected sign, or the mean of all",
    )
    reconstruction: Reconstruction = Field(
        "complete",
        description="how a cleared mask bit is read when a task is rebuilt: as 0 (masked), or as the opposite sign "
        "with a rescaler of its own (complete)",
    )
    downlink: Literal["client", "global"] = Field(
        "client", description="what the server unifies: the tasks of each client, or all tasks for everybody"
    )
    rho: float = Field(
        0.4, ge=0, le=1, description="ρ, the sign agreement from which a parameter counts fully in the aggregated mask"
    )
    kappa: int = Field(
        3, ge=0, description="κ, the largest number of related tasks of a task; 0 = tasks do not learn from each other"
    )
    epsilon: float = Field(3.0, description="ε, the similarity from which tasks are related, in the unit epsilon-unit")
    epsilon_unit: EpsilonUnit = Field(
        "z", description="unit of ε: similarity in [0, 1], or a standard score z above the similarity of chance"
    )
    agreement: Agreement = Field(
        "none", description="how the aggregated mask is made from the clients' sign agreement; none = 1 everywhere"
    )
    similarity: Similarity = Field(
        "all", description="similarity of tasks over all parameters, or over those where both have a sign (support)"
    )
    signs: Signs = Field(
        "complete", description="how a cleared mask bit is read when signs are compared: as 0, or as the opposite sign"
    )
    relation_weight: RelationWeight = Field(
        "excess", description="weight of a related task of similarity S: S (similarity), or max(0, 2S − 1) (excess)"
    )
    combine: Combine = Field(
        "mean", description="how related tasks are added to a task: in a weighted mean, or in a sum"
    )
    error_feedback: bool = Field(
        False, description="clients send what compression lost in earlier rounds later on; needs payload = update"
    )
    modulators: bool = Field(
        True, description="use masks and rescalers; false = every task gets the unified vector unchanged"
    )


class FedProxSettings(Section):
    """Options of FedProx (Li et al. 2020)."""

    # No default suits all data, and μ = 0 would be FedAvg. So -1 means "not given", and the method asks for a value.
    mu: float = Field(
        -1.0, ge=-1, description="μ of the penalty μ/2 ‖θ − θ_global‖²; you have to give it, try 0.001 to 1"
    )


class FedPerSettings(Section):
    """Options of FedPer (Arivazhagan et al. 2019)."""

    blocks: int = Field(
        1, ge=0, description="K, the number of transformer blocks that stay at the client, counted from the last"
    )


class FedRepSettings(Section):
    """Options of FedRep (Collins et al. 2021)."""

    head_share: float = Field(0.5, gt=0, le=1, description="share of a round's steps that train only the heads")


class FedBabuSettings(Section):
    """Options of FedBABU (Oh et al. 2022)."""

    fine_tune: int = Field(10, ge=1, description="number of steps that fine-tune a head before each test")


class DittoSettings(Section):
    """Options of Ditto (Li et al. 2021)."""

    strength: float = Field(
        0.1, ge=0, description="λ of the penalty λ/2 ‖v − w‖², which pulls a personal model v to the global model w"
    )


class MatFLSettings(Section):
    """Options of MaT-FL (Cai et al. 2023)."""

    mixing: Literal["grouping", "soft"] = Field(
        "grouping", description="how models are mixed: with equal weights within clusters, or weighted by similarity"
    )
    groups: int = Field(2, ge=1, description="with mixing = grouping: the number of clusters")
    threshold: float = Field(
        0.0, gt=-1, le=1, description="with mixing = soft: th of the weights, which are ∝ max(cos + th, 0)"
    )


class TaskArithmeticSettings(Section):
    """Options of task arithmetic (Ilharco et al. 2023)."""

    scale: float = Field(0.3, gt=0, description="λ of the merged model θ_p + λ Σ τ")


class TiesSettings(Section):
    """Options of TIES-Merging (Yadav et al. 2023)."""

    keep: float = Field(0.2, gt=0, le=1, description="share of each vector's parameters, the largest, that is kept")
    scale: float = Field(1.0, gt=0, description="factor of the merged vector")
