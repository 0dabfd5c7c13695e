"""What kernels need and numba cannot say in Python: eight bytes at any address, arithmetic of 32 bits, and float16."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from lmdali.pipeline.errors import MissingExtraError

try:
    from llvmlite import binding, ir
    from numba.core import config, types
    from numba.extending import intrinsic
except ImportError as error:
    raise MissingExtraError("numba", "train", "the CPU loader's compiled JPEG decoder") from error

_FOR_THIS_MACHINE = config.CPU_NAME is None and config.CPU_FEATURES is None  # numba can be told to compile for another


def compiles_for(feature: str) -> bool:
    """Whether what numba compiles may use a feature of the processor, by LLVM's name of it."""
    return _FOR_THIS_MACHINE and bool(binding.get_host_cpu_features().get(feature, False))


HAS_HALVES = compiles_for("f16c") or (_FOR_THIS_MACHINE and platform.machine() == "aarch64")
"""Whether the processor reads float16 itself: what calls `single` with its bits may be compiled only then."""


def typed_intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """numba's `intrinsic`, which has no types."""
    typed: Callable[..., Any] = intrinsic(function)
    return typed


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), context.get_value_type(types.uint64).as_pointer())


@typed_intrinsic
def word(typing_context: Any, data: Any, index: Any) -> Any:
    """`data[index : index + 8]` as a little-endian number; the caller answers for the range."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1])
        return builder.load(address, align=1)

    return types.uint64(data, types.uint64), generate


@typed_intrinsic
def big_endian_word(typing_context: Any, data: Any, index: Any) -> Any:
    """`data[index : index + 8]` as a big-endian number; the caller answers for the range."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1])
        return builder.bswap(builder.load(address, align=1))

    return types.uint64(data, types.uint64), generate


@typed_intrinsic
def put_word(typing_context: Any, data: Any, index: Any, value: Any) -> Any:
    """Write `value` little-endian to `data[index : index + 8]`; the caller answers for the range."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1])
        builder.store(arguments[2], address, align=1)
        return context.get_dummy_value()

    return types.void(data, types.uint64, types.uint64), generate


@typed_intrinsic
def colour(typing_context: Any, luma: Any, cb: Any, cr: Any, cb_factor: Any, cr_factor: Any) -> Any:
    """One colour of a pixel: `luma + (cb_factor * (cb - 128) + cr_factor * (cr - 128) + 0.5)`, clipped to 0..255.

    `luma`, `cb` and `cr` are uint8, the factors int32 in 1/65536. In Python's numbers numba would compute with 64 bits,
    and with half as many pixels at a time.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = context.get_value_type(types.int32)
        y, b, r = (builder.zext(argument, wide) for argument in arguments[:3])
        centre, half, black, white = wide(128), wide(1 << 15), wide(0), wide(255)
        total = builder.add(builder.mul(builder.sub(b, centre), arguments[3]), half)
        total = builder.add(total, builder.mul(builder.sub(r, centre), arguments[4]))
        total = builder.add(y, builder.ashr(total, wide(16)))
        total = builder.select(builder.icmp_signed("<", total, black), black, total)
        total = builder.select(builder.icmp_signed(">", total, white), white, total)
        return builder.trunc(total, context.get_value_type(types.uint8))

    return types.uint8(types.uint8, types.uint8, types.uint8, types.int32, types.int32), generate


@typed_intrinsic
def single(typing_context: Any, value: Any) -> Any:
    """float32 of a float32, or of the uint16 that holds the bits of a float16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0] == types.float32:
            return arguments[0]
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(value), generate
