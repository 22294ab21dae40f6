"""What instructions that compute give: numbers of each thread from numbers of the same thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Lanes = np.ndarray
_TYPES = {
    "pred": np.dtype(bool),
    **{f"b{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    **{f"u{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    **{f"s{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}


def dtype_of(kind: str) -> np.dtype:
    return _TYPES[kind]


def bits_of(values: Lanes, size: int) -> Lanes:
    """Unsigned numbers of ``size`` bytes: cut off or filled up with zeros."""
    return values if values.dtype.itemsize == size else values.astype(f"u{size}")


def from_bfloat16(bits: Lanes) -> Lanes:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(values: Lanes) -> Lanes:
    """Rounded to the nearest, ties to even."""
    bits = np.atleast_1d(values).view(np.uint32)
    rounded = (bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FFF), rounded).astype(np.uint16)


def flushed(values: Lanes, opcode: tuple[str, ...]) -> Lanes:
    """Denormal numbers as zeros where the instruction says so."""
    if "ftz" not in opcode or values.dtype != np.float32:
        return values
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), values), values)


def truncated(left: Lanes, right: Lanes) -> Lanes:
    """The quotient towards zero, as C has it."""
    right = np.where(right == 0, right.dtype.type(1), right)
    if left.dtype.kind == "u":
        return left // right
    quotient = left // right
    return quotient + ((left - quotient * right != 0) & ((left < 0) != (right < 0)))


def shifted_left(values: Lanes, by: Lanes) -> Lanes:
    width = 8 * values.dtype.itemsize
    kept = np.where(by < width, by, 0).astype(values.dtype)
    return np.where(by < width, values << kept, values.dtype.type(0))


def shifted_right(values: Lanes, by: Lanes) -> Lanes:
    width = 8 * values.dtype.itemsize
    shifted = values >> np.minimum(by, width - 1).astype(values.dtype)
    return shifted if values.dtype.kind == "i" else np.where(by < width, shifted, values.dtype.type(0))


def greatest(first: Lanes, second: Lanes) -> Lanes:
    """Of floats: a number rather than none, and 0 rather than -0."""
    found = np.fmax(first, second)
    return np.where((found == 0) & ~(np.signbit(first) & np.signbit(second)), found.dtype.type(0), found)


def fused(first: Lanes, second: Lanes, third: Lanes) -> Lanes:
    """Of float32 exact but for a second rounding of the sum; of float64 rounded twice."""
    if first.dtype == np.float32:
        return (first.astype(np.float64) * second.astype(np.float64) + third.astype(np.float64)).astype(np.float32)
    return first * second + third


def _number(machine: Any, operand: Any, kind: str) -> Lanes:
    found = machine.read(operand, kind)
    return from_bfloat16(found) if kind == "bf16" else found


Compute = Callable[..., Lanes]
PLAIN: dict[str, Compute] = {
    "add": np.add,
    "sub": np.subtract,
    "min": lambda a, b: -greatest(-a, -b) if a.dtype.kind == "f" else np.minimum(a, b),
    "max": lambda a, b: greatest(a, b) if a.dtype.kind == "f" else np.maximum(a, b),
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "neg": np.negative,
    "abs": np.abs,
    "fma": fused,
    "div": lambda a, b: a / b if a.dtype.kind == "f" else truncated(a, b),
    "rem": lambda a, b: (a - truncated(a, b) * b).astype(a.dtype),
    "ex2": np.exp2,
    "rcp": lambda a: a.dtype.type(1) / a,
}
COMPARED: dict[str, Compute] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a != b) & ~unordered(a, b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "hi": np.greater,
    "equ": lambda a, b: (a == b) | unordered(a, b),
    "neu": lambda a, b: (a != b) | unordered(a, b),
    "ltu": lambda a, b: (a < b) | unordered(a, b),
    "leu": lambda a, b: (a <= b) | unordered(a, b),
    "gtu": lambda a, b: (a > b) | unordered(a, b),
    "geu": lambda a, b: (a >= b) | unordered(a, b),
    "num": lambda a, b: ~unordered(a, b),
    "nan": lambda a, b: unordered(a, b),
}


def unordered(a: Lanes, b: Lanes) -> Lanes:
    return (np.isnan(a) | np.isnan(b)) if a.dtype.kind == "f" else np.zeros(np.broadcast(a, b).shape, dtype=bool)


def _plain(name: str) -> Callable[..., None]:
    compute = PLAIN[name]

    def run(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
        kind = opcode[-1]
        given = [flushed(_number(machine, each, kind), opcode) for each in operands[1:]]
        result = flushed(np.asarray(compute(*given)), opcode)
        machine.write(operands[0], to_bfloat16(result) if kind == "bf16" else result, mask)

    return run


def _mov(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    """Also packs ``d, {a, b}`` and unpacks ``{a, b}, d``."""
    target, source = operands
    kind = opcode[-1]
    if isinstance(source, tuple):
        width = 8 * dtype_of(kind).itemsize // len(source)
        value = np.zeros(machine.count, dtype=dtype_of(kind))
        for place, part in enumerate(source):
            part_bits = np.broadcast_to(machine.read(part, f"b{width}"), (machine.count,)).astype(value.dtype)
            value = value | (part_bits << value.dtype.type(width * place))
        machine.write(target, value, mask)
    elif isinstance(target, tuple):
        width = 8 * dtype_of(kind).itemsize // len(target)
        value = np.broadcast_to(machine.read(source, kind), (machine.count,))
        for place, part in enumerate(target):
            machine.write(part, (value >> value.dtype.type(width * place)).astype(f"u{width // 8}"), mask)
    else:
        value = machine.read(source, kind)
        machine.write(target, np.asarray(value, dtype=bool) if kind == "pred" else value, mask)


def _setp(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    kind = opcode[-1]
    given = [flushed(_number(machine, each, kind), opcode) for each in operands[1:]]
    machine.write(operands[0], COMPARED[opcode[0]](*given), mask)


def _selp(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    kind = opcode[-1].replace("f", "b")
    first, second = (machine.read(each, kind) for each in operands[1:3])
    machine.write(operands[0], np.where(machine.read(operands[3], "pred"), first, second), mask)


def _shl(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    by = machine.read(operands[2], "u32")
    machine.write(operands[0], shifted_left(machine.read(operands[1], opcode[-1]), by), mask)


def _shr(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    by = machine.read(operands[2], "u32")
    machine.write(operands[0], shifted_right(machine.read(operands[1], opcode[-1]), by), mask)


def _mul(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    machine.write(operands[0], _product(machine, opcode, operands), mask)


def _product(machine: Any, opcode: tuple[str, ...], operands: tuple) -> Lanes:
    kind = opcode[-1]
    first, second = (flushed(machine.read(each, kind), opcode) for each in operands[1:3])
    if opcode[0] == "wide":
        wide = f"{first.dtype.kind}{2 * first.dtype.itemsize}"
        return first.astype(wide) * second.astype(wide)
    if opcode[0] == "hi":
        raise NotImplementedError("hi")
    return flushed(np.asarray(first * second), opcode)


def _mad(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    product = _product(machine, opcode, operands)
    kind = opcode[-1][0] + str(8 * product.dtype.itemsize)
    machine.write(operands[0], product + machine.read(operands[3], kind), mask)


def _cvt(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    target, source = [part for part in opcode if part in _TYPES or part in ("bf16x2", "f16x2")][-2:]
    if target in ("bf16x2", "f16x2"):
        high, low = (machine.read(each, source) for each in operands[1:3])
        halves = [
            np.broadcast_to(
                to_bfloat16(each) if target == "bf16x2" else each.astype(np.float16).view(np.uint16), (machine.count,)
            ).astype(np.uint32)
            for each in (low, high)
        ]
        machine.write(operands[0], halves[0] | (halves[1] << np.uint32(16)), mask)
        return
    value = flushed(_number(machine, operands[1], source), opcode)
    if target == "bf16":
        machine.write(operands[0], to_bfloat16(np.asarray(value, dtype=np.float32)), mask)
        return
    dtype = dtype_of(target)
    if value.dtype.kind == "f" and dtype.kind in "iu":
        raise NotImplementedError("a float to a whole number")
    result = np.asarray(value).astype(dtype)
    if dtype.kind == "i":  # a wider register is filled up with the sign
        result = result.astype(f"i{max(dtype.itemsize, 4)}") if dtype.itemsize < 4 else result
    machine.write(operands[0], result, mask)


def _popc(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    bits = np.asarray(machine.read(operands[1], opcode[-1]))
    machine.write(operands[0], sum((bits >> bits.dtype.type(bit)) & 1 for bit in range(8 * bits.itemsize)), mask)


def _bfe(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    kind = opcode[-1]
    value = machine.read(operands[1], kind.replace("s", "u")).astype(np.uint64)
    first, count = (machine.read(each, "u32").astype(np.uint64) & np.uint64(255) for each in operands[2:4])
    field = (value >> first) & ((np.uint64(1) << count) - np.uint64(1))
    if kind.startswith("s"):
        sign = (field >> np.maximum(count, np.uint64(1)) - np.uint64(1)) & np.uint64(1)
        field = np.where(sign.astype(bool), field | ~((np.uint64(1) << count) - np.uint64(1)), field)
    machine.write(operands[0], field.astype(f"u{dtype_of(kind).itemsize}"), mask)


def _bfi(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    """The lowest bits of the first in the place of some of the second's."""
    kind = opcode[-1]
    field, whole = (machine.read(each, kind).astype(np.uint64) for each in operands[1:3])
    first, count = (machine.read(each, "u32").astype(np.uint64) & np.uint64(255) for each in operands[3:5])
    kept = ((np.uint64(1) << count) - np.uint64(1)) << first
    result = (whole & ~kept) | ((field << first) & kept)
    machine.write(operands[0], result.astype(f"u{dtype_of(kind).itemsize}"), mask)


def _prmt(machine: Any, opcode: tuple[str, ...], operands: tuple, mask: Any) -> None:
    """Four of the eight bytes of ``{b, a}``; a selector's top bit copies the byte's sign instead."""
    first, second, selector = (machine.read(each, "u32").astype(np.uint64) for each in operands[1:4])
    both, result = first | (second << np.uint64(32)), np.uint64(0)
    for place in range(4):
        choice = (selector >> np.uint64(4 * place)) & np.uint64(15)
        byte = (both >> ((choice & np.uint64(7)) * np.uint64(8))) & np.uint64(255)
        signs = np.where(byte >> np.uint64(7), np.uint64(255), np.uint64(0))
        result = result | (np.where(choice >> np.uint64(3), signs, byte) << np.uint64(8 * place))
    machine.write(operands[0], result.astype(np.uint32), mask)


COMPUTED: dict[str, Callable[..., None]] = {name: _plain(name) for name in PLAIN} | {
    "mov": _mov,
    "setp": _setp,
    "selp": _selp,
    "shl": _shl,
    "shr": _shr,
    "mul": _mul,
    "mad": _mad,
    "cvt": _cvt,
    "popc": _popc,
    "bfe": _bfe,
    "bfi": _bfi,
    "prmt": _prmt,
}
