"""Reads a kernel of PTX, as far as Triton uses the language."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

_COMMENT = re.compile(r"//[^\n]*")
_LABEL = re.compile(r"(\$?[A-Za-z_][\w$]*):")
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{(.*)\}", re.S)
_PARAMETER = re.compile(r"\.param\s+(\.\w+)[^,]*?([\w$]+)\s*(?:,|$)", re.S)
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b(\d+)\s+([\w$]+)\[(\d*)\]")
_SIZES = {"rs": 2, "h": 2, "rd": 8, "fd": 8}


@dataclass(frozen=True)
class Register:
    name: str

    @property
    def size(self) -> int:
        """Bytes, by the names that LLVM gives: ``%rs`` of 16 bits, ``%rd`` of 64, others of 32."""
        return _SIZES.get(self.name.strip("%0123456789"), 4)


@dataclass(frozen=True)
class Constant:
    """A number, or the bits of a float, and how many bytes it has."""

    bits: int
    size: int = 8


@dataclass(frozen=True)
class Special:
    """``%tid.x`` and the like."""

    name: str


@dataclass(frozen=True)
class Symbol:
    """A parameter, a variable or a label."""

    name: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``."""

    base: Register | Symbol | Constant
    offset: int


class Instruction(NamedTuple):
    """``@guard opcode operands``: the opcode's parts between points, operands of which tuples are vectors, and the text
    with its line in the kernel's source."""

    guard: str | None
    negated: bool
    opcode: tuple[str, ...]
    operands: tuple[Any, ...]
    text: str


class Program(NamedTuple):
    """A kernel: names and types of its parameters, threads of a block, instructions, the instruction behind each label,
    and the shared address of each variable."""

    name: str
    parameters: list[tuple[str, str]]
    num_threads: int
    instructions: list[Instruction]
    labels: dict[str, int]
    variables: dict[str, int]


def parse(ptx: str) -> Program:
    """The one kernel of a module. Raises ValueError where there is none."""
    ptx = _COMMENT.sub("", ptx)
    entry = _ENTRY.search(ptx)
    if entry is None:
        raise ValueError("the module has no kernel")
    name, parameters, directives, body = entry.groups()
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", directives)
    instructions, labels = _instructions(body, dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', ptx)))
    return Program(
        name,
        [(name, kind) for kind, name in _PARAMETER.findall(parameters)],
        int(threads[1]) if threads else 32,
        instructions,
        labels,
        _variables(ptx),
    )


def _variables(ptx: str) -> dict[str, int]:
    found, end = {}, 0
    for align, bits, name, count in _SHARED.findall(ptx):
        found[name] = -(-end // int(align)) * int(align)
        end = found[name] + int(bits) // 8 * int(count or 0)
    return found


def _instructions(body: str, files: dict[str, str]) -> tuple[list[Instruction], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    source = ""
    for statement in body.split(";"):
        lines = []
        for line in statement.split("\n"):
            words = line.split()
            if words[:1] != [".loc"]:
                lines.append(line)
            elif words[2] != "0":
                source = f"{files.get(words[1], words[1]).rsplit('/', 1)[-1]}:{words[2]}"
        text = " ".join(" ".join(lines).split())
        while text:  # what stands before an instruction
            label = _LABEL.match(text)
            if label:
                labels[label[1]] = len(instructions)
                text = text[label.end() :].lstrip()
            elif text[0] in "{}":
                text = text[1:].lstrip()
            else:
                break
        if text and not text.startswith("."):
            instructions.append(_instruction(text, source))
    return instructions, labels


def _instruction(text: str, source: str) -> Instruction:
    guard, rest = "", text
    if text.startswith("@"):
        guard, rest = text[1:].split(None, 1)
    opcode, _, operands = rest.partition(" ")
    return Instruction(
        guard.lstrip("!") or None,
        guard.startswith("!"),
        tuple(re.split(r"\.|::", opcode)),
        tuple(map(_operand, _at_commas(operands))),
        f"{text} ({source})",
    )


def _at_commas(text: str) -> list[str]:
    """Parts between commas outside of braces and brackets."""
    parts, depth, last = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            parts.append(text[last:at])
            last = at + 1
    return [part.strip() for part in (*parts, text[last:]) if part.strip()]


def _operand(text: str) -> Any:
    if text.startswith("{"):
        return tuple(map(_operand, _at_commas(text[1:-1])))
    if text.startswith("["):
        base, _, offset = text[1:-1].replace(" ", "").partition("+")
        return Address(_operand(base), int(offset or "0", 0))
    if text.startswith("%"):
        return Special(text) if "." in text or text in ("%laneid", "%warpid") else Register(text)
    if text[:2] in ("0f", "0F"):
        return Constant(int(text[2:], 16), 4)
    if text[:2] in ("0d", "0D"):
        return Constant(int(text[2:], 16), 8)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
        return Constant(int(text.rstrip("U"), 0))
    if re.fullmatch(r"-?\d*\.\d+", text):
        return Constant(int.from_bytes(struct.pack("<f", float(text)), "little"), 4)
    return Symbol(text)
