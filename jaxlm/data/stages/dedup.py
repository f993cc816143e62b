"""The stage dedup: exact, url, lines, minhash, substring; who stays is a rule, not an accident.

The passes read the stage before anew, with what earlier ops dropped left out; decisions between
passes are made in the calling process, on records of a few bytes a document:

  1. scan: hashes, lengths, scores. Then exact and url are decided.
  2. lines (if on): counts of lines. Then the repeated ones are decided.
  3. signatures, buckets, clusters (if on): datatrove's MinHash. Then survivors are decided.
  4. substrings (if on): hashes of windows of words. Then the repeated ones are decided.
  5. write: documents/ and removed/.
"""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.stages import base
from jaxlm.data.stages.dedup_config import DedupConfig, KeepRule, LineUnit
from jaxlm.data.stages.dedup_rule import Decision, Member, choose
from jaxlm.data.stages.executor_config import ExecutorConfig
from jaxlm.data.stages.runner import (
  Runner,
  as_json,
  begin,
  finish,
  need_documents,
  require_datatrove,
)
from jaxlm.errors import UserError

OPS_VERSION = 3


def identity(config: DedupConfig, upstream: str, seed: int) -> dict[str, Any]:
  """What the fingerprint is made of. upstream: the fingerprint of the stage before."""
  return {
    "config.dedup": as_json(config),
    "upstream": upstream,
    "op version": OPS_VERSION,
    "config.seed": seed,
  }


def run(
  upstream_dir: str | Path,
  output: str | Path,
  config: DedupConfig,
  *,
  executor: str | ExecutorConfig = "local",
  tasks: int = 1,
  workers: int = 1,
  max_drop_ratio: float = 0.95,
  seed: int = 0,
) -> Path:
  """Makes the stage from a finished one, or finds it made. Returns its directory."""
  config.validate()
  upstream = base.read_stage(upstream_dir)
  parts = identity(config, upstream["fingerprint"], seed)
  found = base.fingerprint("dedup", *parts.values())
  directory = base.stage_dir(output, "dedup", found)
  if base.is_finished(directory, found):
    base.check_books("dedup", base.read_stage(directory)["ops"], max_drop_ratio, str(directory))
    return directory
  need_documents(upstream_dir, upstream)
  require_datatrove()
  begin(directory, found, tasks, parts)
  started = time.perf_counter()
  runner = Runner(directory, executor, tasks, workers)
  ops = _Dedup(Path(upstream_dir), directory, config, runner, seed).run()
  finish(
    directory=directory,
    stage="dedup",
    found=found,
    upstream_dir=upstream_dir,
    upstream=upstream,
    config=as_json(config),
    ops=ops,
    max_drop_ratio=max_drop_ratio,
    started=started,
    packages=("datatrove", "xxhash", "numpy"),
  )
  return directory


class _Dedup:
  def __init__(
    self, upstream: Path, directory: Path, config: DedupConfig, runner: Runner, seed: int
  ):
    self.upstream = upstream
    self.directory = directory
    self.work = directory / "work"
    self.config = config
    self.runner = runner
    self.seed = seed
    self.decided: dict[str, list[Decision]] = {}
    self.clusters: dict[str, dict[str, Any]] = {}
    self.numbers: dict[int, str] = {}  # of a dropped document: its cluster

  def run(self) -> list[dict[str, Any]]:
    from jaxlm.data.stages import dedup_steps, stage_io

    config = self.config
    if config.exact or config.url:
      scan = dedup_steps.Scan(self.work / "scan", config)
      self.runner("scan", [stage_io.StageReader(self.upstream), scan])
      records, ids = self._records("scan")
      self._need_scores(records)
      gone: set[int] = set()
      if config.exact:
        self._decide("exact", self._groups(records, ids, ("hi", "lo"), gone))
        gone.update(one.at for one in self.decided["exact"])
      if config.url:
        some = records["url"] != 0
        groups = self._groups(records, ids, ("url",), gone, some)
        self._decide("url", groups)
    table = self.work / "repeated_lines.npy"
    if config.lines is not LineUnit.NONE:
      counts = dedup_steps.CountLines(self.work / "lines", config)
      self.runner("lines", [*self._before("scratch", ("exact", "url")), counts])
      with stage_io.whole_file(table) as file:
        np.save(file, dedup_steps.repeated_lines(self.work / "lines", config))
    if config.minhash.enabled:
      self._minhash()
    self._resolve()
    if config.substring:
      self._substrings()
    counts_folder = self.work / "counts"
    steps = [
      *self._before("counts", tuple(self._ops()), removed=True),
      stage_io.Tally("after", counts_folder, None),
      stage_io.KeepWriter(self.directory / "documents"),
    ]
    self.runner("write", steps)
    ops = []
    for name in self._ops():
      count = stage_io.read_count(counts_folder, name)
      op = count.op(name)
      if name in self.clusters:
        op["clusters"] = self.clusters[name]
      if name == "substring":
        op["passages_cut"] = count.extra["passages"]
        op["documents_edited"] = count.extra["documents"]
        op["characters_cut"] = count.extra["characters"]
      if name == "lines":
        op["lines_dropped"] = count.extra["lines"]
        op["documents_edited"] = count.extra["documents"]
      ops.append(op)
    return ops or [stage_io.read_count(counts_folder, "before").op("none")]

  def _ops(self) -> list[str]:
    on = {
      "exact": self.config.exact,
      "url": self.config.url,
      "lines": self.config.lines is not LineUnit.NONE,
      "minhash": self.config.minhash.enabled,
      "substring": self.config.substring,
    }
    return [name for name, is_on in on.items() if is_on]

  def _before(self, counts: str, ops: Sequence[str], removed: bool = False) -> list[Any]:
    """The steps that read the stage before and apply what was decided."""
    from jaxlm.data.stages import dedup_steps, stage_io, substrings

    folder = self.work / counts
    steps: list[Any] = [stage_io.StageReader(self.upstream)]
    if removed:
      steps.append(stage_io.Tally("before", folder, None))
    for name in self._ops():
      if name not in ops:
        continue
      drop = self.directory / "removed" / name if removed else None
      if name == "lines":
        table = self.work / "repeated_lines.npy"
        steps.append(dedup_steps.DropLines(table, self.config, folder, drop))
      elif name == "substring":
        table = self.work / "repeated_windows.npy"
        steps.append(substrings.CutWindows(table, self.config, folder, drop))
      else:
        steps.append(stage_io.Decided(name, self.work / "decisions", folder, drop))
    return steps

  def _need_scores(self, records: np.ndarray) -> None:
    """UserError where the rule goes by scores and no document has one."""
    if self.config.keep is KeepRule.BEST_SCORE and not np.isfinite(records["score"]).any():
      raise UserError(
        f"config.dedup.keep=BEST_SCORE: no document of {self.upstream} has a number in the "
        f"metadata field {self.config.score_field!r}; name the field that holds scores in "
        "config.dedup.score_field (quality_score, where the op quality ran), or another rule"
      )

  def _records(self, folder: str) -> tuple[np.ndarray, "_Ids"]:
    """All tasks' records and, in the same order, their ids, read when needed."""
    from jaxlm.data.stages.dedup_steps import RECORD

    files = [self.work / folder / f"{rank:05d}.records" for rank in range(self.runner.tasks)]
    parts = [np.fromfile(file, dtype=RECORD) for file in files]
    return np.concatenate(parts), _Ids(files, [len(part) for part in parts])

  def _groups(
    self,
    records: np.ndarray,
    ids: "_Ids",
    keys: tuple[str, ...],
    gone: set[int],
    some: np.ndarray | None = None,
  ) -> list[list[Member]]:
    """The documents that share the keys with another, in groups."""
    rows = np.arange(len(records)) if some is None else np.flatnonzero(some)
    if gone:
      rows = rows[~np.isin(records["at"][rows], np.fromiter(gone, np.int64, len(gone)))]
    if not len(rows):
      return []
    rows = rows[np.lexsort([records[key][rows] for key in keys])]
    same = np.ones(len(rows) - 1, dtype=bool)
    for key in keys:
      column = records[key][rows]
      same &= column[1:] == column[:-1]
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    ends = np.append(starts[1:], len(rows))
    many = ends - starts > 1
    groups = [rows[a:b] for a, b in zip(starts[many], ends[many], strict=True)]
    names = ids.read(np.concatenate(groups)) if groups else {}
    return [[_member(records[row], names[int(row)]) for row in group] for group in groups]

  def _decide(self, op: str, groups: Iterable[list[Member]], min_jaccard: float = 0.0) -> None:
    """Chooses, numbers the clusters by the place of who stays, and writes the decisions."""
    decisions = [one for group in groups for one in choose(group, self.config.keep, min_jaccard)]
    self.decided[op] = sorted(decisions, key=lambda one: one.at)
    by_kept: dict[int, list[Decision]] = {}
    for one in self.decided[op]:
      by_kept.setdefault(one.kept, []).append(one)
    for number, kept in enumerate(sorted(by_kept)):
      self.numbers.update((one.at, f"{op}-{number}") for one in by_kept[kept])
    largest = sorted(by_kept, key=lambda kept: (-len(by_kept[kept]), kept))[:20]
    sizes = Counter(len(members) + 1 for members in by_kept.values())
    self.clusters[op] = {
      "count": len(by_kept),
      "sizes": {str(size): n for size, n in sorted(sizes.items())},
      "largest": [
        {
          "cluster": self.numbers[by_kept[kept][0].at],
          "size": len(by_kept[kept]) + 1,
          "kept": by_kept[kept][0].kept_id,
          "mean_jaccard": round(float(np.mean([one.jaccard for one in by_kept[kept]])), 4),
        }
        for kept in largest
      ],
    }
    self._write(op, self.decided[op])

  def _write(self, op: str, decisions: list[Decision]) -> None:
    from jaxlm.data.stages.stage_io import write_by_file

    rows = (
      {"at": d.at, "of": d.kept_id, "cluster": self.numbers[d.at], "jaccard": d.jaccard}
      for d in decisions
    )
    write_by_file(self.work / "decisions" / op, rows)

  def _resolve(self) -> None:
    """Where the document that stayed in one op was dropped by a later one: the last that stays."""
    target = {one.at: one for ops in self.decided.values() for one in ops}
    for op, decisions in self.decided.items():
      final = []
      for one in decisions:
        last = one
        while last.kept in target:
          last = target[last.kept]
        final.append(dataclasses.replace(one, kept=last.kept, kept_id=last.kept_id))
      self._write(op, final)

  def _substrings(self) -> None:
    from jaxlm.data.stages import stage_io, substrings

    folder = self.work / "windows"
    before = self._before("scratch_windows", ("exact", "url", "lines", "minhash"))
    self.runner("windows", [*before, substrings.CountWindows(folder, self.config)])
    with stage_io.whole_file(self.work / "repeated_windows.npy") as file:
      np.save(file, substrings.repeated_windows(folder))

  def _minhash(self) -> None:
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster

    from jaxlm.data.stages import dedup_steps, minhash

    options = self.config.minhash
    lsh = minhash.lsh_config(options, self.seed)
    signatures, pairs, clusters = (
      self.work / name for name in ("signatures", "buckets", "clusters")
    )
    signing = minhash.Signatures(
      signatures,
      lsh,
      word_tokenizer=options.word_tokenizer,
      by_source=not self.config.across_sources,
    )
    scan = dedup_steps.Scan(self.work / "scan_minhash", self.config)
    before = self._before("scratch_minhash", ("exact", "url", "lines"))
    self.runner("minhash_signatures", [*before, scan, signing])
    minhash.verify_signatures(signatures, lsh, self.runner.tasks)
    # All three stages need the same config: with datatrove's default, files are cut elsewhere.
    per_bucket = max(1, self.runner.tasks // options.buckets)
    buckets = MinhashDedupBuckets(str(signatures), str(pairs), config=lsh, lines_to_buffer=1000)
    self.runner("minhash_buckets", [buckets], options.buckets * per_bucket)
    cluster = MinhashDedupCluster(
      str(pairs), str(clusters), config=lsh, save_cluster_id=True, lines_to_buffer=1000
    )
    self.runner("minhash_clusters", [cluster], 1)

    members = minhash.read_clusters(clusters)
    records, ids = self._records("scan_minhash")
    if not (self.config.exact or self.config.url):
      self._need_scores(records)
    row_of = {
      (rank, document): ids.starts[rank] + document
      for group in members.values()
      for rank, document in group
    }
    names = ids.read(np.array(sorted(row_of.values()), dtype=np.int64))
    wanted: dict[int, list[int]] = {}
    for rank, document in row_of:
      wanted.setdefault(rank, []).append(document)
    signed = minhash.read_signatures(signatures, lsh, wanted)
    groups = [
      [_member(records[row_of[key]], names[row_of[key]], signed[key]) for key in group]
      for group in members.values()
    ]
    self._decide("minhash", groups, options.min_jaccard)


class _Ids:
  """The ids beside the records, of which few are needed."""

  def __init__(self, records: Sequence[Path], lengths: Sequence[int]):
    self.files = [file.with_suffix(".ids") for file in records]
    self.starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64).tolist()

  def read(self, rows: np.ndarray) -> dict[int, str]:
    wanted = set(rows.tolist())
    found = {}
    for start, file in zip(self.starts, self.files, strict=False):
      with file.open(encoding="utf-8") as lines:
        for row, line in enumerate(lines, start):
          if row in wanted:
            found[row] = json.loads(line)
    return found


def _member(record: Any, name: str, signature: np.ndarray | None = None) -> Member:
  return Member(
    at=int(record["at"]),
    id=str(name),
    length=int(record["length"]),
    score=float(record["score"]),
    priority=int(record["priority"]),
    signature=signature,
  )
