"""Compare two ways to read images, in images per second of an epoch: the decoded cache, and decoding every time.

The cache holds decoded images in a memory-mapped file. Both ways deliver shuffled float32 batches (B, 3, S, S) in [0,
1] in one process, which is how a client reads. The other way is what most training code does: torchvision's
ImageFolder, with a resize of the short side, a centre crop and ToTensor.

    MATU_DATA_DIR=... python benchmarks/input_path.py --json input_path.json

Without MATU_DATA_DIR a small folder of made pictures is read instead; its numbers say little about photographs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from matu_flwr._torchvision import ensure_importable
from matu_flwr.tasks import TaskSpec, load_task

BATCH = 32


def made_folder(root: Path) -> str:
    """A folder task of 400 JPEG pictures of 128 px."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 80), ("test", 4)):
        for label in range(5):
            folder = root / "made" / part / f"class {label}"
            folder.mkdir(parents=True)
            for index in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                coarse.resize((128, 128), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=85)
    return "made"


def cached_epoch(images: np.ndarray, labels: np.ndarray, seed: int) -> Iterator[torch.Tensor]:
    order = np.random.default_rng(seed).permutation(len(labels))
    for start in range(0, len(order), BATCH):
        chosen = np.sort(order[start : start + BATCH])  # ascending: the disk reads forwards
        batch = torch.from_numpy(images[chosen])  # (B, S, S, 3) uint8, copied out of the memory map
        yield batch.permute(0, 3, 1, 2).float().div_(255)


def decoding_epoch(folder: Path, size: int, seed: int) -> Iterator[torch.Tensor]:
    ensure_importable()
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Resize(size, antialias=True), transforms.CenterCrop(size), transforms.ToTensor()]
    loader = torch.utils.data.DataLoader(
        ImageFolder(folder, transforms.Compose(steps)),
        BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    for images, _ in loader:
        yield images


def rate(epoch: Callable[[int], Iterator[torch.Tensor]], repeats: int) -> list[float]:
    """Images per second of each of some epochs."""
    rates = []
    for seed in range(repeats):
        start = time.perf_counter()
        count = sum(len(batch) for batch in epoch(seed))
        rates.append(count / (time.perf_counter() - start))
    return rates


def measure(root: Path, task: str, size: int, repeats: int, cache: Path) -> dict[str, object]:
    start = time.perf_counter()
    spec = TaskSpec(task, "folder", {})
    data = load_task(spec, image_size=size, seed=0, data_dir=root, cache_dir=cache)
    built = time.perf_counter() - start
    mapped = rate(lambda seed: cached_epoch(data.train_images, data.train_labels, seed), repeats)
    decoded = rate(lambda seed: decoding_epoch(root / task / "train", size, seed), repeats)
    return {
        "size": size,
        "images": len(data.train_labels),
        "cache_mb": round((data.train_images.nbytes + data.test_images.nbytes) / 1e6, 1),
        "build_seconds": round(built, 2),
        "cached_images_per_second": [round(value) for value in mapped],
        "decoding_images_per_second": [round(value) for value in decoded],
        "speedup": round(statistics.median(mapped) / statistics.median(decoded), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224], help="sides of the images, in pixels")
    parser.add_argument("--repeats", type=int, default=5, help="epochs per measurement")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as a client of a simulation
    with tempfile.TemporaryDirectory() as scratch:
        data_dir = os.environ.get("MATU_DATA_DIR")
        root = Path(data_dir) if data_dir else Path(scratch)
        task = "flowers5" if data_dir else made_folder(root)
        rows = [measure(root, task, size, arguments.repeats, Path(scratch) / "cache") for size in arguments.sizes]
    machine = {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    print(f"{task}, batches of {BATCH}, one process and one thread; median of {arguments.repeats} epochs")
    print(f"{'px':>5}{'images':>8}{'cache MB':>10}{'build s':>9}{'cached /s':>11}{'decoding /s':>13}{'speedup':>9}")
    for row in rows:
        cached, decoding = (statistics.median(row[f"{kind}_images_per_second"]) for kind in ("cached", "decoding"))
        print(
            f"{row['size']:>5}{row['images']:>8}{row['cache_mb']:>10}{row['build_seconds']:>9}{cached:>11.0f}"
            f"{decoding:>13.0f}{row['speedup']:>9}"
        )
    if arguments.json:
        content = {"task": task, "batch": BATCH, "machine": machine, "measurements": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
