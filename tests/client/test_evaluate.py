import numpy as np
import pytest
import torch

from matu_flwr.backbones import LinearHead, zero_head
from matu_flwr.client import ImageSet, evaluate
from matu_flwr.vectors import ParameterLayout
from tests.client import models


def some_head(seed=3):
    chance = torch.Generator().manual_seed(seed)
    return LinearHead(torch.randn(3, 5, generator=chance), torch.randn(3, generator=chance))


def naive(backbone, vector, head, data):
    """One image after the other, softmax by hand."""
    module = models.backbone().module
    layout = ParameterLayout.of(dict(module.named_parameters()))
    layout.write(backbone.theta_p + (0 if vector is None else vector), dict(module.named_parameters()))
    correct, loss = 0, 0.0
    for i in data.index:
        pixels = (torch.tensor(data.images[i]).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
        logits = (head.weight @ module(pixels)[0] + head.bias).detach().double()
        label = int(data.labels[i])
        correct += int(logits.argmax()) == label
        loss -= float(torch.log(torch.exp(logits[label]) / torch.exp(logits).sum()))
    return correct, len(data.index), loss / len(data.index)


@pytest.mark.parametrize("count", [1, 255, 256, 300])
@pytest.mark.parametrize("started", [False, True])
def test_the_same_as_one_image_after_the_other(count, started):
    backbone, data, head = models.backbone(), models.images(count), some_head()
    vector = torch.full((backbone.d,), 0.1) if started else None
    found = evaluate(backbone, vector, head, data)
    correct, examples, loss = naive(backbone, vector, head, data)
    assert (found.correct, found.examples) == (correct, examples)
    assert found.loss == pytest.approx(loss, rel=1e-4)


def test_only_the_share_is_tested():
    backbone, whole, head = models.backbone(), models.images(40), some_head()
    parts = [ImageSet(whole.images, whole.labels, index) for index in (np.arange(13), np.arange(13, 40))]
    found = [evaluate(backbone, None, head, part) for part in parts]
    together = evaluate(backbone, None, head, whole)
    assert sum(f.correct for f in found) == together.correct
    assert sum(f.examples for f in found) == together.examples
    assert sum(f.loss * f.examples for f in found) / 40 == pytest.approx(together.loss, rel=1e-5)


def test_nothing_to_test():
    data = models.images()
    found = evaluate(models.backbone(), None, zero_head(3, 5), ImageSet(data.images, data.labels, np.arange(0)))
    assert (found.correct, found.examples, found.loss) == (0, 0, 0.0)


def test_the_task_vector_is_loaded_and_kept():
    backbone = models.backbone()
    vector = torch.full((backbone.d,), 0.1)
    evaluate(backbone, vector, zero_head(3, 5), models.images())
    assert torch.allclose(backbone.task_vector(), vector, atol=1e-6)
    assert torch.equal(vector, torch.full((backbone.d,), 0.1))
