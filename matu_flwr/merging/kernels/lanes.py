"""Sixteen numbers at a time: the words in which `cpu_unify` is written.

Numba compiles a plain loop well where one array is read and one is written. The loops of MaTU read and write five, and
what it made of them ran at a fifth of the memory's speed. These words stand for LLVM's vectors of 16 lanes instead:
AVX-512 holds 16 float32 in one register, AVX2 in two, NEON in four, and what is computed is the same to the bit. Wider
ones were slower: a mask of 16 lanes is a register's own, a wider one is put together and taken apart.

The types: F float32, D float64, I int32, J int64, M one bit. Addresses are whole numbers (uint64): T vectors of one
call lie wherever their owners put them, and numbers in a table are read without Python's rule for negative indices,
which cost more than the arithmetic. Nothing here checks a bound.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import caching, cgutils, types
from numba.extending import intrinsic, models, register_model

LANES = 16
LINE = np.uint64(64)  # bytes of a cache line: 16 lanes of float32
HALF = np.uint64(LANES // 8)  # bytes of the bits of 16 lanes

Emit = Callable[..., Any]


# ---------------------------------------------------------------- machine code that is kept on disk


@functools.cache
def sources() -> str:
    """SHA-256 over every source file of `merging`.

    Numba itself looks at the file of a function alone. But what it compiles has the words of this file in it, and
    numbers of others: whatever of them changes, code that was kept before is stale.
    """
    digest = hashlib.sha256()
    merging = Path(__file__).parents[1]
    for path in sorted(merging.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(merging)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


class ByContent:
    """For one of Numba's locators: kept code is good as long as the sources are the same, whatever their dates."""

    def get_source_stamp(self) -> str:
        """What the code is kept with, and compared by."""
        return sources()


class Given(ByContent, caching.UserProvidedCacheLocator):
    """In NUMBA_CACHE_DIR, where that is set.

    Its folder there is named after the sources alone. Numba names it after the path, which is another one in every run:
    each run has its own copy of the app.
    """

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        """Return the name of the folder for the functions of a file."""
        return f"{Path(py_file).stem}-{sources()[:16]}"


class Beside(ByContent, caching.InTreeCacheLocator):
    """In `__pycache__` beside the source."""


class OfUser(ByContent, caching.UserWideCacheLocator):
    """In the user's folder of caches."""


class KeptCode(caching.CompileResultCacheImpl):
    """The first of these folders that can be written."""

    _locator_classes = [Given, Beside, OfUser]  # noqa: RUF012  # as Numba has it


class Kept(caching.FunctionCache):
    """The compiled forms of one function."""

    _impl_class = KeptCode


def compiled(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile now, without the global lock; keep the code on disk where some folder for it can be written."""

    def compile_now(function: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True)(function)
        try:
            dispatcher._cache = Kept(function)  # type: ignore[attr-defined, no-untyped-call]  # what cache=True sets
        except RuntimeError as error:  # a container whose file system is read-only
            if "cannot cache function" not in str(error):
                raise
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher

    return compile_now


class Lanes(types.Type):
    """Numba's type of LANES numbers of one LLVM type."""

    def __init__(self, element: ir.Type) -> None:
        super().__init__(name=f"Lanes({element})")
        self.vector = ir.VectorType(element, LANES)


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """How a local variable of this type is held: as LLVM's vector."""

    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, lanes.vector)  # type: ignore[no-untyped-call]


F = Lanes(ir.FloatType())
D = Lanes(ir.DoubleType())
I = Lanes(ir.IntType(32))  # noqa: E741  # beside J, and never alone in an expression
J = Lanes(ir.IntType(64))
M = Lanes(ir.IntType(1))
ADDRESS = types.uint64


def _word0(result: types.Type, emit: Emit) -> Any:
    @intrinsic
    def word(context: Any) -> Any:
        return result(), lambda _, builder, __, args: emit(builder)

    return word


def _word1(result: types.Type, a: types.Type, emit: Emit) -> Any:
    @intrinsic
    def word(context: Any, x: Any) -> Any:
        return result(a), lambda _, builder, __, args: emit(builder, *args)

    return word


def _word2(result: types.Type, a: types.Type, b: types.Type, emit: Emit) -> Any:
    @intrinsic
    def word(context: Any, x: Any, y: Any) -> Any:
        return result(a, b), lambda _, builder, __, args: emit(builder, *args)

    return word


def _word3(result: types.Type, a: types.Type, b: types.Type, c: types.Type, emit: Emit) -> Any:
    @intrinsic
    def word(context: Any, x: Any, y: Any, z: Any) -> Any:
        return result(a, b, c), lambda _, builder, __, args: emit(builder, *args)

    return word


# ---------------------------------------------------------------- memory


def _load(kind: ir.Type, align: int) -> Emit:
    def emit(builder: Any, address: Any) -> Any:
        value = builder.load(builder.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    return emit


def _store(kind: ir.Type, align: int) -> Emit:
    def emit(builder: Any, address: Any, value: Any) -> Any:
        builder.store(value, builder.inttoptr(address, kind.as_pointer()), align=align)
        return ir.Constant(ir.IntType(64), 0)

    return emit


def _load_bfloat16(builder: Any, address: Any) -> Any:
    halves = _load(ir.VectorType(ir.IntType(16), LANES), 2)(builder, address)
    shifted = builder.shl(builder.zext(halves, I.vector), ir.Constant(I.vector, [16] * LANES))
    return builder.bitcast(shifted, F.vector)


def _load_bits(builder: Any, address: Any) -> Any:
    # A plain bitcast is one instruction with AVX-512; without it LLVM takes the bits apart one by one.
    word = builder.zext(_load(ir.IntType(LANES), 1)(builder, address), ir.IntType(32))
    own = ir.Constant(I.vector, [1 << lane for lane in range(LANES)])
    return builder.icmp_unsigned("==", builder.and_(_splat(I)(builder, word), own), own)


def _store_bits(builder: Any, address: Any, mask: Any) -> Any:
    return _store(ir.IntType(LANES), 1)(builder, address, builder.bitcast(mask, ir.IntType(LANES)))


def _prefetch(builder: Any, address: Any) -> Any:
    pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    name = "llvm.prefetch.p0"
    fetch = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
    # to read, into the second cache
    builder.call(fetch, [builder.inttoptr(address, pointer), number(0), number(2), number(1)])
    return ir.Constant(ir.IntType(64), 0)


number_at = _word1(types.uint64, ADDRESS, _load(ir.IntType(64), 8))  # one number of a table
double_at = _word1(types.float64, ADDRESS, _load(ir.DoubleType(), 8))
float_at = _word1(types.float32, ADDRESS, _load(ir.FloatType(), 4))
load_f = _word1(F, ADDRESS, _load(F.vector, 4))
load_d = _word1(D, ADDRESS, _load(D.vector, 8))
load_bfloat16 = _word1(F, ADDRESS, _load_bfloat16)
load_bits = _word1(M, ADDRESS, _load_bits)  # 2 bytes, the least significant bit first
store_f = _word2(ADDRESS, ADDRESS, F, _store(F.vector, 4))
store_d = _word2(ADDRESS, ADDRESS, D, _store(D.vector, 8))
store_bits = _word2(ADDRESS, ADDRESS, M, _store_bits)
prefetch = _word1(ADDRESS, ADDRESS, _prefetch)  # of an address past the end nothing happens


# ---------------------------------------------------------------- arithmetic: IEEE, no contraction to fused operations


def _constant(lanes: Lanes, value: float) -> Any:
    return _word0(lanes, lambda builder: ir.Constant(lanes.vector, [value] * LANES))


def _splat(lanes: Lanes) -> Emit:
    def emit(builder: Any, value: Any) -> Any:
        one = builder.insert_element(ir.Constant(lanes.vector, ir.Undefined), value, ir.IntType(32)(0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        return builder.shuffle_vector(one, ir.Constant(lanes.vector, ir.Undefined), everywhere)

    return emit


def _abs(bits: int) -> Emit:
    integers = ir.VectorType(ir.IntType(bits), LANES)

    def emit(builder: Any, x: Any) -> Any:
        without_sign = builder.and_(builder.bitcast(x, integers), ir.Constant(integers, [2 ** (bits - 1) - 1] * LANES))
        return builder.bitcast(without_sign, x.type)

    return emit


def _flipped(builder: Any, x: Any, y: Any) -> Any:
    sign = builder.and_(builder.bitcast(y, I.vector), ir.Constant(I.vector, [-(2**31)] * LANES))
    return builder.bitcast(builder.xor(builder.bitcast(x, I.vector), sign), F.vector)


def _extreme(order: str) -> Emit:
    return lambda builder, x, y: builder.select(builder.fcmp_ordered(order, x, y), x, y)


def _compare(order: str) -> Emit:
    return lambda builder, x, y: builder.fcmp_ordered(order, x, y)


def _select(builder: Any, mask: Any, x: Any, y: Any) -> Any:
    return builder.select(mask, x, y)


def _not_finite(builder: Any, x: Any) -> Any:
    zero = ir.Constant(F.vector, [0.0] * LANES)
    return builder.fcmp_unordered("!=", builder.fmul(x, zero), zero)  # NaN · 0 and ∞ · 0 are NaN


def _any(builder: Any, mask: Any) -> Any:
    return builder.icmp_unsigned("!=", builder.bitcast(mask, ir.IntType(LANES)), ir.IntType(LANES)(0))


def _not_all(builder: Any, mask: Any) -> Any:
    return builder.icmp_unsigned("!=", builder.bitcast(mask, ir.IntType(LANES)), ir.IntType(LANES)(2**LANES - 1))


def _count_ones(builder: Any, word: Any) -> Any:
    return builder.ctpop(word)


zero_f = _constant(F, 0.0)
zero_d, one_d = _constant(D, 0.0), _constant(D, 1.0)
zero_i, zero_j = _constant(I, 0), _constant(J, 0)
splat_f = _word1(F, types.float32, _splat(F))
splat_d = _word1(D, types.float64, _splat(D))
splat_i = _word1(I, types.int32, _splat(I))
splat_j = _word1(J, types.int64, _splat(J))
add_d = _word2(D, D, D, lambda builder, x, y: builder.fadd(x, y))
mul_d = _word2(D, D, D, lambda builder, x, y: builder.fmul(x, y))
div_d = _word2(D, D, D, lambda builder, x, y: builder.fdiv(x, y))
mul_f = _word2(F, F, F, lambda builder, x, y: builder.fmul(x, y))
add_i = _word2(I, I, I, lambda builder, x, y: builder.add(x, y))
sub_i = _word2(I, I, I, lambda builder, x, y: builder.sub(x, y))
add_j = _word2(J, J, J, lambda builder, x, y: builder.add(x, y))
sub_j = _word2(J, J, J, lambda builder, x, y: builder.sub(x, y))
negative_f = _word1(F, F, lambda builder, x: builder.fneg(x))
flipped_f = _word2(F, F, F, _flipped)  # x, and −x where the second is negative
abs_f = _word1(F, F, _abs(32))
abs_d = _word1(D, D, _abs(64))
max_f = _word2(F, F, F, _extreme(">"))
min_f = _word2(F, F, F, _extreme("<"))
to_double = _word1(D, F, lambda builder, x: builder.fpext(x, D.vector))
to_float = _word1(F, D, lambda builder, x: builder.fptrunc(x, F.vector))
count_to_double = _word1(D, I, lambda builder, x: builder.sitofp(x, D.vector))

greater_f, less_f = _word2(M, F, F, _compare(">")), _word2(M, F, F, _compare("<"))
greater_d, less_d, at_least_d = (_word2(M, D, D, _compare(order)) for order in (">", "<", ">="))
less_i = _word2(M, I, I, lambda builder, x, y: builder.icmp_signed("<", x, y))
less_j = _word2(M, J, J, lambda builder, x, y: builder.icmp_signed("<", x, y))
either = _word2(M, M, M, lambda builder, x, y: builder.or_(x, y))
both = _word2(M, M, M, lambda builder, x, y: builder.and_(x, y))
select_f, select_d = _word3(F, M, F, F, _select), _word3(D, M, D, D, _select)
select_i, select_j = _word3(I, M, I, I, _select), _word3(J, M, J, J, _select)
not_finite = _word1(M, F, _not_finite)
not_all = _word1(types.boolean, M, _not_all)
any_of = _word1(types.boolean, M, _any)
count_ones = _word1(types.uint64, types.uint64, _count_ones)
