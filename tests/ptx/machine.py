"""Runs PTX on the CPU: the threads of a launch side by side, each register an array with a number for every thread.

Memory is the process's own. :class:`Fault` is raised for what a GPU would leave undefined:

* global reads and writes outside of the tensors that are alive, or not aligned to their size;
* warps of a block that touch the same bytes of shared memory, one of them writing, with no barrier between;
* global memory read, or written anew, that another warp wrote with no barrier between, or another block;
* barriers and shuffles that not all threads reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ptx.matrices import WARP, Matrices
from ptx.memory import Fault, GlobalMemory, SharedMemory
from ptx.operations import COMPUTED, bits_of, dtype_of
from ptx.program import Address, Constant, Instruction, Program, Register, Special, Symbol

_THREADS_AT_ONCE = 1 << 15
_TOGETHER = dict.fromkeys(("shfl", "redux", "vote", "mma", "ldmatrix", "stmatrix"), WARP) | {"wgmma": 4 * WARP}
_BARRIERS = ("bar", "barrier")
_REDUCTIONS = {"add": np.add, "max": np.maximum, "min": np.minimum}
_UNDEFINED = {size: np.frombuffer(b"\xa5" * size, dtype=f"u{size}")[0] for size in (2, 4, 8)}


class Launch(Matrices):
    """Blocks [first_block, first_block + num_blocks) of a grid of (x, y, z) blocks."""

    def __init__(
        self,
        program: Program,
        arguments: Sequence[int],
        first_block: int,
        num_blocks: int,
        grid: tuple[int, int, int],
        num_shared: int,
        memory: GlobalMemory,
    ) -> None:
        self.program, self.memory = program, memory
        self.shared = SharedMemory(num_blocks, num_shared)
        self.count = num_blocks * program.num_threads
        self.block, thread = np.divmod(np.arange(self.count), program.num_threads)
        self.warp, lane = np.divmod(thread, WARP)
        self.global_block = self.block + first_block
        self.num_barriers = np.zeros(num_blocks, dtype=np.int64)
        self.has_acquired = np.zeros(num_blocks, dtype=bool)
        self.parameters = {name: value for (name, _), value in zip(program.parameters, arguments, strict=True)}
        self.special = {"%tid.x": thread, "%laneid": lane, "%warpid": self.warp}
        self.special["%ntid.x"] = np.full(self.count, program.num_threads)
        rest = self.global_block
        for axis, size in zip("xyz", grid, strict=True):
            self.special[f"%nctaid.{axis}"] = np.full(self.count, size)
            rest, self.special[f"%ctaid.{axis}"] = np.divmod(rest, size)
        self.registers: dict[str, np.ndarray] = {}
        self.at = np.zeros(self.count, dtype=np.int64)

    # --- Operands -----------------------------------------------------------------------------------------------------

    def read(self, operand: Any, kind: str) -> np.ndarray:
        """What each thread has there, or all of them, as numbers of a type like ``s32``."""
        dtype = dtype_of(kind)
        if isinstance(operand, Register):
            held = self._held(operand)
            return held if held.dtype == np.bool_ else bits_of(held, dtype.itemsize).view(dtype)
        if isinstance(operand, Constant):
            bits = np.array(operand.bits % (1 << 8 * operand.size), dtype=f"u{operand.size}")
            return bits_of(bits, dtype.itemsize).view(dtype)
        if isinstance(operand, Special):
            return self.special[operand.name].astype(dtype)
        if isinstance(operand, Symbol):
            return np.array(self.program.variables[operand.name], dtype=dtype)
        raise NotImplementedError(f"{operand} as {kind}")

    def _held(self, register: Register) -> np.ndarray:
        """Of a register that nothing was written to, which compilers read where it makes no difference, a pattern."""
        return self.registers.get(register.name, _UNDEFINED[register.size])

    def write(self, register: Register | Symbol, values: np.ndarray, mask: np.ndarray | None) -> None:
        """For the threads of ``mask``; None: for all."""
        if isinstance(register, Symbol):  # _ or a name of inline assembly, for parts that are not wanted
            return
        values = np.broadcast_to(values, (self.count,))
        if values.dtype != np.bool_:
            values = bits_of(values.view(f"u{values.dtype.itemsize}"), register.size)
        if mask is not None:
            values = np.where(mask, values, self._held(register).astype(values.dtype))
        self.registers[register.name] = values

    def chosen(self, mask: np.ndarray | None) -> np.ndarray:
        """The threads of ``mask`` by number."""
        return np.arange(self.count) if mask is None else np.nonzero(mask)[0]

    def addresses(self, operand: Address, threads: np.ndarray, kind: str) -> np.ndarray:
        base = np.broadcast_to(self.read(operand.base, kind), (self.count,))
        return base[threads].astype(np.int64) + operand.offset

    # --- Running ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until all threads have returned. Of those that are not at one place the ones furthest behind go first."""
        done = len(self.program.instructions)
        while True:
            for place in np.unique(self.at).tolist():
                if place == done:
                    return
                here = self._ready(self.at == place, place)
                if here.any():
                    self._run_from(place, None if here.all() else here)
                    break
            else:
                raise Fault(f"{self.program.instructions[self.at.min()].text}: not all threads reach this")

    def _ready(self, here: np.ndarray, place: int) -> np.ndarray:
        """Of the threads at an instruction those that need not wait for others of their warp or block."""
        size = self._run_together(self.program.instructions[place])
        if size == 1 or here.all():
            return here
        absent = ~here & (self.at < len(self.program.instructions))
        return here & ~np.repeat(absent.reshape(-1, size).any(1), size)

    def _run_together(self, instruction: Instruction) -> int:
        """How many threads run an instruction as one."""
        name = instruction.opcode[0]
        return self.program.num_threads if name in _BARRIERS else _TOGETHER.get(name, 1)

    def _run_from(self, place: int, mask: np.ndarray | None) -> None:
        """Up to a branch, to where others are, or to where threads have to wait for them."""
        instructions, done = self.program.instructions, len(self.program.instructions)
        others = self.at[:0] if mask is None else self.at[~mask]
        meeting = others[others > place].min(initial=done)
        everyone = np.ones(self.count, dtype=bool) if mask is None else mask
        while True:
            instruction, guarded = instructions[place], mask
            if instruction.guard is not None:
                held = self.registers[instruction.guard] ^ instruction.negated
                guarded = held & everyone
            if instruction.opcode[0] in ("bra", "ret"):
                target = done if instruction.opcode[0] == "ret" else self.program.labels[instruction.operands[0].name]
                following = np.where(everyone if guarded is None else guarded, target, place + 1)
                break
            self._step(instruction, guarded)
            place += 1
            if place == meeting or (mask is not None and self._run_together(instructions[place]) > 1):
                following = np.full(self.count, place)
                break
        self.at = np.where(everyone, following, self.at)

    def _step(self, instruction: Instruction, mask: np.ndarray | None) -> None:
        name, operands = instruction.opcode[0], instruction.operands
        try:
            if name in _BARRIERS:
                self._bar(mask)
            elif name in COMPUTED:
                COMPUTED[name](self, instruction.opcode[1:], operands, mask)
            elif hasattr(self, "_" + name):
                getattr(self, "_" + name)(instruction.opcode[1:], operands, mask)
            else:
                raise NotImplementedError(name)
        except Fault as fault:
            raise Fault(f"{self.program.name}: {instruction.text}: {fault}") from None
        except (KeyError, NotImplementedError) as error:
            raise NotImplementedError(f"{self.program.name}: {instruction.text}") from error

    def _bar(self, mask: np.ndarray | None) -> None:
        blocks = np.unique(self.block[self.chosen(mask)])
        self.num_barriers[blocks] += 1
        self.shared.barrier(blocks)

    # --- Memory -------------------------------------------------------------------------------------------------------

    def who(self, threads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :class:`GlobalMemory` asks."""
        block = self.block[threads]
        who = (self.global_block[threads] << 32) | (self.num_barriers[block] << 8) | self.warp[threads]
        return who, self.has_acquired[block]

    def _ld(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        target, address = operands
        targets, size = target if isinstance(target, tuple) else (target,), dtype_of(opcode[-1]).itemsize
        if opcode[0] == "param":
            value = self.parameters[address.base.name] % (1 << 8 * size)
            self.write(target, self._extended(np.array(value, f"u{size}"), opcode[-1], target), mask)
            return
        threads = self.chosen(mask)
        start = self._starts(opcode, address, size * len(targets), threads)
        for place, register in enumerate(targets):
            values = np.zeros(self.count, dtype=f"u{size}")
            values[threads] = self._loaded(opcode, start + place * size, size, threads)
            self.write(register, self._extended(values, opcode[-1], register), mask)

    def _st(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        address, source = operands
        sources, size = source if isinstance(source, tuple) else (source,), dtype_of(opcode[-1]).itemsize
        threads = self.chosen(mask)
        start = self._starts(opcode, address, size * len(sources), threads)
        for place, register in enumerate(sources):
            values = np.broadcast_to(self.read(register, f"b{8 * size}"), (self.count,))[threads]
            if opcode[0] == "shared":
                self.shared.store(self.block[threads], self.warp[threads], start + place * size, values, size)
            else:
                self.memory.store(start + place * size, values, size, *self.who(threads))

    def _starts(self, opcode: tuple[str, ...], address: Address, size: int, threads: np.ndarray) -> np.ndarray:
        """Addresses of ``size`` bytes side by side."""
        if opcode[0] == "shared":
            start = self.addresses(address, threads, "u32")
            if (start % size).any():
                raise Fault(f"a shared address that is not a multiple of {size}")
            return start
        start = self.addresses(address, threads, "u64")
        self.memory.check(start, size)
        return start

    def _loaded(self, opcode: tuple[str, ...], addresses: np.ndarray, size: int, threads: np.ndarray) -> np.ndarray:
        if opcode[0] == "shared":
            return self.shared.load(self.block[threads], self.warp[threads], addresses, size)
        return self.memory.load(addresses, size, *self.who(threads))

    @staticmethod
    def _extended(values: np.ndarray, kind: str, register: Register) -> np.ndarray:
        """Filled up with the sign where the type has one."""
        return values.view(dtype_of(kind)).astype(f"i{register.size}") if kind.startswith("s") else values

    def _atom(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        """Additions, one thread after the other. They are in order with all else, as far as the checks go."""
        if "add" not in opcode:
            raise NotImplementedError(opcode)
        target, address, source = operands
        targets, sources = (each if isinstance(each, tuple) else (each,) for each in (target, source))
        dtype, in_shared, threads = dtype_of(opcode[-1]), "shared" in opcode, self.chosen(mask)
        size = dtype.itemsize
        start = self._starts(("shared",) if in_shared else opcode, address, size * len(targets), threads)
        for place, register in enumerate(targets):
            if in_shared:
                numbers, at = self.shared.numbers(size), self.shared.places(self.block[threads], start, size)
            else:
                numbers, first = self.memory.numbers(size)
                at = (start - first) // size
            numbers = numbers.view(dtype)
            values = np.broadcast_to(self.read(sources[place], opcode[-1]), (self.count,))
            former = np.zeros(self.count, dtype=dtype)
            for thread, number in zip(threads.tolist(), (at + place).tolist(), strict=True):
                former[thread] = numbers[number]
                numbers[number] += values[thread]
            self.write(register, former, mask)
        if "acq_rel" in opcode:
            self.has_acquired[np.unique(self.block[threads])] = True

    def _cp(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        """``cp.async`` from global to shared memory, done at once; behind the bytes that are to be read come zeros."""
        if opcode[1] in ("commit_group", "wait_group", "wait_all"):
            return
        threads, size = self.chosen(mask), operands[2].bits
        given = self.read(operands[3] if len(operands) > 3 else operands[2], "u32")
        given = np.broadcast_to(given, (self.count,))[threads]
        target, source = self.addresses(operands[0], threads, "u32"), self.addresses(operands[1], threads, "u64")
        if (target % size).any() or (source[given > 0] % size).any():
            raise Fault(f"an address that is not a multiple of {size}")
        for byte in range(0, size, 4):
            values, there = np.zeros(len(threads), dtype=np.uint32), given > byte
            self.memory.check(source[there] + byte, 4)
            values[there] = self.memory.load(source[there] + byte, 4, *self.who(threads[there]))
            self.shared.store(self.block[threads], self.warp[threads], target + byte, values, 4)

    def _fence(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        """Nothing: what is written is seen at once."""

    # --- Warps --------------------------------------------------------------------------------------------------------

    def of_warps(self, operand: Any, kind: str) -> np.ndarray:
        """[warps, 32] of what each thread has there."""
        return np.broadcast_to(self.read(operand, kind), (self.count,)).reshape(-1, WARP)

    def _shfl(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        target, source, by, control, _ = operands
        values, by, control = self.of_warps(source, "b32"), self.of_warps(by, "s32"), self.of_warps(control, "s32")
        lane, limit, segment = np.arange(WARP)[None], control & 31, (control >> 8) & 31
        last = (lane & segment) | (limit & ~segment)
        other = {
            "up": lane - by,
            "bfly": lane ^ by,
            "idx": (lane & segment) | (by & ~segment),
        }[opcode[1]]
        is_inside = other >= last if opcode[1] == "up" else other <= last
        other = np.where(is_inside, other, lane)
        self.write(target, np.take_along_axis(values, other, 1).ravel(), mask)

    def _redux(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        values = self.of_warps(operands[1], opcode[-1])
        self.write(operands[0], np.repeat(_REDUCTIONS[opcode[1]].reduce(values, 1, values.dtype), WARP), mask)

    def _vote(self, opcode: tuple[str, ...], operands: tuple, mask: np.ndarray | None) -> None:
        if opcode[1] != "ballot":
            raise NotImplementedError(opcode)
        held = self.of_warps(operands[1], "pred").astype(np.uint64)
        words = (held << np.arange(WARP, dtype=np.uint64)).sum(1, dtype=np.uint64).astype(np.uint32)
        self.write(operands[0], np.repeat(words, WARP), mask)


def launch(program: Program, arguments: Sequence[int], grid: tuple[int, int, int], num_shared: int) -> None:
    """Run a whole grid of (x, y, z) blocks, each with ``num_shared`` bytes of its own.

    arguments: the bits of each parameter

    Raises :class:`Fault`, and NotImplementedError for an instruction that the machine lacks.
    """
    memory, num_blocks = GlobalMemory(), grid[0] * grid[1] * grid[2]
    at_once = max(1, _THREADS_AT_ONCE // program.num_threads)
    with np.errstate(all="ignore"):
        for first in range(0, num_blocks, at_once):
            count = min(at_once, num_blocks - first)
            Launch(program, arguments, first, count, grid, num_shared, memory).run()
