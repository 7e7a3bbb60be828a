import stat
from pathlib import Path
from typing import Any

import torch

from matu_flwr.backbones import create_backbone, zero_head
from matu_flwr.models.artefacts import Model, write_tensors
from tests.support.command import matu


def test_export_says_what_it_wrote(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"name": "vit_mini_clip_32", "weights": "random", "image_size": 32, "seed": 0}
    backbone = create_backbone(**arguments)
    model = Model(arguments, backbone.fingerprint, {"scans": ["a", "b"]}, False)
    write_tensors(tmp_path, model, {"scans": torch.zeros(backbone.d)}, {"scans": zero_head(2, backbone.num_features)})
    out = tmp_path / "exported"
    text = matu("export", str(tmp_path), "scans", str(out))
    assert sorted(text.split()) == sorted(
        ["model", str(out / "model.safetensors"), "classes", str(out / "classes.json")]
    )
    assert len({stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()}) == 1, "tensors are readable like the rest"
    assert "error: " in matu("export", str(tmp_path), "leaves", str(tmp_path / "other"), status=1)
    (tmp_path / "file").write_text("")
    for target in ("file", "file/below"):
        text = matu("export", str(tmp_path), "scans", str(tmp_path / target), status=1)
        assert f"error: nothing can be written to {tmp_path / target}: " in text
