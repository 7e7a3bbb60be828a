"""The small CLIP-like default model: an image tower for 32 x 32 pixels, and the text tower pre-trained with it.

`matu pretrain` makes the weights (see `matu_flwr.pretraining`). They ship with the package. A JSON file beside them,
the card, says how they were made and how well they do.
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from matu_flwr._torchvision import ensure_importable
from matu_flwr.backbones.errors import BackboneError
from matu_flwr.backbones.weights import tensor_digest

NAME = "vit_mini_clip_32"
EMBED_DIM = 128
WIDTH, DEPTH, HEADS = 128, 4, 4
IMAGE_SIZE = 32
MEAN = STD = (0.5, 0.5, 0.5)
ASSETS = Path("matu_flwr", "backbones", "assets")

# Rows of the table of embeddings. Character n-grams are hashed into them.
BUCKETS = 3072
# Longer captions are cut.
MAX_WORDS = 24
_WORD = re.compile(r"[a-z0-9.\-/]+|[^\sa-z0-9]")


# --- the image tower -----------------------------------------------------------------------------------------------


def vision_tower(image_size: int = IMAGE_SIZE, num_classes: int = EMBED_DIM, **arguments: Any) -> nn.Module:
    """Build timm's VisionTransformer on three convolutions of stride 2; its `head` is CLIP's projection.

    A plain 8 x 8 patch embedding costs as much. But from random weights it learns far less from a few hundred images
    (early convolutions: Xiao et al., NeurIPS 2021). At 32 pixels there are only 16 tokens, so that a step is cheap on
    one CPU core.

    Parameters
    ----------
    image_size : int
        Side of the images in pixels, a multiple of 8.
    num_classes : int
        `EMBED_DIM` gives the tower with its projection, which has no bias. Another number gives timm's classifier for
        so many classes, and 0 no head.

    Returns
    -------
    nn.Module
        (B, 3, S, S) float32 -> (B, num_classes), or (B, WIDTH) without a head.
    """
    ensure_importable()
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.layers.norm import LayerNorm2d
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    def stem(**options: Any) -> nn.Module:
        # timm passes the bias of a patch projection, and this stem has no patch projection.
        del options["bias"]
        channels = (WIDTH // 4, WIDTH // 2, WIDTH)
        # Layer norm instead of batch norm, whose running statistics would not be part of a task vector.
        convolutions = ConvStem(depth=3, channels=channels, norm_layer=LayerNorm2d, act_layer=nn.GELU)
        return HybridEmbed(convolutions, proj=False, **options)

    options: dict[str, Any] = {
        "img_size": image_size,
        "patch_size": 1,
        "embed_layer": stem,
        "embed_dim": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
        "class_token": False,
        "global_pool": "avg",
        "num_classes": num_classes,
    }
    tower = VisionTransformer(**(options | arguments))
    if num_classes == EMBED_DIM:
        tower.head = nn.Linear(WIDTH, EMBED_DIM, bias=False)
    return tower


@functools.cache
def register() -> None:
    """Register the tower with timm. After that `timm.create_model(NAME, num_classes=10)` works."""
    ensure_importable()
    from timm.models import generate_default_cfgs, register_model

    def vit_mini_clip_32(pretrained: bool = False, **arguments: Any) -> nn.Module:
        from timm.models import build_model_with_cfg

        arguments.setdefault("num_classes", EMBED_DIM)
        model: nn.Module = build_model_with_cfg(_by_img_size, NAME, pretrained, **arguments)
        return model

    # timm looks for a model's description and constructor among the globals of the module that defines it.
    globals()["default_cfgs"] = generate_default_cfgs(
        {
            NAME: {
                "num_classes": EMBED_DIM,
                "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
                "mean": MEAN,
                "std": STD,
                "interpolation": "bicubic",
                "crop_pct": 1.0,
                "classifier": "head",
                "first_conv": "patch_embed.backbone.0.conv",
            }
        }
    )
    globals()[NAME] = vit_mini_clip_32
    register_model(vit_mini_clip_32)


def _by_img_size(img_size: int = IMAGE_SIZE, num_classes: int = EMBED_DIM, **arguments: Any) -> nn.Module:
    """`vision_tower` with the argument names that timm uses."""
    arguments.pop("in_chans", None)
    return vision_tower(img_size, num_classes, **arguments)


# --- the text tower ------------------------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    """Split a text into lower-case words and punctuation marks; only the first `MAX_WORDS` are kept."""
    return _WORD.findall(text.lower())[:MAX_WORDS] or [""]


@functools.lru_cache(maxsize=100_000)
def ngrams_of(word: str) -> tuple[int, ...]:
    """Rows of the embedding table for a word and for its character n-grams of 3 to 5 characters.

    A word that was never seen in pre-training shares n-grams with words that were.
    """
    marked = f"<{word}>"
    grams = [marked, *(marked[i : i + n] for n in (3, 4, 5) for i in range(len(marked) - n + 1))]
    return tuple(zlib.crc32(gram.encode()) % BUCKETS for gram in dict.fromkeys(grams))


class TextTower(nn.Module):
    """Turns captions into embeddings. A word is the mean of its n-grams' embeddings.

    Two transformer layers run over the words of a caption. Their outputs are averaged over the words and projected.
    """

    def __init__(self) -> None:
        super().__init__()
        self.grams = nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean")
        self.position = nn.Parameter(torch.zeros(MAX_WORDS, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.projection = nn.Linear(WIDTH, EMBED_DIM, bias=False)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """N captions to (N, EMBED_DIM) float32, not normalised."""
        captions = [words_of(text) for text in texts]
        # Each different word is embedded once: captions of a batch share most of their words.
        vocabulary = {word: row for row, word in enumerate(dict.fromkeys(w for c in captions for w in c))}
        grams = [ngrams_of(word) for word in vocabulary]
        starts = torch.tensor([0, *(len(g) for g in grams)]).cumsum(0)[:-1]
        embedded = self.grams(torch.tensor([g for gram in grams for g in gram]), starts)  # (V, WIDTH)
        longest = max(map(len, captions))
        rows = torch.tensor([[vocabulary[w] for w in c] + [0] * (longest - len(c)) for c in captions])  # (N, L)
        absent = torch.arange(longest) >= torch.tensor([len(c) for c in captions])[:, None]  # (N, L)
        hidden = self.layers(embedded[rows] + self.position[:longest], src_key_padding_mask=absent)
        present = (~absent).unsqueeze(-1)
        pooled = (hidden * present).sum(dim=1) / present.sum(dim=1)
        found: Tensor = self.projection(pooled)
        return found

    def encode(self, texts: Sequence[str]) -> Tensor:
        """N captions to (N, EMBED_DIM) float32, each row of length 1."""
        return F.normalize(self(texts), dim=-1)


# --- the weights that ship -----------------------------------------------------------------------------------------


def weights_path() -> Path:
    """Path of the weights that ship with the package.

    Flower's app bundle cannot hold safetensors files. So a node that runs this module from a bundle looks in the
    installed package instead.

    Raises
    ------
    BackboneError
        The weights are neither beside this module nor in an installed package.
    """
    file = f"{NAME}.safetensors"
    for folder in (Path(__file__).parent / "assets", *_installed_folders()):
        if (folder / file).is_file():
            return folder / file
    raise BackboneError(
        f"the weights of {NAME!r} ({file}) were not found: they come with the installed package, not with Flower's app "
        "bundle; run `pip install matu-flwr` in this node's environment"
    )


def _installed_folders() -> list[Path]:
    """Folders in which an installed matu-flwr may keep its weights."""
    try:
        found = distribution("matu-flwr")
    except PackageNotFoundError:
        return []
    folders = [Path(str(found.locate_file(str(ASSETS))))]
    # An editable install has no copy of the weights. It names the folder of the checkout in direct_url.json.
    if text := found.read_text("direct_url.json"):
        folders.append(Path(unquote(urlparse(json.loads(text)["url"]).path)) / ASSETS)
    return folders


@functools.lru_cache(maxsize=1)
def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise BackboneError(f"the packaged weights {path} cannot be read ({error}): install matu-flwr again") from error


def _part(prefix: str) -> dict[str, Tensor]:
    """The packaged tensors whose names begin with `prefix`, without the prefix."""
    return {n.removeprefix(prefix): t for n, t in _tensors(weights_path()).items() if n.startswith(prefix)}


def load_vision(tower: Any) -> None:
    """Load the packaged weights into an image tower. The position embedding is resized to the tower's image size."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    tower.load_state_dict(checkpoint_filter_fn(_part("vision."), tower))


def load_text_tower() -> TextTower:
    """Build the text tower with its packaged weights, in evaluation mode."""
    tower = TextTower()
    tower.load_state_dict(_part("text."))
    return tower.eval()


def logit_scale() -> float:
    """The factor for cosines of image and text embeddings, as learnt in pre-training."""
    return float(_tensors(weights_path())["logit_scale"].exp())


def text_fingerprint() -> str:
    """SHA-256 (hex) of the packaged text tower's weights."""
    return tensor_digest(_part("text."))


def card() -> dict[str, Any]:
    """Read the card of the packaged weights: how they were made, and their measured accuracy."""
    found: dict[str, Any] = json.loads(weights_path().with_suffix(".json").read_text(encoding="utf-8"))
    return found
