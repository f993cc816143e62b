"""Makes a dataset from text: reads, drops duplicates, holds out, trains a tokenizer, tokenises.

usage:
  python -m jaxlm.prepare --config=configs/data/stdlib.py
  python -m jaxlm.prepare --config=configs/data/text.py --config.source.paths=my_texts

Any value of the config can be set, for example --config.output=data/mine,
--config.tokenizer.vocab_size=4096, --config.tokenizer.kind=byte, --config.workers=4 (processes that
encode), or --config.tokenizer.path=FOLDER for a tokenizer.json, a SentencePiece model or tiktoken
ranks. Running the same command again uses the dataset that is there; a changed config needs
--config.overwrite=true. For more text than one machine reads in a day: python -m jaxlm.data.
"""

import shlex
import sys
import time
from typing import TYPE_CHECKING

from jaxlm import cli

if TYPE_CHECKING:  # all imported late: --help answers at once
  from rich.console import Console

  from jaxlm.data.manifest import Manifest
  from jaxlm.data.prep.build import Progress
  from jaxlm.data.prep.config import PrepareConfig


def _config_class() -> type:
  from jaxlm.data.prep.config import PrepareConfig

  return PrepareConfig


_CONFIG = cli.define_config(example="configs/data/stdlib.py", expected=_config_class)


def main() -> int:
  from rich.console import Console

  from jaxlm.data.prep.build import prepare

  config = _CONFIG.value
  console = Console(highlight=False, soft_wrap=True)
  start = time.monotonic()
  with Display(console) as display:
    manifest = prepare(config, display)
  _summary(console, config, manifest, None if display.reused else time.monotonic() - start)
  return cli.OK


class Display:
  """Messages as lines; on a terminal also one moving line for the stage at work."""

  def __init__(self, console: "Console"):
    self._console = console
    self._status = console.status("") if sys.stdout.isatty() else None
    self.reused = False

  def __enter__(self) -> "Display":
    if self._status is not None:
      self._status.start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._status is not None:
      self._status.stop()

  def __call__(self, progress: "Progress") -> None:
    self.reused |= progress.stage == "reuse"
    if progress.message:
      self._console.print(progress.message, markup=False)
    if self._status is not None:
      amount = f" {progress.done / 1e6:.1f}" if progress.done else ""
      amount += f" of {progress.total / 1e6:.1f}" if progress.total else ""
      self._status.update(f"{progress.stage}{amount and amount + ' MB'} …")


def print_splits(console: "Console", manifest: "Manifest") -> None:
  """A dataset's splits as a table: documents, bytes, tokens, and what compressors reach."""
  from rich.table import Table

  table = Table(box=None, pad_edge=False, header_style="bold")
  table.add_column("split")
  columns = ("documents", "bytes", "tokens", "bytes/token")
  for column in (*columns, *manifest.splits["heldout"].baselines):
    table.add_column(column, justify="right")
  for name, part in manifest.splits.items():
    table.add_row(
      name,
      f"{part.docs:,}",
      f"{part.bytes:,}",
      f"{part.tokens:,}",
      f"{part.bytes / part.tokens:.2f}",
      *(f"{8 * size / part.bytes:.3f}" for size in part.baselines.values()),
    )
  console.print(table)


def _summary(
  console: "Console", config: "PrepareConfig", manifest: "Manifest", seconds: float | None
) -> None:
  print_splits(console, manifest)
  console.print(
    "gzip and xz: bits per byte of the held-out documents, each compressed on its own; the bar"
    " for a model trained on this",
  )
  took = f" in {seconds:.1f} s" if seconds is not None else ""
  console.print(
    f"{config.output}: vocabulary {manifest.vocab_size:,}, {manifest.dtype} ids{took}", markup=False
  )
  override = shlex.quote(f"--config.data.sources[0].path={config.output}")
  console.print(
    f"next: {cli.module_command('train')} --config=configs/tiny.py {override} --workdir=runs/first",
    markup=False,
  )


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
