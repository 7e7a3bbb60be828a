import torch

from matu_flwr.backbones import zero_head


def test_the_common_start_is_zero():
    head = zero_head(3, 5)
    assert head.weight.shape == (3, 5)
    assert head.bias.shape == (3,)
    assert not head.weight.any()
    assert not head.bias.any()
    assert list(head.tensors()) == ["weight", "bias"]
    assert head.tensors()["weight"] is head.weight
    assert head.weight.dtype == torch.float32


def test_every_call_gives_tensors_of_its_own():
    one, other = zero_head(2, 2), zero_head(2, 2)
    one.weight.fill_(1)
    assert not other.weight.any()
