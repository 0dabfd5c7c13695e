"""Words for kernels that must say in vectors what they do: LLVM's, for numba has none.

Loops that a compiler vectorises by itself need nothing of this. It is for what it does not find, above all AVX2's sums
of products of pairs: with them a multiplication costs half, and an addition comes with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmdali.pipeline.errors import MissingExtraError
from lmdali.pipeline.word_access import compiles_for

try:
    from llvmlite import ir
except ImportError as error:
    raise MissingExtraError("numba", "train", "compiled kernels") from error

HAS_PAIR_SUMS = compiles_for("avx2")
"""Whether the processor multiplies and adds pairs of int16 (AVX2): what makes `pair_sums` or `saturated` may be
compiled only then."""

BYTE, SHORT, INT, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))


def addresses(context: Any, builder: Any, signature: Any, arguments: Any, numbers: Sequence[int]) -> list[Any]:
    """Where the memory of these arguments, which are arrays, begins."""
    return [context.make_array(signature.args[at])(context, builder, arguments[at]).data for at in numbers]


def constant(kind: ir.IntType, numbers: Sequence[int]) -> ir.Constant:
    """A vector of known numbers."""
    return ir.Constant(ir.VectorType(kind, len(numbers)), list(numbers))


def spread(builder: Any, number: Any, count: int) -> Any:
    """A vector of one number."""
    empty = ir.VectorType(number.type, count)(ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(empty, number, INT(0)), empty, constant(INT, [0] * count))


def load(builder: Any, address: Any, kind: ir.IntType, count: int, *, align: int = 1) -> Any:
    """A vector of `count` numbers."""
    return builder.load(builder.bitcast(address, ir.VectorType(kind, count).as_pointer()), align=align)


def store(builder: Any, vector: Any, address: Any, *, align: int = 1) -> None:
    """Write a vector."""
    builder.store(vector, builder.bitcast(address, vector.type.as_pointer()), align=align)


def interleaved(builder: Any, one: Any, other: Any, bits: int = 16) -> tuple[Any, Any]:
    """Numbers of `bits` bits of two vectors of 256, by turns, in the order in which AVX2 does it in one instruction.

    The first result has the lower half of each 128 bits, the second the upper. Both have the operands' type.
    """
    kind, count = one.type, 256 // bits
    lane = count // 2
    parts = [builder.bitcast(vector, ir.VectorType(ir.IntType(bits), count)) for vector in (one, other)]
    low = [number for start in (0, lane) for at in range(lane // 2) for number in (start + at, count + start + at)]
    made = [builder.shuffle_vector(*parts, constant(INT, order)) for order in (low, [n + lane // 2 for n in low])]
    return builder.bitcast(made[0], kind), builder.bitcast(made[1], kind)


def pair_sums(builder: Any, one: Any, other: Any) -> Any:
    """8 int32: `one[2 i] * other[2 i] + one[2 i + 1] * other[2 i + 1]` of 16 int16."""
    return _call(builder, "pmadd.wd", ir.VectorType(INT, 8), one, other)


def high_products(builder: Any, one: Any, other: Any) -> Any:
    """16 int16: the upper 16 bits of `one[i] * other[i]`."""
    return _call(builder, "pmulh.w", ir.VectorType(SHORT, 16), one, other)


def saturated(builder: Any, one: Any, other: Any) -> Any:
    """Two vectors of int32 to one of int16, or of int16 to int8, 64 bits of each by turns, as `interleaved` parts them.

    What does not fit becomes the nearest number that does.
    """
    if one.type.element == INT:
        return _call(builder, "packssdw", ir.VectorType(SHORT, 16), one, other)
    return _call(builder, "packsswb", ir.VectorType(BYTE, 32), one, other)


def unsigned(builder: Any, one: Any, other: Any) -> Any:
    """Two vectors of int16 to one of bytes, 64 bits of each by turns; what does not fit becomes 0 or 255."""
    return _call(builder, "packuswb", ir.VectorType(BYTE, 32), one, other)


def _call(builder: Any, instruction: str, made: ir.VectorType, *vectors: Any) -> Any:
    name = f"llvm.x86.avx2.{instruction}"
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(made, [vector.type for vector in vectors]), name
    )
    return builder.call(function, vectors)
