"""Draw the images of the demo's sites. Usage: images.py ROOT. Each site gets a folder, as a hospital would have one."""

import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from matu_flwr.tasks.loaders.generated import FAMILIES, draw_images, draw_labels

SITES = {
    "north": {"dots": ("counts", "dots"), "gratings": ("orientations", "gratings")},
    "south": {"squares": ("counts", "squares"), "gratings": ("orientations", "gratings")},
    "east": {"dots": ("counts", "dots"), "stripes": ("orientations", "stripes")},
}
COUNTS = {"train": 240, "test": 96}
# Side of the images in pixels. The default backbone takes this size.
SIZE = 32


def write(root: Path) -> None:
    """Draw the images of every site. Each site, task and part has a seed of its own, so that they share no image."""
    for site, tasks in SITES.items():
        for task, (family_name, style) in tasks.items():
            family = FAMILIES[family_name]
            for part, count in COUNTS.items():
                rng = np.random.default_rng(zlib.crc32(f"{site}/{task}/{part}".encode()))
                labels = draw_labels(family, count, rng)
                images = draw_images(family, style, labels, SIZE, rng)
                for index, (label, image) in enumerate(zip(labels, images, strict=True)):
                    folder = root / site / task / part / family.classes[label]
                    folder.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image).save(folder / f"{index:04d}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
