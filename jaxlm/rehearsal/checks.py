"""The verdict of a rehearsal: what each start showed, as checks that a person can read."""

import dataclasses
import math
import textwrap
from collections.abc import Callable
from pathlib import Path

from jaxlm import resumption
from jaxlm.config import RunConfig
from jaxlm.data.pipeline import Pipeline
from jaxlm.rehearsal.scale import SAVE_EVERY, STEPS
from jaxlm.rehearsal.starts import HEARTBEAT_SECONDS, NOTICE_SECONDS, Outcome
from jaxlm.tracking.progress import short

OK, FAILED, NOTE, SKIPPED = "OK", "FAILED", "NOTE", "-"


@dataclasses.dataclass(frozen=True)
class Check:
  """What was looked at, how it is, and what to do where it FAILED."""

  name: str
  state: str
  detail: str
  remedy: str = ""


def check(name: str, good: bool, detail: str, remedy: str) -> Check:
  """OK or FAILED."""
  return Check(name, OK if good else FAILED, detail, "" if good else remedy)


def table(checks: list[Check], width: int = 100) -> str:
  """The checks in columns, long details on lines of their own."""
  names = max(len(c.name) for c in checks)
  lines = []
  for c in checks:
    indent = " " * (8 + names + 2)
    remedy = [f"→ {c.remedy}"] if c.remedy else []
    parts = [
      line
      for text in [c.detail, *remedy]
      for line in textwrap.wrap(text, width - len(indent)) or [""]
    ]
    lines.append(f"{c.state:<8}{c.name:<{names}}  {parts[0]}".rstrip())
    lines += [indent + part for part in parts[1:]]
  return "\n".join(lines)


def of_straight(
  out: Outcome, run: Path, config: RunConfig, pipeline: Pipeline, processes: int, devices: int
) -> list[Check]:
  """What the uninterrupted run shows. processes, devices: that there should be, of each."""
  joined = out.events("joined")
  met = len(joined) == processes and all(
    e["processes"] == processes and e["devices"] == processes * devices for e in joined
  )
  reason = out.reason() if out.status != 0 else ""
  checks = [
    check(
      "processes meet",
      met,
      f"{len(joined)} of {processes}" + ("" if met else f"; {reason}"),
      f"see {out.log}; a proxy or firewall between processes is the usual cause (unset http_proxy)",
    )
  ]
  if not met:
    return checks
  refused = "do not agree" in reason
  checks.append(
    check(
      "hosts agree",
      not refused,
      reason if refused else "on config, versions and data",
      "start every process with the same command and installation",
    )
  )
  losses = resumption.losses(run)
  finite = [step for step, loss in losses.items() if math.isfinite(loss)]
  ran = out.status == 0 and finite == list(range(1, STEPS + 1))
  first, last = losses.get(1, math.nan), losses.get(STEPS, math.nan)
  found = f"losses of steps 1–{STEPS}: {[round(v, 3) for v in losses.values()]}"
  if len(finite) < len(losses):
    found = f"the loss is not finite: {found}"
  checks.append(
    check(
      "steps run",
      ran,
      f"{STEPS} steps, loss {first:.3f} → {last:.3f}, {out.seconds:.0f} s in all"
      if ran
      else reason or found,
      f"see {out.log}",
    )
  )
  if ran:
    checks.append(_rows(out, config, pipeline))
  return checks


def _rows(out: Outcome, config: RunConfig, pipeline: Pipeline) -> Check:
  total = STEPS * config.global_batch_size
  expected = resumption.expected_rows(pipeline, 0, total)
  found: dict[int, str] = {}
  wrong, twice = 0, 0
  shares = set()
  for lines in out.records:
    mine = resumption.rows_of(lines)
    twice += len(mine) - len({n for n, _ in mine})  # by one process
    shares.add(tuple(sorted(n for n, _ in mine)))
    for number, digest in mine:
      wrong += expected.get(number) != digest
      found[number] = digest
  # Processes of one share (tensor parallelism over hosts) have the same rows; shares have no row
  # in common.
  twice += sum(map(len, shares)) - len(found)
  lost = total - len(found)
  return check(
    "rows",
    not (wrong or twice or lost),
    f"{total} rows in {len(shares)} shares, {twice} twice, {lost} lost, {wrong} not the expected",
    "the data must be the same files on every host, and data.seed fixed",
  )


def of_loader(out: Outcome, needed: float | None, devices_per_host: int, remedy: str) -> Check:
  """needed: tokens/s that a host of the real run eats; None: not known."""
  speeds = [e["tokens_per_second"] for e in out.events("loader")]
  if not speeds:
    return Check("loader speed", SKIPPED, "not reached")
  detail = f"{short(min(speeds))} tokens/s in the slowest process"
  if needed is None:
    return Check("loader speed", NOTE, f"{detail}; --chip tells what a host needs")
  detail += f"; a host of {devices_per_host} needs {short(needed)}"
  return check("loader speed", min(speeds) >= needed, detail, remedy)


def of_killed(out: Outcome, run: Path) -> list[Check]:
  """What the run shows whose last process was killed."""
  saved = (run / "checkpoints" / str(SAVE_EVERY)).is_dir()
  checks = [
    check(
      "checkpoint saved",
      saved,
      f"of step {SAVE_EVERY}, by all processes together" if saved else out.reason(),
      f"see {out.log}; all hosts must see one --workdir",
    )
  ]
  if saved:
    ended = f"{NOTICE_SECONDS:.0f} s after the kill others still ran: {out.stands}"
    checks.append(
      check(
        "kill noticed",
        out.noticed is not None,
        ended
        if out.noticed is None
        else f"the others ended by themselves {out.noticed:.1f} s after a SIGKILL"
        f" (heartbeat {HEARTBEAT_SECONDS} s here, JAXLM_HEARTBEAT_SECONDS there)",
        "on the cluster let the launcher end all when one dies (srun --kill-on-bad-exit)",
      )
    )
  return checks


def of_resumed(
  out: Outcome, run: Path, straight: Path, config: RunConfig, pipeline: Pipeline
) -> list[Check]:
  """What the restart shows."""
  batch = config.global_batch_size
  rows = [row for lines in out.records for row in resumption.rows_of(lines)]
  first = min((n for n, _ in rows), default=None)
  steps = range(SAVE_EVERY + 1, STEPS + 1)
  good = out.status == 0 and first == SAVE_EVERY * batch
  checks = [
    check(
      "resumed",
      good,
      f"after step {SAVE_EVERY}, at row {first}"
      if out.status == 0
      else f"the restart failed: {out.reason()}",
      f"expected step {SAVE_EVERY}, row {SAVE_EVERY * batch}; see {out.log}",
    )
  ]
  if out.status != 0:
    return checks
  found = resumption.compare(
    steps,
    resumption.losses(straight),
    resumption.losses(run),
    resumption.expected_rows(pipeline, SAVE_EVERY * batch, len(steps) * batch),
    dict(rows),
    SAVE_EVERY * batch,
    batch,
  )
  worst = max(step.difference for step in found)
  apart = f"differ by up to {worst:.1e}"
  if not all(step.finite for step in found):
    apart = "are not finite, so that they can't be compared"
  same = all(step.same_rows for step in found)
  checks.append(
    check(
      "same as uninterrupted",
      worst == 0 and same,
      f"losses of steps {steps[0]}–{steps[-1]} "
      + ("bit for bit" if worst == 0 else apart)
      + (", same rows" if same else ", other rows"),
      "a key, the data's position or a moment is not part of the checkpoint: report it",
    )
  )
  return checks


def guarded(name: str, make: Callable[[], Check]) -> Check:
  """A check that fails with its UserError's line."""
  from jaxlm.errors import UserError

  try:
    return make()
  except UserError as error:
    return Check(name, FAILED, str(error))  # which names the remedy too
