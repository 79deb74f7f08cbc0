"""A compiled seccomp filter made shorter, with the same answers.

The kernel checks, translates and traces a filter each time it is loaded, which is at every start of a container: what
libseccomp makes of a usual profile, a leaf for every system call, takes it about a millisecond. Neighbouring calls
mostly have the same answer, so a search over ranges says the same in an eighth of the instructions.

The rewriting knows nothing of profiles. A filter asks for the architecture, then compares the call's number with
constants: between two neighbouring constants all numbers are answered alike, so one of each stretch, followed through
the program, stands for all of them. Where the way leads to the arguments, the rest of it is taken over as it is. A
program with instructions of another kind is returned unchanged.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_INSTRUCTION = struct.Struct("=HBBI")
# include/uapi/linux/bpf_common.h
_LOAD, _RETURN, _AND = 0x20, 0x06, 0x54
_JUMP, _JEQ, _JGT, _JGE, _JSET = 0x05, 0x15, 0x25, 0x35, 0x45
_COMPARISONS = (_JEQ, _JGT, _JGE)
# struct seccomp_data
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_LONGEST_BRANCH = 255
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

_Instruction = tuple[int, int, int, int]


class _OtherKindError(Exception):
    """The program does something that this module does not know."""


@dataclass(frozen=True)
class _Answer:
    """What a stretch of numbers gets: a value to return, or where the program goes on to look at arguments."""

    value: int = 0
    tail: int = -1


def compact(program: bytes) -> bytes:
    """Return a filter with the same answers to everything; the same program where none shorter is found."""
    try:
        made = _rewrite([*_INSTRUCTION.iter_unpack(program)])
    except _OtherKindError:
        return program
    if len(made) > MAX_INSTRUCTIONS or len(made) * _INSTRUCTION.size >= len(program):
        return program
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in made)


def _rewrite(program: list[_Instruction]) -> list[_Instruction]:
    constants = _compared(program)
    architectures = sorted(constants[_ARCHITECTURE])
    starts = sorted(
        {0} | {number + extra for number in constants[_NUMBER] for extra in (0, 1) if number + extra >> 32 == 0}
    )
    otherwise = next(value for value in range(1 << 16) if value not in constants[_ARCHITECTURE])
    made: list[_Instruction] = [(_LOAD, 0, 0, _ARCHITECTURE)]
    for architecture in architectures:
        block = [(_LOAD, 0, 0, _NUMBER), *_search(program, _stretches(program, architecture, starts))]
        made += [(_JEQ, 1, 0, architecture), (_JUMP, 0, 0, len(block)), *block]
    others = _stretches(program, otherwise, starts)
    return [*made, (_LOAD, 0, 0, _NUMBER), *_search(program, others)] if len(others) > 1 else [
        *made, *_leaf(program, others[0][1])
    ]  # fmt: skip


def _compared(program: list[_Instruction]) -> dict[int, set[int]]:
    """The constants that the architecture and the number are compared with."""
    found: dict[int, set[int]] = {_NUMBER: set(), _ARCHITECTURE: set()}
    seen: set[tuple[int, int]] = set()
    ways = [(0, -1)]
    while ways:
        position, holds = ways.pop()
        if (position, holds) in seen:
            continue
        seen.add((position, holds))
        code, if_true, if_false, operand = _at(program, position)
        if code == _LOAD:
            if operand >= _ARGUMENTS:
                continue
            ways.append((position + 1, operand))
        elif code == _JUMP:
            ways.append((position + 1 + operand, holds))
        elif code in _COMPARISONS and holds in found:
            found[holds].add(operand)
            ways += [(position + 1 + if_true, holds), (position + 1 + if_false, holds)]
        elif code != _RETURN:
            raise _OtherKindError
    return found


def _at(program: list[_Instruction], position: int) -> _Instruction:
    if position >= len(program):
        raise _OtherKindError
    return program[position]


def _stretches(program: list[_Instruction], architecture: int, starts: list[int]) -> list[tuple[int, _Answer]]:
    """The answers for an architecture, each with the first number that gets it; neighbours differ."""
    stretches: list[tuple[int, _Answer]] = []
    for start in starts:
        answer = _follow(program, {_NUMBER: start, _ARCHITECTURE: architecture})
        if not stretches or stretches[-1][1] != answer:
            stretches.append((start, answer))
    return stretches


def _follow(program: list[_Instruction], known: dict[int, int]) -> _Answer:
    position, holds = 0, -1
    while True:
        code, if_true, if_false, operand = _at(program, position)
        if code == _RETURN:
            return _Answer(value=operand)
        if code == _LOAD:
            if operand >= _ARGUMENTS:
                return _Answer(tail=position)
            holds = known[operand]
        elif code == _JUMP:
            position += operand
        else:
            met = {_JEQ: holds == operand, _JGT: holds > operand, _JGE: holds >= operand}[code]
            position += if_true if met else if_false
        position += 1


def _search(program: list[_Instruction], stretches: list[tuple[int, _Answer]]) -> list[_Instruction]:
    """A binary search for the number's stretch."""
    if len(stretches) == 1:
        return _leaf(program, stretches[0][1])
    middle = len(stretches) // 2
    below, above = _search(program, stretches[:middle]), _search(program, stretches[middle:])
    first = stretches[middle][0]
    if len(below) <= _LONGEST_BRANCH:
        return [(_JGE, len(below), 0, first), *below, *above]
    return [(_JGE, 0, 1, first), (_JUMP, 0, 0, len(below)), *below, *above]


def _leaf(program: list[_Instruction], answer: _Answer) -> list[_Instruction]:
    """The end of a search: the answer, or a copy of what the program does with the arguments."""
    if answer.tail < 0:
        return [(_RETURN, 0, 0, answer.value)]
    reached: set[int] = set()
    ways = [answer.tail]
    while ways:
        position = ways.pop()
        if position not in reached:
            reached.add(position)
            ways += _next(program, position)
    places = {position: place for place, position in enumerate(sorted(reached))}
    made: list[_Instruction] = []
    for position, place in places.items():
        code, if_true, if_false, operand = program[position]
        if code == _JUMP:
            operand = places[position + 1 + operand] - place - 1
        elif code in (*_COMPARISONS, _JSET):
            if_true = places[position + 1 + if_true] - place - 1
            if_false = places[position + 1 + if_false] - place - 1
        made.append((code, if_true, if_false, operand))
    return made


def _next(program: list[_Instruction], position: int) -> list[int]:
    code, if_true, if_false, operand = _at(program, position)
    if code == _RETURN:
        return []
    if code == _JUMP:
        return [position + 1 + operand]
    if code in (*_COMPARISONS, _JSET):
        return [position + 1 + if_true, position + 1 + if_false]
    if code in (_LOAD, _AND):
        return [position + 1]
    raise _OtherKindError
