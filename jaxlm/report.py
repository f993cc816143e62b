"""What commands show of an evaluation."""

from typing import Any

from jaxlm.data.manifest import Manifest
from jaxlm.data.task import MaskedConfig
from jaxlm.evals.perplexity import Score
from jaxlm.trained import Run


def evaluation(run: Run, score: Score, manifest: Manifest) -> dict[str, Any]:
  """The score of a run on a dataset's held-out split, as plain JSON values.

  `baselines` are bits per byte of general-purpose compressors on the same split, each document
  compressed on its own. They are of the whole split, also where eval.max_rows scored a part of it.
  `masked`: loss and perplexity are of masked tokens, given the others on both sides; they do not
  compare with a decoder's.
  """
  split = manifest.splits[run.config.eval.split]
  return {
    **score.to_dict(),
    "masked": isinstance(run.config.data.task, MaskedConfig),
    "step": run.step,
    "data": manifest.name,
    "split": run.config.eval.split,
    "split_bytes": split.bytes,
    "seq_len": run.config.data.seq_len,
    "baselines": {
      name: 8 * size / split.bytes for name, size in split.baselines.items() if split.bytes
    },
  }


def print_evaluation(values: dict[str, Any]) -> None:
  """The same as a table."""
  from rich.console import Console
  from rich.table import Table

  table = Table(title=f"held-out text of {values['data']}, {values['split_bytes']:,} bytes")
  table.add_column("")
  masked = "masked " if values["masked"] else ""
  for name in ("bits per byte", f"{masked}perplexity", f"loss (nats a {masked}token)"):
    table.add_column(name, justify="right")
  bits = values["bits_per_byte"]
  table.add_row(
    f"model, step {values['step']}",
    "" if bits is None else f"{bits:.3f}",
    f"{values['perplexity']:.2f}",
    f"{values['loss']:.4f}",
  )
  for name, value in values["baselines"].items():
    table.add_row(name, f"{value:.3f}", "", "")
  Console().print(table)
