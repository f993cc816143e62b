"""A dress rehearsal of a big run on one machine: what would fail on the cluster, before the queue.

usage: python -m jaxlm.rehearse --config=FILE [--config.key=value …] [--processes=4]

Checks the config at full size, then runs it scaled down in real processes on CPU devices: mesh with
all its axes, data, steps, checkpoint, one process killed, restart. Every wait has a limit. Prints a
table of checks with remedies; status 1 if one failed.

examples:
  python -m jaxlm.rehearse --config=configs/1b.py:synthetic --config.mesh.data=2
  python -m jaxlm.rehearse --config=configs/7b.py --devices=256 --chip=v5p
"""

import os
import signal
import sys

from jaxlm import cli

CONFIG = cli.define_config(example="configs/1b.py", expected=cli.run_config)
PROCESSES = cli.define_integer("processes", 4, "processes that play the hosts", lower_bound=2)
DEVICES = cli.define_integer(
  "devices", None, "of the real run; by default as many as the mesh asks for", lower_bound=1
)
DEVICES_PER_HOST = cli.define_integer("devices_per_host", 8, "of the real run", lower_bound=1)
CHIP = cli.define_string("chip", None, "of the real run: h100, v5p … (jaxlm.plan.chips)")
WORKDIR = cli.define_string("workdir", None, "where runs and logs are kept; by default nowhere")
SECONDS = cli.define_float("seconds", 240.0, "limit of each of the three starts", lower_bound=1)


def main() -> int:
  os.environ["JAX_PLATFORMS"] = "cpu"  # accelerators have other work
  # The processes outlive this one unless it ends by an exception.
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  from jaxlm.rehearsal import rehearsal

  good = rehearsal.rehearse(
    CONFIG.value,
    name=CONFIG.path,
    processes=PROCESSES.value,
    devices=DEVICES.value,
    devices_per_host=DEVICES_PER_HOST.value,
    chip=CHIP.value,
    folder=WORKDIR.value,
    seconds=SECONDS.value,
  )
  return cli.OK if good else 1


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
