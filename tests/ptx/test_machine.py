"""The machine itself: kernels written by hand, arithmetic against Python's integers, and faults that it must find."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptx.machine import launch
from ptx.memory import Fault
from ptx.program import parse

pytestmark = pytest.mark.slow

MODULE = """
.version 8.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel({parameters})
.reqntid {threads}
{{
 .reg .pred %p<9>; .reg .b32 %r<99>; .reg .b64 %rd<99>;
 mov.u32 %r1, %tid.x;
 mov.u32 %r2, %ctaid.x;
 mad.lo.s32 %r3, %r2, {threads}, %r1;
 {body}
 ret;
}}
"""


def run(body: str, *tensors: torch.Tensor, threads: int = 64, blocks: int = 1) -> None:
    """With %r1 the thread, %r2 the block, %r3 the thread of all, and %rd10, %rd11, ... the tensors."""
    names = [f"kernel_param_{place}" for place in range(len(tensors))]
    loads = [f"ld.param.b64 %rd{10 + place}, [{name}];" for place, name in enumerate(names)]
    parameters = ", ".join(f".param .u64 .ptr .global .align 1 {name}" for name in names)
    program = parse(MODULE.format(parameters=parameters, threads=threads, body=" ".join([*loads, body])))
    launch(program, [tensor.data_ptr() for tensor in tensors], (blocks, 1, 1), 1024)


def test_every_thread_of_every_block():
    out = torch.full((192,), -1, dtype=torch.int32)
    run("mad.wide.s32 %rd1, %r3, 4, %rd10; st.global.b32 [%rd1], %r3;", out, blocks=3)
    assert out.tolist() == list(range(192))


def test_threads_that_part_meet_again():
    """Each loops as often as its number says; a shuffle behind the loop has all of them."""
    out = torch.zeros(64, dtype=torch.int32)
    body = """
    mov.b32 %r10, 0; mov.b32 %r11, 0;
    $loop:
    setp.ge.s32 %p1, %r10, %r1;
    @%p1 bra $behind;
    add.s32 %r10, %r10, 1; add.s32 %r11, %r11, %r10;
    bra $loop;
    $behind:
    shfl.sync.bfly.b32 %r12, %r11, 1, 31, -1;
    mad.wide.s32 %rd1, %r3, 4, %rd10; st.global.b32 [%rd1], %r12;
    """
    run(body, out)
    assert out.tolist() == [thread * (thread + 1) // 2 for thread in (other ^ 1 for other in range(64))]


def signed(value: int, bits: int) -> int:
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add.s64 %rd3, %rd1, %rd2": lambda a, b: a + b,
    "sub.s64 %rd3, %rd1, %rd2": lambda a, b: a - b,
    "mul.lo.s64 %rd3, %rd1, %rd2": lambda a, b: a * b,
    "mad.lo.s64 %rd3, %rd1, %rd2, %rd1": lambda a, b: a * b + a,
    "div.s64 %rd3, %rd1, %rd2": lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    "rem.s64 %rd3, %rd1, %rd2": lambda a, b: abs(a) % abs(b) * (1 if a >= 0 else -1),
    "min.s64 %rd3, %rd1, %rd2": min,
    "and.b64 %rd3, %rd1, %rd2": lambda a, b: a & b,
    "xor.b64 %rd3, %rd1, %rd2": lambda a, b: a ^ b,
    "not.b64 %rd3, %rd1": lambda a, b: ~a,
    "cvt.u32.u64 %r10, %rd2; shl.b64 %rd3, %rd1, %r10": lambda a, b: a << b % 2**32 if b % 2**32 < 64 else 0,
    "cvt.u32.u64 %r10, %rd2; shr.s64 %rd3, %rd1, %r10": lambda a, b: a >> min(b % 2**32, 63),
    "cvt.u32.u64 %r10, %rd2; shr.u64 %rd3, %rd1, %r10": lambda a, b: a % 2**64 >> b % 2**32 if b % 2**32 < 64 else 0,
    "cvt.u32.u64 %r10, %rd1; cvt.s64.s32 %rd3, %r10": lambda a, b: signed(a, 32),
    "cvt.u32.u64 %r10, %rd1; cvt.u64.u32 %rd3, %r10": lambda a, b: a % 2**32,
    "cvt.u32.u64 %r10, %rd1; cvt.u32.u64 %r11, %rd2; mul.wide.s32 %rd3, %r10, %r11": lambda a, b: (
        signed(a, 32) * signed(b, 32)
    ),
    "cvt.u32.u64 %r10, %rd1; cvt.u32.u64 %r11, %rd2; mul.wide.u32 %rd3, %r10, %r11": lambda a, b: (
        a % 2**32 * (b % 2**32)
    ),
    "cvt.u32.u64 %r10, %rd1; popc.b32 %r11, %r10; cvt.u64.u32 %rd3, %r11": lambda a, b: (a % 2**32).bit_count(),
    "cvt.u32.u64 %r10, %rd1; bfe.u32 %r11, %r10, 5, 9; cvt.u64.u32 %rd3, %r11": lambda a, b: (a >> 5) % 2**9,
    "cvt.u32.u64 %r10, %rd1; bfe.s32 %r11, %r10, 5, 9; cvt.s64.s32 %rd3, %r11": lambda a, b: signed(a >> 5, 9),
    "cvt.u32.u64 %r10, %rd1; cvt.u32.u64 %r11, %rd2; bfi.b32 %r12, %r10, %r11, 8, 4; cvt.u64.u32 %rd3, %r12": (
        lambda a, b: (b % 2**32 & ~0xF00) | ((a % 16) << 8)
    ),
    "mov.b64 {%r10, %r11}, %rd1; mov.b64 %rd3, {%r11, %r10}": lambda a, b: (a % 2**32 << 32) | (a % 2**64 >> 32),
    "setp.lt.s64 %p1, %rd1, %rd2; selp.b64 %rd3, %rd1, %rd2, %p1": min,
    "setp.lt.u64 %p1, %rd1, %rd2; selp.b64 %rd3, %rd1, %rd2, %p1": lambda a, b: min(a, b, key=lambda x: x % 2**64),
    "cvt.u32.u64 %r10, %rd1; cvt.u32.u64 %r11, %rd2; prmt.b32 %r12, %r10, %r11, 0x5410; cvt.u64.u32 %rd3, %r12": (
        lambda a, b: a % 2**16 | (b % 2**16 << 16)
    ),
}
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-70, 70)


@pytest.mark.parametrize("instruction", ARITHMETIC)
@settings(max_examples=4)
@given(st.lists(st.tuples(NUMBERS, NUMBERS.filter(bool)), min_size=64, max_size=64))
def test_whole_numbers(instruction: str, pairs: list[tuple[int, int]]):
    first, second = (torch.tensor(column) for column in zip(*pairs, strict=True))
    out = torch.zeros(64, dtype=torch.int64)
    body = f"""
    mad.wide.s32 %rd20, %r1, 8, %rd10; ld.global.b64 %rd1, [%rd20];
    mad.wide.s32 %rd20, %r1, 8, %rd11; ld.global.b64 %rd2, [%rd20];
    {instruction};
    mad.wide.s32 %rd20, %r1, 8, %rd12; st.global.b64 [%rd20], %rd3;
    """
    run(body, first, second, out)
    assert out.tolist() == [signed(ARITHMETIC[instruction](a, b), 64) for a, b in pairs]


FLOATS = [0.0, -0.0, 1.5, -2.75, 3e38, 1e-40, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("max.f32 %r12, %r10, %r11", lambda a, b: torch.fmax(a, b)),
        ("min.f32 %r12, %r10, %r11", lambda a, b: torch.fmin(a, b)),
        ("add.f32 %r12, %r10, %r11", lambda a, b: a + b),
        ("fma.rn.f32 %r12, %r10, %r11, %r10", lambda a, b: (a.double() * b.double() + a.double()).float()),
        ("cvt.rn.bf16.f32 %rs1, %r10; cvt.f32.bf16 %r12, %rs1", lambda a, b: a.bfloat16().float()),
        ("setp.leu.f32 %p1, %r10, %r11; selp.f32 %r12, %r10, %r11, %p1", lambda a, b: torch.where(~(a > b), a, b)),
        (
            "setp.num.f32 %p1, %r10, %r11; selp.f32 %r12, %r10, %r11, %p1",
            lambda a, b: torch.where(a.isnan() | b.isnan(), b, a),
        ),
    ],
)
def test_floats(instruction: str, expected: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
    pairs = [(a, b) for a in FLOATS for b in FLOATS]
    first, second = (torch.tensor(column) for column in zip(*pairs, strict=True))
    out = torch.zeros(len(pairs))
    body = f"""
    mad.wide.s32 %rd20, %r3, 4, %rd10; ld.global.b32 %r10, [%rd20];
    mad.wide.s32 %rd20, %r3, 4, %rd11; ld.global.b32 %r11, [%rd20];
    {instruction};
    mad.wide.s32 %rd20, %r3, 4, %rd12; st.global.b32 [%rd20], %r12;
    """
    run(body, first, second, out, threads=len(pairs))
    torch.testing.assert_close(out, expected(first, second), rtol=0, atol=0, equal_nan=True)
    if instruction.startswith("max"):  # of two zeros the positive one
        assert not out[1].signbit()


TO_SHARED = "mov.b32 %r9, global_smem; mad.lo.s32 %r10, %r1, 4, %r9; xor.b32 %r11, %r10, 128;"


def test_shared_memory_behind_a_barrier():
    out = torch.zeros(64, dtype=torch.int32)
    body = f"""{TO_SHARED}
    st.shared.b32 [%r10], %r1; bar.sync 0; ld.shared.b32 %r12, [%r11];
    mad.wide.s32 %rd1, %r3, 4, %rd10; st.global.b32 [%rd1], %r12;"""
    run(body, out)
    assert out.tolist() == [thread ^ 32 for thread in range(64)]


FAULTS = [
    ("reads what another warp wrote since", f"{TO_SHARED} st.shared.b32 [%r10], %r1; ld.shared.b32 %r12, [%r11];"),
    (
        "overwrites what another warp read since",
        f"""{TO_SHARED}
        st.shared.b32 [%r10], %r1; bar.sync 0; ld.shared.b32 %r12, [%r11]; st.shared.b32 [%r10], %r12;""",
    ),
    (
        "overwrites what another warp wrote since",
        f"""{TO_SHARED}
        setp.lt.s32 %p1, %r1, 32; @%p1 st.shared.b32 [%r10], %r1; @!%p1 st.shared.b32 [%r11], %r1;""",
    ),
    ("two threads write different values to one place", f"{TO_SHARED} st.shared.b32 [%r9], %r1;"),
    ("a shared address from", f"{TO_SHARED} ld.shared.b32 %r12, [%r10+1024];"),
    ("a shared address that is not a multiple of 4", f"{TO_SHARED} ld.shared.b32 %r12, [%r10+2];"),
    ("is in no tensor", "mad.wide.s32 %rd1, %r3, 8, %rd10; ld.global.b32 %r12, [%rd1];"),
    ("is not a multiple of 4", "ld.global.b32 %r12, [%rd10+2];"),
    (
        "reads what another warp wrote since",
        """
        mad.wide.s32 %rd1, %r3, 4, %rd10; st.global.b32 [%rd1], %r1; xor.b32 %r12, %r3, 32;
        mad.wide.s32 %rd1, %r12, 4, %rd10; ld.global.b32 %r12, [%rd1];""",
    ),
    (
        "overwrites what another warp read since",
        """
        xor.b32 %r12, %r3, 32; mad.wide.s32 %rd1, %r12, 4, %rd10; ld.global.b32 %r12, [%rd1];
        mad.wide.s32 %rd1, %r3, 4, %rd10; add.s32 %r12, %r3, 1; st.global.b32 [%rd1], %r12;""",
    ),
    (
        "reads what another block wrote",
        """
        setp.eq.s32 %p1, %r3, 0; @%p1 st.global.b32 [%rd10], %r3; bar.sync 0; ld.global.b32 %r12, [%rd10];""",
    ),
    (
        "overwrites what another block read",
        """
        ld.global.b32 %r12, [%rd10]; bar.sync 0; setp.eq.s32 %p1, %r3, 0; @%p1 st.global.b32 [%rd10], %r1;
        add.s32 %r12, %r3, 1; @%p1 st.global.b32 [%rd10], %r12;""",
    ),
    (
        "not all threads reach this",
        """
        setp.lt.s32 %p1, %r1, 32; @%p1 bra $first; bar.sync 0; bra $end; $first: bar.sync 0; $end:""",
    ),
]


@pytest.mark.parametrize(("message", "body"), FAULTS)
def test_faults(message: str, body: str):
    """Each by one mistake."""
    out = torch.zeros(128, dtype=torch.int32)
    with pytest.raises(Fault, match=message):
        run(body, out, blocks=2)


def test_an_instruction_that_is_missing_is_named():
    with pytest.raises(NotImplementedError, match=r"kernel: nothing\.b32 %r1"):
        run("nothing.b32 %r1, %r1;")
