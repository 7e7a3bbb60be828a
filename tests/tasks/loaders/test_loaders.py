import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from matu_flwr._torchvision import ensure_importable
from matu_flwr.tasks import TaskError, TaskSpec, load_site_task, load_task, site_tasks
from matu_flwr.tasks.datasets import stratified
from matu_flwr.tasks.loaders.registry import LOADERS
from tests.tasks import files


@pytest.fixture
def load(tmp_path):
    """Load a task from tmp_path/data with its cache in tmp_path/cache."""

    def call(task, loader, *, max_train=0, max_test=0, size=16, seed=0, data_dir=tmp_path / "data", **options):
        spec = TaskSpec(task, loader, options, "", max_train, max_test)
        return load_task(spec, image_size=size, seed=seed, data_dir=data_dir, cache_dir=tmp_path / "cache")

    (tmp_path / "data").mkdir()
    return call


def check(data, *, train, test, classes):
    """Sizes are as expected, and every label fits its image."""
    assert len(data.classes) == classes
    for images, labels, count in (
        (data.train_images, data.train_labels, train),
        (data.test_images, data.test_labels, test),
    ):
        assert images.shape == (count, 16, 16, 3)
        assert images.dtype == np.uint8
        assert labels.shape == (count,)
        assert labels.dtype == np.int64
        assert np.array_equal(files.labels_from(images), labels)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_mnist_like(load, tmp_path, name, packed):
    root = tmp_path / "data" / "digits"
    files.write_mnist(root, name=name, packed=packed)
    before = sorted(root.rglob("*"))
    check(load("digits", "torchvision", dataset=name), train=60, test=20, classes=10)
    assert sorted(root.rglob("*")) == before  # the data folder is only read
    assert (tmp_path / "cache" / "unpacked").exists() == packed


def test_usps(load, tmp_path):
    files.write_usps(tmp_path / "data" / "usps")
    check(load("usps", "torchvision", dataset="USPS"), train=50, test=20, classes=10)


def test_gtsrb(load, tmp_path):
    files.write_gtsrb(tmp_path / "data" / "gtsrb")
    data = load("gtsrb", "torchvision", dataset="GTSRB")
    check(data, train=12, test=3, classes=43)
    assert data.classes[14] == "stop"


def test_semeion_has_a_fifth_held_out_whatever_the_seed(load, tmp_path, monkeypatch):
    ensure_importable()
    from torchvision.datasets import SEMEION

    monkeypatch.setattr(SEMEION, "md5_checksum", None)  # of the real file
    files.write_semeion(tmp_path / "data" / "semeion")
    first, other = (load("semeion", "torchvision", dataset="SEMEION", seed=seed) for seed in (0, 1))
    assert np.bincount(first.train_labels).tolist() == [4] * 10
    assert np.bincount(first.test_labels).tolist() == [1] * 10
    assert np.array_equal(first.test_images, other.test_images)
    assert not {i.tobytes() for i in first.train_images} & {i.tobytes() for i in first.test_images}


@pytest.mark.parametrize("form", ["png", "jpg", "ppm"])
def test_folder(load, tmp_path, form):
    files.write_folder(tmp_path / "data" / "trees", form=form)
    data = load("woods", "folder", path="trees", classes={"ash": "ash tree"})
    check(data, train=18, test=9, classes=3)
    assert data.classes == ("ash tree", "birch", "cedar")


def test_folder_names_become_words(load, tmp_path):
    files.write_folder(tmp_path / "data" / "trees", classes=("01.Red_Ash", "02.WhiteBirch", "03.cedar"))
    assert load("trees", "folder", classes={"03.cedar": "cedar tree"}).classes == (
        "Red Ash",
        "White Birch",
        "cedar tree",
    )


def test_folder_by_absolute_path_needs_no_data_dir(load, tmp_path):
    files.write_folder(tmp_path / "elsewhere")
    check(load("trees", "folder", path=str(tmp_path / "elsewhere"), data_dir=None), train=18, test=9, classes=3)


def test_folder_without_test_part(load, tmp_path):
    files.write_folder(tmp_path / "data" / "trees", train=10, test=0)
    check(load("trees", "folder"), train=24, test=6, classes=3)


def test_photographs_are_turned_upright_and_cut_square(load, tmp_path):
    files.write_folder(tmp_path / "data" / "trees", form="jpg")
    photo = np.zeros((40, 80, 3), np.uint8)
    photo[:, 20:40] = 200  # left half of the middle square
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was held upside down: turned by 180 degrees
    Image.fromarray(photo).save(tmp_path / "data" / "trees" / "train" / "ash" / "0.jpg", exif=exif, quality=95)
    shown = load("trees", "folder").train_images[0]
    assert shown[:, 9:].mean() > 180
    assert shown[:, :7].mean() < 20


def test_palette_with_transparency(load, tmp_path):
    files.write_folder(tmp_path / "data" / "trees")
    picture = Image.new("P", (20, 20), 1)
    picture.putpalette([0, 0, 0, 5, 5, 5])
    picture.save(tmp_path / "data" / "trees" / "train" / "ash" / "0.png", transparency=b"\x80\xff")
    check(load("trees", "folder"), train=18, test=9, classes=3)


def test_npz(load, tmp_path):
    files.write_npz(tmp_path / "data" / "numbers.npz")
    data = load("numbers", "npz", path="numbers.npz")
    check(data, train=30, test=12, classes=3)
    assert data.classes == ("zero", "one", "two")


def test_npz_without_test_part(load, tmp_path):
    files.write_npz(tmp_path / "data" / "numbers.npz", x_test=None, y_test=None)
    check(load("numbers", "npz", path="numbers.npz"), train=24, test=6, classes=3)


# --- caps -------------------------------------------------------------------------------------------------------------


def test_caps_are_stratified_seeded_and_come_before_decoding(load, tmp_path, monkeypatch):
    files.write_folder(tmp_path / "data" / "trees", train=20, test=10)
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **options: opened.append(path) or real(path, **options))
    data = load("trees", "folder", max_train=6, max_test=3)
    check(data, train=6, test=3, classes=3)
    assert np.bincount(data.train_labels).tolist() == [2, 2, 2]
    assert len(opened) == 9
    other = load("trees", "folder", max_train=6, max_test=3, seed=1)
    assert not np.array_equal(data.train_images, other.train_images)


def test_stratified_keeps_shares_and_rare_classes():
    labels = np.repeat([0, 1, 2], [700, 298, 2])
    chosen = stratified(labels, 100, np.random.default_rng(0))
    assert np.all(np.diff(chosen) > 0)
    counts = np.bincount(labels[chosen])
    assert counts.sum() == 100
    assert counts[2] == 1
    assert abs(counts[0] - 70) <= 1


# --- what is refused --------------------------------------------------------------------------------------------------


def test_no_data_dir(load):
    text = (
        "task 'mnist': no data folder is set, expected one that contains mnist: set the environment variable MATU_DATA"
    )
    with pytest.raises(TaskError, match=text):
        load("mnist", "torchvision", dataset="MNIST", data_dir=None)


def test_missing_folder(load):
    with pytest.raises(
        TaskError, match=r"task 'mnist': .*mnist does not exist, .* set MATU_DATA_DIR or the run's data-d"
    ):
        load("mnist", "torchvision", dataset="MNIST")


def test_missing_file(load, tmp_path):
    files.write_mnist(tmp_path / "data" / "mnist")
    (tmp_path / "data" / "mnist" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    text = r"task 'mnist': .*t10k-labels-idx1-ubyte is missing, expected there by torchvision's MNIST \(or the same"
    with pytest.raises(TaskError, match=text):
        load("mnist", "torchvision", dataset="MNIST")


def test_unknown_torchvision_class(load):
    with pytest.raises(
        TaskError, match=r"task 'a': dataset 'MNISTT' is not among .* did you mean 'MNIST'\? known: CIFAR10, CI"
    ):
        load("a", "torchvision", dataset="MNISTT", path=".")


def test_unknown_option_and_loader(load):
    with pytest.raises(TaskError, match=r"task 'a': loader 'folder' has no option 'pth': did you mean 'path'\? known"):
        load("a", "folder", pth="x")
    with pytest.raises(TaskError, match=r"task 'a': unknown loader 'folders': did you mean 'folder'\? known"):
        load("a", "folders")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: data[:-7], r"its header promises shape \(60, 28, 28\), 47056 bytes, but 47049 bytes were found"),
        (lambda data: data + b"x", "47056 bytes, but 47057 bytes were found: replace it by an undamaged copy"),
        (
            lambda data: b"<!DO" + data[4:],
            "is not an IDX file of bytes .it starts with '3c 21 44 4f', expected '00 00 08 01'",
        ),
        (lambda data: b"", "is not an IDX file of bytes"),
    ],
)
def test_damaged_idx_file(load, tmp_path, damage, text):
    files.write_mnist(tmp_path / "data" / "mnist")
    file = tmp_path / "data" / "mnist" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TaskError, match=f"task 'mnist': .*train-images-idx3-ubyte .*{text}"):
        load("mnist", "torchvision", dataset="MNIST")


def test_truncated_gz(load, tmp_path):
    files.write_mnist(tmp_path / "data" / "mnist", packed=True)
    file = tmp_path / "data" / "mnist" / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(TaskError, match=r"task 'mnist': .*train-labels-idx1-ubyte.gz cannot be read \(EOFError"):
        load("mnist", "torchvision", dataset="MNIST")
    assert not [file for file in (tmp_path / "cache").rglob("*labels*") if "train" in file.name]


def test_truncated_bz2(load, tmp_path):
    files.write_usps(tmp_path / "data" / "usps")
    file = tmp_path / "data" / "usps" / "usps.t.bz2"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(TaskError, match=r"task 'usps': .*train=False\) cannot be read .* expected the files of .*USPS"):
        load("usps", "torchvision", dataset="USPS")


def test_gtsrb_with_a_gap(load, tmp_path):
    root = tmp_path / "data" / "gtsrb"
    files.write_gtsrb(root)
    (root / "gtsrb" / "GTSRB" / "Training" / "00001").rename(root / "00001")
    with pytest.raises(TaskError, match=r"00002 is class folder number 1 of GTSRB's .* put 00001 back"):
        load("gtsrb", "torchvision", dataset="GTSRB")


def test_gtsrb_test_image_missing(load, tmp_path):
    root = tmp_path / "data" / "gtsrb"
    files.write_gtsrb(root)
    (root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "00002.ppm").unlink()
    with pytest.raises(TaskError, match=r"task 'gtsrb': .*00002.ppm cannot be read \(FileNotFoundError"):
        load("gtsrb", "torchvision", dataset="GTSRB")


def test_damaged_and_misplaced_images(load, tmp_path):
    root = tmp_path / "data" / "trees"
    files.write_folder(root, form="jpg")
    victim = root / "train" / "birch" / "3.jpg"
    good = victim.read_bytes()
    victim.write_bytes(good[: len(good) // 2])
    with pytest.raises(TaskError, match=r"task 'trees': .*birch/3.jpg cannot be read \(OSError: .*, expected an image"):
        load("trees", "folder")
    victim.write_text("not a picture")
    with pytest.raises(TaskError, match=r"birch/3.jpg cannot be read \(UnidentifiedImageError"):
        load("trees", "folder")


def test_folders_that_do_not_fit(load, tmp_path):
    root = tmp_path / "data" / "trees"
    files.write_folder(root)
    with pytest.raises(TaskError, match=r"option 'classes' names 'brich', .*: did you mean 'birch'\? known: ash"):
        load("trees", "folder", classes={"brich": "b"})
    with pytest.raises(
        TaskError, match="trees/training is missing, expected a folder with one folder of images per cl"
    ):
        load("trees", "folder", train="training")
    (root / "test" / "ash").rename(root / "test" / "ahs")
    with pytest.raises(TaskError, match=r"test/ahs is a class that the task does not have: did you mean 'ash'\?"):
        load("trees", "folder")
    (root / "test" / "ahs").rename(root / "ahs")
    with pytest.raises(TaskError, match=r"test lacks the class folders \['ash'\] of .*train: add them"):
        load("trees", "folder")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"y_train": None},
            r"has no array 'y_train' \(found classes, x_test, x_train, y_test\), expected x_train, y_train",
        ),
        (
            {"x_train": np.zeros((30, 20, 20), complex)},
            r"x_train is complex128 of shape \(30, 20, 20\), expected numbers \(N, H, W\) or",
        ),
        (
            {"y_test": np.zeros(3, int)},
            r"y_test is int64 of shape \(3,\), expected one label for each of the 12 images",
        ),
        ({"y_train": np.full(30, 3)}, "y_train has labels 3 to 3, expected 0 to 2 for 3 classes: correct the labels"),
        ({"classes": np.array([object()])}, "classes holds Python objects"),
    ],
)
def test_wrong_npz(load, tmp_path, changed, text):
    files.write_npz(tmp_path / "data" / "numbers.npz", **changed)
    with pytest.raises(TaskError, match=f"task 'numbers': .*numbers.npz.*{text}"):
        load("numbers", "npz", path="numbers.npz")


def test_truncated_npz(load, tmp_path):
    file = tmp_path / "data" / "numbers.npz"
    files.write_npz(file)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(TaskError, match=r"task 'numbers': .*numbers.npz cannot be read .* expected a numpy .npz file"):
        load("numbers", "npz", path="numbers.npz")


def test_a_test_folder_that_is_asked_for_must_be_there(load, tmp_path):
    files.write_folder(tmp_path / "data" / "trees", test=0)
    with pytest.raises(TaskError, match=r"trees/tset is missing, expected the test images there because of"):
        load("trees", "folder", test="tset")


@pytest.mark.parametrize("classes", [{"ash": False}, {3: "ash"}])
def test_class_names_are_text(load, tmp_path, classes):
    files.write_folder(tmp_path / "data" / "trees")
    with pytest.raises(TaskError, match=r"option 'classes' has (False|3), expected text: quote numbers and words"):
        load("trees", "folder", classes=classes)


def test_linked_folders_are_told_apart(tmp_path):
    """Two sites whose class folders are links, one cache for both."""
    arguments = {"image_size": 16, "seed": 0, "cache_dir": tmp_path / "cache"}
    found = {}
    for site, train in (("north", 4), ("south", 5)):
        files.write_folder(tmp_path / "disk" / site, train=train)
        (tmp_path / site / "trees").mkdir(parents=True)
        for part in ("train", "test"):
            (tmp_path / site / "trees" / part).symlink_to(tmp_path / "disk" / site / part, target_is_directory=True)
        found[site] = load_site_task("trees", tmp_path / site, **arguments)
    assert [len(data.train_labels) for data in found.values()] == [12, 15]


def test_a_link_that_leads_nowhere_is_named(load, tmp_path):
    files.write_folder(tmp_path / "data" / "trees")
    (tmp_path / "data" / "trees" / "train" / "ash" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(TaskError, match=r"lost\.png cannot be looked at \(No such file or directory\)"):
        load("trees", "folder")


def test_other_rules_for_class_names_give_other_names_from_a_warm_cache(load, tmp_path, monkeypatch):
    files.write_folder(tmp_path / "data" / "trees", classes=("red_ash", "birch"))
    assert load("trees", "folder").classes == ("birch", "red ash")
    monkeypatch.setattr("matu_flwr.tasks.prompts._RULES", 3)
    monkeypatch.setattr("matu_flwr.tasks.loaders.folder.humanised", lambda names: tuple(name.upper() for name in names))
    assert load("trees", "folder").classes == ("BIRCH", "RED_ASH")


# --- a node's own data ------------------------------------------------------------------------------------------------


def test_site(tmp_path):
    root = tmp_path / "site"
    files.write_folder(root / "trees")
    files.write_folder(root / "leaves", train=10, test=0)
    (root / "notes").mkdir()
    assert site_tasks(root) == ["leaves", "trees"]
    arguments = {"image_size": 16, "seed": 0, "cache_dir": tmp_path / "cache"}
    check(load_site_task("trees", root, **arguments), train=18, test=9, classes=3)
    check(load_site_task("leaves", root, **arguments), train=24, test=6, classes=3)


def test_sites_that_hold_different_classes_agree_on_labels(tmp_path):
    files.write_folder(tmp_path / "site" / "trees", classes=("birch", "cedar"))
    arguments = {"image_size": 16, "seed": 0, "cache_dir": tmp_path / "cache"}
    data = load_site_task("trees", tmp_path / "site", classes=("ash", "birch", "cedar"), **arguments)
    assert data.classes == ("ash", "birch", "cedar")
    assert set(data.train_labels) == set(data.test_labels) == {1, 2}
    with pytest.raises(TaskError, match=r"train/cedar is a class that the task does not have: known: ash, birch"):
        load_site_task("trees", tmp_path / "site", classes=("ash", "birch"), **arguments)


def test_site_refuses(tmp_path):
    with pytest.raises(TaskError, match=r"site folder .*nowhere does not exist, expected a folder with <task>/train/"):
        site_tasks(tmp_path / "nowhere")
    files.write_folder(tmp_path / "trees")
    with pytest.raises(TaskError, match=r"task 'tree': .*tree/train is missing, .*; tasks found in .*: trees"):
        load_site_task("tree", tmp_path, image_size=16, seed=0, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("key", ["x_train", "y_train", "classes"])
def test_an_npz_file_of_python_objects_names_the_array(load, tmp_path, key):
    files.write_npz(tmp_path / "data" / "numbers.npz", **{key: np.array(["a", None, 3], object)})
    with pytest.raises(
        TaskError, match=rf"task 'numbers': .*numbers.npz, {key} holds Python objects, .*save it as {key}"
    ):
        load("numbers", "npz", path="numbers.npz")


def test_an_npz_file_whose_members_are_no_arrays(load, tmp_path):
    with zipfile.ZipFile(tmp_path / "data" / "numbers.npz", "w") as archive:
        for key in ("x_train", "y_train", "classes"):
            archive.writestr(f"{key}.npy", "notes")
    with pytest.raises(
        TaskError, match=r"task 'numbers': .*numbers.npz, x_train is no numpy array, it begins b'notes'"
    ):
        load("numbers", "npz", path="numbers.npz")


@pytest.mark.parametrize("content", [b"notes", b"version https://git-lfs.github.com/spec/v1", b"\x93NUMPY"])
def test_an_npz_file_that_is_none_says_what_it_begins_with(load, tmp_path, content):
    (tmp_path / "data" / "numbers.npz").write_bytes(content)
    with pytest.raises(TaskError, match=r"task 'numbers': .*it is no zip archive, it begins b.* expected a numpy .npz"):
        load("numbers", "npz", path="numbers.npz")


def test_pictures_that_would_be_nearly_black_are_told_of(load, tmp_path):
    ink = np.arange(30 * 64).reshape(30, 8, 8) % 2
    files.write_npz(tmp_path / "data" / "numbers.npz", x_train=ink, x_test=None, y_test=None)
    notes = load("numbers", "npz", path="numbers.npz").notes
    assert any("x_train has no level above 1 of 255, so the pictures are nearly black: scale" in note for note in notes)


@pytest.mark.parametrize("loader", ["folder", "npz", "hub", "torchvision"])
@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("~no-such-user/x", "~no-such-user/x begins with a home folder that does not exist"),
        ("x" * 300, r"cannot be looked at \(File name too long\)"),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_named(load, loader, path, text):
    more = {"dataset": "MNIST"} if loader == "torchvision" else {}
    with pytest.raises(TaskError, match=f"task 't': .*{text}"):
        load("t", loader, path=path, **more)


def test_a_loader_that_may_not_read_does_not_blame_the_cache(tmp_path, monkeypatch):
    def forbidden(request):
        raise PermissionError(13, "Permission denied", "/data/t/train")

    monkeypatch.setitem(LOADERS, "folder", replace(LOADERS["folder"], load=forbidden))
    (tmp_path / "t").mkdir()
    with pytest.raises(TaskError, match=r"task 't': its files cannot be read .*Permission denied: '/data/t/train'"):
        load_task(TaskSpec("t", "folder", {}), image_size=16, seed=0, data_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_a_site_below_a_home_that_does_not_exist(tmp_path):
    with pytest.raises(TaskError, match="site folder: ~no-such-user/site begins with a home folder that does not"):
        site_tasks(Path("~no-such-user/site"))
    with pytest.raises(TaskError, match="task 't': ~no-such-user/site begins with a home folder that does not exist"):
        load_site_task("t", Path("~no-such-user/site"), image_size=16, seed=0, cache_dir=tmp_path)
