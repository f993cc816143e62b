"""Train a small model on your own text in minutes: prepare, train, evaluate, sample.

usage: python -m jaxlm.quickstart --text=DIR [--workdir=runs/quickstart] [--minutes=4] [--seed=0]
       python -m jaxlm.quickstart --demo     [--workdir=runs/demo]

DIR is a folder (read with all folders below it) or a file: plain text, code, .jsonl, .parquet, also
compressed. Vocabulary, model, batch and number of steps follow from the amount of text, the speed
of the machine and --minutes. --demo trains on text that every Python installation holds. Nothing is
downloaded. The dataset is made in WORKDIR-data, beside the run.

The same command again goes on where it stopped; a finished run is evaluated and sampled from.

examples:
  python -m jaxlm.quickstart --text=my_texts
  python -m jaxlm.quickstart --text=notes.jsonl --text_field=body --minutes=10 --workdir=runs/notes
  python -m jaxlm.quickstart --demo
"""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxlm import cli
from jaxlm.errors import UserError

if TYPE_CHECKING:  # all imported late: --help answers at once
  from jaxlm.config import RunConfig
  from jaxlm.data.manifest import Manifest
  from jaxlm.data.prep.config import CorpusConfig

TEXT = cli.define_string("text", None, "a folder or file of text to train on")
DEMO = cli.define_bool("demo", False, "train on the text of the Python installation instead")
WORKDIR = cli.define_string(
  "workdir", None, "directory of the run; by default runs/quickstart, or runs/demo with --demo"
)
MINUTES = cli.define_float(
  "minutes", None, "how long to train with --text, about; 4 by default", lower_bound=0.01
)
SEED = cli.define_integer("seed", 0, "of the parameters and of the order of data", lower_bound=0)
TEXT_FIELD = cli.define_string(
  "text_field", "text", "field of .jsonl records, or column of .parquet files, that is the text"
)

SAMPLE_TOKENS = 128
_MINUTES = 4.0


def main() -> int:
  if bool(TEXT.value) == DEMO.value:
    raise UserError("give either --text=DIR, to train on your text, or --demo")
  if DEMO.value and MINUTES.value is not None:
    raise UserError("--minutes goes with --text; the demo's number of steps is fixed: remove it")
  workdir = Path(WORKDIR.value or ("runs/demo" if DEMO.value else "runs/quickstart"))
  data = workdir.with_name(f"{workdir.name}-data")
  manifest = _prepare(workdir, data)

  from jaxlm import run

  config = _choose(workdir, data, manifest)
  print(f"training in {workdir}; Ctrl-C and the same command go on from the last checkpoint")
  sys.stdout.flush()
  if not run.train(config, workdir):
    print(f"stopped and saved; run the same command again to go on ({workdir})")
    return cli.PREEMPTED
  _show(workdir)
  return cli.OK


# ---- text -------------------------------------------------------------------------------------


def _prepare(workdir: Path, data: Path) -> "Manifest":
  """The dataset, made or found."""
  from rich.console import Console

  from jaxlm import prepare, sizing
  from jaxlm.data.prep import build
  from jaxlm.workdir import Workdir

  if DEMO.value:
    source: CorpusConfig = sizing.demo_source()
    text_bytes = source.max_bytes or 0
  else:
    source, text_bytes = _check_text(workdir, data)
  name = "demo" if DEMO.value else Path(TEXT.value).resolve().name
  with Workdir(workdir).lock():
    pass  # what stands in the way of the run is said before the dataset is made
  _check_run(workdir, data)
  config = sizing.prepare_config(source, text_bytes, name=name or "text", output=str(data))
  console = Console(highlight=False, soft_wrap=True)
  try:
    with prepare.Display(console) as display:
      manifest = build.prepare(config, display)
  except UserError as error:
    raise _in_own_flags(error, workdir, data) from None
  prepare.print_splits(console, manifest)
  return manifest


def _check_text(workdir: Path, data: Path) -> tuple["CorpusConfig", int]:
  """The source, and the bytes of its distinct documents (at most sizing.MAX_TEXT_BYTES).

  Raises:
    UserError: there is no text, or too little, or the run would lie among the text.
  """
  from jaxlm import sizing
  from jaxlm.data.prep.config import TextSourceConfig

  # Absolute: the same text under another current directory is the same text.
  text = Path(TEXT.value).expanduser().resolve()
  if not text.exists():
    raise UserError(f"--text={TEXT.value}: no such folder or file; name one that holds your text")
  if text in (workdir.resolve(), *workdir.resolve().parents):
    raise UserError(
      f"--workdir={workdir}: lies in --text={TEXT.value}, where its files would be read as text;"
      " choose a --workdir outside"
    )
  source = TextSourceConfig(
    paths=(str(text),), text_field=TEXT_FIELD.value, max_bytes=sizing.MAX_TEXT_BYTES
  )
  try:
    corpus = source.build(strict=False, exclude=str(data.resolve()))
    seen: set[int] = set()
    size = 0
    for document in corpus.documents():
      key = hash(document.text.strip())
      if key not in seen:
        seen.add(key)
        size += len(document.text.encode())
  except UserError as error:
    raise _in_own_flags(error, workdir, data) from None
  skipped = ", ".join(f"{n} skipped ({why})" for why, n in sorted(corpus.counts.skipped.items()))
  if not size:
    raise UserError(
      f"--text={TEXT.value}: holds no text{f' ({skipped})' if skipped else ''}; put .txt, .md,"
      " code, .jsonl or .parquet files there, or name another folder"
    )
  if size < sizing.MIN_TEXT_BYTES:
    raise UserError(
      f"--text={TEXT.value}: only {size:,} bytes of distinct text, at least"
      f" {sizing.MIN_TEXT_BYTES:,} are needed{f' ({skipped})' if skipped else ''}; add text, or try"
      " --demo"
    )
  if size >= sizing.MAX_TEXT_BYTES:
    print(
      f"more than {sizing.MAX_TEXT_BYTES / 1e6:.0f} MB of text: the first of it are used; for all"
      " of it see `python -m jaxlm.prepare --help`"
    )
  return source, size


def _in_own_flags(error: UserError, workdir: Path, data: Path) -> UserError:
  """An error of data/prep with its remedy in the flags that this command has."""
  message, _, _ = str(error).partition("; replace it with --config.overwrite")
  if message != str(error):
    message += f"; choose another --workdir, or delete {data} and {workdir}"
  for theirs, ours in (
    ("--config.source.text_field", "--text_field"),
    ("--config.source.paths", "--text"),
    ("--config.source", "--text"),
    ("--config.output", "--workdir"),
  ):
    message = message.replace(theirs, ours)
  return UserError(message)


# ---- the run ----------------------------------------------------------------------------------


def _check_run(workdir: Path, data: Path) -> None:
  """Raises UserError if the run that is there is not one of this command on this dataset."""
  from jaxlm import configlib
  from jaxlm.workdir import Workdir

  directory = Workdir(workdir)
  if not directory.exists():
    return
  path = configlib.load_json(directory.config).heldout_path()
  if path is None or Path(path).resolve() != data.resolve():
    raise UserError(
      f"--workdir={workdir}: holds a run on other data ({path}, not {data}); choose another"
      " --workdir"
    )


def _choose(workdir: Path, data: Path, manifest: "Manifest") -> "RunConfig":
  """The config of the run that is there, or a new one; says what and why."""
  from jaxlm import configlib, sizing, xla_flags
  from jaxlm.workdir import Workdir

  directory = Workdir(workdir)
  if directory.exists():
    config: RunConfig = configlib.load_json(directory.config)
    print(f"{workdir}: holds a run on this text; it goes on with the settings it began with")
    return config
  xla_flags.apply()  # before the machine is measured, which starts JAX's backend
  budget = sizing.Budget(
    tokens=manifest.splits["train"].tokens,
    seconds=60 * (MINUTES.value or _MINUTES),
    machine=sizing.measure(),
  )
  if DEMO.value:
    config = sizing.demo_config(str(data), seed=SEED.value)
    devices = budget.machine.num_devices
    config.global_batch_size = -(-config.global_batch_size // devices) * devices
  else:
    config = sizing.run_config(
      budget, path=str(data), vocab_size=manifest.vocab_size, seed=SEED.value
    )
  for line in sizing.explain(config, budget, manifest.vocab_size):
    print(line)
  return config


def _show(workdir: Path) -> None:
  """Evaluates, samples, and names what to try next."""
  import jax

  from jaxlm import report, trained
  from jaxlm.inference.sampling import Sampling

  opened = trained.open_run(workdir, all_devices=True)
  values = report.evaluation(opened, *opened.evaluate())
  text = json.dumps(values, indent=2) + "\n"
  (workdir / "evaluation.json").write_text(text, encoding="utf-8")
  report.print_evaluation(values)
  sampler = opened if jax.device_count() == 1 else trained.open_run(workdir)
  prompt = "def " if DEMO.value else ""
  (sample,) = sampler.generate(
    [prompt],
    max_new_tokens=SAMPLE_TOKENS,
    sampling=Sampling(temperature=0.8, top_p=0.95),
    seed=SEED.value,
  )
  print(f"a sample{f' after {prompt!r}' if prompt else ''}:\n")
  lines = (prompt + sample).splitlines() if sample.strip() else ["(an empty document)"]
  print("\n".join(f"  {line}" for line in lines))
  print("\nnext:")
  for command in _next(workdir, opened.config):
    print(f"  {command}")


def _next(workdir: Path, config: "RunConfig") -> list[str]:
  """Three commands that go on from here."""
  here = str(workdir)

  def command(verb: str, *flags: Any) -> str:
    return f"{cli.module_command(verb)} {shlex.join(map(str, flags))}"

  return [
    command("generate", f"--workdir={here}", "--prompt=The ", "--num_samples=3")
    if not DEMO.value
    else command("generate", f"--workdir={here}", "--prompt=class ", "--num_samples=3"),
    command("evaluate", f"--workdir={here}", "--json"),
    command(
      "train",
      f"--config={workdir / 'config.json'}",
      f"--workdir={here}-longer",
      f"--config.num_steps={4 * config.num_steps}",
    ),
  ]


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
