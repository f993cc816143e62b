"""The stage clean: the ops of its config, in their order."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.data.stages import base
from jaxlm.data.stages.clean_config import CleanConfig
from jaxlm.data.stages.executor_config import ExecutorConfig
from jaxlm.data.stages.ops import OpConfig, OpContext
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
_PACKAGES = ("datatrove", "resiliparse", "trafilatura", "ftfy", "fasttext-numpy2-wheel", "spacy")


def describe(config: CleanConfig) -> dict[str, Any]:
  """The config as in stage.json: `ops` as a list, since their order decides too."""
  return {
    "words": as_json(config.words),
    "max_error_ratio": config.max_error_ratio,
    "ops": [
      {"name": name, "op": type(op).__name__, "version": op.VERSION, **as_json(op)}
      for name, op in config.enabled().items()
    ],
  }


def file_hashes(ops: Mapping[str, OpConfig]) -> dict[str, dict[str, str]]:
  """sha256 of every model and list, by op and path."""
  found: dict[str, dict[str, str]] = {}
  for name, op in ops.items():
    for file in op.files():
      try:
        found.setdefault(name, {})[file] = base.file_sha256(Path(file).expanduser())
      except OSError as error:
        raise UserError(f"config.clean.ops[{name!r}]: {file}: {error.strerror or error}") from None
  return found


def identity(config: CleanConfig, upstream: str) -> dict[str, Any]:
  """What the fingerprint is made of. upstream: the fingerprint of the stage before."""
  ops = config.enabled()
  files = file_hashes(ops)
  # In the order of the op's lists, not of the hashes: two lists that change places are a change.
  # Without their paths: a model may move.
  models = {name: [one[file] for file in ops[name].files()] for name, one in files.items()}
  return {
    # How many failures are borne changes no document.
    "config.clean": {k: v for k, v in describe(config).items() if k != "max_error_ratio"},
    "models": models,
    "upstream": upstream,
    "op version": OPS_VERSION,
  }


def run(
  upstream_dir: str | Path,
  output: str | Path,
  config: CleanConfig,
  *,
  executor: str | ExecutorConfig = "local",
  tasks: int = 1,
  workers: int = 1,
  max_drop_ratio: float = 0.95,
) -> Path:
  """Makes the stage from a finished one, or finds it made. Returns its directory."""
  config.validate("config.clean")
  upstream = base.read_stage(upstream_dir)
  require_datatrove()
  from jaxlm.data.stages import stage_io

  settings, files = describe(config), file_hashes(config.enabled())
  parts = identity(config, upstream["fingerprint"])
  found = base.fingerprint("clean", *parts.values())
  directory = base.stage_dir(output, "clean", found)
  if base.is_finished(directory, found):
    done = base.read_stage(directory)["ops"]
    _check_errors(directory, done, config.max_error_ratio)
    base.check_books("clean", done, max_drop_ratio, str(directory))
    return directory
  need_documents(upstream_dir, upstream)
  begin(directory, found, tasks, parts)
  started = time.perf_counter()
  counts = directory / "work" / "counts"
  steps = [
    op.build(
      OpContext(
        name=name,
        counts=counts,
        removed=directory / "removed",
        words=config.words,
        only=op.only,
        skip=op.skip,
      )
    )
    for name, op in config.enabled().items()
  ]
  pipeline = [
    stage_io.StageReader(upstream_dir),
    stage_io.Tally("before", counts, None),
    *steps,
    stage_io.Tally("after", counts, None),
    stage_io.KeepWriter(directory / "documents"),
  ]
  Runner(directory, executor, tasks, workers)("clean", pipeline)
  books = {step.op: stage_io.read_count(counts, step.op) for step in steps}
  _check_errors(directory, [one.op(name) for name, one in books.items()], config.max_error_ratio)
  more = _tables(books, stage_io.read_count(counts, "after"))
  finish(
    directory=directory,
    stage="clean",
    found=found,
    upstream_dir=upstream_dir,
    upstream=upstream,
    config=settings,
    ops=[count.op(name) for name, count in books.items()],
    max_drop_ratio=max_drop_ratio,
    started=started,
    packages=[name for name in _PACKAGES if _installed(name)],
    more={"models": files, **more},
  )
  return directory


def _installed(package: str) -> bool:
  import importlib.metadata

  try:
    importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


def _check_errors(directory: Path, ops: Sequence[Mapping[str, Any]], limit: float) -> None:
  """UserError where more documents failed than the config bears."""
  errored, given = sum(op["errored"] for op in ops), ops[0]["in"]
  if errored > limit * given:
    worst = max(ops, key=lambda op: op["errored"])
    kinds = ", ".join(f"{name} {number}" for name, number in worst["errors"].items())
    raise UserError(
      f"{directory}: {errored} of {given} documents failed with exceptions, most of them in "
      f"{worst['name']} ({kinds}): look into removed/{worst['name']}, then mend the input or "
      f"change config.clean.max_error_ratio={limit}"
    )


def _tables(books: Mapping[str, Any], after: Any) -> dict[str, Any]:
  """What ops counted by language and domain, as tables of the record; taken out of `extra`."""
  more: dict[str, Any] = {}
  harm: dict[str, Any] = {}
  for name, count in books.items():
    keys = [key for key in count.extra if key.startswith(("by:", "language:"))]
    taken = {key: count.extra.pop(key) for key in keys}
    languages = {
      key.removeprefix("language:"): n for key, n in taken.items() if key.startswith("language:")
    }
    if languages:
      more["by_language"] = _by_language(languages, next(iter(books.values())).seen, after)
    if any(key.startswith("by:") for key in taken):
      from jaxlm.data.stages.ops import harm_steps

      harm[name] = harm_steps.over_removal(taken)
  return more | ({"harm": harm} if harm else {})


def _by_language(seen: Mapping[str, int], given: int, after: Any) -> dict[str, dict[str, int]]:
  """Documents of each language that was identified, and kept; the rest went before that."""
  kept = {
    key.removeprefix("language:"): n
    for key, n in after.extra.items()
    if key.startswith("language:")
  }
  found = {key: {"in": n, "kept": kept.get(key, 0)} for key, n in sorted(seen.items())}
  if rest := given - sum(seen.values()):
    found["unknown"] = {"in": rest, "kept": kept.get("unknown", 0)}
  return found
