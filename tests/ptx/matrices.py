"""Instructions with which warps load, store and multiply matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptx.memory import Fault
from ptx.operations import from_bfloat16
from ptx.program import Address, Register

WARP = 32
_LANE = np.arange(WARP)
_ROW, _PAIR = _LANE // 4, 2 * (_LANE % 4)  # of an 8 x 8 matrix each thread has two numbers of one row


def _halves(bits: np.ndarray, kind: str) -> list[np.ndarray]:
    """The two numbers in each register."""
    return [_numbers((bits >> np.uint32(16 * half)).astype(np.uint16), kind) for half in range(2)]


def _numbers(bits: np.ndarray, kind: str) -> np.ndarray:
    return from_bfloat16(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


class Matrices:
    """What :class:`ptx.machine.Launch` does with them."""

    def _places(self, opcode: tuple[str, ...], address: Address, matrix: int, half: int, threads: Any) -> np.ndarray:
        """Where in shared memory a number of an 8 x 8 matrix lies, whose rows are at the addresses of eight threads."""
        rows = self.addresses(address, np.arange(self.count), "u32").reshape(-1, WARP)[:, 8 * matrix : 8 * matrix + 8]
        row, column = (_PAIR + half, _ROW) if "trans" in opcode else (_ROW, _PAIR + half)
        return (rows[:, row] + 2 * column).ravel()[threads]

    def _ldmatrix(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        target, address = operands
        threads = self.chosen(mask)
        for matrix, register in enumerate(target if isinstance(target, tuple) else (target,)):
            values = np.zeros(self.count, dtype=np.uint32)
            for half in range(2):
                places = self._places(opcode, address, matrix, half, threads)
                found = self.shared.load(self.block[threads], self.warp[threads], places, 2)
                values[threads] |= found.astype(np.uint32) << np.uint32(16 * half)
            self.write(register, values, mask)

    def _stmatrix(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        address, source = operands
        threads = self.chosen(mask)
        for matrix, register in enumerate(source if isinstance(source, tuple) else (source,)):
            values = self.of_warps(register, "b32").ravel()[threads]
            for half in range(2):
                places = self._places(opcode, address, matrix, half, threads)
                part = (values >> np.uint32(16 * half)).astype(np.uint16)
                self.shared.store(self.block[threads], self.warp[threads], places, part, 2)

    def _mma(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        """``m16n8k16`` of 16-bit numbers with sums in float32, by a warp."""
        if opcode[2] != "m16n8k16" or opcode[-1] != "f32":
            raise NotImplementedError(opcode)
        targets, first, second, addends = operands
        num_warps, kind = self.count // WARP, opcode[-2]
        left, right = np.zeros((num_warps, 16, 16)), np.zeros((num_warps, 16, 8))
        for place, register in enumerate(first):
            for half, values in enumerate(_halves(self.of_warps(register, "b32"), kind)):
                left[:, _ROW + 8 * (place % 2), _PAIR + half + 8 * (place // 2)] = values
        for place, register in enumerate(second):
            for half, values in enumerate(_halves(self.of_warps(register, "b32"), kind)):
                right[:, _PAIR + half + 8 * place, _ROW] = values
        product = (left @ right).astype(np.float32)
        sums = [
            product[:, _ROW + 8 * (place // 2), _PAIR + place % 2].ravel() + self.read(addend, "f32")
            for place, addend in enumerate(addends)
        ]
        for target, values in zip(targets, sums, strict=True):
            self.write(target, values, mask)

    def _wgmma(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        """``m64nNk16`` of 16-bit numbers with sums in float32, by four warps, done at once. The second factor, and the
        first where it is not in registers, lie in shared memory as a descriptor says."""
        if opcode[0] != "mma_async":
            return
        shape, kind = opcode[3], opcode[-1]
        targets, first, second, adds, *signs = operands
        if not (shape.startswith("m64n") and shape.endswith("k16")) or [each.bits for each in signs[:2]] != [1, 1]:
            raise NotImplementedError(opcode)
        threads = self.chosen(mask)
        groups = np.unique(threads // (4 * WARP))
        each, row = np.arange(len(groups))[:, None, None], 16 * np.arange(4)[:, None] + _ROW
        is_turned = [sign.bits == 1 for sign in signs[2:]]
        if isinstance(first, tuple):
            left = np.zeros((len(groups), 64, 16))
            for place, register in enumerate(first):
                bits = self.of_warps(register, "b32").reshape(-1, 4, WARP)[groups]
                for half, values in enumerate(_halves(bits, kind)):
                    left[each, row + 8 * (place % 2), _PAIR + half + 8 * (place // 2)] = values
        else:
            left = self._described(first, 64, groups, is_turned[0], kind)
        right = self._described(second, int(shape[4:-3]), groups, is_turned[-1], kind)
        product = (left @ right.swapaxes(1, 2)).astype(np.float32)
        for place, target in enumerate(targets):
            values = np.zeros(self.count, dtype=np.float32)
            values.reshape(-1, 4, WARP)[groups] = product[
                each, row + 8 * (place // 2 % 2), _PAIR + place % 2 + 8 * (place // 4)
            ]
            values = np.where(self.read(adds, "pred"), values + self.read(target, "f32"), values)
            self.write(target, values, mask)

    def _described(
        self, descriptor: Register, count: int, groups: np.ndarray, is_turned: bool, kind: str
    ) -> np.ndarray:
        """float [groups, count, 16]: ``count`` rows of the first factor, or columns of the second, with the 16 numbers
        that are summed over. is_turned: in memory those of one row are not side by side, those of one column are."""
        held = (
            np.broadcast_to(self.read(descriptor, "b64"), (self.count,)).reshape(-1, 4 * WARP)[groups].astype(np.int64)
        )
        if (held != held[:, :1]).any():
            raise Fault("threads have different descriptors")
        start, leading, stride = (((held[:, :1, None] >> bit) & 0x3FFF) << 4 for bit in (0, 16, 32))
        width = {1: 128, 2: 64, 3: 32}[int(held[0, 0] >> 62) & 3]  # bytes of a row of a tile, which has eight
        row, inner = np.arange(count)[None, :, None], np.arange(16)[None, None]
        if is_turned:
            across, row = np.divmod(row, width // 2)
            offset = across * leading + (inner // 8) * stride + (inner % 8) * width + 2 * row
        else:
            offset = (row // 8) * stride + (row % 8) * width + 2 * inner
        address = start + offset
        address ^= ((address >> 7) & (width // 16 - 1)) << 4  # tiles are swizzled
        block, warp = (
            np.broadcast_to(of.reshape(-1, 4 * WARP)[groups][:, :1, None], address.shape).ravel()
            for of in (self.block, self.warp)
        )
        bits = self.shared.load(block, warp, address.ravel(), 2)
        return _numbers(bits, kind).reshape(address.shape).astype(np.float64)
