"""A row is traced to the very ids that the pipeline yields for it, without JAX."""

import dataclasses
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from jaxlm import configlib
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, Phase, SyntheticConfig, TokenShardsConfig
from jaxlm.data.manifest import Manifest
from jaxlm.data.pipeline import build_pipeline
from jaxlm.data.shards import TokenShards
from jaxlm.data.stages.trace import Rows, trace
from jaxlm.data.testing import EOS, random_documents, write_dataset
from jaxlm.errors import UserError

T = 32
BATCH = 8


@pytest.fixture
def config(tmp_path):
  sources = []
  for i, name in enumerate(("web", "code")):
    write_dataset(tmp_path / name, random_documents(i, 40 + 40 * i), shard_tokens=500)
    sources.append(TokenShardsConfig(name=name, path=str(tmp_path / name)))
  return DataConfig(
    seq_len=T,
    sources=sources,
    phases=[
      Phase(weights={"web": 0.7, "code": 0.3}),
      Phase(start_row=40, weights={"web": 0.2, "code": 0.8}),
    ],
    block_rows=4,
    window_blocks=3,
    seed=5,
  )


def _sidecars(root):
  number = 0
  for shard in Manifest.load(root).splits["train"].shards:
    with gzip.open(root / shard.file.replace(".bin", ".ids.jsonl.gz"), "wt") as out:
      for _ in range(shard.docs):
        line = {
          "id": f"{root.name}-{number}",
          "url": f"https://x.org/{number}",
          "source": root.name,
        }
        out.write(json.dumps(line) + "\n")
        number += 1


def test_rows_are_those_of_the_pipeline(config):
  rows, pipeline = Rows(config), build_pipeline(config)
  shards = {s.name: TokenShards(s.path) for s in config.sources}
  with pipeline.iterator(BATCH) as batches:
    for step in range(12):
      inputs = next(batches)["inputs"]
      for i in range(BATCH):
        row = rows.row(step * BATCH + i)
        assert (row.source, row.source_row) == pipeline.locate(row.row)
        np.testing.assert_array_equal(row.ids[:-1], inputs[i])
        # The pieces are the documents: put together they are the row.
        parts = [
          shards[row.source].document(p.global_document)[p.first : p.first + p.end - p.begin]
          for p in row.pieces
        ]
        np.testing.assert_array_equal(np.concatenate(parts), row.ids)
        assert [p.begin for p in row.pieces] == [0, *(p.end for p in row.pieces[:-1])]
        assert all((p.ids[:-1] != EOS).all() for p in row.pieces)


def test_ids_of_a_sidecar_are_named(config, tmp_path):
  for name in ("web", "code"):
    _sidecars(tmp_path / name)
  rows = Rows(config)
  for number in range(20):
    row = rows.row(number)
    assert [p.info["id"] for p in row.pieces] == [
      f"{row.source}-{p.global_document}" for p in row.pieces
    ]


def test_a_step_of_a_run(config, tmp_path):
  _sidecars(tmp_path / "web")
  work = tmp_path / "work"
  work.mkdir()
  run = dataclasses.replace(RunConfig(), data=config, global_batch_size=BATCH)
  configlib.save_json(run, work / "config.json")
  lines = trace(work, step=2)
  assert lines[0] == f"step 2: rows {BATCH} … {2 * BATCH - 1}"
  one = trace(work / "config.json", row=BATCH)
  assert lines[1 : 1 + len(one)] == one
  assert any("https://x.org/" in line for line in lines)
  code = next(line for line in lines if "train/shard-" in line and "x.org" not in line)
  assert code.endswith("'")  # no sidecar: the ids themselves, for want of a tokenizer


def test_no_jax(tmp_path):
  write_dataset(tmp_path / "set", random_documents(0, 30))
  config = DataConfig(seq_len=T, sources=[TokenShardsConfig(path=str(tmp_path / "set"))])
  configlib.save_json(RunConfig(data=config), tmp_path / "config.json")
  code = (
    "import sys\n"
    "from jaxlm.data.stages import diff, inspect, report, trace, verify\n"
    f"print(trace.trace({str(tmp_path)!r}, row=0))\n"
    f"print(inspect.preview({str(tmp_path)!r}, 2))\n"
    "sys.exit('jax' in sys.modules or 'grain' in sys.modules)"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert "row 0: source data" in done.stdout


def test_bad_input(config, tmp_path):
  with pytest.raises(UserError, match="either --step or --row"):
    trace(tmp_path)
  with pytest.raises(UserError, match=r"config\.json: No such file"):
    trace(tmp_path, row=0)
  with pytest.raises(UserError, match="no global_batch_size"):
    trace(tmp_path / "web", step=1)
  assert "not a dataset" in _synthetic(tmp_path)[0]


def _synthetic(tmp_path):
  data = DataConfig(seq_len=T, sources=[SyntheticConfig(vocab_size=50)])
  configlib.save_json(RunConfig(data=data), tmp_path / "config.json")
  return trace(tmp_path, row=3)
