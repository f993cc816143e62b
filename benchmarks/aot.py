"""Compiles a config's training step for a TPU slice, on a machine without one.

usage: python benchmarks/aot.py --config=FILE --topology=NAME [--config.key=value …]

Prints the compile time, the memory that each chip needs beside what it has, and what the chips send
one another in a step, by mesh axes and one by one, and whether that is what the mesh promises
(jaxlm/plan/promises.py). Needs PyPI's libtpu (pip install libtpu).

examples:
  python benchmarks/aot.py --config=configs/7b.py --topology=v5p:4x4x4 \\
    --config.mesh.fsdp=16 --config.mesh.model=4 --config.num_microbatches=4
  python benchmarks/aot.py --config=configs/1b.py --topology=v5e:4x4
"""

import json
import os
from pathlib import Path

from jaxlm import cli

CONFIG = cli.define_config(example="configs/7b.py")
TOPOLOGY = cli.define_string("topology", None, "the slice, e.g. v5p:4x4x4", required=True)
VOCAB_SIZE = cli.define_integer("vocab_size", 32_000, "where the config leaves it to the data")
ROWS = cli.define_integer("rows", 25, "collectives that are listed one by one")
HLO = cli.define_string("hlo", None, "a file for the compiled program's text")
JSON = cli.define_bool("json", False, "print one line of JSON instead")


def main() -> int:
  # The compiler is all of the TPU that is wanted here.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from flax import nnx

  from jaxlm.plan import chips, collectives, promises, topology
  from jaxlm.program import build_program

  nnx.set_graph_mode(False)
  nnx.set_graph_updates(False)
  config, name = CONFIG.value, TOPOLOGY.value
  config.model.vocab_size = config.model.vocab_size or VOCAB_SIZE.value
  chip = chips.CHIPS.get(name.partition(":")[0])
  with topology.layout_for(config, name) as layout:
    lowered = topology.lower(config, build_program(config), layout)
    report = topology.compile_and_look(lowered, layout.mesh)
  if HLO.value:
    Path(HLO.value).write_text(report.text, encoding="utf-8")
  axes = {a: n for a, n in layout.mesh.shape.items() if n > 1}
  gib = {"state": report.state_bytes / 2**30, "temporary": report.temporary_bytes / 2**30}
  if JSON.value:
    sent = {
      "×".join(k): sum(v.values()) for k, v in collectives.by_axis(report.collectives).items()
    }
    values = {"topology": name, "mesh": axes, "compile_seconds": report.seconds, "gib": gib}
    print(json.dumps({**values, "bytes_sent": sent}))
    return cli.OK
  params = config.model.num_params()
  tokens = config.global_batch_size * config.data.seq_len
  print(f"{params / 1e9:.2f} B parameters, {tokens:,} tokens a step on {name}: {axes}")
  print(f"compiled in {report.seconds:.0f} s")
  limit = f" of {chip.memory / 2**30:.0f}" if chip else ""
  print(
    f"memory a chip: {report.bytes_needed / 2**30:.2f}{limit} GiB "
    f"(state and batch {gib['state']:.2f}, the rest {gib['temporary']:.2f})"
  )
  print("\nsent by each chip in a step, MiB:\n" + collectives.axis_table(report.collectives))
  print("\n" + collectives.table(report.collectives, limit=ROWS.value))
  if layout.mesh.shape["stage"] == 1:
    broken = promises.broken(report.collectives, config, dict(layout.mesh.shape))
    print("\nwhat the mesh promises: " + ("; ".join(broken) or "kept"))
  return cli.OK


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
