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

HAS_HALVES = (
    config.CPU_NAME is None  # numba compiles for this machine
    and config.CPU_FEATURES is None
    and (platform.machine() == "aarch64" or bool(binding.get_host_cpu_features().get("f16c", False)))
)
"""Whether the processor reads float16 itself: what calls `single` with its bits may be compiled only then."""


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    typed: Callable[..., Any] = intrinsic(function)
    return typed


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), context.get_value_type(types.uint64).as_pointer())


@_intrinsic
def word(typing_context: Any, data: Any, index: Any) -> Any:
    """`data[index : index + 8]` as a little-endian number; the caller answers for the range."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1])
        return builder.load(address, align=1)

    return types.uint64(data, types.uint64), generate


@_intrinsic
def big_endian_word(typing_context: Any, data: Any, index: Any) -> Any:
    """`data[index : index + 8]` as a big-endian number; the caller answers for the range."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1])
        return builder.bswap(builder.load(address, align=1))

    return types.uint64(data, types.uint64), generate


@_intrinsic
def put_word(typing_context: Any, data: Any, index: Any, value: Any) -> Any:
    """Write `value` little-endian to `data[index : index + 8]`; the caller answers for the range."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature.args[0], arguments[0], arguments[1])
        builder.store(arguments[2], address, align=1)
        return context.get_dummy_value()

    return types.void(data, types.uint64, types.uint64), generate


@_intrinsic
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


@_intrinsic
def single(typing_context: Any, value: Any) -> Any:
    """float32 of a float32, or of the uint16 that holds the bits of a float16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0] == types.float32:
            return arguments[0]
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(value), generate


@_intrinsic
def weighted_colours(
    typing_context: Any, out: Any, to: Any, pixels: Any, begin: Any, weights: Any, first: Any, count: Any
) -> Any:
    """`out[to + c] = sum of pixels[begin + 3 * i + c] * weights[first + i]` for c in 0..3 and i below `count`.

    `out` and `weights` are float32, `pixels` uint8 of RGB; sums are made one after the other, nothing is fused. The
    fourth number is no colour of this pixel: it costs nothing, and whoever writes the next pixel there overwrites it.
    A `count` that is a number in the source becomes straight code. The caller answers for the ranges.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        floats, four_bytes = ir.VectorType(ir.FloatType(), 4), ir.VectorType(ir.IntType(8), 4)
        target, source, shares = (
            context.make_array(signature.args[at])(context, builder, arguments[at]).data for at in (0, 2, 4)
        )
        number = arguments[6].type
        before, loop, after = builder.block, builder.append_basic_block("pixel"), builder.append_basic_block("written")
        builder.branch(loop)
        builder.position_at_end(loop)
        at, total = builder.phi(number), builder.phi(floats)
        address = builder.gep(source, [builder.add(arguments[3], builder.mul(at, number(3)))])
        colours = builder.uitofp(builder.load(builder.bitcast(address, four_bytes.as_pointer()), align=1), floats)
        weight = builder.load(builder.gep(shares, [builder.add(arguments[5], at)]))
        spread = builder.shuffle_vector(
            builder.insert_element(floats(ir.Undefined), weight, ir.IntType(32)(0)),
            floats(ir.Undefined),
            ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4),
        )
        more, following = builder.fadd(total, builder.fmul(colours, spread)), builder.add(at, number(1))
        at.add_incoming(number(0), before)
        at.add_incoming(following, loop)
        total.add_incoming(ir.Constant(floats, [0.0] * 4), before)
        total.add_incoming(more, loop)
        builder.cbranch(builder.icmp_signed("<", following, arguments[6]), loop, after)
        builder.position_at_end(after)
        address = builder.bitcast(builder.gep(target, [arguments[1]]), floats.as_pointer())
        builder.store(more, address, align=4)
        return context.get_dummy_value()

    return types.void(out, types.int64, pixels, types.int64, weights, types.int64, types.int64), generate
