"""Compare the client's training with a plain timm loop of the same model; with `--round`, time one full round.

Images and weights are random. Both loops see the same batches, precision, optimiser and clipping, and run in turn.

    python benchmarks/local_training.py --device cuda --precision bfloat16 --batch-size 128 --json local_training.json
    python benchmarks/local_training.py --round --clients 8 --tasks 8 --device cuda --precision bfloat16

Needs torch, timm and (for LoRA) peft; neither Flower nor Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from matu_flwr.backbones import Backbone, create_backbone, zero_head
from matu_flwr.backbones.factory import timm_model
from matu_flwr.client import ImageSet, fit
from matu_flwr.config.sections import TrainSettings
from matu_flwr.merging import ClientUpdate, MergeOptions, aggregate, unify

CLASSES = 100
LORA = {"r": 16, "lora_alpha": 32, "target_modules": ["qkv", "attn.proj", "fc1", "fc2"]}


def random_images(count: int, size: int, seed: int = 0) -> ImageSet:
    chance = np.random.default_rng(seed)
    images = chance.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet(images, chance.integers(0, CLASSES, count), np.arange(count))


def plain_model(name: str, size: int, trainable: str, device: str) -> torch.nn.Module:
    """timm's own model with its own classifier, wrapped by PEFT for LoRA."""
    model = timm_model(name, size, pretrained=False, num_classes=CLASSES)
    if trainable == "lora":
        from peft import LoraConfig, get_peft_model

        classifier = model.get_classifier()
        model = get_peft_model(model, LoraConfig(**LORA))
        for parameter in classifier.parameters():
            parameter.requires_grad_(True)
    return model.eval().to(device, memory_format=torch.channels_last if device == "cuda" else torch.preserve_format)


def plain_loop(model: torch.nn.Module, data: ImageSet, options: TrainSettings, device: str) -> None:
    """What one writes with timm and torch: images on the device, autocast, fused AdamW, clipping."""
    images, labels = (part.to(device) for part in data.batch(np.arange(len(data))))
    shift, scale = (torch.tensor([0.5, 0.5, 0.5], device=device).view(1, 3, 1, 1) for _ in range(2))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=options.weight_decay, fused=True)
    order = torch.randperm(len(data)).to(device)
    for step in range(options.steps):
        at = torch.arange(step * options.batch_size, (step + 1) * options.batch_size, device=device) % len(data)
        rows = order[at]
        pixels = (images[rows].permute(0, 3, 1, 2).float() / 255 - shift) / scale
        with torch.autocast(device, torch.bfloat16, enabled=options.precision == "bfloat16"):
            logits = model(pixels)
        loss = F.cross_entropy(logits.float(), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, options.clip_norm)
        optimizer.step()


def seconds(work: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(arguments: argparse.Namespace, trainable: str, options: TrainSettings) -> dict[str, Any]:
    """Images per second of `fit`, its vector and copies included, and of the plain loop, measured in turn."""
    backbone = backbone_of(arguments, trainable)
    model = plain_model(arguments.model, backbone.image_size, trainable, arguments.device)
    data = random_images(4 * options.batch_size, backbone.image_size)
    head = zero_head(CLASSES, backbone.num_features)

    def ours() -> None:
        fit(backbone, None, head, data, options, seed=0, task="random")

    def plain() -> None:
        plain_loop(model, data, options, arguments.device)

    for work in (ours, plain):
        work()  # compiles kernels, fills allocators
    count = options.steps * options.batch_size
    rates: dict[str, list[float]] = {"fit": [], "plain": []}
    for _ in range(arguments.repeats):
        rates["fit"].append(count / seconds(ours, arguments.device))
        rates["plain"].append(count / seconds(plain, arguments.device))
    ratio = statistics.median(a / b for a, b in zip(rates["fit"], rates["plain"], strict=True))
    return {
        "trainable": trainable,
        "d": backbone.d,
        "parameters": backbone.total,
        **{f"{name}_images_per_second": [round(rate, 1) for rate in found] for name, found in rates.items()},
        "ratio": round(ratio, 3),
    }


def one_round(arguments: argparse.Namespace, options: TrainSettings) -> dict[str, Any]:
    """Every client trains two of the tasks and unifies; the server aggregates and unifies for every client."""
    backbone = backbone_of(arguments, "full")
    data = random_images(4 * options.batch_size, backbone.image_size)
    head = zero_head(CLASSES, backbone.num_features)
    names = [f"task-{index}" for index in range(arguments.tasks)]
    spent = {"train": 0.0, "client unifies": 0.0, "server aggregates": 0.0, "server unifies": 0.0}
    updates = []
    held = []
    for client in range(arguments.clients):
        mine = sorted({names[client % len(names)], names[(client + 1) % len(names)]})
        held.append(mine)
        vectors = {}
        for task in mine:

            def train(task: str = task, vectors: dict[str, torch.Tensor] = vectors, seed: int = client) -> None:
                vectors[task] = fit(backbone, None, head, data, options, seed=seed, task=task).task_vector

            spent["train"] += seconds(train, arguments.device)
        start = time.perf_counter()
        unified = unify(vectors)
        spent["client unifies"] += time.perf_counter() - start
        updates.append(ClientUpdate(unified, dict.fromkeys(mine, len(data)), f"client-{client:03d}"))
    start = time.perf_counter()
    merged = aggregate(updates, MergeOptions())
    spent["server aggregates"] = time.perf_counter() - start
    start = time.perf_counter()
    for mine in held:
        unify({task: merged.task_vectors[task] for task in mine})
    spent["server unifies"] = time.perf_counter() - start
    return {
        "d": backbone.d,
        "clients": arguments.clients,
        "tasks": arguments.tasks,
        "seconds": {activity: round(value, 3) for activity, value in spent.items()},
        "round_seconds": round(sum(spent.values()), 3),
    }


def backbone_of(arguments: argparse.Namespace, trainable: str) -> Backbone:
    return create_backbone(arguments.model, weights="random", device=arguments.device, trainable=trainable)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch32_clip_224.openai", help="small default or model of timm")
    parser.add_argument("--trainable", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40, help="optimiser steps per call")
    parser.add_argument("--repeats", type=int, default=5, help="calls per measurement, in turn")
    parser.add_argument("--round", action="store_true", help="time a full round instead")
    parser.add_argument("--clients", type=int, default=8, help="of the round")
    parser.add_argument("--tasks", type=int, default=8, help="of the round")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    options = TrainSettings(
        steps=arguments.steps, batch_size=arguments.batch_size, lr=1e-5, head_lr=1e-5, precision=arguments.precision
    )
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{os.cpu_count()} CPU cores"
    found: dict[str, Any] = {
        "model": arguments.model,
        "device": device,
        "torch": torch.__version__,
        "precision": arguments.precision,
        "batch_size": arguments.batch_size,
        "steps": arguments.steps,
    }
    print(
        f"{arguments.model}, batch {arguments.batch_size}, {arguments.precision}, {device}, PyTorch {torch.__version__}"
    )
    if arguments.round:
        found["round"] = one_round(arguments, options)
        for activity, value in found["round"]["seconds"].items():
            print(f"{activity:<20}{value:>9.2f} s")
        print(f"{'round':<20}{found['round']['round_seconds']:>9.2f} s")
    else:
        print(f"{'trainable':<11}{'d':>12}{'fit images/s':>14}{'plain timm':>12}{'ratio':>8}")
        found["training"] = []
        for trainable in arguments.trainable:
            row = compare(arguments, trainable, options)
            found["training"].append(row)
            ours, plain = (statistics.median(row[f"{side}_images_per_second"]) for side in ("fit", "plain"))
            print(f"{trainable:<11}{row['d']:>12,}{ours:>14.1f}{plain:>12.1f}{row['ratio']:>8}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
