"""Digests by hand, from the standard's own examples."""

from matu_flwr import digests

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_bytes_and_files(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert digests.of_bytes(b"abc") == digests.of_file(tmp_path / "abc") == ABC


def test_the_order_of_keys_does_not_count():
    assert digests.of_json({"a": 1, "b": ["x"]}) == digests.of_json({"b": ["x"], "a": 1})
    assert digests.of_json(("1", "2")) == digests.of_bytes(b'["1", "2"]')
    assert digests.of_json({"a": 1}) != digests.of_json({"a": 2})
