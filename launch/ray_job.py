"""One run on the nodes of a Ray cluster that is there already: one process a node.

usage: python launch/ray_job.py --address ADDRESS --nodes N [--gpus_per_node G] -- COMMAND

Reserves a node for each process (they do not share one, but for --share_nodes, which is for trying
it out), starts the command on each and prints its output with its process: "[1] …". jaxlm and its
data must lie at the same paths on all nodes; the command runs in this directory where it exists.
When one process dies, all are ended. Ctrl-C and SIGTERM are passed on: the run saves and exits with
status 75. --max_restarts: see launch/local.py; a node that is lost counts as a failure.

example:
  python launch/ray_job.py --address auto --nodes 4 --gpus_per_node 8 --max_restarts 3 -- \\
    python -m jaxlm.train --config=configs/7b.py --workdir=/shared/runs/7b
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent))

import local


class Host:
  """The process of one node; an actor."""

  def __init__(self, index: int):
    self._index = index
    self._process: subprocess.Popen[str] | None = None

  def address(self) -> str:
    """host:port for the coordinator, if this is the first node."""
    import ray

    return f"{ray.util.get_node_ip_address()}:{local.free_port()}"

  def newest_checkpoint(self, command: Sequence[str], folder: str) -> int:
    if Path(folder).is_dir():
      os.chdir(folder)
    return local.newest_checkpoint(command)

  def run(self, command: Sequence[str], values: dict[str, str], folder: str) -> int:
    """Runs the command to its end. Returns its status."""
    self._process = subprocess.Popen(
      command,
      env=os.environ | values,
      cwd=folder if Path(folder).is_dir() else None,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors="replace",
      start_new_session=True,
    )
    assert self._process.stdout is not None
    for line in self._process.stdout:
      print(f"[{self._index}] {line.rstrip()}", flush=True)
    status = self._process.wait()
    return 128 - status if status < 0 else status

  def signal(self, number: int) -> None:
    if self._process is not None and self._process.poll() is None:
      os.killpg(self._process.pid, number)


def parse(argv: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="launch/ray_job.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--address", default="auto", help="of the cluster (default: auto)")
  parser.add_argument("--nodes", type=int, required=True)
  parser.add_argument("--gpus_per_node", type=int, default=0)
  parser.add_argument("--cpus_per_node", type=int, default=1, help="reserved of each")
  parser.add_argument("--share_nodes", action="store_true", help="several processes on one node")
  parser.add_argument("--wait_seconds", type=int, default=600, help="for the nodes to be free")
  parser.add_argument("--max_restarts", type=int, default=0)
  own, command = list(argv), []
  if "--" in own:
    at = own.index("--")
    own, command = own[:at], own[at + 1 :]
  arguments = parser.parse_args(own)
  if not command:
    parser.error("name the command after --")
  if arguments.nodes < 1:
    parser.error(f"--nodes={arguments.nodes}: must be at least 1")
  arguments.command = command
  return arguments


class Start:
  """One start of all processes."""

  def __init__(self, arguments: argparse.Namespace):
    import ray

    bundle = {"CPU": arguments.cpus_per_node}
    if arguments.gpus_per_node:
      bundle["GPU"] = arguments.gpus_per_node
    strategy = "PACK" if arguments.share_nodes else "STRICT_SPREAD"
    self.group = ray.util.placement_group([bundle] * arguments.nodes, strategy=strategy)
    if not self.group.wait(arguments.wait_seconds):
      ray.util.remove_placement_group(self.group)
      raise SystemExit(
        f"launch/ray_job.py: no {arguments.nodes} nodes with {bundle} were free within "
        f"{arguments.wait_seconds} s"
      )
    # Two calls at a time: the command, and a signal to it. None is tried twice.
    remote = ray.remote(Host)
    self.hosts = [
      remote.options(
        num_cpus=arguments.cpus_per_node,
        num_gpus=arguments.gpus_per_node,
        max_concurrency=2,
        scheduling_strategy=ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
          placement_group=self.group, placement_group_bundle_index=index
        ),
      ).remote(index)
      for index in range(arguments.nodes)
    ]
    self.arguments = arguments

  def newest_checkpoint(self) -> int:
    import ray

    host = self.hosts[0].newest_checkpoint
    try:
      return int(ray.get(host.remote(self.arguments.command, str(Path.cwd()))))
    except ray.exceptions.RayError:
      return local.newest_checkpoint(self.arguments.command)

  def run(self) -> int:
    """The status of the first that failed, or 0."""
    import ray

    coordinator = ray.get(self.hosts[0].address.remote())
    waiting = {}
    for index, host in enumerate(self.hosts):
      values = {
        "JAXLM_COORDINATOR": coordinator,
        "JAXLM_NUM_PROCESSES": str(len(self.hosts)),
        "JAXLM_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
      }
      waiting[host.run.remote(self.arguments.command, values, str(Path.cwd()))] = index
    status, patience = 0, None
    while waiting:
      finished, _ = ray.wait(list(waiting), num_returns=1, timeout=patience)
      if not finished:  # asked to end, and did not
        self.signal(signal.SIGKILL)
        break
      for one in finished:
        index = waiting.pop(one)
        try:
          found = int(ray.get(one))
        except ray.exceptions.RayError as error:
          print(f"launch: node of process {index} was lost ({type(error).__name__})")
          found = 1
        if found and status in (0, local.PREEMPTED):
          status = found
          patience = local.SAVE_SECONDS
          if found != local.PREEMPTED and waiting:
            print(f"launch: process {index} ended with status {found}: ending all", file=sys.stderr)
            self.signal(signal.SIGTERM)
            patience = local.GRACE_SECONDS
    return status

  def signal(self, number: int) -> None:
    import ray

    ray.wait(
      [host.signal.remote(number) for host in self.hosts],
      num_returns=len(self.hosts),
      timeout=10,
    )

  def end(self) -> None:
    import ray

    for host in self.hosts:
      ray.kill(host)
    ray.util.remove_placement_group(self.group)


def main(argv: Sequence[str]) -> int:
  arguments = parse(argv)
  try:
    import ray
  except ImportError:
    raise SystemExit("launch/ray_job.py: ray is not installed: pip install 'jaxlm[ray]'") from None
  ray.init(address=arguments.address, log_to_driver=True, logging_level="ERROR")
  # The nodes don't have this folder on their path.
  ray.cloudpickle.register_pickle_by_value(local)
  ray.cloudpickle.register_pickle_by_value(sys.modules[Host.__module__])
  told: list[int] = []
  start: Start | None = None

  def pass_on(number: int, frame: FrameType | None) -> None:
    told.append(number)
    if start is not None:  # not in here: the main thread may be inside Ray
      threading.Thread(target=start.signal, args=(number,), daemon=True).start()

  signal.signal(signal.SIGTERM, pass_on)
  signal.signal(signal.SIGINT, pass_on)
  vain = 0
  while True:
    start = Start(arguments)
    try:
      before = start.newest_checkpoint()
      status = start.run()
      after = start.newest_checkpoint()
    finally:
      start.end()
    if status in (0, local.BAD_INPUT) or told or not arguments.max_restarts:
      return status
    vain = 0 if after > before else vain + 1
    if vain > arguments.max_restarts:
      print(f"launch: status {status}; no new checkpoint: giving up", file=sys.stderr)
      return status
    print(f"launch: status {status}; starting again ({vain} without a checkpoint)", file=sys.stderr)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
