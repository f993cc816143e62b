"""Second pass of the shuffle: documents of all runs, bucket by bucket, into shards.

Buckets are ranges of the key. The documents of one bucket are read from all runs, sorted by key and
written: the whole is in the order of the key, a random permutation, while memory holds one bucket.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxlm.data.manifest import Shard
from jaxlm.data.prep.runs import HELDOUT, OPEN, TRAIN, Done, read_meta, stem
from jaxlm.data.shards import LABELS, ShardWriter
from jaxlm.errors import UserError

NAMES = {TRAIN: "train", HELDOUT: "heldout"}
_WHOLE_DOCUMENT_SHARE = 0.1  # of the corpus that a single held-out document may take


@dataclasses.dataclass(frozen=True)
class Plan:
  """How the runs become one dataset.

  sources: taken in; None: all. buckets: of the train split. heldout: sorted `low` of the documents
  held out. groups: (first, last + 1) buckets, each the work of one task. shard_tokens: of each
  group, where a shard ends: its tokens in equal parts of about what was asked for.
  """

  runs: list[tuple[int, int, list[str]]]
  sources: frozenset[str] | None
  buckets: int
  heldout: np.ndarray
  groups: list[tuple[int, int]]
  shard_tokens: list[int]
  docs: int
  bytes: int


def make_plan(
  folder: Path,
  units: Sequence[Done],
  *,
  sources: frozenset[str] | None,
  bucket_bytes: int,
  shard_tokens: int,
  fraction: float,
  max_bytes: int,
) -> Plan:
  """Chooses what is held out, and the buckets. fraction, max_bytes: of what is held out."""
  runs = [(u.unit, k, u.sources) for u in units for k in range(u.runs)]
  docs = size = 0
  for one in _metas(folder, runs, sources):
    docs, size = docs + one.size, size + int(one["bytes"].sum())
  heldout = _choose(folder, runs, sources, size, fraction, max_bytes)
  buckets = max(1, -(-size // bucket_bytes))
  tokens = np.zeros(buckets, np.int64)
  for one in _metas(folder, runs, sources):
    one = one[_split(one, heldout) == TRAIN]
    np.add.at(tokens, bucket_of(one["high"], buckets), one["tokens"].astype(np.int64) + 1)
  groups, limits, first, taken = [], [], 0, 0
  for bucket, count in enumerate(tokens.tolist()):
    taken += count
    if taken >= shard_tokens or bucket == buckets - 1:
      groups.append((first, bucket + 1))
      limits.append(-(-taken // max(1, round(taken / shard_tokens))) or 1)
      first, taken = bucket + 1, 0
  return Plan(runs, sources, buckets, heldout, groups, limits, docs, size)


def _metas(
  folder: Path, runs: Iterable[tuple[int, int, list[str]]], sources: frozenset[str] | None
) -> Iterable[np.ndarray]:
  for unit, k, names in runs:
    meta = read_meta(folder, unit, k)
    if sources is not None:
      meta = meta[np.isin(meta["source"], [i for i, n in enumerate(names) if n in sources])]
    if meta.size:
      yield meta


def _choose(
  folder: Path,
  runs: list[tuple[int, int, list[str]]],
  sources: frozenset[str] | None,
  size: int,
  fraction: float,
  max_bytes: int,
) -> np.ndarray:
  """The texts of lowest hash until the target is reached; too long ones are passed over.

  Depends on the seed and each text, not on order or names: no held-out text is also trained on.
  """
  target = min(max(1, int(fraction * size)), max_bytes)
  largest = min(max(2 * target, int(_WHOLE_DOCUMENT_SHARE * size)), max_bytes)
  share = 4 * target / max(size, 1)
  while True:
    bound = min(2**64 - 1, int(share * 2**64))
    sizes: dict[int, int] = {}
    for meta in _metas(folder, runs, sources):
      meta = meta[(meta["split"] == OPEN) & (meta["low"] <= bound)]
      for low, count in zip(meta["low"].tolist(), meta["bytes"].tolist()):
        sizes[low] = sizes.get(low, 0) + count
    chosen, taken = [], 0
    for low in sorted(sizes):
      if taken >= target:
        break
      if taken + sizes[low] <= largest:
        chosen.append(low)
        taken += sizes[low]
    if taken >= target or share >= 1:
      return np.array(sorted(chosen), np.uint64)
    share *= 4


def _split(meta: np.ndarray, heldout: np.ndarray) -> np.ndarray:
  decided = np.where(np.isin(meta["low"], heldout), HELDOUT, TRAIN)
  return np.where(meta["split"] == OPEN, decided, meta["split"])


def bucket_of(high: np.ndarray, buckets: int) -> np.ndarray:
  """Buckets in the order of the key, of equal width."""
  return ((high >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)


def assemble(
  folder: Path,
  plan: Plan,
  split: int,
  group: tuple[int, int],
  parts: Path,
  *,
  dtype: str,
  eos_id: int,
  vocab_size: int,
  shard_tokens: int,
) -> list[Shard]:
  """Writes the shards of a group of buckets, or finds them written.

  Returns:
    The shards; their files lie in PARTS/<split>-<first bucket>/, `place` moves them.
  """
  name = f"{NAMES[split]}-{group[0]:06d}"
  mark = parts / f"{name}.json"
  if mark.is_file():
    return [Shard(**values) for values in json.loads(mark.read_text(encoding="utf-8"))]
  shutil.rmtree(parts / name, ignore_errors=True)
  if split == TRAIN:
    shard_tokens = plan.shard_tokens[plan.groups.index(group)]
  with ShardWriter(parts, name, dtype, eos_id, shard_tokens, vocab_size) as writer:
    for bucket in range(*group):
      _write_bucket(folder, plan, split, None if split == HELDOUT else bucket, dtype, writer)
  shards = writer.close()
  fresh = parts / f".{name}.{os.getpid()}"
  fresh.write_text(json.dumps([dataclasses.asdict(s) for s in shards]), encoding="utf-8")
  fresh.replace(mark)
  return shards


def _write_bucket(
  folder: Path, plan: Plan, split: int, bucket: int | None, dtype: str, writer: ShardWriter
) -> None:
  """bucket: None: all documents of the split."""
  metas: list[np.ndarray] = []
  texts: list[np.ndarray] = []
  labels: list[bytes] = []
  for unit, k, names in plan.runs:
    meta = read_meta(folder, unit, k)
    begin, end = 0, meta.size
    if bucket is not None:
      numbers = bucket_of(meta["high"], plan.buckets)
      begin, end = np.searchsorted(numbers, [bucket, bucket + 1]).tolist()
    wanted = _split(meta[begin:end], plan.heldout) == split
    if plan.sources is not None:
      mine = [i for i, n in enumerate(names) if n in plan.sources]
      wanted &= np.isin(meta["source"][begin:end], mine)
    if not wanted.any():
      continue
    file = stem(folder, unit, k)
    ends = np.cumsum(meta["tokens"], dtype=np.int64)
    label_ends = np.cumsum(meta["label"], dtype=np.int64)
    ids = np.memmap(file.with_suffix(".ids"), dtype, "r") if ends[-1] else np.empty(0, dtype)
    with file.with_suffix(".labels").open("rb") as names_file:
      for i in (np.flatnonzero(wanted) + begin).tolist():
        start = int(ends[i - 1]) if i else 0
        texts.append(np.array(ids[start : int(ends[i])]))
        names_file.seek(int(label_ends[i - 1]) if i else 0)
        labels.append(names_file.read(int(meta["label"][i])))
    metas.append(meta[begin:end][wanted])
  if not metas:
    return
  meta = np.concatenate(metas)
  for i in np.lexsort((meta["number"], meta["unit"], meta["high"])).tolist():
    writer.add(texts[i], int(meta["bytes"][i]), labels[i].decode("utf-8"))


def place(parts: Path, root: Path, split: int, groups: Sequence[Sequence[Shard]]) -> list[Shard]:
  """Moves the groups' shards to ROOT/<split>/shard-NNNNN, in order. May be called again."""
  name = NAMES[split]
  (root / name).mkdir(parents=True, exist_ok=True)
  out: list[Shard] = []
  for shards in groups:
    for shard in shards:
      final = dataclasses.replace(shard, file=f"{name}/shard-{len(out):05d}.bin")
      out.append(final)
      for suffix in (".idx", LABELS, ".bin"):
        old, new = (parts / shard.file).with_suffix(suffix), (root / final.file).with_suffix(suffix)
        if old.is_file():
          old.replace(new)
        elif not new.is_file():
          raise UserError(f"{old}: missing; delete {root} and run the stage again")
  return out
