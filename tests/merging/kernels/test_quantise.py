"""8 and 4 bits per parameter: against a slow twin in Python's own numbers, and the laws that masks rely on."""

import math
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from matu_flwr.merging import PAPER, ClientUpdate, MergeError, MergeOptions, aggregate, as_sent, unify
from matu_flwr.merging.blocks import BLOCK
from matu_flwr.merging.codes import (
    GROUP,
    LEVELS,
    SCALE_FLOOR,
    Quantised,
    code_length,
    held_as,
    scale_length,
    values_of_bytes,
    vector_bytes,
)
from matu_flwr.merging.kernels.cpu_quantise import CODES_BLOCK
from matu_flwr.merging.quantise import dequantise, dequantise_in_torch, quantise, quantise_in_torch
from tests.support.laws import examples

DTYPES = ["int8", "int4"]
LENGTHS = [0, 1, 2, 7, 127, 128, 129, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 131]


def vector_of(d, seed=0, scale=1e-5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d, generator=generator) * scale * (torch.rand(d, generator=generator) > 0.1)


def to_bfloat16(value):
    """Round to the nearest bfloat16, ties to even, by the bits of a float32."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def twin(values, levels):
    """Signs, magnitude codes, scales and what they stand for, one parameter after the other."""
    codes, scales, back = [], [], []
    for start in range(0, len(values), GROUP):
        group = values[start : start + GROUP]
        scale = to_bfloat16(max(SCALE_FLOOR, *(abs(x) for x in group)))
        scales.append(scale)
        for x in group:
            code = 0 if x == 0 else min(levels, 1 + math.floor(abs(x) * (levels - 0.5) / scale))
            codes.append((x < 0, code))
            back.append(math.copysign(scale * (code - 0.5) / (levels - 0.5), x) if code else 0.0)
    return codes, scales, back


def taken_apart(quantised, d, dtype):
    """Sign and magnitude code of every parameter, from the layout as docs/lab/wire.md describes it."""
    found = []
    for i in range(d):
        code = int(quantised.codes[i]) if dtype == "int8" else int(quantised.codes[i // 2]) >> 4 * (i % 2) & 15
        levels = LEVELS[dtype]
        found.append((code > levels, code & levels))
    return found


# Values where a group spans many magnitudes, with exact zeros, both zeros' signs, denormals and powers of the grid.
VALUES = st.one_of(
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.floats(-(2.0**-16), 2.0**-16, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38, 2.0**-100, 1e-5, -1e-5, 0.5, 1.0, -1.0]),
)


@pytest.mark.parametrize("dtype", DTYPES)
@examples(200)
@given(values=st.lists(VALUES, max_size=300))
def test_codes_and_scales_are_the_slow_twin_s(dtype, values):
    vector = torch.tensor(values, dtype=torch.float32)
    found = quantise(vector, dtype)
    codes, scales, back = twin(vector.tolist(), LEVELS[dtype])
    assert found.scales.tolist() == scales
    # float32 may round |x| (L − ½) / s over the border of an interval, where both codes are equally far
    apart = taken_apart(found, len(values), dtype)
    for i, ((sign, code), (twin_sign, twin_code)) in enumerate(zip(apart, codes, strict=True)):
        assert (sign, code == 0) == (twin_sign, twin_code == 0)
        assert abs(code - twin_code) <= 1
        if code != twin_code:
            border = abs(float(vector[i])) * (LEVELS[dtype] - 0.5) / scales[i // GROUP]
            assert border == pytest.approx(round(border), rel=1e-6)
    rounded = dequantise(found, len(values), dtype).tolist()
    step = [scale / (LEVELS[dtype] - 0.5) for scale in scales]
    for i, (value, expected) in enumerate(zip(rounded, back, strict=True)):
        assert value == pytest.approx(expected, rel=2**-8, abs=1.001 * step[i // GROUP])


def check_kernels_and_torch_agree(vector, dtype):
    found = quantise(vector, dtype)
    other = Quantised(torch.empty_like(found.codes), torch.empty_like(found.scales))
    per_byte = {"int8": 1, "int4": 2}[dtype]
    quantise_in_torch(vector, LEVELS[dtype], per_byte, other.codes, other.scales)
    assert torch.equal(found.codes, other.codes)
    assert torch.equal(found.scales.view(torch.int16), other.scales.view(torch.int16))
    back, values = dequantise(found, len(vector), dtype), torch.empty(len(vector), dtype=torch.bfloat16)
    dequantise_in_torch(found.codes, found.scales, values_of_bytes(dtype), values)
    assert torch.equal(back.view(torch.int16), values.view(torch.int16))


@pytest.mark.parametrize("dtype", DTYPES)
@examples(200)
@given(values=st.lists(VALUES, max_size=300))
def test_the_compiled_loops_give_the_bits_of_plain_torch(dtype, values):
    vector = torch.tensor(values, dtype=torch.float32)
    check_kernels_and_torch_agree(vector, dtype)
    check_kernels_and_torch_agree(vector.bfloat16(), dtype)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("d", [*LENGTHS, 2 * CODES_BLOCK + 131])
@pytest.mark.parametrize("dtype", DTYPES)
def test_they_do_for_any_length_and_number_of_threads(dtype, d, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_kernels_and_torch_agree(vector_of(d), dtype)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@examples(200)
@given(values=st.lists(VALUES, max_size=300))
def test_signs_and_zeros_arrive_and_magnitudes_within_the_bound(dtype, values):
    vector = torch.tensor(values, dtype=torch.float32)
    scales = quantise(vector, dtype).scales.double().repeat_interleave(GROUP)[: len(values)]
    back = as_sent(vector, dtype)
    assert back.dtype == torch.bfloat16
    assert back.shape == vector.shape
    assert torch.equal(back.float().sign(), vector.sign())
    error = (back.double() - vector.double()).abs()
    half_step = scales / (2 * LEVELS[dtype] - 1)
    # the grid's own bound, with float32's rounding, and then bfloat16's of the value in memory
    assert (error <= half_step * (1 + 1e-5) + back.double().abs() * 2**-8).all()


@pytest.mark.parametrize("dtype", DTYPES)
@examples(200)
@given(values=st.lists(VALUES, min_size=1, max_size=300), c=st.sampled_from([2.0**-20, 0.5, 4.0]))
def test_what_was_sent_once_is_sent_again_unchanged(dtype, values, c):
    once = as_sent(torch.tensor(values, dtype=torch.float32), dtype)
    assert torch.equal(as_sent(once, dtype), once)
    assert torch.equal(as_sent(once.float(), dtype), once)
    # and so is its power-of-two multiple, unless the floor of the scale says otherwise
    scaled = once.float() * c
    if all(group.abs().max() >= SCALE_FLOOR for group in scaled.split(GROUP)):
        assert torch.equal(as_sent(scaled, dtype).float(), scaled)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", LENGTHS)
def test_any_length_and_blocks_do_not_matter(d, dtype):
    vector = vector_of(d)
    found = quantise(vector, dtype)
    assert found.codes.shape == (code_length(d, dtype),)
    assert found.scales.shape == (scale_length(d),)
    whole = as_sent(vector, dtype)
    for start in range(0, d, 7 * GROUP * 8):
        part = vector[start : start + 7 * GROUP * 8]
        assert torch.equal(as_sent(part, dtype), whole[start : start + 7 * GROUP * 8])


@pytest.mark.parametrize(("dtype", "by_hand"), [("int8", [0, 1, 127, 255, 64]), ("int4", [0x10, 0xF7, 0x04])])
def test_codes_worked_out_by_hand(dtype, by_hand):
    # One group, s = 1. int8, L − ½ = 126.5: 0; tiny -> 1; 1 -> 127; −1 -> 127 + 128; .5 -> 1 + ⌊63.25⌋ = 64.
    # int4, L − ½ = 6.5: 0, 1 | 7, 7 + 8 = 15 | 1 + ⌊3.25⌋ = 4 and an unused half; low half first.
    found = quantise(torch.tensor([0.0, 1e-9, 1.0, -1.0, 0.5]), dtype)
    assert found.codes.tolist() == by_hand
    assert found.scales.tolist() == [1.0]
    values = dequantise(found, 5, dtype).tolist()
    levels = LEVELS[dtype]
    expected = [0, 0.5 / (levels - 0.5), 1, -1, ((64 if dtype == "int8" else 4) - 0.5) / (levels - 0.5)]
    assert values == pytest.approx(expected, rel=2**-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_byte_is_a_value_of_its_own_sign_and_a_negative_zero_is_zero(dtype):
    d = 256 if dtype == "int8" else 512
    every = Quantised(torch.arange(256, dtype=torch.uint8), torch.ones(scale_length(d)).bfloat16())
    values, apart = dequantise(every, d, dtype), taken_apart(every, d, dtype)
    for value, (sign, code) in zip(values.tolist(), apart, strict=True):
        assert (value > 0, value < 0) == (code > 0 and not sign, code > 0 and sign)
        assert math.copysign(1, value) == (-1 if code and sign else 1)
    assert float(values.max()) == 1 == -float(values.min())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-5, 1e-20, 1.0])
def test_updates_of_any_size_lose_the_same(dtype, scale):
    vector = vector_of(10_000, scale=1.0)
    error = (as_sent(vector * scale, dtype).float() / scale - vector).norm() / vector.norm()
    assert error < {"int8": 0.01, "int4": 0.14}[dtype]  # float16 scales would give 0 at 1e-20 and lose 5 bits at 1e-5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_gives_a_scale_that_is_not(dtype, value):
    vector = vector_of(300)
    vector[140] = value
    assert torch.isfinite(quantise(vector, dtype).scales).tolist() == [True, False, True]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_mean_what_they_meant(dtype, k):
    """A set bit still has the sign of the task's own vector, a cleared one the other."""
    taus = {f"t{t}": vector_of(5000, seed=t) for t in range(k)}
    unified = unify(taus)
    received = replace(unified, vector=as_sent(unified.vector, dtype))
    for task, tau in taus.items():
        assert torch.equal(received.reconstruct(task).sign(), unified.reconstruct(task).sign())
        assert (received.reconstruct(task) * tau >= 0).all()
    if k == 1:
        assert torch.equal(received.vector != 0, unified.masks["t0"])


def test_other_dtypes_are_as_pytorch_rounds_them_and_have_no_codes():
    vector = vector_of(300)
    assert torch.equal(as_sent(vector, "bfloat16"), vector.bfloat16())
    assert torch.equal(as_sent(vector.bfloat16(), "float32"), vector.bfloat16().float())
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(MergeError, match=rf"dtype '{dtype}' has no codes, expected one of \['int8', 'int4'\]"):
            quantise(vector, dtype)
        assert held_as(dtype) == dtype
    assert held_as("int4") == held_as("int8") == "bfloat16"


def test_bytes_by_hand():
    # 300 parameters: 3 groups
    assert [vector_bytes(300, dtype) for dtype in ("float32", "bfloat16", "int8", "int4")] == [1200, 600, 306, 156]
    assert vector_bytes(301, "int4") == 151 + 6
    assert vector_bytes(0, "int4") == vector_bytes(0, "int8") == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_received_vectors_can_be_merged(dtype):
    taus = {"a": vector_of(1000, 1), "b": vector_of(1000, 2)}
    unified = unify(taus, **PAPER)
    sent = replace(unified, vector=as_sent(unified.vector, dtype))
    result = aggregate([ClientUpdate(sent, {"a": 3, "b": 4}, "client")], MergeOptions.paper(kappa=0))
    for task in taus:
        torch.testing.assert_close(result.task_vectors[task], sent.reconstruct(task), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_temporary_as_long_as_the_vector(dtype):
    # Python's own tracing does not see PyTorch's memory, so this looks at what every operation gives.
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in known:
                largest = max(largest, result.untyped_storage().nbytes())
            return result

    vector = vector_of(20 * BLOCK)
    known = {vector.untyped_storage().data_ptr()}
    with Watch():
        found = quantise(vector, dtype)
        dequantise(found, len(vector), dtype)
    assert largest == 2 * len(vector)  # the result in bfloat16, nothing of 4 bytes per parameter
