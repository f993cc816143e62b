"""The table of multi_gpu.py: ratios, and the plan beside what was measured."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from multi_rows import FLOOR, Row

from jaxlm.plan.chips import Chip

COLUMNS = ("", "tokens/s", "a GPU", "ms", "plan", "MFU", "GiB", "plan", "GiB sent", "plan")
RATIOS = ("weak", "strong", "× HF", "× base")


def failed(record: Mapping[str, Any]) -> bool:
  """Whether the row has no figures, or one of its checks failed."""
  return "error" in record or any(c["verdict"] == "FAIL" for c in record.get("checks", []))


def _rate(record: Mapping[str, Any] | None) -> float | None:
  return None if record is None else record.get("tokens_per_second")


def ratios(
  row: Row, rows: Sequence[Row], records: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
  """RATIOS of a row, those that can be computed; a row of the fewest GPUs has no scaling."""
  rate = _rate(records.get(row.key))
  if rate is None:
    return {}
  measured = [(one, found) for one in rows if (found := _rate(records.get(one.key)))]
  values = {}
  # Microbatches are how a batch fits, not what is trained.
  micro = "config.num_microbatches"

  def alike(one: Row) -> bool:
    plain = not any(axis != "fsdp" for axis, _ in one.mesh) and one.gpus < row.gpus
    return (
      plain
      and (one.who, one.model, one.seq, one.remat, one.flags)
      == (row.who, row.model, row.seq, row.remat, row.flags)
      and [s for s in one.sets if micro not in s] == [s for s in row.sets if micro not in s]
    )

  weak = [pair for pair in measured if alike(pair[0])
          and pair[0].batch * row.gpus == row.batch * pair[0].gpus]  # fmt: skip
  if weak:
    base, its = min(weak, key=lambda pair: pair[0].gpus)
    values["weak"] = (rate / row.gpus) / (its / base.gpus)
  strong = [pair for pair in measured if alike(pair[0]) and pair[0].batch == row.batch]
  if strong:
    base, its = min(strong, key=lambda pair: pair[0].gpus)
    values["strong"] = (rate / row.gpus) / (its / base.gpus)
  peers = [
    found
    for one, found in measured
    if one.who == "hf"
    and (one.model, one.gpus, one.batch, one.seq) == (row.model, row.gpus, row.batch, row.seq)
  ]
  if row.who == "jaxlm" and peers:
    values["× HF"] = rate / max(peers)
  bases = [found for one, found in measured if _is_base(one, row)]
  if bases:
    values["× base"] = rate / bases[0]
  return values


def _is_base(one: Row, row: Row) -> bool:
  """Whether `one` is what a row of other flags, RING or experts is held against."""
  if row.flags != "table":
    return one == dataclasses.replace(row, flags="table", rank=one.rank)
  if row.context == "RING":
    return one == dataclasses.replace(row, context="GATHER", rank=one.rank)
  same = (one.gpus, one.batch, one.seq) == (row.gpus, row.batch, row.seq)
  dense = one.who == "jaxlm" and one.model in ("1b", "toy8") and one.flags == "table"
  plain = [axis for axis, _ in one.mesh] == ["fsdp"]
  return "moe" in row.model and same and dense and plain and not one.sets


def cells(
  row: Row,
  record: Mapping[str, Any],
  plan: Mapping[str, float],
  chip: Chip | None,
  values: Mapping[str, float],
) -> list[str]:
  """A measured row under COLUMNS and RATIOS."""

  def gib(number: float | None) -> str:
    return "" if number is None else f"{number / 2**30:.1f}"

  rate = record["tokens_per_second"]
  name = row.key.replace("config.", "").replace("gpus=", "")
  sent = record.get("sent_bytes")
  return [
    name,
    f"{rate:,.0f}",
    f"{rate / row.gpus:,.0f}",
    f"{record['ms_per_step']:.1f}",
    f"{plan['step_ms']:.0f}" if plan else "",
    f"{record['tflops']['causal'] * 1e12 / chip.flops:.1%}" if chip else "",
    gib(record["peak_bytes"]),
    gib(plan.get("bytes")),
    gib(sum(sent.values())) if sent else "",
    gib(plan.get("sent_bytes")) if row.gpus > 1 else "",
    *(f"{values[name]:.3f}" if name in values else "" for name in RATIOS),
  ]


def show(
  rows: Sequence[Row],
  every: Sequence[Row],
  records: Mapping[str, Mapping[str, Any]],
  plans: Mapping[str, Mapping[str, float]],
  chip: Chip | None,
  *,
  fake: bool,
) -> None:
  """The table of the rows that have figures, then the verdicts, then what failed.

  every: rows that ratios may be taken to.
  """
  from rich.console import Console
  from rich.table import Table

  of = chip.name if chip else "an unknown device: no MFU, no plan"
  table = Table(title=f"{'TOY SHAPES ON CPU DEVICES; ' if fake else ''}plan and MFU of {of}")
  for i, name in enumerate((*COLUMNS, *RATIOS)):
    table.add_column(name, justify="right" if i else "left", no_wrap=True)
  lines = []
  for row in rows:
    record = records.get(row.key)
    if record is None:
      continue
    for check in record.get("checks", []):
      lines.append(f"{check['verdict']} {check['name']}: {check['detail']}")
    if "error" in record:
      lines.append(f"{row.key}: {record['error']}")
    elif row.who != "faults":
      table.add_row(*cells(row, record, plans[row.key], chip, ratios(row, every, records)))
  for row in rows:
    # The floor is promised of eight GPUs; fewer are shown against it all the same.
    plain = row.flags == "table" and not row.sets and [axis for axis, _ in row.mesh] == ["fsdp"]
    weak = ratios(row, every, records).get("weak")
    if row.who == "jaxlm" and plain and row.model in ("3b", "toy8") and weak is not None:
      word = "SKIP" if fake else "PASS" if weak >= FLOOR else "FAIL"
      name = f"weak scaling of {row.model}, fsdp on {row.gpus} GPUs"
      lines.append(f"{word} {name}: {weak:.3f} (floor {FLOOR} on 8)")
  console = Console()
  console = console if console.is_terminal else Console(width=190)
  if table.row_count:
    console.print(table)
  for line in lines:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
