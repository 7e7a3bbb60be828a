"""What lies in a folder of images: what is taken, what is passed over and told, and what is refused."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from matu_flwr.tasks import TaskError, TaskSpec, load_site_task, load_task, site_tasks
from matu_flwr.tasks.loaders.labels import MOST_CLASSES, class_names
from matu_flwr.tasks.loaders.sources import Oddities
from matu_flwr.wire.payloads import MAX_CLASSES
from tests.tasks import files


@pytest.fixture
def root(tmp_path):
    files.write_folder(tmp_path / "trees")
    return tmp_path / "trees"


@pytest.fixture
def load(tmp_path, caplog):
    """Load the task: its data, and what the log says."""

    def call(**options):
        caplog.clear()
        spec = TaskSpec("trees", "folder", options)
        data = load_task(spec, image_size=16, seed=0, data_dir=tmp_path, cache_dir=tmp_path / "cache")
        assert caplog.messages == ([f"task 'trees': {data.remarks}"] if data.remarks else [])  # one line
        return data

    return call


def site(tmp_path, **options):
    return load_site_task("trees", tmp_path, image_size=16, seed=0, cache_dir=tmp_path / "cache", **options)


# --- taken, or passed over and told -----------------------------------------------------------------------------------


def test_nothing_odd_is_no_line(load, root):
    assert load().remarks == ""


@pytest.mark.parametrize("name", ["x.jfif", "x.jpe", "x.GIF", "x.JPG", "x.webp", "x.Tif", "x.avif", "x.jp2", "x.bmp"])
def test_all_endings_of_pictures_are_taken(load, root, name):
    files.save(root / "train" / "ash" / "x.png", 0)
    content = Image.open(root / "train" / "ash" / "x.png")
    form = Image.registered_extensions()[f".{name.split('.')[1].lower()}"]
    if form not in Image.SAVE:
        pytest.skip(f"PIL was built without {form}")
    (root / "train" / "ash" / "x.png").unlink()
    content.save(root / "train" / "ash" / name, form)
    data = load()
    assert len(data.train_labels) == 19
    assert data.remarks == ""


def test_other_files_are_counted_by_their_endings(load, root):
    for name in ("a.heic", "b.HEIC", "c.txt", "noending", "d.dcm"):
        (root / "train" / "ash" / name).write_bytes(b"?")
    (root / "train" / "labels.csv").write_text("?")
    (root / "test" / "ash" / "e.heic").write_bytes(b"?")
    data = load()
    assert len(data.train_labels) == 18
    for text in (
        "train: files passed over, .heic: 2 (ash/a.heic, ash/b.HEIC)",
        "train: files passed over, .csv: 1 (labels.csv)",
        "train: files passed over, .dcm: 1 (ash/d.dcm)",
        "train: files passed over, no ending: 1 (ash/noending)",
        "test: files passed over, .heic: 1 (ash/e.heic)",
    ):
        assert text in data.notes
    assert load().notes == data.notes  # from the cache too


def test_a_note_names_three_files_at_most(load, root):
    for index in range(9):
        (root / "train" / "ash" / f"{index}.txt").write_bytes(b"?")
    assert load().remarks == "train: files passed over, .txt: 9 (ash/0.txt, ash/1.txt, ash/2.txt, …)"


def test_what_systems_leave_behind_is_passed_over_quietly(load, root):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", ".hidden.png"):
        (root / "train" / "ash" / name).write_bytes(b"?")
    for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir"):
        files.save(root / "train" / name / "0.png", 0)
        files.save(root / "train" / "ash" / name / "0.png", 0)
    data = load()
    assert (data.classes, len(data.train_labels), data.remarks) == (("ash", "birch", "cedar"), 18, "")


def test_a_pipe_is_not_opened(load, root):
    os.mkfifo(root / "train" / "ash" / "pipe.png")
    assert load().remarks == "train: files passed over, no plain file: 1 (ash/pipe.png)"


def test_images_in_no_class_folder_and_in_folders_of_class_folders(load, root):
    files.save(root / "train" / "loose.png", 0)
    files.save(root / "train" / "birch" / "2019" / "0.png", 1)
    data = load()
    assert len(data.train_labels) == 19
    assert data.notes == (
        "train: images passed over, because they lie in no class folder: 1 (loose.png)",
        "train: folders in class folders, whose images count for the class: 1 (birch/2019)",
    )


def test_an_image_in_both_parts(load, root):
    image = (root / "train" / "ash" / "3.png").read_bytes()
    (root / "test" / "ash" / "0.png").write_bytes(image)
    data = load()
    assert data.duplicates == 1
    assert data.remarks == "1 of 9 test images are training images too"
    assert load().duplicates == 1


@pytest.mark.parametrize("name", ["Test", "val", "Valid", "validation", "testing"])
def test_a_part_of_another_name_is_told(load, root, name):
    (root / "test").rename(root / name)
    text = f"test is missing and a fifth of train is tested instead of the parts: 1 ({name})"
    assert load().remarks == text
    assert load(test=name).remarks == ""
    (root / name).rename(root / "test")
    files.save(root / "val" / "ash" / "0.png", 0)
    assert load().remarks == "parts of the data set that are not used: 1 (val)"


def test_a_site_is_told_of_them_too(tmp_path, root, caplog):
    (root / "test").rename(root / "val")
    assert "a fifth of train is tested instead of the parts: 1 (val)" in site(tmp_path).remarks
    assert len(caplog.messages) == 1


def test_content_of_another_format_and_several_frames(load, root):
    Image.new("L", (9, 9)).save(
        root / "train" / "ash" / "0.png", "GIF", save_all=True, append_images=[Image.new("L", (9, 9), 9)]
    )
    assert load().notes == (
        "files of several frames or pages, of which the first is used: 1 (train/ash/0.png)",
        "files whose content is of another format than their name says, read as what they are: 1 (train/ash/0.png)",
    )


def test_names_of_files_cannot_write_on_a_terminal(load, root):
    (root / "train" / "ash" / "a\x1b[2Jb.txt").write_bytes(b"?")
    (root / "train" / "ash" / os.fsdecode(b"\xff.txt")).write_bytes(b"?")
    assert load().remarks == r"train: files passed over, .txt: 2 (ash/a\x1b[2Jb.txt, ash/\udcff.txt)"


# --- links and folders that cannot be read ----------------------------------------------------------------------------


def test_links_out_of_the_folder_are_followed_and_told(load, root, tmp_path):
    files.save(tmp_path / "elsewhere" / "0.png", 0, seed=50)
    (root / "train" / "ash" / "link.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (root / "train" / "ash" / "inside.jpg").symlink_to(root / "train" / "ash" / "0.png")
    data = load()
    assert len(data.train_labels) == 20
    assert "train: links that lead out of the folder, followed: 1 (ash/link.png)" in data.notes


@pytest.mark.parametrize("target", ["..", ".", "../.."])
def test_a_circle_of_links_is_refused(load, root, target):
    (root / "train" / "ash" / "circle").symlink_to(target, target_is_directory=True)
    with pytest.raises(TaskError, match=r"task 'trees': .*ash/circle is a link that leads back to a folder above it"):
        load()


def test_a_link_to_itself(load, root):
    (root / "train" / "ash" / "self.png").symlink_to("self.png")
    with pytest.raises(TaskError, match=r"task 'trees': .*self.png cannot be looked at \(Too many levels of symbolic"):
        load()


def test_a_folder_that_may_not_be_read(load, root, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("birch"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(TaskError, match=r"task 'trees': .*birch cannot be looked at \(Permission denied\), expected"):
        load()


# --- another level, and other classes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda root: (root / "train").rename(root / "outer"), "train/train would be a class, but its .* ash, birch"),
        (lambda root: (root / "train").rename(root / "data"), "train/data would be a class, but its images lie in the"),
    ],
)
def test_one_level_too_deep(load, root, build, text):
    build(root)
    inner = next(path for path in root.iterdir() if path.name != "test")
    (root / "train").mkdir()
    inner.rename(root / "train" / ("train" if inner.name == "outer" else inner.name))
    with pytest.raises(TaskError, match=rf"task 'trees': .*{text}.*the class folders are one level too deep"):
        load()


def test_parts_in_the_training_folder(load, root):
    """An archive with train and val was unpacked into train."""
    files.write_folder(root / "train")
    with pytest.raises(
        TaskError, match="train/test would be a class, but its images lie in the folders ash, birch, ced"
    ):
        load()


def test_one_class_is_told(load, tmp_path):
    files.write_folder(tmp_path / "trees", classes=("ash",))
    assert load().remarks == "only one class, 'ash', so every answer is right: is a folder missing, or one too many?"


def test_empty_class_folders_are_classes(load, root, tmp_path):
    (root / "train" / "empty").mkdir()
    data = load()
    assert data.classes == ("ash", "birch", "cedar", "empty")
    assert data.notes == ("train: class folders without images: 1 (empty)",)
    (root / "test" / "empty").mkdir()
    assert site(tmp_path).classes == data.classes


def test_a_class_folder_that_comes_later_is_seen(load, root):
    assert len(load().classes) == 3
    (root / "train" / "dogwood").mkdir()
    assert len(load().classes) == 4


def test_a_site_without_test_images_of_a_class(tmp_path, root):
    for file in (root / "test" / "ash").iterdir():
        file.unlink()
    (root / "test" / "ash").rmdir()
    assert len(site(tmp_path).test_labels) == 6


def test_declared_classes(load, root):
    declared = ["cedar", "dogwood", "birch", "ash"]
    data = load(classes=declared)
    assert data.classes == tuple(declared)
    assert set(data.train_labels) == {0, 2, 3}
    assert np.array_equal(files.labels_from(data.train_images), np.array([2, 9, 1, 0])[data.train_labels])
    with pytest.raises(TaskError, match=r"train/cedar is a class that the task does not have: known: ash, birch"):
        load(classes=["ash", "birch"])
    with pytest.raises(TaskError, match="class 'ash' is there twice"):
        load(classes=["ash", "birch", "cedar", "ash"])


def test_declared_classes_may_be_words(load, tmp_path):
    files.write_folder(tmp_path / "trees", classes=("01.red_ash", "Birch", unicodedata.normalize("NFD", "érable")))
    assert load(classes=["Birch", "red ash", "érable"]).classes == ("Birch", "red ash", "érable")
    (tmp_path / "trees" / "train" / "red ash").mkdir()
    with pytest.raises(TaskError, match=r"two folders in .*train are the class 'red ash', expected one"):
        load(classes=["Birch", "red ash", "érable"])


@pytest.mark.parametrize("name", ["bad\nname", "bad\x1b[31m", "\u202eabc", os.fsdecode(b"\xff\xfe")])
def test_names_that_cannot_be_printed(load, tmp_path, root, name):
    files.save(root / "train" / name / "0.png", 0)
    with pytest.raises(
        TaskError, match=r"^task 'trees': class '.*' cannot be named so, expected 1 to 500 printable"
    ) as error:
        site(tmp_path)
    assert str(error.value).isprintable()


def test_one_name_in_two_spellings(tmp_path, root):
    for form in ("NFC", "NFD"):
        files.save(root / "train" / unicodedata.normalize(form, "érable") / "0.png", 0)
    with pytest.raises(TaskError, match="task 'trees': class 'érable' is there twice, expected every class once"):
        site(tmp_path)


def test_accents_are_written_in_one_way(tmp_path):
    files.write_folder(tmp_path / "trees", classes=(unicodedata.normalize("NFD", "érable"), "ash"))
    assert site(tmp_path).classes == ("ash", unicodedata.normalize("NFC", "érable"))


def test_names_that_differ_only_by_case_are_told():
    """They are allowed: letters are a task."""
    oddities = Oddities()
    assert class_names("letters", ["a", "A"], oddities) == ("a", "A")
    assert oddities.notes() == ("the classes 'a' and 'A' differ only in how they are written",)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "it has 0 classes, expected 1 to 100,000"),
        (map(str, range(MOST_CLASSES + 1)), "it has 100001 classes, expected 1 to 100,000"),
        (["a", " "], "class '' cannot be named so"),
        (["a", "a "], "class 'a' is there twice"),
        (["a", "x" * 501], "class 'xxx.*… cannot be named so"),
        (["a", "\u0301b"], "class '.b' cannot be named so"),
    ],
)
def test_class_lists_that_are_refused(names, text):
    with pytest.raises(TaskError, match=f"task 't': {text}"):
        class_names("t", names, Oddities())


def test_as_many_classes_as_the_wire_takes():
    assert MOST_CLASSES == MAX_CLASSES


def test_no_images_at_all(load, tmp_path):
    (tmp_path / "trees" / "train" / "ash").mkdir(parents=True)
    (tmp_path / "trees" / "train" / "ash" / "a.dcm").write_bytes(b"?")
    with pytest.raises(TaskError, match=r"has 1 class folders and no images in them \(other files: 1 with .dcm\)"):
        load()


def test_names_of_tasks_at_a_site(tmp_path):
    for name in ("bad\x1b[2J", "scans", "..hidden"):
        files.write_folder(tmp_path / name)
    assert site_tasks(tmp_path) == ["bad\x1b[2J", "scans"]
    for name in ("bad\x1b[2J", "../trees", ".."):
        with pytest.raises(TaskError, match="cannot be named so, expected 1 to 200 bytes of printable"):
            load_site_task(name, tmp_path, image_size=16, seed=0, cache_dir=tmp_path)


# --- broken images ----------------------------------------------------------------------------------------------------


def test_broken_images_are_counted_and_left_out(load, root):
    good = (root / "train" / "birch" / "3.png").read_bytes()
    for place, content in {"ash/0": b"", "birch/3": good[:-30], "cedar/5": b"<html>"}.items():
        (root / "train" / f"{place}.png").write_bytes(content)
    (root / "test" / "ash" / "0.png").write_bytes(b"?")
    with pytest.raises(
        TaskError, match=r"train/ash/0.png cannot be read \(ValueError: it is empty\).*skip-broken: true"
    ):
        load()
    data = load(**{"skip-broken": True})
    assert (len(data.train_labels), len(data.test_labels)) == (15, 8)
    assert np.array_equal(files.labels_from(data.train_images), data.train_labels)
    text = "broken images left out: 4 (train/ash/0.png, train/birch/3.png, train/cedar/5.png, …)"
    assert data.remarks == text


def test_a_limit_counts_images_that_are_whole(load, tmp_path, root):
    (root / "train" / "ash" / "0.png").write_bytes(b"")
    spec = TaskSpec("trees", "folder", {"skip-broken": True}, max_train=17)
    data = load_task(spec, image_size=16, seed=0, data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert len(data.train_labels) == 17


def test_broken_images_of_a_site(tmp_path, root):
    (root / "train" / "ash" / "0.png").write_bytes(b"")
    with pytest.raises(TaskError, match="it is empty"):
        site(tmp_path)
    data = site(tmp_path, skip_broken=True)
    assert (len(data.train_labels), data.remarks) == (17, "broken images left out: 1 (train/ash/0.png)")


def test_only_broken_images(load, root):
    for file in (root / "train").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(TaskError, match="task 'trees': no train examples were found"):
        load(**{"skip-broken": True})


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_the_option_is_true_or_false(load, root, value):
    with pytest.raises(TaskError, match=f"option 'skip-broken' is {value!r}, expected true or false"):
        load(**{"skip-broken": value})
