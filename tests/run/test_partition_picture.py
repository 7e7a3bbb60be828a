"""The picture of a partition, at every size, and what it says."""

import struct

import numpy as np
import pytest
from matplotlib.figure import Figure

from matu_flwr.run.partition_picture import EDGE, draw_partition
from matu_flwr.tasks.partition.partition import SplitRule, deal, manifest

CLASSES = (2, 10, 43)


def described(num_tasks, num_clients, *, known=True, dealt="even", kind="dirichlet", high=3):
    """A partition of tasks with 2, 10, 43, 2, … classes and 430 images each, as `partition.json` has it."""
    tasks = [f"task-{index}" for index in range(num_tasks)]
    classes = {task: CLASSES[index % 3] for index, task in enumerate(tasks)}
    hands = deal(tasks, num_clients, min_tasks=1, max_tasks=high, seed=0, how=dealt)
    found = manifest(hands, lambda task: (np.arange(430) % classes[task], 40), SplitRule(kind, 0.5, 2), seed=0)
    found["suite"] = "made-up"
    found["partition"] = {"deal": dealt, "task-alpha": 1.0, "split": kind, "alpha": 0.5}
    found["tasks"] = {
        task: {"group": "", "classes": [str(label) for label in range(classes[task])], **found["tasks"][task]}
        for task in tasks
    }
    if not known:
        found["fingerprint"] = None
        for client in found["clients"]:
            for held in client["tasks"].values():
                held["labels"] = None
    return found


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws a manifest; gives the figure that was saved, and its file."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **more: figures.append(self) or save(self, *args, **more)
    )

    def draw(found):
        path = tmp_path / "partition.png"
        draw_partition(found, path)
        assert [file.name for file in tmp_path.iterdir()] == ["partition.png"]
        return figures[-1], path

    return draw


def texts(figure):
    return [text.get_text() for text in [*figure.axes[0].texts, *figure.texts]]


@pytest.mark.parametrize(
    ("tasks", "clients", "width", "height"),
    [(4, 2, (450, 800), (250, 600)), (20, 30, (1400, 2000), (1400, 2000)), (30, 100, (1900, 2600), (1400, 2000))],
)
def test_sizes(drawn, tasks, clients, width, height):
    figure, path = drawn(described(tasks, clients))
    found = png_size(path)
    assert width[0] < found[0] < width[1]
    assert height[0] < found[1] < height[1]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        f"client-{index:03d}" for index in range(clients)
    ]
    assert {f"task-{index}" for index in range(tasks)} <= set(texts(figure))


def test_every_number_is_written(drawn):
    found = described(10, 10)
    figure, _ = drawn(found)
    written = texts(figure)
    for client in found["clients"]:
        sizes = [held["train"] for held in client["tasks"].values()]
        assert all(str(size) in written for size in sizes)
        assert f"{sum(sizes)} in {len(sizes)} task{'s' if len(sizes) > 1 else ''}" in written
    assert any(text in written for text in ("430\n2 holders", "430\n1 holder"))
    assert "4300 images in total" in written
    assert written[-1].splitlines() == [
        "made-up, seed 0: 10 tasks, 10 clients, 1 to 3 tasks each",
        "Tasks dealt evenly, images split by Dirichlet(0.5) over labels",
        f"Fingerprint {found['fingerprint'][:16]}",
        "Number: training images; bars: images per label, one scale per column",
    ]


def test_bars_are_the_images_of_each_label(drawn):
    found = described(3, 2)
    figure, _ = drawn(found)
    frames, bars = (
        [path.get_extents() for path in figure.axes[0].collections[index].get_paths()] for index in range(2)
    )
    held = [
        (column, row, label, count)
        for column in range(3)
        for row in range(2)
        for label, count in found["clients"][row]["tasks"].get(f"task-{column}", {}).get("labels", {}).items()
    ]
    assert len(frames) == sum(len(client["tasks"]) for client in found["clients"])
    assert len(bars) == len(held)
    for (column, row, label, _), bar in zip(held, bars, strict=True):
        assert column < bar.x0 < bar.x1 < column + 1
        assert row < bar.y0 < bar.y1 < row + 1
        place = ((bar.x0 + bar.x1) / 2 - column - EDGE) / (1 - 2 * EDGE)
        assert int(place * CLASSES[column]) == int(label)
    for column in range(3):  # heights are proportional to images, on one scale in a column
        of = [(count, bar.height) for (where, _, _, count), bar in zip(held, bars, strict=True) if where == column]
        tallest, most = max(height for _, height in of), max(count for count, _ in of)
        assert all(height == pytest.approx(max(0.03, tallest * count / most)) for count, height in of)


def test_counts_alone_are_drawn_as_bars(drawn):
    found = described(6, 4, known=False)
    figure, _ = drawn(found)
    bars = [path.get_extents() for path in figure.axes[0].collections[1].get_paths()]
    sizes = [
        client["tasks"][task]["train"]
        for task in found["tasks"]
        for client in found["clients"]
        if task in client["tasks"]
    ]
    assert [bar.width / max(bar.width for bar in bars) for bar in bars] == pytest.approx(
        [size / max(sizes) for size in sizes]
    )
    assert texts(figure)[-1].splitlines()[1:] == [
        "Only the numbers of images are known, not their labels",
        "Number and bar: training images",
    ]


@pytest.mark.parametrize(
    ("dealt", "kind", "text"),
    [
        ("dirichlet", "iid", "Tasks dealt by Dirichlet(1) popularity, images split evenly, regardless of their labels"),
        ("ring", "dirichlet", "Tasks dealt as neighbours in a ring, images split by Dirichlet(0.5) over labels"),
    ],
)
def test_the_title_says_how_it_was_decided(drawn, dealt, kind, text):
    figure, _ = drawn(described(9, 3, dealt=dealt, kind=kind))
    assert texts(figure)[-1].splitlines()[1] == text


def test_one_task_each_is_said_in_the_singular(drawn):
    figure, _ = drawn(described(3, 3, high=1))
    assert texts(figure).count("430\n1 holder") == 3
    assert texts(figure)[-1].splitlines()[0].endswith("3 clients, 1 task each")


def test_many_clients_are_a_heat_map(drawn):
    found = described(30, 41)
    figure, _ = drawn(found)
    (image,) = figure.axes[0].images
    assert image.get_array().shape == (41, 30)
    sizes = [held["train"] for client in found["clients"] for held in client["tasks"].values()]
    assert set(map(str, sizes)) <= set(texts(figure))
    assert texts(figure)[-1].splitlines()[-1] == "Number and shade: training images"


def test_hundreds_of_clients_have_no_names_and_a_picture_that_can_be_opened(drawn):
    figure, path = drawn(described(4, 400, high=1))
    assert not figure.axes[0].get_yticklabels()
    assert png_size(path)[1] < 3400
    assert texts(figure)[-1].splitlines()[-1] == "Shade: training images"


def test_long_names_are_not_cut_off(drawn):
    found = described(4, 2)
    short = png_size(drawn(found)[1])
    found["clients"][1]["client"] = "Department of Plant Breeding, Alnarp"
    long = png_size(drawn(found)[1])
    assert long[0] > short[0] + 100


@pytest.mark.parametrize("name", [r"$\mathds{R}$", "$", "[red]"])
def test_names_are_text_and_no_formulas(drawn, name):
    found = described(3, 4)
    found["suite"] = found["clients"][1]["client"] = name
    found["tasks"] = {task.replace("task-1", name): entry for task, entry in found["tasks"].items()}
    for client in found["clients"]:
        client["tasks"] = {task.replace("task-1", name): held for task, held in client["tasks"].items()}
    figure, path = drawn(found)
    assert png_size(path)[0] > 100
    assert name in texts(figure)


def test_a_client_without_images_is_drawn(drawn):
    found = described(3, 2, known=False)
    for client in found["clients"]:
        for held in client["tasks"].values():
            held["train"] = 0
    for entry in found["tasks"].values():
        entry["train"] = 0
    figure, _ = drawn(found)
    assert "0 images in total" in texts(figure)


def test_the_same_manifest_gives_the_same_bytes(drawn):
    first = drawn(described(4, 3))[1].read_bytes()
    assert drawn(described(4, 3))[1].read_bytes() == first
