"""Memory and time of what the stage dedup decides in one process, on made-up signatures:

  python benchmarks/data_decisions.py --documents=5000000 [--share=0.2] [--folder=DIR]

The tasks' files (records, ids, signatures, pairs of MinHash) are written as the passes would, for
documents of which `share` have a near duplicate (clusters of 2 to 8) and a tenth as many an equal
one; then the stage runs with its passes left out. Prints, for each part, seconds and the peak of
resident memory so far. Disk: about 1 KB a document.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TASKS = 8
FILE_DOCUMENTS = 10_000


def clusters(count: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """(documents, cluster of each), the documents of a cluster anywhere in the corpus."""
  sizes: list[int] = []
  while sum(sizes) < count * share:
    sizes += rng.choice([2, 3, 4, 8], 4096, p=[0.6, 0.2, 0.15, 0.05]).tolist()
  documents = rng.permutation(count)[: sum(sizes)]
  return documents, np.repeat(np.arange(len(sizes)), sizes)[: len(documents)]


def mix(values: np.ndarray, salt: int) -> np.ndarray:
  """A hash of integers, below 2^61."""
  with np.errstate(over="ignore"):
    found = (values.astype(np.uint64) + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    found ^= found >> np.uint64(29)
    found *= np.uint64(0xBF58476D1CE4E5B9)
  return found >> np.uint64(3)


def write_records(folder: Path, count: int, share: float, rng: np.random.Generator) -> None:
  from jaxlm.data.stages.dedup_steps import RECORD
  from jaxlm.data.stages.stage_io import LINE_BITS

  folder.mkdir(parents=True)
  rows = np.zeros(count, RECORD)
  number = np.arange(count)
  rows["at"] = (number // FILE_DOCUMENTS << LINE_BITS) | number % FILE_DOCUMENTS
  rows["hi"], rows["lo"], rows["url"] = (mix(number, salt) for salt in (1, 2, 3))
  equal, cluster = clusters(count, share / 10, rng)
  for key in ("hi", "lo", "url"):
    rows[key][equal] = mix(cluster + count, len(key))
  rows["length"] = rng.integers(200, 20_000, count)
  for task, part in enumerate(np.array_split(number, TASKS)):
    rows[part].tofile(folder / f"{task:05d}.records")
    with (folder / f"{task:05d}.ids").open("w") as file:
      file.writelines(f'"https://example.org/documents/{i}"\n' for i in part.tolist())


def write_minhash(work: Path, count: int, share: float, lsh: Any, rng: np.random.Generator) -> int:
  """Signature files, and the pairs that buckets would give. Returns the number of pairs."""
  kind = np.dtype([("sig", "<u8", (lsh.hashes_per_bucket,)), ("doc", "<u4")])
  documents, cluster = clusters(count, share, rng)
  owner = np.arange(count) + len(cluster)
  owner[documents] = cluster
  parts = np.array_split(np.arange(count), TASKS)
  starts = np.array([part[0] for part in parts])
  sizes: list[dict[str, int]] = [{} for _ in parts]
  pairs = 0
  (work / "buckets").mkdir(parents=True)
  for bucket in range(lsh.num_buckets):
    for task, part in enumerate(parts):
      rows = np.zeros(len(part), kind)
      rows["doc"] = np.arange(len(part))
      for k in range(lsh.hashes_per_bucket):
        values = mix(owner[part], 97 * bucket + k)
        other = rng.random(len(part)) < 0.04
        values[other] = mix(part[other], 1 << 40)
        rows["sig"][:, k] = values
      name = f"bucket_{bucket:03d}/{task:05d}.minhash.sig"
      (work / "signatures" / name).parent.mkdir(parents=True, exist_ok=True)
      rows.tofile(work / "signatures" / name)
      sizes[task][name] = rows.nbytes
    # Neighbours of a cluster meet here with the probability that all of a bucket's hashes agree.
    meet = (cluster[1:] == cluster[:-1]) & (rng.random(len(cluster) - 1) < 0.96 ** (2 * 8))
    found = np.stack([documents[:-1][meet], documents[1:][meet]], 1)
    task_of = np.searchsorted(starts, found, side="right") - 1
    columns = [task_of[:, 0], found[:, 0] - starts[task_of[:, 0]]]
    columns += [task_of[:, 1], found[:, 1] - starts[task_of[:, 1]]]
    np.stack(columns, 1).astype("<u4").tofile(work / "buckets" / f"{bucket:05d}_00.dups")
    pairs += len(found)
  for task, one in enumerate(sizes):
    (work / "signatures" / f"{task:05d}.sizes.json").write_text(json.dumps(one))
  return pairs


class Passes:
  """Stands for the runner: passes are left out, but datatrove's clusters, which are one task."""

  tasks = TASKS

  def __init__(self) -> None:
    self._began = time.perf_counter()
    self._part = "start"

  def __call__(self, name: str, steps: list[Any], tasks: int | None = None) -> None:
    self.tell({"minhash_signatures": "exact and url", "write": "minhash"}.get(name))
    if name == "minhash_clusters":
      steps[0].run()
      self.tell("datatrove's clusters")

  def tell(self, part: str | None) -> None:
    """Seconds since the last call, and the peak so far."""
    now = time.perf_counter()
    if part:
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
      print(f"{part}: {now - self._began:,.0f} s, peak {peak:,.2f} GB", flush=True)
    self._began = now


def decide(directory: Path) -> None:
  """The stage with its passes left out, in a process whose memory nothing else has used."""
  from jaxlm.data.stages import dedup
  from jaxlm.data.stages.dedup_config import DedupConfig

  runner: Any = Passes()
  ops = dedup._Dedup(directory / "up", directory / "dedup", DedupConfig(), runner, 0).run()
  for op in ops:
    found = op["clusters"]
    print(f"{op['name']}: {found['count']:,} clusters")


def lines(command: list[str]) -> Iterator[str]:
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
    assert child.stdout is not None
    yield from child.stdout
  if child.returncode:
    sys.exit(child.returncode)


def main() -> None:
  from jaxlm.data.stages import minhash
  from jaxlm.data.stages.dedup_config import DedupConfig

  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--documents", type=int, default=5_000_000)
  parser.add_argument("--share", type=float, default=0.2, help="of documents with a near duplicate")
  parser.add_argument("--folder", help="where the files lie; a temporary folder by default")
  parser.add_argument("--decide", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.decide:
    decide(Path(arguments.decide))
    return
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
    directory = Path(name)
    (directory / "up/documents").mkdir(parents=True)
    work = directory / "dedup/work"
    write_records(work / "scan", arguments.documents, arguments.share, rng)
    write_records(work / "scan_minhash", arguments.documents, arguments.share, rng)
    lsh = minhash.lsh_config(DedupConfig().minhash, 0)
    pairs = write_minhash(work, arguments.documents, arguments.share, lsh, rng)
    print(f"{arguments.documents:,} documents, {pairs:,} pairs of near duplicates", flush=True)
    for line in lines([sys.executable, __file__, f"--decide={directory}"]):
      print(line, end="", flush=True)


if __name__ == "__main__":
  main()
