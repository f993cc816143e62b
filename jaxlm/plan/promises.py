"""What a mesh promises of a step's communication, held against the collectives that are counted.

A sharding rule that is wrong in one place still trains, and gives the same losses: it shows only in
what is sent. `broken` finds the expensive cases in a compiled step.
"""

import math
from collections.abc import Sequence

from jaxlm.config import RunConfig
from jaxlm.mesh import Zero
from jaxlm.plan.collectives import Collective
from jaxlm.plan.communication import Shapes

SLACK = 1.02  # small collectives that the compiler adds: norms' scales, single numbers


def broken(
  found: Sequence[Collective],
  config: RunConfig,
  sizes: dict[str, int],
  *,
  passes: int | None = None,
) -> list[str]:
  """A line for each promise that the collectives of a step break; [] when all hold.

  - No logits travel: nothing as wide as the vocabulary crosses `model` in the loss.
  - No scores travel: nothing in attention is larger than the queries of the whole rows.
  - fsdp gathers weights alone, each once a pass, and no activations.
  - Gradients of the weights are summed over fsdp once, whether the compiler made reduce-scatters
    of it or all-reduces of which each device keeps a part.

  Args:
    found: what `collectives.count` found, with the mesh.
    config: of a decoder, without stages; its vocab_size resolved.
    sizes: of all mesh axes.
    passes: forward passes of a layer; by default 2 with rematerialisation, else 1.
  """
  shapes = Shapes(config, sizes)
  passes = shapes.passes if passes is None else passes
  return [
    *_logits(found, shapes),
    *_scores(found, shapes),
    *(_fsdp(found, shapes, passes) if sizes["fsdp"] > 1 else []),
  ]


def _logits(found: Sequence[Collective], shapes: Shapes) -> list[str]:
  vocab = shapes.model.padded_vocab_size
  lines = []
  for c in found:
    if "model" in c.axes and "loss" in c.op_name:
      lines += [
        f"logits: {c.kind} of {array} over {'×'.join(c.axes)} in {c.op_name}"
        for array in c.arrays
        if vocab in array.shape
      ]
  return lines


def _scores(found: Sequence[Collective], shapes: Shapes) -> list[str]:
  c = shapes.model
  heads = max(c.num_heads * c.head_size // shapes.sizes["model"], c.embed_dim)
  most = shapes.rows * shapes.config.data.seq_len * heads
  return [
    f"scores: {x.kind} of {array} over {'×'.join(x.axes)} in {x.op_name}"
    for x in found
    if "attention" in x.op_name and not x.op_name.endswith("dot_general") and x.kind != "all-reduce"
    for array in x.arrays
    if array.size > most
  ]


def _fsdp(found: Sequence[Collective], shapes: Shapes, passes: int) -> list[str]:
  M, L = shapes.microbatches, shapes.layers
  tables = 2 * M * shapes.table
  once = M * L * shapes.layer
  gathers = [c for c in found if c.kind == "all-gather" and "fsdp" in c.axes]
  gathered = sum(c.runs * sum(a.size for a in c.arrays) for c in gathers)
  expected = passes * once + tables
  fewest = passes * once + 2 * shapes.table  # the compiler may take tables out of the loop
  lines = []
  if shapes.config.mesh.zero is Zero.ZERO3 and not fewest <= gathered <= SLACK * expected:
    largest = max(gathers, key=lambda c: c.runs * c.result_bytes, default=None)
    lines.append(
      f"fsdp gathers {gathered:,} elements, {expected:,} are the weights, each once a pass; "
      f"the largest: {largest and (str(largest.arrays[0]), largest.runs, largest.op_name)}"
    )
  summed = _summed(found)
  # Tables that the model axis splits may be summed whole.
  most = SLACK * (once + tables * shapes.sizes["model"])
  if not once + tables <= summed <= most:
    lines.append(
      f"fsdp sums {summed:,} elements of gradients, {once + tables:,} are the weights, each once "
      "a microbatch"
    )
  return lines


def _summed(found: Sequence[Collective]) -> int:
  """Elements that are summed over fsdp, whatever other axes take part; of a reduce-scatter those
  of all parts."""
  total = 0
  for c in found:
    if "fsdp" in c.axes and c.kind in ("all-reduce", "reduce-scatter"):
      parts = c.group_size if c.kind == "reduce-scatter" else 1
      total += c.runs * parts * sum(math.prod(a.shape) for a in c.arrays)
  return total
