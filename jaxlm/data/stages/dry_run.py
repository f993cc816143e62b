"""`--dry_run`: which stages would be used as they are, taken up again or run, and why.

A line a stage. What a stage's fingerprint was made of lies in its begun.json, so the parts that
differ from the newest finished output can be named. Nothing is written and nothing is fetched.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.data.stages import base
from jaxlm.data.stages.config import CurationConfig
from jaxlm.data.stages.differences import differences
from jaxlm.errors import UserError

STAGES = ("collect", "clean", "dedup", "decontaminate", "train_tokenizer", "tokenize")
SHOWN = 4  # differences in a line
# The files that say that a stage is finished, where it is not stage.json.
_MARKS = {"train_tokenizer": ("card.json",), "tokenize": ("manifest.json", "datasets.json")}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What would become of a stage.

  fingerprint, directory: None where they depend on something that is not there yet.
  state: REUSED, RESUMED, RUN, SKIPPED (no stage is needed) or UNKNOWN. why: in words.
  """

  stage: str
  state: str
  why: str = ""
  fingerprint: str | None = None
  directory: Path | None = None

  def line(self) -> str:
    """As it is printed."""
    name = "unknown" if self.fingerprint is None else self.fingerprint[:8]
    where = "–" if self.directory is None else str(self.directory)
    return f"{self.stage}: {name} {where} {self.state}" + (f": {self.why}" if self.why else "")


def plan(
  config: CurationConfig, last: str = STAGES[-1], *, tasks: int = 1, limit: int | None = None
) -> list[Plan]:
  """The stages up to `last`. Raises UserError for what would stop them at their start."""
  found = []
  for one in _plans(config, tasks, limit):
    found.append(one)
    if one.stage == last:
      break
  return found


def _plans(config: CurationConfig, tasks: int, limit: int | None) -> Iterator[Plan]:
  from jaxlm.data.stages import clean, collect, decontaminate, dedup, tokenize, train_tokenizer

  output = Path(config.output)
  files = _files(config)
  unknown = [name for name, state in files.items() if state is None]
  if unknown:
    yield Plan("collect", "RUN", f"the path list of source {unknown[0]!r} is to be fetched first")
    why = "unknown until collect has run"
    yield from (Plan(stage, "UNKNOWN", why) for stage in STAGES[1:])
    return
  parts = collect.identity(config, files, limit)
  yield (one := _judge("collect", output, parts, 1))
  upstream = _need(one)
  parts = clean.identity(config.clean, upstream)
  yield (one := _judge("clean", output, parts, tasks))
  upstream = _need(one)
  parts = dedup.identity(config.dedup, upstream, config.seed)
  yield (one := _judge("dedup", output, parts, tasks))
  upstream = _need(one)
  index = _index_sha256(config)
  parts = decontaminate.identity(config.decontaminate, upstream, config.seed, index)
  yield (one := _judge("decontaminate", output, parts, tasks))
  upstream = _need(one)
  tokenizer: Path | None
  if config.tokenizer.path is not None:
    tokenizer = Path(config.tokenizer.path)
    yield Plan("train_tokenizer", "SKIPPED", f"config.tokenizer.path={config.tokenizer.path}")
  else:
    parts = train_tokenizer.identity(config.tokenizer, upstream, config.seed)
    yield (one := _judge("train_tokenizer", output, parts, 1))
    assert one.directory is not None
    tokenizer = one.directory / "tokenizer" if one.state == "REUSED" else None
  if tokenizer is None:
    yield Plan("tokenize", "UNKNOWN", "unknown until train_tokenizer has run")
    return
  from jaxlm.tokenizers.base import load_tokenizer

  ids = load_tokenizer(tokenizer, eos=config.tokenizer.eos).fingerprint()
  parts = tokenize.identity(config.tokenize, upstream, config.seed, ids)
  yield _judge("tokenize", output, parts, 1)


def _need(one: Plan) -> str:
  assert one.fingerprint is not None
  return one.fingerprint


def _files(config: CurationConfig) -> dict[str, str | None]:
  found: dict[str, str | None] = {}
  for name, source in config.sources.items():
    corpus = source.build(strict=False, exclude=str(Path(config.output).resolve()))
    # A source whose list of files comes over the network knows less before that.
    found[name] = getattr(corpus, "peek", corpus.fingerprint)()
  return found


def _index_sha256(config: CurationConfig) -> str:
  from jaxlm.data.stages import decontaminate_steps as steps

  hashes, owners, _ = steps.build_index(config.decontaminate, "config.decontaminate")
  return steps.index_sha256(hashes, owners)


# ---- one stage --------------------------------------------------------------------------------


def _judge(stage: str, output: Path, parts: Mapping[str, Any], tasks: int) -> Plan:
  found = base.fingerprint(stage, *parts.values())
  directory = base.stage_dir(output, stage, found)
  begun = base.read_begun(directory)
  if _finished(stage, directory, found):
    return Plan(stage, "REUSED", "", found, directory)
  if begun.get("fingerprint") == found and begun.get("tasks") == tasks:
    progress = _progress(stage, directory, parts, tasks)
    if progress is not None:
      return Plan(stage, "RESUMED", progress, found, directory)
  why = _why(stage, output, directory, parts)
  if begun.get("fingerprint") == found:
    if begun.get("tasks") != tasks:
      why = f"anew, it was begun with --tasks={begun.get('tasks')} and not {tasks}"
    else:
      why = "anew, what was begun of it can not be taken up"
  return Plan(stage, "RUN", why, found, directory)


def _mark(stage: str, directory: Path) -> Path | None:
  """The file whose presence says that a stage is finished."""
  marks = (directory / name for name in _MARKS.get(stage, (base.RECORD,)))
  return next((mark for mark in marks if mark.is_file()), None)


def _finished(stage: str, directory: Path, found: str) -> bool:
  if stage in _MARKS:
    return _mark(stage, directory) is not None
  return base.is_finished(directory, found)


def _progress(stage: str, directory: Path, parts: Mapping[str, Any], tasks: int) -> str | None:
  """How far an unfinished stage is; None where it begins anew."""
  if stage == "train_tokenizer":
    return None
  if stage == "collect":
    return _collected(directory, len(parts["files"]))
  if stage == "tokenize":
    done = len(list((directory / "work.tmp/runs").glob("[0-9]*.json")))
    upstream = base.stage_dir(directory.parent, "decontaminate", parts["upstream"])
    return f"{done} of {len(list((upstream / 'documents').rglob('*.jsonl.gz')))} tasks done"
  passes = []
  logs = directory / "logs"
  for one in sorted(logs.iterdir(), key=lambda d: d.stat().st_mtime) if logs.is_dir() else ():
    done = len(list((one / "completions").glob("*")))
    passes.append(f"{one.name} {done} of {_tasks_of(one, tasks)} tasks done")
  return ", ".join(passes) or f"0 of {tasks} tasks done"


def _tasks_of(logs: Path, tasks: int) -> int:
  """Of one of a stage's pipelines: some have a number of their own."""
  try:
    return int(json.loads((logs / "executor.json").read_text(encoding="utf-8"))["world_size"])
  except (OSError, ValueError, KeyError, TypeError):
    return tasks


def _collected(directory: Path, sources: int) -> str:
  from jaxlm.data.stages.sources import journal

  state = journal.read(directory / "work")
  if state is None:
    return f"0 of {sources} sources done"
  done = sum(one.done for one in state.sources.values())
  text = f"{done} of {sources} sources done"
  for name, one in state.sources.items():
    if not one.done:
      text += f", {one.place.file} files of {name!r} ({one.books.kept:,} documents)"
  return text


# ---- why it runs again ------------------------------------------------------------------------


def _why(stage: str, output: Path, directory: Path, parts: Mapping[str, Any]) -> str:
  """What differs from the newest finished output of the stage."""
  older = []
  for other in output.glob(f"{stage}-*"):
    mark = _mark(stage, other)
    if mark is not None and other != directory:
      older.append((mark.stat().st_mtime_ns, other))
  if not older:
    return "there is no output of it yet"
  newest = max(older)[1]
  before = base.read_begun(newest).get("parts")
  if not before:
    return f"{newest.name} is of other settings; which was not recorded"
  changes = list(differences(before, json.loads(json.dumps(parts))))
  if len(changes) > SHOWN:
    changes = [*changes[:SHOWN], f"{len(changes) - SHOWN} more"]
  return f"since {newest.name}: {', '.join(changes) or 'nothing that was recorded'}"


def check_verb(verb: str) -> str:
  """The last stage that a verb runs. Raises UserError for one that runs none."""
  if verb == "run":
    return STAGES[-1]
  if verb not in STAGES:
    raise UserError(f"--dry_run: {verb} runs no stage; use it with {', '.join((*STAGES, 'run'))}")
  return verb
