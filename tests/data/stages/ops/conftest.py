"""Runs one op, or a whole config, on documents made up in the test."""

import random
import zipfile
from pathlib import Path

import pytest

from jaxlm.data.stages import base, clean, quality
from jaxlm.data.stages.clean_config import CleanConfig
from jaxlm.errors import UserError
from tests.data.stages.made_up import write_lines

SYLLABLES = ("ba", "cor", "del", "fen", "gor", "hal", "ist", "jun", "kem", "lor", "mar", "nel")
STOP = ("the", "be", "to", "of", "and", "that", "have", "with")
CACHE = Path.home() / ".cache" / "jaxlm" / "assets"


def prose(seed, sentences=36):
  """English enough for the rules: stop words, sentences that end, nothing said twice."""
  rng = random.Random(seed)

  def word():
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((1, 2, 2, 3))))

  def sentence():
    words = [rng.choice(STOP) if rng.random() < 0.4 else word() for _ in range(14)]
    return " ".join(words).capitalize() + "."

  return "\n".join(" ".join(sentence() for _ in range(3)) for _ in range(sentences // 3))


def write_upstream(output, documents, files=1):
  """A finished stage collect of (text, metadata) pairs, in that many files."""
  directory = base.stage_dir(output, "collect", base.fingerprint("made up", documents))
  rows = [
    {"id": str(i), "text": text, "metadata": {"source": "made", **metadata}}
    for i, (text, metadata) in enumerate(documents)
  ]
  each = -(-len(rows) // files)
  for number in range(files):
    part = rows[number * each : (number + 1) * each]
    write_lines(directory / f"documents/{number:05d}.jsonl.gz", part)
  record = {"stage": "collect", "fingerprint": base.fingerprint("made up", documents)}
  sizes = {"in": len(rows), "kept": len(rows), "dropped": 0, "errored": 0, "ops": []}
  base.write_stage_json(directory, {**record, **sizes, "upstream": [], "config": {}})
  return directory


class Result:
  """What a stage made: record, kept and removed documents by their number."""

  def __init__(self, directory):
    self.directory = directory
    self.record = base.read_stage(directory)
    self.kept = {int(d["id"]): d for d in base.iter_documents(directory)}
    self.ops = {op["name"]: op for op in self.record["ops"]}

  def removed(self, op):
    return {int(d["id"]): d for d in base.iter_documents(self.directory, op)}

  def reasons(self, op):
    """Number of the document to why the op dropped it."""
    return {number: d["metadata"]["reason"] for number, d in self.removed(op).items()}


@pytest.fixture
def run(tmp_path):
  """Runs ops on texts, or on (text, metadata) pairs; the books are checked by the stage."""

  def go(ops, documents, *, tasks=1, files=1, **settings):
    pairs = [one if isinstance(one, tuple) else (one, {}) for one in documents]
    upstream = write_upstream(tmp_path / "out", pairs, files)
    config = settings.pop("config", None) or CleanConfig(ops=ops, **settings)
    directory = clean.run(upstream, tmp_path / "out", config, tasks=tasks, max_drop_ratio=1.0)
    return Result(directory)

  return go


@pytest.fixture(scope="session")
def lid():
  """lid.176.ftz, fetched once."""
  file = CACHE / "lid.176.ftz"
  if not file.exists():
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
      quality.fetch_lid(file)
    except (UserError, zipfile.BadZipFile) as error:
      pytest.skip(f"lid.176.ftz can not be had: {error}")
  return str(file)
