"""Which device a process takes."""

import pytest
import torch

from matu_flwr.backbones import BackboneError
from matu_flwr.backbones.device import choose_device


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_if_the_process_sees_one(monkeypatch, there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device("auto") == device
    assert choose_device("cpu") == "cpu"


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        BackboneError,
        match=r"train.device = cuda, but this process sees no GPU: give clients one \(client-resources-num-gpus, or "
        r"CUDA_VISIBLE_DEVICES on a node\), or set train.device to auto or cpu",
    ):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cuda") == "cuda"
