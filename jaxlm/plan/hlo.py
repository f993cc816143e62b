"""Reads the text of a compiled XLA program, as far as counting its collectives needs it.

The text is `compiled.as_text()`: computations, each a list of instructions, which call one another
(loops, fusions, branches). Its grammar: https://openxla.org/xla/operation_semantics and XLA's
hlo/parser. Imports no jax.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "c64": 64, "c128": 128}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\))? -> (.*) \{$")
# The first lower-case word before a parenthesis; layouts hold upper-case ones: {1,0:T(8,128)}.
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+[0-9a-z]*)\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
  """dtype in XLA's spelling (bf16, f32, s32, …) and shape, as one device holds it."""

  dtype: str
  shape: tuple[int, ...]

  @property
  def size(self) -> int:
    """Elements."""
    return math.prod(self.shape)

  @property
  def bytes(self) -> int:
    """Bytes, dense."""
    # The first number is the width: f8e4m3fn, bf16, s4.
    digits = re.search(r"\d+", self.dtype)
    bits = _BITS[self.dtype] if self.dtype in _BITS else int(digits[0]) if digits else 0
    return -(-self.size * bits // 8)

  def __str__(self) -> str:
    return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def arrays(text: str) -> tuple[Array, ...]:
  """The arrays that a type, a tuple or not, is made of."""
  return tuple(
    Array(dtype, tuple(int(n) for n in dims.split(",") if n))
    for dtype, dims in _ARRAY.findall(text)
  )


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation. type and rest (operands and attributes) are text."""

  name: str
  type: str
  opcode: str
  rest: str
  root: bool

  @property
  def op_name(self) -> str:
    """Where in the traced program it comes from: "jit(f)/scope/…"; may be empty."""
    match = _OP_NAME.search(self.rest)
    return match[1] if match else ""


@dataclasses.dataclass
class Computation:
  """name, the text of its result's type, and instructions by name."""

  name: str
  result: str
  instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Module:
  """A program: computations by name, and the one where it starts."""

  computations: dict[str, Computation]
  entry: str

  def called(self, instruction: Instruction) -> Iterator[tuple[str, int | None]]:
    """(computation, times) of what an instruction runs; times is None where XLA does not say.

    Each branch of a conditional counts as if it were taken.
    """
    if instruction.opcode.endswith(("-done", "-update")):
      return  # what the -start has begun
    if instruction.opcode == "while":
      for name in _CALLED.findall(instruction.rest):
        yield name, self._trips(instruction)
      return
    if instruction.opcode in ("all-reduce", "reduce-scatter", "all-reduce-start"):
      return  # the sum of two numbers
    for name in _CALLED.findall(instruction.rest):
      yield name, 1
    for branches in _BRANCHES.findall(instruction.rest):
      for name in _OPERAND.findall(branches):
        yield name, 1

  def _trips(self, loop: Instruction) -> int | None:
    if match := _TRIP_COUNT.search(loop.rest):
      return int(match[1])
    condition = _CONDITION.search(loop.rest)
    return self._bound(condition[1]) if condition else None

  def _bound(self, condition: str) -> int | None:
    """n of a condition `i < n`, with i counted up from 0 in ones, as lax.scan and fori_loop do."""
    instructions = self.computations[condition].instructions
    numbers = [i for i in instructions.values() if i.opcode == "constant"]
    root = next(i for i in instructions.values() if i.root)
    compares = "direction=LT" in root.rest or any(
      "direction=LT" in i.rest
      for name, _ in self.called(root)
      for i in self.computations[name].instructions.values()
    )
    if not compares or len(numbers) != 1:
      return None
    match = re.match(r"(\d+)\)", numbers[0].rest)
    return int(match[1]) if match else None


def parse(text: str) -> Module:
  """The module of a program's text. Raises ValueError when there is no entry computation."""
  computations: dict[str, Computation] = {}
  current, entry = None, None
  for line in text.splitlines():
    if not line.startswith((" ", "\t")):
      if match := _HEADER.match(line):
        current = computations[match[2]] = Computation(match[2], match[3])
        entry = match[2] if match[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)):
      root, name, type_, opcode, rest = match.groups()
      current.instructions[name] = Instruction(name, type_, opcode, rest, bool(root))
  if entry is None:
    raise ValueError("no ENTRY computation: pass the text of a compiled program (as_text())")
  return Module(computations, entry)
