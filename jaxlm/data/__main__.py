"""Raw documents to clean ones: python -m jaxlm.data STAGE --config=FILE

usage:
  python -m jaxlm.data run --config=configs/data/clean_text.py     all stages, then the report
  python -m jaxlm.data collect|clean|dedup|decontaminate|train_tokenizer|tokenize --config=…
                                                                   that stage and those before it
  python -m jaxlm.data report --config=… [--dataset=DIR]           one HTML page and its JSON
  python -m jaxlm.data inspect --config=… --doc=ID                 what became of a document
  python -m jaxlm.data verify --config=… | --dataset=DIR           checksums, books, the chain
  python -m jaxlm.data diff --config=… --other=DIR                 two runs beside each other
  python -m jaxlm.data preview --dataset=DIR                       decoded rows, documents marked
  python -m jaxlm.data trace --dataset=RUN --row=N|--step=N        where training rows come from

A stage that is there with the same settings and inputs is used as it is; one that was killed goes
on at its tasks. With --dry_run a line for each stage says what would be done, and why.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxlm import cli
from jaxlm.errors import UserError

if TYPE_CHECKING:
  from jaxlm.data.stages.config import CurationConfig

STAGES = ("collect", "clean", "dedup", "decontaminate")
VERBS = (
  *STAGES,
  "train_tokenizer",
  "tokenize",
  "run",
  "report",
  "inspect",
  "verify",
  "diff",
  "preview",
  "trace",
)


def _config_class() -> type:
  from jaxlm.data.stages.config import CurationConfig

  return CurationConfig


_CONFIG = cli.define_config(
  example="configs/data/clean_text.py", expected=_config_class, needed=lambda: not _dataset_is_all()
)
_EXECUTOR = cli.define_string("executor", "local", "what runs the tasks: local, slurm or ray")
_TASKS = cli.define_integer("tasks", 1, "parts of a stage", lower_bound=1)
_WORKERS = cli.define_integer("workers", 1, "processes beside each other", lower_bound=1)
_LIMIT = cli.define_integer("limit", None, "documents of each source", lower_bound=1)
_DRY_RUN = cli.define_bool("dry_run", False, "say which stages would run, and why; write nothing")
_DATASET = cli.define_string("dataset", None, "a dataset, or for trace a run's directory")
_TOKENS_PLANNED = cli.define_float(
  "tokens_planned", None, "report: tokens of the training, for its epochs", lower_bound=1.0
)
_SEQ_LEN = cli.define_integer("seq_len", 1024, "report: of the training's rows", lower_bound=1)
_DOC = cli.define_string("doc", None, "inspect: the id or url of a document")
_OTHER = cli.define_string("other", None, "diff: the output directory of the other run")
_STEP = cli.define_integer("step", None, "trace: a training step, from 1", lower_bound=1)
_ROW = cli.define_integer("row", None, "trace: a row, from 0", lower_bound=0)

_verb = "run"


def _dataset_is_all() -> bool:
  """Whether the command looks at a dataset alone, however it was made."""
  named = any(a.startswith(("--dataset", "-dataset")) for a in sys.argv)
  return _verb in ("preview", "trace") or (_verb == "verify" and named)


def stages(config: "CurationConfig", last: str) -> Path:
  """Runs the stages up to `last`; returns the directory of that one."""
  from jaxlm.data.stages import base, clean, collect, decontaminate, dedup

  common = dict(
    executor=config.executor.named(_EXECUTOR.value),
    tasks=_TASKS.value,
    workers=_WORKERS.value,
    max_drop_ratio=config.max_drop_ratio,
  )
  output = config.output
  directory = collect.run(config, limit=_LIMIT.value, workers=_WORKERS.value)
  for name in STAGES[: STAGES.index(last) + 1]:
    if name == "clean":
      directory = clean.run(directory, output, config.clean, **common)
    elif name == "dedup":
      directory = dedup.run(directory, output, config.dedup, seed=config.seed, **common)
    elif name == "decontaminate":
      directory = decontaminate.run(
        directory, output, config.decontaminate, seed=config.seed, **common
      )
    record = base.read_stage(directory)
    print(
      f"{name}: {record['in']:,} documents in, {record['kept']:,} kept, {record['dropped']:,} "
      f"dropped, {record['errored']:,} errored, {record['bytes_out'] / 1e6:,.1f} MB; {directory}"
    )
  return directory


def tokenizer(config: "CurationConfig", documents: Path) -> Path:
  """The directory of the tokenizer, trained on the stage `documents` where none is named."""
  from jaxlm.data.stages import train_tokenizer

  return train_tokenizer.run(documents, config.output, config.tokenizer, seed=config.seed)


def dataset(config: "CurationConfig", documents: Path) -> Path:
  """The directory of the shards made from the stage `documents`."""
  from jaxlm.data.stages import tokenize

  return tokenize.run(
    documents,
    config.output,
    config.tokenize,
    tokenizer(config, documents),
    name=config.name,
    eos=config.tokenizer.eos,
    accelerator=config.tokenizer.accelerator,
    seed=config.seed,
    workers=_WORKERS.value,
  )


def main() -> int:
  config = _CONFIG.value
  if config is not None:
    config.validate()
  if _DRY_RUN.value:
    _plan(config)
    return cli.OK
  if _verb in STAGES:
    stages(config, _verb)
  elif _verb == "train_tokenizer":
    print(tokenizer(config, stages(config, STAGES[-1])))
  elif _verb == "tokenize":
    print(dataset(config, stages(config, STAGES[-1])))
  elif _verb == "run":
    documents = stages(config, STAGES[-1])
    made = dataset(config, documents)
    _report(documents, None if config.tokenize.split_by_source else str(made))
    print(
      "next: python -m jaxlm.train --config=configs/tiny.py --workdir=runs/mine "
      f"'--config.data.sources[0].path={made}'"
    )
  else:
    _look(config)
  return cli.OK


def _plan(config: "CurationConfig") -> None:
  from jaxlm.data.stages import dry_run

  last = dry_run.check_verb(_verb)
  for one in dry_run.plan(config, last, tasks=_TASKS.value, limit=_LIMIT.value):
    print(one.line())
  if _verb == "run":
    print(f"report: written each time: {Path(config.output) / 'report.html'}")


def _current(config: "CurationConfig") -> Path:
  """The last finished stage of this very config; else the output, of which the newest run counts.

  Another config, or an earlier one of this file, may have written there later.
  """
  from jaxlm.data.stages import dry_run

  try:
    found = dry_run.plan(config, STAGES[-1], tasks=_TASKS.value, limit=_LIMIT.value)
  except UserError:  # the raw files are gone, say
    found = []
  made = [one.directory for one in found if one.state == "REUSED" and one.directory is not None]
  return made[-1] if made else Path(config.output)


def _report(output: str | Path, dataset: str | None) -> None:
  from jaxlm.data.stages import report

  page, numbers = report.report(
    output, dataset=dataset, tokens_planned=_TOKENS_PLANNED.value, seq_len=_SEQ_LEN.value
  )
  print(f"report: {page} ({numbers.name} beside it)")


def _need(flag: str, value: str | None) -> str:
  if value is None:
    raise UserError(f"--{flag}: needed for {_verb}")
  return value


def _look(config: "CurationConfig") -> None:
  """(Commands that look at a dataset alone may have None.)"""
  from jaxlm.data.stages import diff, inspect, trace, verify

  lines: list[str] = []
  match _verb:
    case "report":
      _report(config.output if _DATASET.value else _current(config), _DATASET.value)
    case "inspect":
      lines = inspect.find(_current(config), _need("doc", _DOC.value))
    case "verify":
      lines = verify.verify(_DATASET.value or config.output, say=print)
    case "diff":
      lines = diff.diff(_current(config), _need("other", _OTHER.value))
    case "preview":
      lines = inspect.preview(_need("dataset", _DATASET.value))
    case "trace":
      lines = trace.trace(_need("dataset", _DATASET.value), step=_STEP.value, row=_ROW.value)
  print(*lines, sep="\n")


if __name__ == "__main__":
  if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
    _verb = sys.argv.pop(1)
    if _verb not in VERBS:
      sys.exit(cli.fail(f"python -m jaxlm.data {_verb}: no such stage; one of {', '.join(VERBS)}"))
  elif "--help" not in sys.argv and "-h" not in sys.argv:
    sys.exit(cli.fail(f"python -m jaxlm.data: name a stage: {', '.join(VERBS)}"))
  cli.run(main, doc=__doc__)
