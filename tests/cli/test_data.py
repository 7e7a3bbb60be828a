"""Canaries, `matu data prepare` and `matu data check`."""

import hashlib
import http.server
import io
import shutil
import threading
import zipfile

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from matu_flwr.cli.data import data_app
from matu_flwr.tasks import TaskData, TaskError, TaskSpec, load_suite, load_task
from matu_flwr.tasks.canary import Canary, observe, verify
from matu_flwr.tasks.datasets import open_source
from matu_flwr.tasks.loaders.torchvision_classes import RECIPES, remotes
from matu_flwr.tasks.prepare.check import draw_contact_sheet
from matu_flwr.tasks.prepare.prepare import unpacked_paths
from tests.tasks import files
from tests.tasks.loaders import torchvision_files as tiny


@pytest.fixture
def trees(tmp_path):
    """A folder task with its canary; returns what is found in the files as they are."""
    files.write_folder(tmp_path / "data" / "trees")

    def look():
        spec = TaskSpec("trees", "folder", {})
        return observe(open_source(spec, seed=0, data_dir=tmp_path / "data", cache_dir=tmp_path / "cache"))

    return look


@pytest.fixture
def matu(tmp_path, monkeypatch):
    """Run `matu data ...` with folders below tmp_path: exit status, standard output, standard error."""
    monkeypatch.delenv("MATU_DATA_DIR", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments, data=True):
        folders = ["--data-dir", str(tmp_path / "data")] if data else []
        result = CliRunner().invoke(data_app, [*arguments, *folders, "--cache-dir", str(tmp_path / "cache")])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


def suite_file(tmp_path, tasks, **options):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**options, "tasks": tasks}, sort_keys=False))
    return str(path)


def width(path):
    with Image.open(path) as picture:
        return picture.size[0]


# --- canaries ---------------------------------------------------------------------------------------------------------


def test_what_is_seen(trees):
    found = trees()
    assert (found.train, found.test, found.total, found.classes) == (18, 9, 27, 3)
    assert len(bytes.fromhex(found.pixels)) == 8 * 2 * 3
    assert (
        bytes.fromhex(found.pixels)[:6] == bytes([1] * 6) or max(bytes.fromhex(found.pixels)[:6]) < 5
    )  # class 0: dark
    assert trees() == found
    assert Canary.model_validate(found.described()) == found
    verify("trees", found, found, "there")


def fewer(root):
    (root / "train" / "ash" / "0.png").unlink()


def other_names(root):
    for part in ("train", "test"):
        (root / part / "cedar").rename(root / part / "chestnut")


def other_order(root):
    for part in ("train", "test"):
        (root / part / "cedar").rename(root / part / "alder")


def other_pictures(root):
    for file in root.rglob("*.png"):
        files.save(file, 9)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (fewer, "expected 18 train images, found 17; expected 27 images, found 26; expected labels in the order of"),
        (
            other_names,
            "expected class names in the order of the labels with digest [0-9a-f]{16}, found [0-9a-f]{16}: put",
        ),
        (
            other_order,
            "expected class names .* expected sampled images whose mean colours differ by at most 4 levels, found a d",
        ),
        (
            other_pictures,
            "expected sampled images whose mean colours differ by at most 4 levels, found a difference of 180: put",
        ),
    ],
)
def test_another_data_set_does_not_pass(trees, tmp_path, damage, text):
    expected = trees()
    damage(tmp_path / "data" / "trees")
    with pytest.raises(
        TaskError, match=rf"^task 'trees': there does not hold the data set that the suite means: {text}"
    ):
        verify("trees", expected, trees(), "there")


def test_exchanged_channels_show(tmp_path):
    rng = np.random.default_rng(0)
    images = np.zeros((8, 32, 32, 3), np.uint8) + rng.integers(50, 200, size=(8, 1, 1, 3), dtype=np.uint8)
    for name, shown in (("a", images), ("b", images[..., ::-1])):
        files.write_npz(
            tmp_path / f"{name}.npz", x_train=shown, y_train=files.cycle(8, 3), x_test=shown, y_test=files.cycle(8, 3)
        )
    first, other = (
        observe(
            open_source(TaskSpec(name, "npz", {"path": f"{name}.npz"}), seed=0, data_dir=tmp_path, cache_dir=tmp_path)
        )
        for name in "ab"
    )
    with pytest.raises(TaskError, match="mean colours differ"):
        verify("a", first, other, "there")


def test_another_decoder_passes(tmp_path, trees):
    """A few levels of noise in every pixel, as between two versions of a JPEG decoder."""
    expected = trees()
    for seed, file in enumerate((tmp_path / "data" / "trees").rglob("*.png")):
        with Image.open(file) as image:
            pixels = np.asarray(image).astype(int)
        noise = np.random.default_rng(seed).integers(-3, 4, size=pixels.shape)
        Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(file)
    verify("trees", expected, trees(), "there")


def test_only_what_is_said_is_compared(trees):
    verify("trees", Canary(classes=3), trees(), "there")
    with pytest.raises(TaskError, match="expected 28 images, found 27: put the files"):
        verify("trees", Canary(total=28), trees(), "there")


def test_the_offline_suite_fits_its_canaries(tmp_path):
    for spec in load_suite("offline").tasks.values():
        found = observe(open_source(spec, seed=0, data_dir=None, cache_dir=tmp_path))
        verify(spec.name, spec.canary, found, "the drawings")


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_a_suite_that_fits(matu, tmp_path, trees):
    canary = trees().model_copy(update={"disjoint": True}).described()
    tasks = {"trees": {"loader": "folder", "split": "by hand", "canary": canary}, "more": {"loader": "folder"}}
    files.write_folder(tmp_path / "data" / "more", test=0)
    status, out, error = matu("check", suite_file(tmp_path, tasks, max_train=6))
    assert (status, error) == (0, "")
    assert "trees: by hand" in out
    assert "more: the suite does not say" in out
    for cell in ("trees", "18", "9", "fits", "none"):
        assert cell in out
    for name in ("trees", "more"):
        assert width(tmp_path / "cache" / "contact-sheets" / "mine" / f"{name}.png") > 400


def test_check_a_suite_that_does_not_fit(matu, tmp_path, trees):
    tasks = {
        "trees": {"loader": "folder", "canary": {"train": 17}},
        "gone": {"loader": "folder"},
        "fine": {"loader": "sklearn-digits"},
    }
    status, _, error = matu("check", suite_file(tmp_path, tasks), "--sheets", str(tmp_path / "sheets"))
    assert status == 1
    lines = error.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: task 'trees': ")
    assert "expected 17 train images, found 18" in lines[0]
    assert "gone does not exist" in lines[1]
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["fine.png", "trees.png"]


def test_record_prints_canaries_that_a_suite_takes(matu, tmp_path, trees):
    path = suite_file(tmp_path, {"trees": {"loader": "folder"}})
    status, out, _ = matu("check", path, "--record")
    assert status == 0
    recorded = yaml.safe_load(out[out.index("\ntrees:") :])
    assert recorded["trees"]["canary"] == trees().model_copy(update={"total": None, "disjoint": True}).described()
    assert matu("check", suite_file(tmp_path, {"trees": {"loader": "folder", **recorded["trees"]}}))[0] == 0


def test_images_in_both_parts(matu, tmp_path):
    root = tmp_path / "data" / "trees"
    files.write_folder(root)
    (root / "test" / "ash" / "0.png").write_bytes((root / "train" / "ash" / "3.png").read_bytes())
    tasks = {"trees": {"loader": "folder"}}
    status, out, error = matu("check", suite_file(tmp_path, tasks))
    assert (status, error) == (0, "")
    assert "warning: task 'trees': 1 of 9 test images are training images too (64 px); some published sets have" in out
    tasks["trees"]["canary"] = {"disjoint": True}
    status, _, error = matu("check", suite_file(tmp_path, tasks))
    assert status == 1
    assert "1 of 9 test images are training images too (64 px), expected none: put the published files there" in error


def test_duplicates_are_counted_exactly(tmp_path):
    images = np.arange(5 * 8 * 8, dtype=np.uint8).reshape(5, 8, 8)
    images[4, 0, 0] ^= 1
    shown = {"x_train": images[:3], "x_test": images[[1, 1, 4]]}
    files.write_npz(tmp_path / "x.npz", **shown, y_train=files.cycle(3, 3), y_test=files.cycle(3, 3))
    spec = TaskSpec("x", "npz", {"path": "x.npz"})
    data = load_task(spec, image_size=8, seed=0, data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert data.duplicates == 2


def cells_of(out):
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_check_counts_what_a_run_would_use(matu, tmp_path, trees):
    tasks = {"trees": {"loader": "folder", "max_train": 6}, "whole": {"loader": "folder", "options": {"path": "trees"}}}
    status, out, _ = matu("check", suite_file(tmp_path, tasks))
    assert status == 0
    assert cells_of(out)["trees"][:3] == ["6 of 18", "9", "3"]
    assert cells_of(out)["whole"][:3] == ["18", "9", "3"]


def test_check_and_prepare_tell_what_is_odd(matu, tmp_path, trees, caplog):
    root = tmp_path / "data" / "trees"
    (root / "train" / "ash" / "more.heic").write_bytes(b"?")
    (root / "train" / "dogwood").mkdir()
    (root / "val").mkdir()
    path = suite_file(tmp_path, {"trees": {"loader": "folder"}})
    status, out, error = matu("check", path)
    assert (status, error) == (0, "")
    lines = [line for line in out.splitlines() if line.startswith("warning: ")]
    assert lines == [
        "warning: task 'trees': train: files passed over, .heic: 1 (ash/more.heic)",
        "warning: task 'trees': train: class folders without images: 1 (dogwood)",
        "warning: task 'trees': parts of the data set that are not used: 1 (val)",
    ]
    status, out, _ = matu("prepare", path, "--image-size", "16")
    assert status == 0
    assert "warning: task 'trees': train: files passed over, .heic: 1 (ash/more.heic); train: class folders" in out
    assert caplog.messages == []  # once, and not in the log too


def test_check_counts_broken_images_if_asked(matu, tmp_path, trees):
    root = tmp_path / "data" / "trees"
    for name in ("0.png", "3.png"):
        (root / "train" / "birch" / name).write_bytes(b"")
    tasks = {"trees": {"loader": "folder"}, "drawn": {"loader": "sklearn-digits"}}
    status, _, error = matu("check", suite_file(tmp_path, tasks))
    assert status == 1
    assert "birch/0.png cannot be read (ValueError: it is empty)" in error
    status, out, error = matu("check", suite_file(tmp_path, tasks), "--skip-broken")
    assert (status, error) == (0, "")
    assert cells_of(out)["trees"][:3] == ["16", "9", "3"]
    assert "warning: task 'trees': broken images left out: 2 (train/birch/0.png, train/birch/3.png)" in out


def test_check_of_folders_that_lie_too_deep(matu, tmp_path):
    files.write_folder(tmp_path / "data" / "trees" / "train")
    status, _, error = matu("check", suite_file(tmp_path, {"trees": {"loader": "folder"}}))
    assert status == 1
    assert "error: task 'trees': " in error
    assert "the class folders are one level too deep" in error


MARKUP = [r"$\mathds{R}$", "$", "[red]x[/red]", ":smile:", "<b>&amp;", "a|b", "`**b**`", "100%", "{}", "{0}", "%s"]


def test_class_names_are_text_and_no_markup(matu, tmp_path):
    """HASYv2 names its classes in LaTeX. A contact sheet has the names, and the first of them in a prompt."""
    names = ["b", *(name for name in MARKUP if "/" not in name)]
    files.write_folder(tmp_path / "data" / "trees", classes=names, train=1, test=1)
    for name in MARKUP:
        (tmp_path / "data" / "trees" / "train" / f"{name.replace('/', '')}.xyz").write_bytes(b"")
    files.write_folder(tmp_path / "data" / "one", classes=("[red]x",))
    tasks = {"trees": {"loader": "folder"}, "one": {"loader": "folder"}}
    status, out, error = matu("check", suite_file(tmp_path, tasks))
    assert (status, error) == (0, "")
    assert width(tmp_path / "cache" / "contact-sheets" / "mine" / "trees.png") > 400
    assert "only one class, '[red]x', so every answer" in out


@pytest.mark.parametrize("name", MARKUP)
def test_a_prompt_with_any_class_name(tmp_path, name):
    images = np.zeros((1, 16, 16, 3), np.uint8)
    data = TaskData("many", (name,), images, np.zeros(1, int), images, np.zeros(1, int))
    assert width(draw_contact_sheet(data, TaskSpec("many", "folder", {}), tmp_path / "x.png")) > 100


def test_contact_sheet_of_many_classes_with_long_names(tmp_path):
    names = tuple(f"class {index} with a very long name that goes on and on and does not end" for index in range(300))
    labels = np.arange(300)
    images = np.repeat(files.grey_images(labels % 10, 80)[..., None], 3, axis=3)
    data = TaskData("many", names, images, labels, images[:1], labels[:1])
    path = draw_contact_sheet(data, TaskSpec("many", "folder", {}), tmp_path / "deep" / "many.png")
    assert width(path) > 1000
    (tmp_path / "blocked").write_text("")
    with pytest.raises(
        TaskError, match=r"task 'many': cannot write .*blocked/many.png: .*choose another folder for the sh"
    ):
        draw_contact_sheet(data, TaskSpec("many", "folder", {}), tmp_path / "blocked" / "many.png")


# --- prepare ----------------------------------------------------------------------------------------------------------


def test_prepare_says_all_that_is_missing_at_once(matu, tmp_path):
    files.write_folder(tmp_path / "data" / "trees")
    tasks = {
        "gone": {"loader": "folder", "published": "a page of somebody"},
        "trees": {"loader": "folder"},
        "autos": {"loader": "torchvision", "options": {"dataset": "StanfordCars"}},
    }
    status, out, error = matu("prepare", suite_file(tmp_path, tasks), "--image-size", "16")
    assert status == 1
    assert [line.split(":")[1] for line in error.splitlines()] == [" task 'gone'", " task 'autos'"]
    rows = [line.split("│")[1:-1] for line in out.splitlines() if line.startswith("│")]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert cells["trees"][:3] == ["18", "9", "3"]
    assert cells["trees"][-1] == "ready"
    assert cells["gone"][-1] == cells["autos"][-1] == "failed"
    assert (
        f"gone: {tmp_path}/data/gone: train/<class>/*.jpg and test/<class>/*.jpg (or only the first); published: a"
        in out
    )
    assert f"autos: {tmp_path}/data/autos: stanford_cars/cars_train, stanford_cars/cars_test" in out
    assert list((tmp_path / "cache").glob("trees-*"))


def test_prepare_of_the_offline_suite_needs_no_folder(matu, tmp_path):
    status, out, error = matu("prepare", "offline", "--image-size", "16", data=False)
    assert (status, error) == (0, "")
    assert out.count("ready") == 10


@pytest.mark.parametrize("command", ["prepare", "check"])
def test_without_a_data_folder(matu, command):
    status, _, error = matu(command, "paper-8", data=False)
    assert status == 1
    assert error.startswith(
        "error: suite paper-8: no data folder is set, expected one for the tasks sun397, cars, resisc45"
    )
    assert "give --data-dir or set the environment variable MATU_DATA_DIR" in error
    status, _, error = matu(command, "paper8")
    assert status == 1
    assert "unknown suite 'paper8': did you mean 'paper-8'?" in error


def test_prepare_refuses_another_data_set(matu, tmp_path, trees):
    path = suite_file(tmp_path, {"trees": {"loader": "folder", "canary": {"classes": 4}}})
    status, _, error = matu("prepare", path)
    assert status == 1
    assert "data/trees does not hold the data set that the suite means: expected 4 classes, found 3" in error


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def served(tmp_path):
    """A folder whose files can be downloaded: the folder, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Quiet(*a, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_prepare_downloads_verifies_and_unpacks(matu, tmp_path, served, monkeypatch):
    from torchvision.datasets import MNIST

    folder, address = served
    tiny_root = tmp_path / "origin"
    files.write_mnist(tiny_root, packed=True)
    resources = []
    for file in sorted((tiny_root / "MNIST" / "raw").iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())
        resources.append((file.name, hashlib.md5(file.read_bytes()).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", address])
    monkeypatch.setattr("matu_flwr.tasks.prepare.download.time.sleep", lambda seconds: None)
    (tmp_path / "data").mkdir()
    path = suite_file(tmp_path, {"mnist": {"loader": "torchvision", "options": {"dataset": "MNIST"}}})
    status, out, error = matu("prepare", path, "--image-size", "16")
    assert (status, error) == (0, "")
    assert "ready" in out
    assert (tmp_path / "data" / "mnist" / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()
    (folder / "train-images-idx3-ubyte.gz").unlink()  # nothing is asked for a second time
    assert matu("prepare", path, "--image-size", "16")[0] == 0


def test_prepare_with_an_archive_of_folders(matu, tmp_path, served, monkeypatch):
    from matu_flwr.tasks.loaders import torchvision_classes

    folder, address = served
    expected = tiny.eurosat(tmp_path / "origin")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in (tmp_path / "origin" / "eurosat").rglob("*.jpg"):
            archive.write(file, file.relative_to(tmp_path / "origin" / "eurosat"))
    (folder / "EuroSAT.zip").write_bytes(buffer.getvalue())
    md5 = hashlib.md5(buffer.getvalue()).hexdigest()
    entry = {"EuroSAT": ((f"{address}EuroSAT.zip", md5, "eurosat/"),)}
    monkeypatch.setattr(torchvision_classes, "_INSIDE_METHODS", entry)
    # torchvision compares with the MD5 of the real archive, and would download that
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", lambda *arguments: True)
    (tmp_path / "data").mkdir()
    canary = {"train": expected[0], "test": expected[1], "classes": 10}
    task = {"loader": "torchvision", "options": {"dataset": "EuroSAT"}, "canary": canary}
    path = suite_file(tmp_path, {"eurosat": task})
    status, out, error = matu("prepare", path, "--image-size", "16")
    assert (status, error) == (0, "")
    assert "ready" in out

    # unpacking that was cut off: a run refuses it, and the next `prepare` unpacks again
    unpacked = tmp_path / "data" / "eurosat" / "eurosat" / "2750"
    shutil.rmtree(unpacked / "River")
    mark = tmp_path / "data" / "eurosat" / ".unpacking-EuroSAT"
    mark.touch()
    spec = load_suite(path).tasks["eurosat"]
    with pytest.raises(TaskError, match=r"task 'eurosat': unpacking into .* was cut off, .*: run `matu data prepare`"):
        load_task(spec, image_size=16, seed=0, data_dir=tmp_path / "data", cache_dir=tmp_path / "cache2")
    assert matu("prepare", path, "--image-size", "16")[0] == 0
    assert (unpacked / "River").is_dir()
    assert not mark.exists()


def test_what_unpacking_makes_is_never_an_archive(tmp_path):
    for name in RECIPES:
        archives = {tmp_path / file.target for file in remotes(name)}
        for path in unpacked_paths(name, tmp_path) if archives else ():
            assert path != tmp_path
            assert not any(path == archive or path in archive.parents for archive in archives), name


def test_a_subset_is_not_downloaded_over(matu, tmp_path):
    (tmp_path / "data").mkdir()
    task = {"loader": "torchvision", "options": {"dataset": "KMNIST"}, "download": False, "published": "made by hand"}
    status, out, error = matu("prepare", suite_file(tmp_path, {"kmnist": task}))
    assert status == 1
    assert "kmnist does not exist" in error
    assert "made by hand" in out


def test_prepare_without_a_route(matu, tmp_path, monkeypatch):
    from torchvision.datasets import SVHN

    lists = {part: ["http://127.0.0.1:9/x.mat", file, md5] for part, (_, file, md5) in SVHN.split_list.items()}
    monkeypatch.setattr(SVHN, "split_list", lists)
    monkeypatch.setattr("matu_flwr.tasks.prepare.download.time.sleep", lambda seconds: None)
    (tmp_path / "data").mkdir()
    path = suite_file(tmp_path, {"svhn": {"loader": "torchvision", "options": {"dataset": "SVHN"}}})
    status, out, error = matu("prepare", path)
    assert status == 1
    assert "task 'svhn': train_32x32.mat could not be downloaded (http://127.0.0.1:9/x.mat: no connection" in error
    assert "svhn/train_32x32.mat (MD5 e26dedcc434d2e4c54c9b2d4a06d8373)" in error
    assert "svhn: " in out
