import functools
import operator

import numpy as np
import pytest
import torch

from matu_flwr.client.images import UPLOAD, ImageSet, _goes_up, normalise


def image_set(count=10, index=None):
    """Image i is filled with i, and its label is 100 + i."""
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(pixels, (count, 4, 4, 3)).copy()
    share = np.arange(count) if index is None else np.asarray(index)
    return ImageSet(images, np.arange(count, dtype=np.int64) + 100, share)


def seen(batches):
    """Which images each batch held; checks that labels went along."""
    found = []
    for images, labels in batches:
        which = images[:, 0, 0, 0].tolist()
        assert labels.tolist() == [100 + i for i in which]
        found.append(which)
    return found


def test_a_batch_is_a_copy_of_the_rows_of_the_share():
    data = image_set(index=[7, 2, 5])
    images, labels = data.batch(np.array([2, 0]))
    assert images.shape == (2, 4, 4, 3)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert labels.tolist() == [105, 107]
    images.fill_(0)
    assert data.images[5].min() == 5


def test_in_order_gives_every_image_once():
    assert seen(image_set(index=[9, 1, 3, 4, 8]).in_order(2)) == [[9, 1], [3, 4], [8]]
    assert seen(image_set(index=[]).in_order(2)) == []


def test_memory_mapped_images_are_read_as_they_are(tmp_path):
    plain = image_set(index=[3, 1, 2])
    np.save(tmp_path / "images.npy", plain.images)
    mapped = ImageSet(np.load(tmp_path / "images.npy", mmap_mode="r"), plain.labels, plain.index)
    assert isinstance(mapped.images, np.memmap)
    assert not mapped.images.flags.writeable
    assert seen(mapped.in_order(2)) == seen(plain.in_order(2))
    assert seen(mapped.shuffled(5, 2, 0)) == seen(plain.shuffled(5, 2, 0))


def test_shuffled_goes_through_epochs_without_replacement():
    batches = seen(image_set(6).shuffled(steps=6, batch_size=2, seed=0))
    first, second = functools.reduce(operator.iadd, batches[:3], []), functools.reduce(operator.iadd, batches[3:], [])
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second


def test_batches_run_on_over_the_end_of_an_epoch():
    # 5 images in batches of 3: 10 batches are 6 epochs; every 5 images on the way are an epoch
    stream = functools.reduce(operator.iadd, seen(image_set(5).shuffled(steps=10, batch_size=3, seed=1)), [])
    assert len(stream) == 30
    for start in range(0, 30, 5):
        assert sorted(stream[start : start + 5]) == list(range(5))


def test_a_share_smaller_than_a_batch_is_the_whole_batch():
    batches = seen(image_set(index=[4, 6]).shuffled(steps=3, batch_size=32, seed=0))
    assert [sorted(batch) for batch in batches] == [[4, 6]] * 3


def test_the_order_depends_on_the_seed_alone():
    data = image_set()
    np.random.seed(1)  # whatever the global generator is at
    first = seen(data.shuffled(7, 3, seed=5))
    np.random.seed(2)
    assert seen(data.shuffled(7, 3, seed=5)) == first
    assert seen(data.shuffled(7, 3, seed=6)) != first
    assert seen(data.shuffled(3, 3, seed=5)) == first[:3]


def test_normalise_by_hand():
    images = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    images[0, 0, 1] = torch.tensor([255, 51, 102])  # 1, .2, .4 in [0, 1]
    pixels = normalise(images, (0.5, 0.2, 0.0), (0.5, 0.1, 2.0))
    assert pixels.shape == (1, 3, 2, 2)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    assert pixels[0, :, 0, 1].tolist() == pytest.approx([1.0, 0.0, 0.2], abs=1e-6)
    assert pixels[0, :, 1, 0].tolist() == pytest.approx([-1.0, -2.0, 0.0], abs=1e-6)
    assert images[0, 0, 1].tolist() == [255, 51, 102]


@pytest.mark.parametrize("size", [2, 5, 32])
def test_a_share_on_the_device_gives_the_batches_of_one_that_is_read(monkeypatch, size):
    data = image_set(7)
    read = seen(data.shuffled(9, size, seed=3))
    monkeypatch.setattr("matu_flwr.client.images._goes_up", lambda size, device: True)
    assert seen(data.shuffled(9, size, seed=3)) == read


def test_what_goes_up_as_a_whole():
    assert not _goes_up(1, torch.device("cpu"))
    assert _goes_up(UPLOAD, torch.device("cuda"))
    assert not _goes_up(UPLOAD + 1, torch.device("cuda"))
