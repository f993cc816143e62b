"""The stage clean: pages to text, then the published quality rules, then private data."""

import time
from pathlib import Path

from jaxlm.data.stages import base
from jaxlm.data.stages.config import CleanConfig
from jaxlm.data.stages.runner import (
  Runner,
  as_json,
  begin,
  finish,
  need_documents,
  require_datatrove,
)

OPS_VERSION = 1


def run(
  upstream_dir: str | Path,
  output: str | Path,
  config: CleanConfig,
  *,
  executor: str = "local",
  tasks: int = 1,
  workers: int = 1,
  max_drop_ratio: float = 0.95,
) -> Path:
  """Makes the stage from a finished one, or finds it made. Returns its directory."""
  config.validate("config.clean")
  upstream = base.read_stage(upstream_dir)
  require_datatrove()
  from jaxlm.data.stages import clean_steps, stage_io

  found = base.fingerprint("clean", as_json(config), upstream["fingerprint"], OPS_VERSION)
  directory = base.stage_dir(output, "clean", found)
  if base.is_finished(directory, found):
    return directory
  need_documents(upstream_dir, upstream)
  begin(directory, found, tasks)
  started = time.perf_counter()
  counts = directory / "work" / "counts"
  ops = clean_steps.ops(config, counts, directory / "removed")
  pipeline = [
    stage_io.StageReader(upstream_dir),
    stage_io.Tally("before", counts, None),
    *ops,
    stage_io.Tally("after", counts, None),
    stage_io.KeepWriter(directory / "documents"),
  ]
  Runner(directory, executor, tasks, workers)("clean", pipeline)
  finish(
    directory=directory,
    stage="clean",
    found=found,
    upstream_dir=upstream_dir,
    upstream=upstream,
    config=as_json(config),
    ops=[stage_io.read_count(counts, op.op).op(op.op) for op in ops],
    max_drop_ratio=max_drop_ratio,
    started=started,
    packages=("datatrove", "resiliparse"),
  )
  return directory
