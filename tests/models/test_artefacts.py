"""A run's tensors on disk, and back from there to a model that classifies images."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from matu_flwr.backbones import BackboneError
from matu_flwr.merging import unify
from matu_flwr.models import artefacts
from matu_flwr.models.artefacts import ArtefactError, write_tensors
from matu_flwr.models.finetuned import load_finetuned
from tests.models import models as made

OPERATOR = {"magnitude": "mean", "reconstruction": "complete"}  # the one that loses least


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The output folder of a run with shared heads."""
    path = tmp_path_factory.mktemp("run")
    write_tensors(path, made.model(), made.task_vectors(), made.heads())
    return path


def images(count=5):
    chance = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8, generator=chance)


def test_what_was_written_comes_back(folder):
    assert artefacts.read_model(folder) == made.model()
    for task, vector in made.task_vectors().items():
        assert torch.equal(artefacts.read_task_vector(folder, task), vector)
    for task, head in made.heads().items():
        found = artefacts.read_head(folder, task)
        assert torch.equal(found.weight, head.weight)
        assert torch.equal(found.bias, head.bias)
    unified, expected = artefacts.read_unified(folder), unify(made.task_vectors(), **OPERATOR)
    assert torch.equal(unified.vector, expected.vector)
    assert (unified.rescalers, unified.opposites) == (expected.rescalers, expected.opposites)
    for task in made.TASKS:
        assert torch.equal(unified.reconstruct(task), expected.reconstruct(task))


def test_a_backbone_of_an_earlier_release_has_an_argument_that_is_gone(tmp_path):
    old = made.model().backbone | {"last_blocks": 2}
    write_tensors(tmp_path, made.model(backbone=old), made.task_vectors(), made.heads())
    assert artefacts.read_model(tmp_path) == made.model()
    assert load_finetuned(tmp_path, "corn").predict(images())
    write_tensors(tmp_path, made.model(backbone=old | {"trainable": "blocks"}), made.task_vectors(), made.heads())
    text = r"cannot be loaded: backbone\.trainable = 'blocks' was removed after release 0\.1\.0: use that release$"
    with pytest.raises(ArtefactError, match=text):
        load_finetuned(tmp_path, "corn")


def test_paths_are_named_and_nothing_else_is_left(tmp_path):
    written = write_tensors(tmp_path, made.model(), made.task_vectors(), {})
    assert sorted(written) == ["task vectors", "unified vector"]
    assert sorted(written.values()) == sorted(map(str, tmp_path.iterdir()))


def test_writing_again_replaces_both(tmp_path):
    write_tensors(tmp_path, made.model(), made.task_vectors(), made.heads())
    write_tensors(tmp_path, made.model(), made.task_vectors(seed=9), {})
    assert torch.equal(artefacts.read_task_vector(tmp_path, "corn"), made.task_vectors(seed=9)["corn"])
    assert artefacts.read_head(tmp_path, "corn") is None


def test_rows_of_one_tensor_can_be_written(tmp_path):
    """A merge may give τ^t as rows of one (T, d) tensor: safetensors refuses tensors that share memory."""
    rows = torch.stack(list(made.task_vectors().values()))
    write_tensors(tmp_path, made.model(), dict(zip(made.TASKS, rows, strict=True)), {})
    assert torch.equal(artefacts.read_task_vector(tmp_path, "rice"), rows[1])


def test_a_file_is_usable_by_itself(folder):
    with safe_open(folder / "unified.safetensors", framework="pt") as file:
        metadata = file.metadata()
        assert file.get_tensor("corn/mask").shape == (-(-made.backbone().d // 8),)
    assert metadata["fingerprint"] == made.backbone().fingerprint
    assert json.loads(metadata["backbone"])["name"] == "vit_mini_clip_32"
    assert json.loads(metadata["classes"]) == {"corn": ["ill", "well"], "rice": ["a", "b", "c"]}


def test_the_unified_file_is_the_smaller_one(tmp_path):
    write_tensors(tmp_path, made.model(), made.task_vectors(), {})
    d = made.backbone().d
    assert (tmp_path / "task_vectors.safetensors").stat().st_size == pytest.approx(2 * 4 * d, rel=0.01)
    assert (tmp_path / "unified.safetensors").stat().st_size == pytest.approx((4 + 2 / 8) * d, rel=0.01)


# --- back to a model ---


def by_hand(vector, head):
    module = made.backbone().module
    made.backbone().load(vector)
    with torch.inference_mode():
        pixels = (images().permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        return module(pixels) @ head.weight.T + head.bias


@pytest.mark.parametrize("task", list(made.TASKS))
@pytest.mark.parametrize("source", ["task-vector", "unified"])
def test_the_same_logits_as_by_hand(folder, task, source):
    found = load_finetuned(folder, task, source)
    vectors = made.task_vectors()
    vector = vectors[task] if source == "task-vector" else unify(vectors, **OPERATOR).reconstruct(task)
    expected = by_hand(vector, made.heads()[task])
    assert torch.allclose(found.logits(images()), expected, atol=1e-5)
    assert found.predict(images()) == [made.TASKS[task][i] for i in expected.argmax(1).tolist()]
    assert found.classes == list(made.TASKS[task])


def test_the_two_sources_differ(folder):
    one, other = (load_finetuned(folder, "corn", source).logits(images()) for source in ("task-vector", "unified"))
    assert not torch.allclose(one, other)


def test_the_model_is_the_caller_s_own(folder):
    found = load_finetuned(str(folder), "corn")
    before = found.logits(images())
    load_finetuned(folder, "rice")
    made.backbone().load(None)
    assert torch.equal(found.logits(images()), before)
    with torch.no_grad():
        next(found.backbone.parameters()).zero_()
    assert torch.equal(load_finetuned(folder, "corn").logits(images()), before)


def test_no_head_where_heads_stayed_at_the_clients(tmp_path):
    write_tensors(tmp_path, made.model(), made.task_vectors(), {})
    found = load_finetuned(tmp_path, "corn")
    assert found.head is None
    assert found.backbone(torch.zeros(1, 3, 16, 16)).shape == (1, made.backbone().num_features)
    with pytest.raises(ArtefactError, match=r"'corn': the run kept heads at the clients .*; use `\.backbone` with"):
        found.logits(images())


# --- what is not there ---


def test_no_run(tmp_path):
    with pytest.raises(ArtefactError, match=r"task_vectors\.safetensors does not exist: expected the output folder"):
        load_finetuned(tmp_path, "corn")


@pytest.mark.parametrize("source", ["task-vector", "unified"])
def test_no_such_task(folder, source):
    with pytest.raises(ArtefactError, match=r"'wheat'.* \['corn', 'rice'\]"):
        load_finetuned(folder, "wheat", source)


def test_no_such_source(folder):
    with pytest.raises(ValueError, match="task-vectors"):
        load_finetuned(folder, "corn", "task-vectors")


def test_another_start(tmp_path):
    write_tensors(tmp_path, made.model(fingerprint="0" * 64), made.task_vectors(), {})
    with pytest.raises(
        BackboneError,
        match=r"started from weights with fingerprint 000000000000…, but here .* gives .*: use the same weights",
    ):
        load_finetuned(tmp_path, "corn")


@pytest.mark.parametrize("content", [b"", b"junk" * 20])
def test_a_broken_file(tmp_path, content):
    (tmp_path / "task_vectors.safetensors").write_bytes(content)
    with pytest.raises(ArtefactError, match="is not a readable safetensors file"):
        artefacts.read_model(tmp_path)


def test_a_safetensors_file_that_is_of_no_run(tmp_path):

    save_file({"x": torch.zeros(1)}, tmp_path / "task_vectors.safetensors")
    with pytest.raises(ArtefactError, match=r"task_vectors\.safetensors"):
        artefacts.read_model(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 10**5])
@pytest.mark.parametrize("name", ["backbone", "classes"])
def test_metadata_that_is_no_mapping(folder, tmp_path, name, text):

    with safe_open(folder / "task_vectors.safetensors", framework="pt") as file:
        metadata = file.metadata() | {name: text}
    save_file({"x": torch.zeros(1)}, tmp_path / "task_vectors.safetensors", metadata)
    with pytest.raises(ArtefactError, match=rf"{name} in its metadata is '.*, expected a JSON object"):
        artefacts.read_model(tmp_path)


def test_a_task_vector_with_nan_is_named(tmp_path):
    vectors = made.task_vectors()
    write_tensors(tmp_path, made.model(), vectors, made.heads())
    broken = {name: tensor.clone() for name, tensor in load_file(tmp_path / "task_vectors.safetensors").items()}
    broken["corn/task_vector"][3] = float("nan")
    with safe_open(tmp_path / "task_vectors.safetensors", framework="pt") as file:
        metadata = file.metadata()
    save_file(broken, tmp_path / "task_vectors.safetensors", metadata)
    with pytest.raises(ArtefactError, match="tensor 'corn/task_vector' has NaN or infinity"):
        load_finetuned(tmp_path, "corn")


def test_equal_results_are_equal_files(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_tensors(tmp_path / name, made.model(), made.task_vectors(), made.heads())
    for file in ("task_vectors.safetensors", "unified.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
