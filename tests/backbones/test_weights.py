"""Weights files as they come: what a file is is said, what it means is found, and what cannot be meant is refused."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from matu_flwr.backbones import BackboneError, create_backbone, weights
from matu_flwr.texts import LONGEST

MINI = "vit_mini_clip_32"


class Small(nn.Module):
    """A model with a buffer of whole numbers, as those with windows have; its family has no filter."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 2)])
        self.register_buffer("index", torch.arange(4))


def state(**changes):
    torch.manual_seed(0)
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for key, value in Small().state_dict().items()
    } | changes


def under(prefix, tensors=None):
    return {f"{prefix}{key}": value for key, value in (tensors or state()).items()}


def load(path, drop=()):
    module = Small()
    weights.load_file(module, path, "small", drop=drop)
    return module.state_dict()


def saved(path, content):
    torch.save(content, path)
    return path


def refused(path, drop=()):
    with pytest.raises(BackboneError) as caught:
        load(path, drop)
    text = str(caught.value)
    assert str(path) in text
    assert len(text) <= LONGEST
    assert "\n" not in text
    return text


# --- what a file is ---

FILES = {
    "empty": (b"", "is empty: the download or the copy broke off"),
    "zeros": (b"\0" * 5000, "holds only zeros, 5000 bytes"),
    "LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "is a pointer of Git LFS, not the wei",
    ),
    "annex": (b"/annex/objects/SHA256E-s5--0.pth\n", "is a pointer of git-annex"),
    "web page": (
        b"\n<!DOCTYPE html>\n<html><title>404</title>",
        "is a web page or XML, not the weights; it begins b'<!DOC",
    ),
    "lower case": (b"<html>", "is a web page or XML"),
    "index": (
        json.dumps({"metadata": {}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}).encode(),
        "is the index of 2 files ('m-1.safetensors', 'm-2.safetensors'): load them yourself and save",
    ),
    "JSON": (b'{"error": "not found"}', "is a JSON text, not the weights"),
    "deep JSON": (b'{"a":' * 100_000, "is a JSON text, not the weights"),
    "gzip": (b"\x1f\x8b\x08\0", "is compressed with gzip: unpack it first"),
    "Keras": (b"\x89HDF\r\n", "is an HDF5 file"),
    "text": (b"hello, these are weights", "cannot be read"),
    "zip": (b"PK\x03\x04" + b"\0" * 100, "cannot be read"),
    "binary": (bytes(range(1, 256)) * 9, "cannot be read"),
}


@pytest.mark.parametrize("ending", weights.ENDINGS)
@pytest.mark.parametrize("case", FILES)
def test_what_is_no_weights_file_is_said_as_what_it_is(tmp_path, case, ending):
    content, reason = FILES[case]
    path = tmp_path / f"w{ending}"
    path.write_bytes(content)
    assert reason in refused(path)


def test_a_folder_and_a_pipe(tmp_path):
    assert "is a folder: name the file in it; it has no file of tensors" in refused(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert "is a folder: name the file in it, one of 'model.safetensors'" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.pth")
    assert "does not exist; backbone.weights takes" in refused(tmp_path / "pipe.pth")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = saved(tmp_path / "w.pth", state())

    def refuse(*_, **__):  # as root, permissions hold nobody back
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: [Errno 13] Permission denied" in refused(path)


class Intruder:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch /nowhere/at-all",)


def test_a_pickle_with_code_names_it_and_runs_nothing(tmp_path):
    text = refused(saved(tmp_path / "w.pth", {"state_dict": state(), "hyper": Intruder()}))
    assert "holds posix.system besides tensors, and reading that would run code: if you trust" in text


def test_a_whole_model_that_was_pickled(tmp_path):
    text = refused(saved(tmp_path / "w.pth", Small()))
    assert "test_weights.Small besides tensors, and reading that would run code" in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.ones(2)], "holds a list, expected tensors by name: save its state_dict()"),
        (torch.ones(2), "holds a Tensor, expected tensors by name"),
        ({}, "holds no tensors"),
        ({"epoch": 3}, "holds entries that are no tensors, 'epoch: int'; expected"),
        ({"epoch": 3, **state()}, "holds entries that are no tensors, 'epoch: int'"),
        ({"model": {"a": {"b": torch.ones(1)}}}, "holds entries that are no tensors, 'a: dict'"),
        ({str(i): i for i in range(10**4)}, "and 9995 more"),
    ],
)
def test_a_torch_file_of_something_else(tmp_path, content, reason):
    assert reason in refused(saved(tmp_path / "w.pth", content))


def test_safetensors_by_its_content_whatever_it_is_called(tmp_path):
    save_file(state(), tmp_path / "pytorch_model.bin")
    assert torch.equal(load(tmp_path / "pytorch_model.bin")["blocks.1.bias"], state()["blocks.1.bias"])


# --- checkpoints of training programs, and prefixes ---

OTHER = {"fc.weight": torch.ones(5, 3), "fc.bias": torch.ones(5)}
CHECKPOINTS = {
    "Lightning": ({"state_dict": under("model."), "epoch": 3, "hyper_parameters": {}}, ("'state_dict'", "'model.'")),
    "Lightning with a loss": (
        {"state_dict": under("net.backbone.") | OTHER, "epoch": 1},
        ("'net.backbone.'", "2 others"),
    ),
    "DINO": (
        {
            "student": under("module.backbone.", state()),
            "teacher": under("backbone.") | {"head.mlp": torch.ones(2)},
            "epoch": 1,
        },
        ("'teacher' of 'student', 'teacher', 'epoch'", "'backbone.'"),
    ),
    "DINOv2 in one": (under("student.backbone.") | under("teacher.backbone."), ("'teacher.backbone.'",)),
    "MAE": ({"model": state(), "optimizer": {"x": 1}, "args": None}, ("'model' of 'model', 'optimizer', 'args'",)),
    "EMA": ({"state_dict": {"x": torch.ones(1)}, "state_dict_ema": state()}, ("'state_dict_ema'",)),
    "EMA beside": (under("model.") | under("model_ema."), ("'model_ema.'",)),
    "twice wrapped": ({"model": {"module": state(), "step": 3}}, ("'model' of 'model', and in it 'module'",)),
    "compiled": (under("_orig_mod."), ("'_orig_mod.'",)),
    "distributed": (under("module."), ("'module.'",)),
    **{
        f"{name}": (under(f"{name}.") | OTHER, (f"the 5 tensors under '{name}.', and leaving out 2 others",))
        for name in ("model", "backbone", "visual", "encoder", "image_encoder.model.visual", "base_encoder")
    },
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_model_is_found_in_a_checkpoint_and_that_is_said(tmp_path, caplog, case):
    content, told = CHECKPOINTS[case]
    path = saved(tmp_path / "w.pth", content)
    with caplog.at_level(logging.WARNING):
        found = load(path)
    assert all(torch.equal(found[key], value) for key, value in state().items())
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert all(text in said for text in told), said
    assert str(path) in said
    assert len(caplog.records) <= 2


def test_of_a_plain_file_nothing_is_said(tmp_path, caplog):
    load(saved(tmp_path / "w.pth", state()))
    assert caplog.records == []


def test_two_models_in_one_file(tmp_path):
    text = refused(saved(tmp_path / "w.pth", under("north.") | under("south.")))
    assert "holds 2 models that fit backbone 'small', under 'north.', 'south.': save the one that you mean" in text


def test_a_prefix_before_a_model_of_timm(tmp_path, caplog):
    """Its family's filter is asked with and without the prefix; the packaged file has an image and a text tower."""
    create_backbone.cache_clear()
    original = create_backbone(MINI, weights="random", seed=4)
    tensors = {name: parameter.detach().clone() for name, parameter in original.parameters().items()}
    save_file(under("model.backbone.", tensors) | OTHER, tmp_path / "w.safetensors")
    loaded = create_backbone(MINI, weights=str(tmp_path / "w.safetensors"), seed=9)
    assert loaded.fingerprint == original.fingerprint
    assert f"taking the {len(tensors)} tensors under 'model.backbone.'" in caplog.text
    create_backbone.cache_clear()


# --- tensors that do not fit ---


def test_the_first_few_by_name_and_how_many_more(tmp_path):
    many = {f"layer{i}.{'x' * 300}": torch.ones(1) for i in range(2000)}
    text = refused(saved(tmp_path / "w.pth", many))
    assert (
        "does not fit backbone 'small': missing are 'index', 'blocks.0.weight', 'blocks.0.bias', 'blocks.1.wei" in text
    )
    assert "and 1995 more" in text
    assert "of another shape" not in text


def test_shapes_are_named_with_both(tmp_path):
    path = saved(tmp_path / "w.pth", state(**{"blocks.0.bias": torch.ones(4)}))
    assert "of another shape are 'blocks.0.bias (4,), expected (3,)'" in refused(path)


def test_what_is_nearest_is_compared(tmp_path):
    path = saved(
        tmp_path / "w.pth", under("model.", {k: v for k, v in state().items() if k != "blocks.1.bias"}) | OTHER
    )
    assert "The nearest are those under 'model.': missing are 'blocks.1.bias'" in refused(path)


def test_a_classifier_is_dropped_under_a_prefix_too(tmp_path):
    found = load(saved(tmp_path / "w.pth", under("model.", state(**{"head.weight": torch.ones(9)}))), drop=("head",))
    assert torch.equal(found["blocks.0.weight"], state()["blocks.0.weight"])


# --- numbers ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_types_become_float32(tmp_path, dtype):
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state().items()}
    found = load(saved(tmp_path / "w.pth", tensors))
    assert found["blocks.0.weight"].dtype == torch.float32
    assert torch.equal(found["blocks.0.weight"], tensors["blocks.0.weight"].float())
    assert found["index"].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_other_types_are_refused_by_name(tmp_path, dtype):
    path = saved(tmp_path / "w.pth", under("model.", state(**{"blocks.0.bias": torch.ones(3).to(dtype)})))
    assert f"tensor 'model.blocks.0.bias' is of {dtype}, expected floating-point numbers" in refused(path)


def test_a_sparse_tensor_is_refused(tmp_path):
    path = saved(tmp_path / "w.pth", state(**{"blocks.0.bias": torch.ones(3).to_sparse()}))
    assert "'blocks.0.bias' is of torch.sparse_coo, expected floating-point numbers" in refused(path)


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, torch.float32), (-np.inf, torch.float16), (1e300, torch.float64)]
)
def test_nan_and_infinity_are_refused_by_name(tmp_path, value, dtype):
    bad = torch.ones(3, dtype=dtype)
    bad[1] = value
    text = refused(saved(tmp_path / "w.pth", state(**{"blocks.0.bias": bad})))
    assert "tensor 'blocks.0.bias' has NaN or infinity in 1 of 3 places: the training that wrote it diverged" in text


def test_nan_in_what_is_left_out_does_not_matter(tmp_path):
    load(saved(tmp_path / "w.pth", under("model.") | {"loss.ema": torch.tensor(float("nan"))}))


def test_a_checkpoint_that_holds_itself_ends(tmp_path):
    found = {}
    found["model"] = found
    assert "holds entries that are no tensors, 'model: dict'" in refused(saved(tmp_path / "w.pt", found))
    found = {"model": {}}
    found["model"]["state_dict"] = found
    assert "holds entries that are no tensors" in refused(saved(tmp_path / "w.pt", found))


def test_tensors_without_numbers_are_refused(tmp_path):
    content = state(**{"blocks.0.weight": torch.empty(3, 3, device="meta")})
    assert "'blocks.0.weight' is on the device meta" in refused(saved(tmp_path / "w.pt", content))


@pytest.mark.parametrize("content", [b"hello, these are notes", b"\x1b[31mred", b"   \n  ", b"\x80\x02."])
def test_what_is_no_file_of_tensors_at_all_is_not_to_be_read_in_another_way(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    text = refused(tmp_path / "w.pt")
    assert "expected a safetensors or torch file" in text
    assert "weights_only" not in text  # PyTorch's own advice would run the code in the file
