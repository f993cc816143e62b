"""The rows of multi_gpu.py: what is run, in which order of importance, and what the plan says."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import train

from jaxlm import xla_flags
from jaxlm.errors import UserError
from jaxlm.plan.chips import CHIPS, Chip
from jaxlm.plan.communication import by_axis, messages
from jaxlm.plan.memory import memory
from jaxlm.plan.step_time import step_time

PARTS = ("scaling", "long", "moe", "flags", "faults")
MODELS = ("3b", "1b", "7b")  # the most important first
FLOOR = 0.93  # weak scaling of 3b over fsdp
# What a layer keeps for its backward pass: without it 7b doesn't fit into 141 GB on 2 or 4 GPUs.
REMAT = {"1b": "NONE", "3b": "NONE", "7b": "MINIMAL", "moe": "MINIMAL"}
# The plan's memory is an estimate, up to twice too high (docs/scaling.md): what needs more than the
# device has at this share of it is not tried.
SURE = 0.75
SECONDS = {"jaxlm": 65.0, "hf": 90.0, "faults": 300.0}  # a row, where none was measured

# NVLink multicast can put a shared host's GPUs out of service. What is set already stays.
QUIET = {
  "NCCL_NVLS_ENABLE": "0",
  "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
  "NVSHMEM_DISABLE_NVLS": "1",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One process (or group of them) that is started and measured.

  Attributes:
    who: "jaxlm", "hf" (transformers under FSDP2), "torchtitan", "faults".
    gpus: how many.
    model: of train.SHAPES; for "faults" the compute dtype.
    mesh: axis sizes above 1, in the mesh's order. context: of the sequence axis.
    batch, seq: rows a step over all GPUs, tokens a row.
    sets: more overrides. flags: of FLAG_SETS.
    remat: of jaxlm; of the peer "none" or "full".
    rank: place in the order of importance.
  """

  who: str
  gpus: int
  model: str
  mesh: tuple[tuple[str, int], ...] = ()
  context: str = ""
  batch: int = 0
  seq: int = 0
  sets: tuple[str, ...] = ()
  flags: str = "table"
  remat: str = ""
  rank: int = 0

  @property
  def layout(self) -> str:
    text = "×".join(f"{axis}={size}" for axis, size in self.mesh) or "one"
    return f"{text} {self.context}".strip()

  @property
  def key(self) -> str:
    """Names the row in results.jsonl; rows of one key are one measurement."""
    parts = [self.who, self.model, f"gpus={self.gpus}", self.layout]
    if self.batch:
      parts.append(f"{self.batch}x{self.seq}")
    parts += [f"remat={self.remat}"] if self.remat else []
    parts += [*self.sets, *([f"flags={self.flags}"] if self.flags != "table" else [])]
    return " ".join(parts)

  def overrides(self) -> list[str]:
    """train.py's --set of it."""
    sizes = {"fsdp": 1, **dict(self.mesh)}
    found = [f"config.mesh.{axis}={size}" for axis, size in sizes.items()]
    found += [f"config.mesh.context={self.context}"] if self.context else []
    found += [f"config.model.remat={self.remat}"] if self.remat else []
    return [*found, *self.sets]

  def job(self, steps: int, warmup: int) -> dict[str, Any]:
    """train.py's job of it, for N devices. Raises UserError where it can't be run."""
    sets = self.overrides() if self.who == "jaxlm" else []
    arguments = train.parse(
      [
        *(f"--{name}={getattr(self, name)}" for name in ("model", "batch", "seq")),
        *(f"--steps={steps}", f"--warmup={warmup}"),
        "--peer=none" if self.who == "jaxlm" else "--peer=hf",
        *(f"--set={one}" for one in sets),
      ]
    )
    job = train.make_job(arguments) | {"devices": self.gpus}
    if self.who == "jaxlm":
      train.run_config(job).validate_devices(self.gpus)
      return job
    return train.peer_job(job) | {"peer_remat": self.remat}


# ---- the rows -----------------------------------------------------------------------------------


def make_rows(
  parts: Sequence[str], gpus: Sequence[int], models: Sequence[str], extra: Sequence[str], fake: bool
) -> list[Row]:
  """All rows of these parts, each once, the most important first.

  Args:
    gpus: counts; the largest is the one that matters most. models: of MODELS.
    extra: overrides of all of jaxlm's rows. fake: toy shapes in the models' places.
  """
  made: dict[str, Row] = {}
  most = max(gpus)
  models = [name for name in MODELS if name in models]
  shapes = {name: train.SHAPES["toy8" if fake else name] for name in models}

  def add(rank: int, who: str, n: int, model: str, /, **more: Any) -> None:
    mesh = tuple((axis, size) for axis, size in more.pop("mesh", {}).items() if size > 1)
    remat = "none" if who == "hf" else "" if fake else REMAT.get(model, "NONE")
    values: dict[str, Any] = {"remat": remat}
    if who == "jaxlm":
      values["sets"] = (*more.pop("sets", ()), *extra)
    if fake:
      model = {"moe": "toy_moe"}.get(model, model if who == "faults" else "toy8")
    row = Row(who=who, gpus=n, model=model, mesh=mesh, rank=rank, **(values | more))
    made.setdefault(row.key, row)

  def weak(rank: int, who: str, n: int, model: str, **more: Any) -> None:
    shape = shapes[model]
    mesh = {"mesh": {"fsdp": n}}
    add(rank, who, n, model, batch=shape.batch * n, seq=shape.seq, **(mesh | more))

  if "scaling" in parts:
    for i, model in enumerate(models):
      first = 0 if i == 0 else 10
      weak(first, "jaxlm", most, model)
      weak(first + 1 if model != "7b" else 95, "jaxlm", min(gpus), model)
      if most > 1:
        weak(first + 2, "hf", most, model)
      for n in gpus:
        weak(70, "jaxlm", n, model)
        if n > 1 or model != "7b":
          weak(90, "hf", n, model)
      # The same work for any number of GPUs: what is a third or a quarter of a step is sent.
      for n in gpus:
        rows, each = 2 * shapes[model].batch, shapes[model].batch
        if rows % n == 0:
          sets = (f"config.num_microbatches={rows // n // each}",) if rows > n * each else ()
          add(80, "jaxlm", n, model, mesh={"fsdp": n}, batch=rows, seq=shapes[model].seq, sets=sets)
      if model == "7b":
        weak(91, "hf", most, model, remat="full")
    for model in models:
      rank = {"1b": 45, "3b": 60, "7b": 61}[model]
      for n in reversed(gpus):
        for mesh in meshes(n):
          weak(rank if n == most else 92, "jaxlm", n, model, mesh=mesh)
    if models and most > 1:
      weak(99, "torchtitan", most, models[0])
  if "faults" in parts and most > 1:
    add(20, "faults", most, "float32", remat="")
    add(85, "faults", most, "bfloat16", remat="")
  if "long" in parts:
    for n in [n for n in reversed(gpus) if n in ((2,) if fake else (4, 8)) or n == most > 1]:
      for seq in (256, 512) if fake else (32_768, 131_072):
        rows = 1 if fake else max(n * 16_384 // seq, 1)
        remat = {} if fake else {"remat": "MINIMAL"}
        for context in ("GATHER", "RING"):
          how: dict[str, Any] = dict(mesh={"sequence": n}, context=context, batch=rows, seq=seq)
          add(30 if n == most else 65, "jaxlm", n, "1b", **how, **remat)
  if "moe" in parts and most > 1:
    size = train.SHAPES["toy8" if fake else "1b"]
    batch, seq = size.batch * most, size.seq
    add(36, "jaxlm", most, "1b", mesh={"fsdp": most}, batch=batch, seq=seq)
    for mesh in (
      {"expert": most},
      {"fsdp": most},
      *([{"fsdp": most // 2, "expert": 2}] if most > 2 else []),
    ):
      add(36, "jaxlm", most, "moe", mesh=mesh, batch=batch, seq=seq)
    add(37, "jaxlm", most, "moe", mesh={"expert": most}, batch=batch, seq=seq,
        sets=("config.model.expert_capacity=1.25",))  # fmt: skip
  if "flags" in parts and most > 1 and models:
    names = ("none", "-latency_hiding") if fake else UNROLLED
    weak(40, "jaxlm", most, models[0])
    for name in names:
      weak(40, "jaxlm", most, models[0], flags=name)
    scan = ("config.model.scan_layers=True",)
    for name in () if fake else SCANNED:
      weak(55, "jaxlm", most, models[0], flags=name, sets=scan)
    for name in () if fake else ("table", "none"):
      weak(66, "jaxlm", most, models[0], flags=name, mesh={"model": most})
  return sorted(made.values(), key=lambda row: row.rank)


def meshes(n: int) -> list[dict[str, int]]:
  """fsdp is a row of its own; the other axes alone, then products, on n GPUs."""
  if n == 1:
    return []
  found = [{"model": n}, {"sequence": n}]
  if n >= 4:
    found += [{"fsdp": n // 2, "model": 2}, {"fsdp": n // 2, "sequence": 2}, {"data": n}]
  if n >= 8:
    found.append({"fsdp": n // 4, "sequence": 2, "model": 2})
  return found


# ---- XLA's flags --------------------------------------------------------------------------------

_THRESHOLDS = r"combine_threshold"
# Name: (what of the table is left out, what is added).
FLAG_SETS: dict[str, tuple[str, tuple[str, ...]]] = {
  "none": (r".", ()),
  "-latency_hiding": (r"latency_hiding", ()),
  "-pipelined": (r"pipelined", ()),
  "-thresholds": (_THRESHOLDS, ()),
  "thresholds=256M": (
    _THRESHOLDS,
    tuple(
      f"--xla_gpu_{kind}_combine_threshold_bytes={256 << 20}"
      for kind in ("all_gather", "all_reduce", "reduce_scatter")
    ),
  ),
  "-command_buffers": (r"^$", ("--xla_gpu_enable_command_buffer=",)),
  "+overlap=4": (r"^$", ("--xla_gpu_experimental_parallel_collective_overlap_limit=4",)),
  "+double_buffer": (
    r"^$",
    ("--xla_gpu_enable_while_loop_unrolling=WHILE_LOOP_UNROLLING_DOUBLE_BUFFER",),
  ),
}
# Pipelined collectives and double buffering are of loops: nothing without the scan over layers.
UNROLLED = ("none", "-latency_hiding", "-thresholds", "thresholds=256M", "-command_buffers")
SCANNED = ("table", "none", "-pipelined", "-latency_hiding", "-thresholds", "+double_buffer")


def flag_environment(name: str, gpus: int, environ: Mapping[str, str]) -> dict[str, str]:
  """Variables that give a jaxlm process this set of flags. Raises UserError for unknown ones."""
  if name == "table":
    return {}
  leave_out, added = FLAG_SETS[name]
  machine = xla_flags.Machine("gpu", gpus)
  flags = [
    flag
    for flag in xla_flags.chosen(machine, environ)
    if flag.when is xla_flags.When.ALWAYS or not re.search(leave_out, flag.name)
  ]
  texts = [flag.text for flag in flags if flag.variable == "XLA_FLAGS"]
  answers = xla_flags.known([*texts, *added])
  unknown = [text for text in added if not answers[text]]
  if unknown:
    raise UserError(f"flags={name}: this jaxlib does not know {' '.join(unknown)}")
  texts = [text for text in texts if answers[text]] + list(added)
  values = {flag.name: flag.value for flag in flags if flag.variable == flag.name}
  given = environ.get("XLA_FLAGS", "")
  return {**values, "XLA_FLAGS": " ".join([given, *texts]).strip(), xla_flags.SWITCH: "off"}


# ---- what the plan says -------------------------------------------------------------------------


def chip_of(device: str) -> Chip | None:
  """The chip of a device by the name that its driver gives it."""
  return next((chip for name, chip in CHIPS.items() if name.upper() in device.upper()), None)


def predict(row: Row, chip: Chip) -> dict[str, float]:
  """{"step_ms", "bytes" (of a device's memory), "sent_bytes"}; empty where there is no plan."""
  if row.who != "jaxlm" or train.SHAPES[row.model].model.get("num_experts"):
    return {}
  config = train.run_config(row.job(1, 1))
  sizes = config.validate_devices(row.gpus)
  return {
    "step_ms": step_time(config, sizes, chip).expected * 1e3,
    "bytes": memory(config, sizes).total,
    "sent_bytes": sum(by_axis(messages(config, sizes)).values()),
  }
