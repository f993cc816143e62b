"""One process of a rehearsal; `jaxlm rehearse` starts it.

Trains like jaxlm.train and writes what it sees to RECORDS/<process>.jsonl: when it had joined, how
fast it can load, each row that it was given.
"""

import faulthandler
import signal
import time

from jaxlm import cli

CONFIG = cli.define_config(expected=cli.run_config)
WORKDIR = cli.define_string("workdir", None, "directory of the run", required=True)
RECORDS = cli.define_string("records", None, "directory of what is recorded", required=True)
STOP_AT = cli.define_integer("stop_at", None, "save and stop after so many steps")
HOLD_ROW = cli.define_integer("hold_row", None, "the last process waits for ever at this row")
LOADER = cli.define_string("loader", None, "the config (JSON) whose loading is timed first")
LOADER_SHARDS = cli.define_integer("loader_shards", 1, "hosts that share each of its batches")
LOADER_SECONDS = cli.define_float("loader_seconds", 3.0, "how long it is timed")


def main() -> int:
  faulthandler.register(signal.SIGUSR1, all_threads=True)  # says where a process hangs
  from pathlib import Path

  import jax

  from jaxlm import configlib, distributed, run
  from jaxlm.data.pipeline import build_pipeline
  from jaxlm.resumption import Record

  distributed.initialize()
  index = jax.process_index()
  record = Record(Path(RECORDS.value) / f"{index}.jsonl")
  record.write(event="joined", processes=jax.process_count(), devices=jax.device_count())
  if LOADER.value:
    config = configlib.load_json(LOADER.value)
    shards = LOADER_SHARDS.value
    pipeline = build_pipeline(config.data)
    with pipeline.iterator(config.global_batch_size, 0, index % shards, shards) as batches:
      next(batches)
      started, tokens = time.perf_counter(), 0
      while not tokens or time.perf_counter() - started < LOADER_SECONDS.value:
        tokens += next(batches)["inputs"].size
      record.write(event="loader", tokens_per_second=tokens / (time.perf_counter() - started))

  def on_batch(first: int, arrays: dict) -> None:
    if HOLD_ROW.value is not None and first >= HOLD_ROW.value and index == jax.process_count() - 1:
      record.write(event="holding")
      time.sleep(3600)
    record(first, arrays)

  finished = run.train(CONFIG.value, WORKDIR.value, stop_at=STOP_AT.value, on_batch=on_batch)
  record.write(event="done")
  return cli.OK if finished else cli.PREEMPTED


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
