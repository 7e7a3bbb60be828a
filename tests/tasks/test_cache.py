import logging
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from matu_flwr.tasks import TaskError, TaskSpec, cache, load_task
from tests.tasks import files


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a small folder task; ``load.builds`` counts how often it was decoded."""
    files.write_folder(tmp_path / "trees")
    real = cache._write

    def call(**changed):
        spec = TaskSpec(
            "trees", "folder", {}, "", **{key: changed.pop(key) for key in ("max_train",) if key in changed}
        )
        arguments = {"image_size": 16, "seed": 0, "data_dir": tmp_path, "cache_dir": tmp_path / "cache", **changed}
        return load_task(spec, **arguments)

    call.builds = 0

    def counted(*arguments):
        call.builds += 1
        real(*arguments)

    monkeypatch.setattr(cache, "_write", counted)
    return call


def entries(tmp_path):
    return sorted(path for path in (tmp_path / "cache").iterdir() if path.is_dir())


def test_second_load_maps_the_files_of_the_first(load, tmp_path):
    first, second = load(), load()
    assert load.builds == 1
    assert isinstance(second.train_images, np.memmap)
    assert not second.train_images.flags.writeable
    assert np.array_equal(first.train_images, second.train_images)
    assert first.classes == second.classes
    assert [path.name[:6] for path in entries(tmp_path)] == ["trees-"]  # no temporary folder is left


def test_whatever_decides_the_content_gives_another_entry(load, tmp_path):
    load()
    load(image_size=24)
    load(seed=1)
    load(max_train=5)
    assert load.builds == len(entries(tmp_path)) == 4
    changed = tmp_path / "trees" / "train" / "ash" / "0.png"
    files.save(changed, 9)
    data = load()
    assert load.builds == 5
    assert data.train_images[0].mean() > 150
    os.utime(changed, ns=(0, 0))  # touched: might be another content of the same length
    load()
    assert load.builds == 6


def test_pictures_of_other_rules_are_not_read(load, monkeypatch):
    """A cache that was made before the decoder changed."""
    load()
    monkeypatch.setattr("matu_flwr.tasks.loaders.decoder.VERSION", -1)
    load()
    assert load.builds == 2


def truncate(entry):
    file = entry / "train_images.npy"
    file.write_bytes(file.read_bytes()[:-100])


def empty(entry):
    (entry / "test_labels.npy").write_bytes(b"")


def shuffle_labels(entry):
    np.save(entry / "train_labels.npy", np.load(entry / "train_labels.npy")[::-1])


def other_shape(entry):
    np.save(entry / "test_images.npy", np.zeros((1, 16, 16, 3), np.uint8))


def lose(entry):
    (entry / "test_images.npy").unlink()


def cut_meta(entry):
    (entry / "meta.json").write_text('{"classes": [')


@pytest.mark.parametrize("damage", [truncate, empty, shuffle_labels, other_shape, lose, cut_meta])
def test_a_damaged_entry_is_built_again_with_a_warning(load, tmp_path, caplog, damage):
    good = load()
    expected = {name: np.array(getattr(good, name)) for name in cache._ARRAYS}
    damage(entries(tmp_path)[0])
    with caplog.at_level(logging.WARNING, "matu_flwr"):
        mended = load()
    assert load.builds == 2
    assert "task 'trees': cache entry" in caplog.text
    assert "is damaged" in caplog.text
    for name, array in expected.items():
        assert np.array_equal(getattr(mended, name), array)
    load()
    assert load.builds == 2


def test_an_interrupted_build_leaves_nothing_behind(load, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(
            TaskError, match=r"task 'trees': cannot write its decoded images to .*cache: .*No space left"
        ):
            load()
    assert entries(tmp_path) == []
    assert load().train_images.shape == (18, 16, 16, 3)


def build_in_process(root, barrier, out):
    barrier.wait(60)
    data = load_task(
        TaskSpec("trees", "folder", {}), image_size=16, seed=0, data_dir=Path(root), cache_dir=Path(root) / "cache"
    )
    out.put((os.getpid(), int(data.train_images.sum(dtype=np.int64)), data.train_labels.tolist()))


def test_processes_that_build_at_once(load, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, out = context.Barrier(2), context.Queue()
    workers = [context.Process(target=build_in_process, args=(str(tmp_path), barrier, out)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [out.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert results[0][1:] == results[1][1:]
    assert len(entries(tmp_path)) == 1
    load()
    assert load.builds == 0
