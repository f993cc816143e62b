"""`trace`: from a row or a step of a training run back to the documents in it.

Row numbers become places by the same closed formulas that training uses (data/mixture.py,
data/order.py), without opening its pipeline, so nothing heavy is loaded.
"""

import dataclasses
import gzip
import itertools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import configlib
from jaxlm.data.config import DataConfig, TokenShardsConfig
from jaxlm.data.manifest import FILE_NAME, Manifest, Shard
from jaxlm.data.mixture import Mixture, proportional
from jaxlm.data.order import BlockShuffle
from jaxlm.data.stages.report_dataset import sidecar
from jaxlm.errors import UserError
from jaxlm.tokenizers.base import Tokenizer, load_tokenizer

CLIP = 80  # decoded characters shown of a document without a recorded id
MAX_ROWS = 64  # of a step that are listed


@dataclasses.dataclass(frozen=True)
class Piece:
  """A document's part in a row.

  shard: file. document: its number in the shard; global_document: in the split.
  begin, end: the row's ids that are of it. first: the token of the document that stands at begin.
  info: what the sidecar records of it (id, url, source), else {}.
  """

  shard: str
  document: int
  global_document: int
  begin: int
  end: int
  first: int
  info: dict[str, Any]
  ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
  """source: its name. source_row: number in it. begin: its first token in the split's stream."""

  row: int
  source: str
  source_row: int
  epoch: int
  begin: int
  ids: np.ndarray
  pieces: list[Piece]


class Rows:
  """A DataConfig's rows, in the order that training reads them."""

  def __init__(self, config: DataConfig):
    config.validate()
    self.config = config
    self.sources = {s.name: s.build(config.seq_len) for s in config.sources}
    for source in self.sources.values():
      if not len(source):
        raise UserError(source.too_short())
    phases = config.phases or proportional({n: len(s) for n, s in self.sources.items()})
    self.mixture = Mixture(list(self.sources), phases)
    self._orders = {
      name: BlockShuffle(
        len(source),
        name=name,
        seed=config.seed,
        block_rows=config.block_rows,
        window_blocks=config.window_blocks,
        shuffle=config.shuffle,
      )
      for name, source in self.sources.items()
    }
    self._places = {
      s.name: Places(s.path, s.split) for s in config.sources if isinstance(s, TokenShardsConfig)
    }

  def places(self, name: str) -> "Places | None":
    """The dataset of a source; None where it is not one of jaxlm's."""
    return self._places.get(name)

  def row(self, row: int) -> Row:
    """What stands at a global row >= 0."""
    name, position = self.mixture.locate(row)
    place = self._orders[name].row(position)
    ids = self.sources[name][place]
    begin = place * self.config.seq_len
    places = self._places.get(name)
    pieces = places.pieces(begin, ids) if places else []
    return Row(row, name, place, position // len(self.sources[name]), begin, ids, pieces)


class Places:
  """Token positions of a split → shards and documents."""

  def __init__(self, directory: str | Path, split: str):
    self.root = Path(directory)
    self.manifest = Manifest.load(self.root)
    self._shards: list[Shard] = [s for s in self.manifest.split(split).shards if s.tokens]
    self._tokens = list(itertools.accumulate((s.tokens for s in self._shards), initial=0))
    self._docs = list(itertools.accumulate((s.docs for s in self._shards), initial=0))
    self._tokenizer: Tokenizer | None = None

  def tokenizer(self) -> Tokenizer | None:
    """The dataset's own, if it is there."""
    if self._tokenizer is None and (self.root / "tokenizer").is_dir():
      self._tokenizer = load_tokenizer(self.root / "tokenizer")
    return self._tokenizer

  def decode(self, ids: np.ndarray) -> str:
    tokenizer = self.tokenizer()
    kept = [int(i) for i in ids if i != self.manifest.eos_id]
    return tokenizer.decode(kept) if tokenizer else " ".join(map(str, kept))

  def pieces(self, begin: int, ids: np.ndarray) -> list[Piece]:
    """The documents of ids [begin, begin + len(ids)) of the split, in order."""
    out: list[Piece] = []
    done, total = 0, int(ids.size)
    while done < total:
      at = begin + done
      shard = int(np.searchsorted(self._tokens, at, side="right")) - 1
      info = self._shards[shard]
      ends = np.memmap(self.root / info.index_file, dtype="<u8", mode="r")
      local = at - self._tokens[shard]
      while done < total and local < info.tokens:
        number = int(np.searchsorted(ends, local, side="right"))
        start = int(ends[number - 1]) if number else 0
        size = min(int(ends[number]) - local, total - done)
        out.append(
          Piece(
            shard=info.file,
            document=number,
            global_document=self._docs[shard] + number,
            begin=done,
            end=done + size,
            first=local - start,
            info={},
            ids=ids[done : done + size],
          )
        )
        done, local = done + size, local + size
    return [
      dataclasses.replace(piece, info=info)
      for piece, info in zip(out, self._infos(out), strict=True)
    ]

  def _infos(self, pieces: list[Piece]) -> list[dict[str, Any]]:
    """What the sidecars say of the documents; {} where there is none."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for shard in {p.shard for p in pieces}:
      listing = sidecar(self.root, shard)
      wanted = {p.document for p in pieces if p.shard == shard}
      if not listing.is_file():
        continue
      try:
        with gzip.open(listing, "rt", encoding="utf-8") as lines:
          for i, line in enumerate(itertools.islice(lines, max(wanted) + 1)):
            if i in wanted:
              found[shard, i] = json.loads(line)
      except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{listing}: {error}; make the dataset again") from None
    return [found.get((p.shard, p.document), {}) for p in pieces]


def open_config(where: str | Path) -> tuple[DataConfig, int | None]:
  """The data of a run (its workdir or config.json), or of a dataset; and the batch size, if known.

  Only the data's part of the config is built: a model's may need more than is installed.
  """
  path = Path(where)
  if (path / FILE_NAME).is_file():
    return DataConfig(sources=[TokenShardsConfig(path=str(path))]), None
  file = path / "config.json" if path.is_dir() else path
  try:
    values = json.loads(file.read_text(encoding="utf-8"))
  except OSError as error:
    raise UserError(f"{file}: {error.strerror or error}; name a workdir or a config.json") from None
  except ValueError as error:
    raise UserError(f"{file}: not a JSON file: {error}") from None
  data = values.get("data") if isinstance(values, dict) else None
  if data is None:
    raise UserError(f"{file}: no data in it: was it written by a training run?")
  try:
    config: DataConfig = configlib.from_dict(data, "config.data", DataConfig)
  except UserError as error:
    raise UserError(f"{file}: {error}") from None
  batch = values.get("global_batch_size")
  return config, batch if isinstance(batch, int) else None


def trace(where: str | Path, *, step: int | None = None, row: int | None = None) -> list[str]:
  """The documents of a row, or of all rows of a step, as lines of text.

  Args:
    where: a run's workdir or config.json, or a dataset (its rows in the default order).
    step: counted from 1, as in metrics.jsonl: step s trains on rows [(s-1)·batch, s·batch).
    row: counted from 0 over the whole run.
  """
  if (step is None) == (row is None):
    raise UserError("trace: give either --step or --row")
  config, batch = open_config(where)
  rows = Rows(config)
  if row is not None:
    if row < 0:
      raise UserError(f"--row={row}: must be at least 0")
    return describe(rows, rows.row(row))
  assert step is not None
  if step < 1:
    raise UserError(f"--step={step}: steps are counted from 1")
  if batch is None:
    raise UserError(f"{where}: no global_batch_size there: give a run's workdir, or --row")
  first = (step - 1) * batch
  lines = [f"step {step}: rows {first} … {first + batch - 1}"]
  for number in range(first, first + min(batch, MAX_ROWS)):
    lines += describe(rows, rows.row(number))
  if batch > MAX_ROWS:
    lines.append(f"… and {batch - MAX_ROWS} rows more; ask for them by --row")
  return lines


def describe(rows: Rows, row: Row) -> list[str]:
  """A row as text: a line for it and one for each document in it."""
  places = rows.places(row.source)
  head = f"row {row.row}: source {row.source}, its row {row.source_row}, epoch {row.epoch}"
  if places is None:
    return [f"{head}: not a dataset of jaxlm: documents are not known"]
  lines = [f"{head}, tokens {row.begin:,} … {row.begin + row.ids.size - 1:,}"]
  for piece in row.pieces:
    span = f"  [{piece.begin}, {piece.end}) {piece.shard} document {piece.document}"
    span += f" from token {piece.first}" if piece.first else ""
    info = piece.info
    if info:
      named = [str(info.get("id", "?")), str(info.get("url") or ""), str(info.get("source") or "")]
      lines.append(f"{span}: {' '.join(n for n in named if n)}")
    else:
      lines.append(f"{span}: {places.decode(piece.ids[: 4 * CLIP])[:CLIP]!r}")
  return lines
