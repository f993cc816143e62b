"""The stage decontaminate: training text that holds parts of evaluation sets, or canaries, goes."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.stages import base
from jaxlm.data.stages.dedup_config import DecontaminateConfig
from jaxlm.data.stages.executor_config import ExecutorConfig
from jaxlm.data.stages.runner import (
  Runner,
  as_json,
  begin,
  finish,
  need_documents,
  require_datatrove,
)

OPS_VERSION = 2


def identity(
  config: DecontaminateConfig, upstream: str, seed: int, index_sha256: str
) -> dict[str, Any]:
  """What the fingerprint is made of. upstream: the fingerprint of the stage before."""
  return {
    "config.decontaminate": as_json(config),
    "upstream": upstream,
    "op version": OPS_VERSION,
    "config.seed": seed,
    "text of the evaluation sets": index_sha256,
  }


def run(
  upstream_dir: str | Path,
  output: str | Path,
  config: DecontaminateConfig,
  *,
  executor: str | ExecutorConfig = "local",
  tasks: int = 1,
  workers: int = 1,
  max_drop_ratio: float = 0.95,
  seed: int = 0,
) -> Path:
  """Makes the stage from a finished one, or finds it made. Returns its directory.

  The evaluation sets are read each time: their n-grams are part of the fingerprint.
  """
  config.validate()
  upstream = base.read_stage(upstream_dir)
  require_datatrove()
  from jaxlm.data.stages import decontaminate_steps as steps
  from jaxlm.data.stages import stage_io

  hashes, owners, sets = steps.build_index(config, "config.decontaminate")
  index_sha256 = steps.index_sha256(hashes, owners)
  parts = identity(config, upstream["fingerprint"], seed, index_sha256)
  found = base.fingerprint("decontaminate", *parts.values())
  directory = base.stage_dir(output, "decontaminate", found)
  if base.is_finished(directory, found):
    done = base.read_stage(directory)["ops"]
    base.check_books("decontaminate", done, max_drop_ratio, str(directory))
    return directory
  need_documents(upstream_dir, upstream)
  begin(directory, found, tasks, parts)
  started = time.perf_counter()
  work = directory / "work"
  index, hits, counts = work / "index", work / "hits", work / "counts"
  for name, array in ((steps.HASHES, hashes), (steps.TASKS, owners)):
    with stage_io.whole_file(index / name) as file:
      np.save(file, array)
  pipeline = [
    stage_io.StageReader(upstream_dir),
    stage_io.Tally("before", counts, None),
    steps.Canary(config.canaries, counts, directory / "removed" / "canary"),
    steps.Overlap(index, hits, config, counts, directory / "removed" / "ngrams"),
    stage_io.Tally("after", counts, None),
    stage_io.KeepWriter(directory / "documents"),
  ]
  Runner(directory, executor, tasks, workers)("decontaminate", pipeline)
  ops = []
  for name in ("canary", "ngrams"):
    count = stage_io.read_count(counts, name)
    ops.append(count.op(name))
  ops[-1]["contaminated"] = count.extra["contaminated"]
  finish(
    directory=directory,
    stage="decontaminate",
    found=found,
    upstream_dir=upstream_dir,
    upstream=upstream,
    config=as_json(config),
    ops=ops,
    max_drop_ratio=max_drop_ratio,
    started=started,
    packages=("datatrove", "xxhash", "numpy"),
    more={
      "index_sha256": index_sha256,
      "tasks": steps.task_report(hits, sets, config.examples),
    },
  )
  return directory
