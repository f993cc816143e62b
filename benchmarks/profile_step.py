"""Where a training step's time goes, by kind of work: python benchmarks/profile_step.py DIR

`python benchmarks/train.py --profile=DIR …` makes the trace (DIR/plugins/…), keeps the compiled
program's text beside it (DIR/step.hlo.txt) and prints this report; run on DIR, this file prints it
again. Kernels are told apart by the op of the program that launched them (the named scopes of
jaxlm's step), and by their own names where a kernel names no op.
"""

import contextlib
import dataclasses
import gzip
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

STEPS = 5
CATEGORIES = (
  "matmul",
  "attention",
  "loss",
  "optimizer",
  "norm",
  "mlp",
  "copies",
  "rest",
)

_MATMUL = re.compile(r"gemm|gemv|nvjet|cutlass|cublas|xmma|wgmma|matmul|onednn", re.IGNORECASE)
_ATTENTION = re.compile(
  r"fmha|flash|cudnn\w*attention|cudnn\w*sdpa|sdpa|mosaic\w*attention", re.IGNORECASE
)
_COPY = re.compile(r"^(memcpy|memset|copy|dynamic-update-slice)", re.IGNORECASE)
# Ops that only run others, whose time would count twice.
_CONTAINERS = frozenset({"while", "call", "conditional", "async-start", "async-done"})


@dataclasses.dataclass(frozen=True)
class Event:
  """A stretch of work on a device.

  Attributes:
    name: the kernel's.
    start_ns, duration_ns: nanoseconds, of one clock.
    hlo_op: the op of the compiled program that it belongs to, or "".
    hlo_module: that program's name, or "".
    device: which device.
  """

  name: str
  start_ns: float
  duration_ns: float
  hlo_op: str = ""
  hlo_module: str = ""
  device: str = ""


@dataclasses.dataclass(frozen=True)
class HloOp:
  """What the program's text says of an op.

  Attributes:
    opcode: e.g. "fusion".
    op_name: the path of scopes it was traced in, e.g. "jit(train_step)/jvp(loss)/reduce_sum".
    target: of a custom call, or "".
    has_dot: a matrix product, or a fusion with one inside.
  """

  opcode: str
  op_name: str
  target: str = ""
  has_dot: bool = False


@dataclasses.dataclass(frozen=True)
class Report:
  """Milliseconds a step, averaged over the steps traced.

  Attributes:
    steps: traced.
    devices: whose work is added up in `categories` (idle and span are the mean over them).
    span_ms: from the first kernel's start to the last one's end.
    idle_ms: of that, when nothing ran.
    categories: kernel time by category.
    unnamed_ms: kernel time that no op of the program claims (it is categorised by name alone).
    kernels: (ms, runs a step, category, kernel, op_name), longest first.
  """

  steps: int
  devices: int
  span_ms: float
  idle_ms: float
  categories: dict[str, float]
  unnamed_ms: float
  kernels: list[tuple[float, float, str, str, str]]


# ---- the parser: text and events in, report out -------------------------------------------------

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$|^(?:ENTRY )?%?([\w.\-]+) \(.*->")
_OP = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|[\s)}\]])([a-z][a-z0-9\-]*)\(")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CALLS = re.compile(r"calls=%?([\w.\-]+)")


def parse_hlo(text: str) -> dict[str, HloOp]:
  """The ops of a compiled program (`compiled.as_text()`) by name."""
  ops: dict[str, HloOp] = {}
  calls: dict[str, str] = {}
  inside: dict[str, list[str]] = defaultdict(list)
  computation = ""
  for line in text.splitlines():
    if match := _OP.match(line):
      name, rest = match.groups()
      opcode = _OPCODE.search(rest)
      op_name, target = _OP_NAME.search(rest), _TARGET.search(rest)
      code = opcode[1] if opcode else ""
      ops[name] = HloOp(
        code, op_name[1] if op_name else "", target[1] if target else "", code == "dot"
      )
      inside[computation].append(name)
      if called := _CALLS.search(rest):
        calls[name] = called[1]
    elif match := _COMPUTATION.match(line):
      computation = match[1] or match[2]
  for name, computation in calls.items():
    within = _reachable(computation, inside, calls)
    dots = [ops[inner] for inner in within if ops[inner].has_dot]
    if dots and not ops[name].has_dot:
      # A fusion is named after its last op; a product inside it is what takes the time.
      ops[name] = dataclasses.replace(ops[name], has_dot=True, op_name=dots[0].op_name)
  return ops


def _reachable(computation: str, inside: dict[str, list[str]], calls: dict[str, str]) -> list[str]:
  found, todo, seen = [], [computation], set()
  while todo:
    current = todo.pop()
    if current in seen:
      continue
    seen.add(current)
    for name in inside.get(current, ()):
      found.append(name)
      if name in calls:
        todo.append(calls[name])
  return found


def _fusion(kernel: str) -> str:
  """The op that a generated kernel is named after: loop_add_fusion_24 -> loop_add_fusion.24."""
  return re.sub(r"_(\d+)$", r".\1", kernel)


def category(kernel: str, op: HloOp | None) -> str:
  """What kind of work a kernel does; one of CATEGORIES."""
  op_name, target = (op.op_name, op.target) if op else ("", "")
  words = [word for part in op_name.split("/") for word in re.findall(r"\w+", part)]
  if _ATTENTION.search(kernel) or _ATTENTION.search(target) or "dot_product_attention" in words:
    return "attention"
  has_dot = bool(op and op.has_dot) or bool(_MATMUL.search(kernel) or _MATMUL.search(target))
  if has_dot:
    # XLA's attention: products over the keys' axis S. Projections have none.
    spec = re.search(r"([A-Z]+),([A-Z]+)->([A-Z]+)", op_name)
    return "attention" if spec and "S" in spec[0] and "T" in spec[0] else "matmul"
  for scope in ("optimizer", "loss", "norm", "attention", "mlp"):
    if scope in words:
      return scope
  opcode = op.opcode if op else ""
  if _COPY.match(kernel) or opcode in ("copy", "copy-start", "copy-done"):
    return "copies"
  return "rest"


def summarise(events: Iterable[Event], hlo_text: str, steps: int = STEPS, top: int = 15) -> Report:
  """Adds up the work of `steps` steps.

  Args:
    events: of the devices' kernels. Where any of them names the program of `hlo_text`, those of
      other programs are left out.
    hlo_text: the compiled step.
    steps: how many times it ran.
    top: how many kernels to list.
  """
  ops = parse_hlo(hlo_text)
  module = re.search(r"^HloModule ([\w.\-]+)", hlo_text, re.MULTILINE)
  events = [event for event in events if event.duration_ns > 0]
  if module and any(event.hlo_module.startswith(module[1]) for event in events):
    events = [e for e in events if not e.hlo_module or e.hlo_module.startswith(module[1])]
  categories = dict.fromkeys(CATEGORIES, 0.0)
  totals: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
  intervals: dict[str, list[tuple[float, float]]] = defaultdict(list)
  unnamed = 0.0
  for event in events:
    # Inside a command buffer events name no op; XLA names its kernels after their fusions.
    op = ops.get(event.hlo_op) or ops.get(event.name) or ops.get(_fusion(event.name))
    if op is not None and op.opcode in _CONTAINERS:
      continue
    kind = category(event.name, op)
    categories[kind] += event.duration_ns
    entry = totals[kind, event.name, op.op_name if op else ""]
    entry[0] += event.duration_ns
    entry[1] += 1
    unnamed += event.duration_ns if op is None else 0.0
    intervals[event.device].append((event.start_ns, event.start_ns + event.duration_ns))
  span = idle = 0.0
  for times in intervals.values():
    length = max(end for _, end in times) - min(start for start, _ in times)
    span += length
    idle += length - _covered(times)
  devices = max(len(intervals), 1)
  scale = 1e-6 / max(steps, 1)
  kernels = sorted(
    (
      (ns * scale, runs / max(steps, 1), kind, name, op_name)
      for (kind, name, op_name), (ns, runs) in totals.items()
    ),
    key=lambda kernel: -kernel[0],
  )
  return Report(
    steps=steps,
    devices=devices,
    span_ms=span / devices * scale,
    idle_ms=idle / devices * scale,
    categories={name: ns * scale for name, ns in categories.items()},
    unnamed_ms=unnamed * scale,
    kernels=kernels[:top],
  )


def _covered(intervals: Sequence[tuple[float, float]]) -> float:
  """The length of the union of intervals."""
  total, reached = 0.0, float("-inf")
  for start, end in sorted(intervals):
    total += max(0.0, end - max(start, reached))
    reached = max(reached, end)
  return total


def render(report: Report) -> str:
  """The report as text."""
  busy = sum(report.categories.values())
  shares = report.categories | {"idle": report.idle_ms}
  whole = busy + report.idle_ms
  lines = [
    f"{report.steps} steps, {report.devices} device(s): {report.span_ms:.2f} ms a step, kernels "
    f"{busy:.2f} ms (at once on several streams or threads: each counts)",
    f"{'':12}{'ms/step':>10}{'share':>8}",
  ]
  for name, ms in sorted(shares.items(), key=lambda item: -item[1]):
    lines.append(f"{name:12}{ms:10.3f}{ms / whole if whole else 0:8.1%}")
  if busy and report.unnamed_ms > 0.01 * busy:
    lines.append(f"by kernel name alone: {report.unnamed_ms / busy:.1%} of kernel time")
  lines.append(f"{'ms/step':>10}{'runs':>7}  {'category':10} kernel  [op]")
  for ms, runs, kind, name, op_name in report.kernels:
    lines.append(f"{ms:10.3f}{runs:7.1f}  {kind:10} {name[:60]}  [{op_name[-100:]}]")
  return "\n".join(lines)


# ---- traces -------------------------------------------------------------------------------------


def profile(step: Any, state: Any, batches: Sequence[Any], directory: Path) -> Report:
  """Traces STEPS steps of a compiled step (its state is donated) into a directory; the report."""
  import jax

  directory.mkdir(parents=True, exist_ok=True)
  hlo_text = step.as_text()
  (directory / "step.hlo.txt").write_text(hlo_text, encoding="utf-8")
  with jax.profiler.trace(str(directory)):
    for i in range(STEPS):
      state, metrics = step(state, batches[i % len(batches)])
    jax.block_until_ready((state, metrics))
  return summarise(read_events(directory), hlo_text)


def read_events(directory: Path) -> list[Event]:
  """The kernels of the newest trace in a directory: of its GPUs, or of the CPU without any."""
  with contextlib.suppress(ImportError, AttributeError, FileNotFoundError):
    from jax.profiler import ProfileData

    return _from_xplane(ProfileData.from_file(str(_newest(directory, "*.xplane.pb"))))
  return _from_trace(_newest(directory, "*.trace.json.gz"))


def _newest(directory: Path, pattern: str) -> Path:
  files = sorted(directory.rglob(pattern), key=lambda file: file.stat().st_mtime)
  if not files:
    raise FileNotFoundError(f"{directory}: holds no {pattern}; make it with train.py --profile")
  return files[-1]


def _is_stream(device: str, line: str) -> bool:
  """Whether a line of a trace holds kernels themselves (other lines repeat them, grouped)."""
  if "GPU" in device:
    return line.startswith("Stream")
  return "XLA" in line


def _from_xplane(data: Any) -> list[Event]:
  planes = [plane for plane in data.planes if "/device:GPU" in plane.name]
  on_gpu = bool(planes)
  planes = planes or [plane for plane in data.planes if plane.name == "/host:CPU"]
  events = []
  for plane in planes:
    for line in plane.lines:
      if not _is_stream(plane.name, line.name):
        continue
      for event in line.events:
        stats = {key: value for key, value in event.stats if key is not None}
        if on_gpu or "hlo_op" in stats:
          events.append(
            Event(
              event.name,
              event.start_ns,
              event.duration_ns,
              str(stats.get("hlo_op", "")),
              str(stats.get("hlo_module", "")),
              plane.name,
            )
          )
  return events


def _from_trace(file: Path) -> list[Event]:
  with gzip.open(file, "rt", encoding="utf-8") as stream:
    entries = json.load(stream)["traceEvents"]
  names: dict[tuple[Any, Any], str] = {}
  for entry in entries:
    if entry.get("ph") == "M" and entry.get("name") in ("process_name", "thread_name"):
      thread = entry.get("tid") if entry["name"] == "thread_name" else None
      names[entry.get("pid"), thread] = entry.get("args", {}).get("name", "")
  on_gpu = any("/device:GPU" in name for name in names.values())
  events = []
  for entry in entries:
    if entry.get("ph") != "X":
      continue
    device = names.get((entry.get("pid"), None), "")
    line = names.get((entry.get("pid"), entry.get("tid")), "")
    arguments = entry.get("args", {})
    if ("/device:GPU" in device) != on_gpu or not _is_stream(device, line):
      continue
    if on_gpu or "hlo_op" in arguments:
      events.append(
        Event(
          entry.get("name", ""),
          float(entry.get("ts", 0)) * 1e3,
          float(entry.get("dur", 0)) * 1e3,
          arguments.get("hlo_op", ""),
          arguments.get("hlo_module", ""),
          device,
        )
      )
  return events


if __name__ == "__main__":
  where = Path(sys.argv[1])
  print(render(summarise(read_events(where), (where / "step.hlo.txt").read_text("utf-8"))))
