"""Counts what the devices of a compiled program send one another.

`count` reads the program's text after all of XLA's passes: what is really sent, in which dtype,
how often and among which devices. Bytes are those that one device sends when the n devices of a
group work as a ring (Thakur, Rabenseifner & Gropp 2005): of a result of R bytes, all-gather and
all-to-all send R (n-1)/n, all-reduce 2 R (n-1)/n, reduce-scatter R (n-1) and permute R. A torus or
a switch may send as much in more than one direction at once.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.plan import hlo
from jaxlm.plan.hlo import Array

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

# Kernels of the TPU compiler, known by their names. An all-reduce of which each device keeps its
# part:
_REDUCE_SCATTER_FUSION = "all-reduce-scatter"
# A collective that runs beside other work: a fusion begins it, others carry it on while they
# compute, one ends it, and each of them holds the same collective. Only the first is counted.
_CARRIED_ON = ("async_collective_fusion", "async-collective-done")

Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program, as one device sees it.

  Attributes:
    kind: one of KINDS.
    arrays: the results; several where XLA has joined several into one.
    groups: the devices (their places in the mesh, row by row) that take part together; of a
      permute the pairs (from, to).
    axes: the mesh axes along which the members of a group differ.
    group_size: devices in a group.
    runs: how often, loops counted.
    bounded: False inside a loop whose length the text does not tell, which is counted once.
    op_name: where in the traced program it comes from: "jit(step)/…/attention/reshard".
  """

  kind: str
  arrays: tuple[Array, ...]
  groups: Groups
  axes: tuple[str, ...]
  group_size: int
  runs: int
  bounded: bool
  op_name: str

  @property
  def result_bytes(self) -> int:
    """Bytes of the results of one run on one device."""
    return sum(array.bytes for array in self.arrays)

  @property
  def bytes_sent(self) -> float:
    """Bytes that one device sends in one run."""
    n, size = self.group_size, self.result_bytes
    if n == 1:
      return 0.0
    match self.kind:
      case "all-reduce":
        return 2 * size * (n - 1) / n
      case "reduce-scatter":
        return float(size * (n - 1))
      case "collective-permute":
        return float(size)
    return size * (n - 1) / n

  @property
  def total_bytes_sent(self) -> float:
    """Bytes that one device sends in all runs."""
    return self.bytes_sent * self.runs


def count(program: Any, mesh: Any = None) -> list[Collective]:
  """The collectives of a program, in the order of its text; those among one device left out.

  Args:
    program: a compiled function (jax.stages.Compiled) or its text.
    mesh: the mesh it was compiled for (a jax Mesh, or axis sizes by name), from which the axes are
      named; None leaves them empty.
  """
  text = program if isinstance(program, str) else program.as_text()
  sizes = _axis_sizes(mesh)
  found: list[Collective] = []
  module = hlo.parse(text)

  def visit(name: str, runs: int, bounded: bool, caller: str) -> None:
    computation = module.computations[name]
    for instruction in computation.instructions.values():
      op_name = instruction.op_name or caller
      kind = instruction.opcode.removesuffix("-start")
      if kind in KINDS:
        collective = _collective(kind, instruction, computation, sizes, runs, bounded, op_name)
        if collective.group_size > 1:
          found.append(collective)
      for called, times in module.called(instruction):
        carried_on = called.startswith(_CARRIED_ON) or instruction.name.startswith(_CARRIED_ON)
        if called in module.computations and not carried_on:
          visit(called, runs * (1 if times is None else times), bounded and bool(times), op_name)

  visit(module.entry, 1, True, "")
  return found


def _axis_sizes(mesh: Any) -> dict[str, int]:
  if mesh is None:
    return {}
  return dict(mesh if isinstance(mesh, Mapping) else mesh.shape)


def _collective(
  kind: str,
  instruction: hlo.Instruction,
  computation: hlo.Computation,
  sizes: dict[str, int],
  runs: int,
  bounded: bool,
  op_name: str,
) -> Collective:
  result = instruction.type
  if instruction.opcode.endswith("-start") and kind != "all-reduce":
    result = _second(result)  # (operand, result, …)
  arrays = hlo.arrays(result)
  if kind == "all-reduce" and computation.name.startswith(_REDUCE_SCATTER_FUSION):
    kind, arrays = "reduce-scatter", hlo.arrays(computation.result)
  if kind == "collective-permute":
    groups = _pairs(instruction.rest)
    axes = _axes(groups, sizes)
    # A shift along an axis is among all its devices.
    size = math.prod(sizes[a] for a in axes) if axes else len({d for p in groups for d in p})
  else:
    groups = replica_groups(instruction.rest) or (tuple(range(math.prod(sizes.values()))),)
    axes, size = _axes(groups, sizes), len(groups[0])
  return Collective(kind, arrays, groups, axes, size, runs, bounded, op_name)


def _second(text: str) -> str:
  """The second element of a tuple's type."""
  depth, begin, place = 0, 1, 0
  for i, char in enumerate(text):
    depth += (char in "({[") - (char in ")}]")
    if (char == "," and depth == 1) or depth == 0:
      if place == 1 or depth == 0:
        return text[begin:i]
      place, begin = place + 1, i + 1
  return text


def _numbers(text: str) -> list[int]:
  return [int(n) for n in re.findall(r"\d+", text)]


def _pairs(rest: str) -> Groups:
  match = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest)
  pairs = re.findall(r"\{(\d+),(\d+)\}", match[1]) if match else []
  return tuple((int(a), int(b)) for a, b in pairs)


_IOTA = r"\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?"


def replica_groups(rest: str) -> Groups:
  """The groups of a collective's attributes, in any of the notations; () stands for all devices.

  `{{0,1},{2,3}}` is a list. `[2,4]<=[8]` is 0…7 in 2 groups of 4; `[2,4]<=[4,2]T(1,0)` counts
  through a 4 × 2 array whose dims were transposed first. `mesh['a'=2,'b'=4] {'b'}` are the devices
  of a mesh that differ along b alone; `device_ids=(…)` gives the mesh's devices in that notation.
  """
  if match := re.search(
    r"replica_groups=mesh\[([^\]]*)\]((?:, device_ids=\([^)]*\)?\)*)?) ?\{", rest
  ):
    return _mesh_groups(rest[match.start() :])
  if match := re.search(r"replica_groups=" + _IOTA, rest):
    groups, per_group = _numbers(match[1])
    ids = _iota(math.prod((groups, per_group)), match[2], match[3])
    return tuple(tuple(row) for row in ids.reshape(groups, per_group).tolist())
  match = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", rest)
  rows = re.findall(r"\{([\d,]+)\}", match[1]) if match else []
  return tuple(tuple(_numbers(row)) for row in rows)


def _iota(size: int, dims: str | None, order: str | None) -> np.ndarray:
  ids = np.arange(size).reshape(_numbers(dims) if dims else (size,))
  return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _mesh_groups(text: str) -> Groups:
  match = re.match(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(" + _IOTA + r"\))? ?\{([^}]*)\}", text
  )
  if match is None:
    raise ValueError(f"cannot read {text[:120]!r}")
  names = re.findall(r"'([^']+)'=(\d+)", match[1])
  shape = [int(n) for _, n in names]
  # device_ids=([16,4]T(1,0)): the dims are those that are counted through.
  ids = _iota(math.prod(shape), match[3] or match[2], match[4]).reshape(shape)
  inside = set(re.findall(r"'([^']+)'", match[5]))
  across = [i for i, (name, _) in enumerate(names) if name not in inside]
  along = [i for i, (name, _) in enumerate(names) if name in inside]
  size = math.prod(shape[i] for i in along)
  return tuple(tuple(row) for row in ids.transpose(*across, *along).reshape(-1, size).tolist())


def _axes(groups: Groups, sizes: dict[str, int]) -> tuple[str, ...]:
  """The mesh axes along which members of a group differ, in the mesh's order."""
  if not sizes:
    return ()
  varying = np.zeros(len(sizes), bool)
  for group in groups:
    places = np.stack(np.unravel_index(np.asarray(group), tuple(sizes.values())))
    varying |= (places != places[:, :1]).any(axis=1)
  return tuple(axis for axis, varies in zip(sizes, varying, strict=True) if varies)


def by_axis(collectives: Iterable[Collective]) -> dict[tuple[str, ...], dict[str, float]]:
  """Bytes that one device sends in all runs, by mesh axes and kind."""
  sums: dict[tuple[str, ...], dict[str, float]] = collections.defaultdict(dict)
  for c in collectives:
    kinds = sums[c.axes]
    kinds[c.kind] = kinds.get(c.kind, 0.0) + c.total_bytes_sent
  return dict(sums)


def table(collectives: Sequence[Collective], *, limit: int | None = None) -> str:
  """A table of the collectives, those that send most first; equal ones in one row."""
  rows: dict[Any, list[float]] = {}
  for c in collectives:
    what = " ".join(map(str, c.arrays[:2])) + (f" +{len(c.arrays) - 2}" if c.arrays[2:] else "")
    key = ("×".join(c.axes) or "?", c.kind, what, c.group_size, _scope(c.op_name))
    row = rows.setdefault(key, [0, 0.0])
    row[0] += c.runs
    row[1] += c.total_bytes_sent
  ordered = sorted(rows.items(), key=lambda item: -item[1][1])
  cells = [("axes", "kind", "result", "group", "runs", "MiB sent", "from")]
  for (axes, kind, what, size, scope), (runs, sent) in ordered[:limit]:
    cells.append((axes, kind, what, str(size), str(int(runs)), f"{sent / 2**20:,.1f}", scope))
  return format_table(cells)


def axis_table(collectives: Iterable[Collective]) -> str:
  """A table of `by_axis`."""
  sums = by_axis(collectives)
  cells: list[tuple[str, ...]] = [("axes", *KINDS, "all, MiB sent")]
  for axes, kinds in sorted(sums.items(), key=lambda item: -sum(item[1].values())):
    values = [kinds.get(kind, 0.0) for kind in KINDS] + [sum(kinds.values())]
    cells.append(("×".join(axes) or "?", *(f"{v / 2**20:,.1f}" for v in values)))
  return format_table(cells)


def format_table(cells: Sequence[Sequence[str]]) -> str:
  """Rows of text in columns; numbers to the right."""
  widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
  lines = []
  for row in cells:
    parts = [
      cell.rjust(width) if re.fullmatch(r"[\d.,]+%?", cell) else cell.ljust(width)
      for cell, width in zip(row, widths, strict=True)
    ]
    lines.append("  ".join(parts).rstrip())
  return "\n".join(lines)


def _scope(op_name: str) -> str:
  """The scopes of an op_name without what every step shares."""
  noise = {"while", "body", "closed_call", "jit(train_step)", "jvp()", "checkpoint", "shard_map"}
  parts = ["rematted" if p == "rematted_computation" else p for p in op_name.split("/")]
  parts = ["backward" if p == "transpose(jvp())" else p for p in parts]
  return "/".join(p for p in parts if p not in noise)
