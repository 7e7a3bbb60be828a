"""Write the demo's sites as folders of images: images.py ROOT (one folder per site, as a hospital would have them)."""

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
SIZE = 32  # pixels, the side that the default backbone takes


def write(root: Path) -> None:
    """Draw every site's images; no two sites, tasks or parts share one."""
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
