from pathlib import Path

from tests.support.command import matu


def test_heads_says_what_it_wrote(tmp_path: Path) -> None:
    suite = tmp_path / "one.yaml"
    suite.write_text(
        "name: one\nmax_train: 48\ntasks: {dots: {loader: generated, options: {family: counts, style: dots}}}\n"
    )
    text = matu("heads", str(tmp_path / "heads.safetensors"), "--suite", str(suite))
    assert text.strip() == f"1 heads for vit_mini_clip_32 written to {tmp_path / 'heads.safetensors'}"
    text = matu("heads", str(tmp_path / "h"), "--suite", str(suite), "--backbone", "vit_tiny_patch16_224", status=1)
    assert "error: " in text
