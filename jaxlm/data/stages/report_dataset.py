"""What the report says of a tokenised dataset and of the tokenizer's sweep."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

from jaxlm.data.manifest import INDEX_ITEM_SIZE, Manifest
from jaxlm.data.stages.report_scan import UNKNOWN
from jaxlm.errors import UserError

Json = dict[str, Any]


def sidecar(directory: Path, shard_file: str) -> Path:
  """The list of a shard's documents, one JSON object a line, in the order of the shard."""
  return directory / Path(shard_file).with_suffix(".ids.jsonl.gz")


def dataset_values(
  directory: str | Path, by_source: dict[str, int], planned: float | None, seq_len: int
) -> Json:
  import numpy as np

  root = Path(directory)
  manifest = Manifest.load(root)
  splits = {}
  by_sidecar: Counter[str] = Counter()
  has_sidecars = True
  for name, split in manifest.splits.items():
    longer, beyond = 0, 0
    for shard in split.shards:
      index = root / shard.index_file
      if not shard.docs:
        continue
      try:
        ends = np.memmap(index, dtype="<u8", mode="r")
      except (OSError, ValueError) as error:
        raise UserError(f"{index}: {error}; copy the dataset again") from None
      if ends.size != shard.docs:
        raise UserError(
          f"{index}: {ends.size * INDEX_ITEM_SIZE} bytes, the manifest says {shard.docs} documents;"
          " copy the dataset again"
        )
      sizes = np.diff(np.concatenate([[0], ends.astype(np.int64)]))
      longer += int((sizes > seq_len).sum())
      beyond += int(np.maximum(sizes - seq_len, 0).sum())
      listing = sidecar(root, shard.file)
      has_sidecars = has_sidecars and (name != "train" or listing.is_file())
      if name == "train" and has_sidecars:
        with gzip.open(listing, "rt", encoding="utf-8") as lines:
          for line, size in zip(lines, sizes, strict=False):
            by_sidecar[str(json.loads(line).get("source") or UNKNOWN)] += int(size)
    rows = max(split.tokens - 1, 0) // seq_len
    splits[name] = {
      "tokens": split.tokens,
      "documents": split.docs,
      "bytes": split.bytes,
      "bytes_per_token": split.bytes / split.tokens if split.tokens else None,
      "rows": rows,
      "tokens_behind_the_last_row": max(split.tokens - 1 - rows * seq_len, 0),
      "documents_a_row": split.docs / rows if rows else None,
      "documents_longer_than_a_row": longer,
      "tokens_beyond_a_row": beyond,
    }
  train = manifest.splits.get("train")
  tokens = train.tokens if train else 0
  whole = sum(by_source.values())
  exact = has_sidecars and bool(by_sidecar)
  if exact:
    per_source: dict[str, float] = dict(by_sidecar.most_common())
  else:
    per_source = {n: tokens * size / whole for n, size in by_source.items()} if whole else {}
  return {
    "name": manifest.name,
    "fingerprint": manifest.fingerprint(),
    "tokenizer_sha256": manifest.tokenizer_sha256,
    "vocab_size": manifest.vocab_size,
    "seq_len": seq_len,
    "splits": splits,
    "tokens_by_source": per_source,
    "tokens_by_source_exact": exact,
    "tokens_planned": planned,
    "epochs_planned": planned / tokens if planned and tokens else None,
  }


def sweep(output: str | Path, tokenizer_sha256: str) -> Json | None:
  """The comparison of vocabulary sizes that the dataset's tokenizer was chosen by, if it is there.

  output: the directory of the stages.
  """
  for file in sorted(Path(output).glob("train_tokenizer-*/sweep.json")):
    try:
      card = json.loads(file.with_name("card.json").read_text(encoding="utf-8"))
      found: Json = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
      raise UserError(f"{file.parent}: {error}; train the tokenizer again") from None
    if (card.get("tokenizer") or {}).get("sha256") == tokenizer_sha256:
      return found
  return None
