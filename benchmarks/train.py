"""Training speed beside what one would pick instead, on one device (several: multi_gpu.py).

usage: python benchmarks/train.py [--model=1b|llama1b|gpt2|3b|tiny] [--peer=hf|nanogpt|none]
         [--steps=30 --warmup=10 --batch=N --seq=N --packed --rounds=1 --same_init]
         [--remat=NONE|MINIMAL|QKV|FULL] [--set=config.model.attention=XLA …] [--profile=DIR]
         [--peer_attention=default|cudnn|flex] [--peer_compile=default|max-autotune|eager]
         [--peer_python=PATH] [--results=FILE]

jaxlm and the peer (PyTorch: transformers, or a nanoGPT-style loop; torch_peer.py) train
the same shape on the same batches with the same optimizer, clipping and learning rates, each in a
process of its own, one after another (A B, then B A, … with --rounds). Batches lie on the device
before the clock starts: this measures the step, loader.py the input pipeline. Losses are fetched
only after the timing; a step's time runs from the end of one step to the end of the next.

Columns: tokens/s by the median step; TFLOP/s with attention counted half (causal: 6 N_matmul +
6 L H K T a token), whole (12 L H K T) and as in PaLM (6 N + 12 L H K T, N without the table of
positions); the causal count as a share of what a large matmul (8192^3 bfloat16; CPU: 1024^3
float32) reaches in the jaxlm process after training; compilation from a cold cache (for the peer:
its first step without one more step). With --packed, rows hold several documents kept apart, and
the counts are still those of whole rows.

Each process adds a line to --results (default: benchmarks/results.jsonl; empty: none).
"""

import argparse
import contextlib
import dataclasses
import datetime
import gc
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import configlib, hugepages, xla_flags
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SyntheticConfig
from jaxlm.data.rows import batch_from_rows
from jaxlm.errors import UserError
from jaxlm.layers.config import Activation, Norm, Positions
from jaxlm.models.config import DecoderConfig
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.schedules import ScheduleConfig, ScheduleKind

HERE = Path(__file__).parent
EOS = 0
MEAN_DOCUMENT = 700  # tokens
PEAK_LR = 3e-4
LR_WARMUP = 10  # steps
DISTINCT_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class Shape:
  """A model's shape, and the batch it is measured at.

  Attributes:
    model: fields of DecoderConfig.
    batch, seq: rows a step, tokens a row.
    family: the peer's architecture, "llama" or "gpt2".
  """

  model: Mapping[str, Any]
  batch: int
  seq: int
  family: str = "llama"

  def config(self, seq: int) -> DecoderConfig:
    """jaxlm's config of it, for rows of `seq` tokens."""
    return DecoderConfig(
      **self.model, max_seq_len=max(seq, self.seq), scan_layers=False, init_std=0.02
    )


def _shape(
  layers: int, embed: int, heads: int, mlp: int, vocab: int, **more: Any
) -> dict[str, Any]:
  return {
    "num_layers": layers,
    "embed_dim": embed,
    "num_heads": heads,
    "mlp_dim": mlp,
    "vocab_size": vocab,
    **more,
  }


_GPT2 = {
  "norm": Norm.LAYER,
  "norm_eps": 1e-5,
  "positions": Positions.LEARNED,
  "activation": Activation.GELU,
  "use_bias": True,
  "tie_embeddings": True,
}
_LLAMA3 = {"num_kv_heads": 8, "tie_embeddings": True, "rope_theta": 500_000.0, "norm_eps": 1e-5}

SHAPES = {
  "1b": Shape(_shape(24, 2048, 16, 5632, 32_000), batch=8, seq=2048),
  "llama1b": Shape(_shape(16, 2048, 32, 8192, 128_256, **_LLAMA3), batch=8, seq=2048),
  "3b": Shape(_shape(28, 3072, 24, 8192, 32_000, num_kv_heads=8), batch=4, seq=2048),
  "7b": Shape(_shape(32, 4096, 32, 11_008, 32_000, norm_eps=1e-5), batch=2, seq=4096),
  # The products of 1b for each token: 2 of 8 experts of half its width.
  "moe": Shape(_shape(24, 2048, 16, 2816, 32_000, num_experts=8), batch=8, seq=2048),
  "gpt2": Shape(_shape(12, 768, 12, 3072, 50_257, **_GPT2), batch=16, seq=1024, family="gpt2"),
  # configs/tiny.py without its norm of queries and keys, which Llama doesn't have.
  "tiny": Shape(_shape(4, 256, 4, 704, 8192), batch=8, seq=256),
  "toy": Shape(_shape(2, 64, 2, 128, 256), batch=2, seq=32),
  # For meshes of up to 8 fake devices.
  "toy8": Shape(_shape(2, 64, 8, 128, 256), batch=2, seq=64),
  "toy_moe": Shape(_shape(2, 64, 8, 64, 256, num_experts=8), batch=2, seq=64),
}


# ---- data -------------------------------------------------------------------------------------


def make_rows(
  seed: int, rows: int, seq_len: int, vocab_size: int, *, packed: bool = False
) -> np.ndarray:
  """Rows that can be learned: Zipf's law, and each id has a few favourite successors.

  Args:
    seed: of everything.
    rows, seq_len: how many, and how long.
    vocab_size: ids are 1 … vocab_size - 1.
    packed: documents of lognormal length (mean 700 tokens), each followed by EOS = 0.

  Returns:
    int32 (rows, seq_len + 1).
  """
  rng = np.random.default_rng(seed)
  weights = 1 / (np.arange(vocab_size - 1) + 2.7)
  cumulative = np.cumsum(weights / weights.sum())

  def zipf(size: Any) -> np.ndarray:
    return 1 + np.minimum(np.searchsorted(cumulative, rng.random(size)), vocab_size - 2)

  length = seq_len + 1
  fresh = zipf((length, rows))
  successors = zipf((vocab_size, 4))
  follows = rng.random((length, rows)) < 0.6
  which = rng.integers(0, successors.shape[1], (length, rows))
  ends = np.zeros((length, rows), bool)
  if packed:
    for row in range(rows):
      # The rows are cut from a longer stream: the first document has begun before its row.
      lengths = rng.lognormal(math.log(MEAN_DOCUMENT) - 0.5, 1.0, 2 * length // 50 + 2)
      places = np.cumsum(lengths.astype(int) + 1) - rng.integers(0, MEAN_DOCUMENT)
      ends[places[(places >= 0) & (places < length)], row] = True
  ids = np.empty((length, rows), np.int32)
  for t in range(length):
    ids[t] = fresh[t]
    if t:
      ids[t] = np.where(follows[t] & ~ends[t - 1], successors[ids[t - 1], which[t]], ids[t])
    ids[t, ends[t]] = EOS
  return np.ascontiguousarray(ids.T)


def make_batches(
  seed: int, count: int, batch: int, seq_len: int, vocab_size: int, *, packed: bool
) -> dict[str, np.ndarray]:
  """What jaxlm.data.rows.batch_from_rows makes of `count` batches, each (count, batch, seq_len)."""
  rows = make_rows(seed, count * batch, seq_len, vocab_size, packed=packed)
  arrays = batch_from_rows(rows, EOS if packed else None)
  return {name: x.reshape(count, batch, seq_len) for name, x in arrays.items()}


# ---- the comparison ---------------------------------------------------------------------------


def flops_per_token(config: DecoderConfig, seq_len: int) -> dict[str, float]:
  """FLOPs a token, forward and backward, by three counts: causal, full, palm."""
  total = config.num_params()
  if config.num_experts is not None:  # of the experts, those that a token goes through
    idle = config.num_experts - config.num_experts_per_token
    mlp = (3 if config.gated else 2) * config.embed_dim * config.mlp_dim
    total -= (config.num_layers - config.num_dense_layers) * idle * mlp
  if config.positions is Positions.LEARNED:
    total -= config.max_seq_len * config.embed_dim
  attention = 12 * config.num_layers * config.num_heads * config.head_size * seq_len
  return {
    "causal": config.flops_per_token(seq_len, causal=True),
    "full": config.flops_per_token(seq_len),
    "palm": float(6 * total + attention),
  }


def override(config: Any, assignment: str) -> None:
  """Sets `config.a.b=value` in a config. Raises UserError for an unknown key or a bad value."""
  key, equals, text = assignment.partition("=")
  names = key.removeprefix("config.").split(".")
  if not equals or names[0] in ("data", "global_batch_size", "num_steps", "seed"):
    raise UserError(f"--set={assignment}: write config.model.key=value (or optim, mesh, …)")
  for i, name in enumerate(names):
    fields = typing.get_type_hints(type(config)) if configlib.is_config(config) else {}
    if name not in fields:
      raise UserError(f"--set={assignment}: no such key {name}{configlib.nearest(name, fields)}")
    if i < len(names) - 1:
      config = getattr(config, name)
  tp = fields[names[-1]]
  members = [arg for arg in typing.get_args(tp) if arg is not type(None)]
  try:
    tp = members[0] if configlib.is_optional(tp) else tp
    setattr(config, names[-1], configlib.parse_text(text, tp))
  except ValueError as error:
    raise UserError(f"--set={assignment}: {error}") from None


def run_config(job: Mapping[str, Any]) -> RunConfig:
  """jaxlm's config of a job, overrides applied, validated."""
  model = SHAPES[job["model"]].config(job["seq"])
  config = RunConfig(
    model=model,
    data=DataConfig(
      seq_len=job["seq"],
      sources=[SyntheticConfig(name="benchmark", vocab_size=model.vocab_size)],
      attend_across_documents=not job["packed"],
    ),
    optim=AdamWConfig(
      peak_lr=PEAK_LR,
      b1=0.9,
      b2=0.95,
      eps=1e-8,
      weight_decay=0.1,
      grad_clip_norm=1.0,
      schedule=ScheduleConfig(kind=ScheduleKind.CONSTANT, warmup_steps=LR_WARMUP),
    ),
    global_batch_size=job["batch"],
    num_steps=job["warmup"] + job["steps"],
    seed=job["seed"],
  )
  for assignment in job["set"]:
    override(config, assignment)
  config.validate()
  return config


def peer_job(job: Mapping[str, Any]) -> dict[str, Any]:
  """The job with all that the peer, which knows nothing of jaxlm, must know of the model."""
  shape = SHAPES[job["model"]]
  config = shape.config(job["seq"])
  names = ("num_layers", "embed_dim", "mlp_dim", "num_heads", "norm_eps", "rope_theta", "init_std")
  return {
    **job,
    "family": shape.family,
    "shape": {name: getattr(config, name) for name in names}
    | {
      "kv_heads": config.kv_heads,
      "head_size": config.head_size,
      "vocab_size": config.padded_vocab_size,
      "max_seq_len": config.max_seq_len,
      "tie_embeddings": config.tie_embeddings,
    },
    "learning_rates": [
      PEAK_LR * min(1.0, (step + 1) / LR_WARMUP) for step in range(job["warmup"] + job["steps"])
    ],
    "betas": [0.9, 0.95],
    "eps": 1e-8,
    "weight_decay": 0.1,
    "grad_clip_norm": 1.0,
  }


def order(rounds: int, peer: str) -> list[str]:
  """Whose turn it is: A B B A A B …, so that a drift of the machine favours neither."""
  if peer == "none":
    return ["jaxlm"] * rounds
  return [
    who for i in range(rounds) for who in (("jaxlm", peer) if i % 2 == 0 else (peer, "jaxlm"))
  ]


def summarise(result: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
  """The figures of one run: adds tokens/s of all devices and FLOP/s of each to what it measured.

  Args:
    result: step_ms (of each timed step), block_seconds (of all of them), losses, and more.
    job: batch (of all devices), seq, model; devices, where there are several.
  """
  tokens = job["batch"] * job["seq"]
  step_ms = statistics.median(result["step_ms"])
  rate = tokens / step_ms * 1e3
  counts = flops_per_token(SHAPES[job["model"]].config(job["seq"]), job["seq"])
  return {
    **result,
    "ms_per_step": step_ms,
    "tokens_per_second": rate,
    "block_tokens_per_second": tokens * len(result["step_ms"]) / result["block_seconds"],
    "tflops": {name: rate * count / job.get("devices", 1) / 1e12 for name, count in counts.items()},
    "first_loss": result["losses"][0],
    "last_loss": result["losses"][-1],
  }


def compare(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Over all processes: matmul_tflops; peer_tokens_per_second; ratio; mean |loss difference|.

  Keys that cannot be computed (no peer, a failed process) are absent.
  """
  good = [row for row in rows if "error" not in row]
  ours = [row for row in good if row["who"] == "jaxlm"]
  theirs = [row for row in good if row["who"] != "jaxlm"]
  values: dict[str, float] = {}
  if matmuls := [row["matmul_tflops"] for row in ours if row.get("matmul_tflops")]:
    values["matmul_tflops"] = statistics.median(matmuls)
  if theirs:
    rate = statistics.median(row["tokens_per_second"] for row in theirs)
    values["peer_tokens_per_second"] = rate
    if ours:
      values["ratio"] = statistics.median(row["tokens_per_second"] for row in ours) / rate
      pairs = zip(ours[0]["losses"], theirs[0]["losses"], strict=True)
      values["loss_difference"] = statistics.fmean(abs(a - b) for a, b in pairs)
  return values


COLUMNS = (
  "",
  "tokens/s",
  "ms/step",
  "TFLOP/s causal",
  "full",
  "PaLM",
  "of matmul",
  "peak GiB",
  "compile s",
  "loss, first",
  "last",
  "× peer",
)


def table_cells(row: Mapping[str, Any], values: Mapping[str, float]) -> list[str]:
  """A process's cells under COLUMNS. values: of `compare`."""
  if "error" in row:
    return [row["who"], "failed", *[""] * (len(COLUMNS) - 2)]
  matmul, peer = values.get("matmul_tflops"), values.get("peer_tokens_per_second")
  flops = row["tflops"]
  digits = 1 if flops["full"] >= 10 else 4
  return [
    row["who"],
    f"{row['tokens_per_second']:,.0f}",
    f"{row['ms_per_step']:.1f}",
    *(f"{flops[name]:.{digits}f}" for name in ("causal", "full", "palm")),
    f"{flops['causal'] / matmul:.1%}" if matmul else "",
    f"{row['peak_bytes'] / 2**30:.2f}",
    f"{row['compile_seconds']:.1f}",
    f"{row['first_loss']:.4f}",
    f"{row['last_loss']:.4f}",
    f"{row['tokens_per_second'] / peer:.3f}" if peer else "",
  ]


def print_table(rows: Sequence[Mapping[str, Any]], job: Mapping[str, Any]) -> None:
  """The table, and under it what is compared and how far the losses lie apart."""
  from rich.console import Console
  from rich.table import Table

  values = compare(rows)
  good = next((row for row in rows if "error" not in row), {})
  title = (
    f"{job['model']}, {job['batch']} × {job['seq']} tokens a step"
    f"{', packed' if job['packed'] else ''}, {good.get('device', 'no device')}"
  )
  table = Table(title=title)
  for i, name in enumerate(COLUMNS):
    table.add_column(name, justify="right" if i else "left", no_wrap=True)
  for row in rows:
    table.add_row(*table_cells(row, values))
  console = Console()
  # A pipe says it is 80 columns wide, and figures would be cut.
  console = console if console.is_terminal else Console(width=150)
  console.print(table)
  lines = []
  if "matmul_tflops" in values:
    lines.append(f"matmul: {values['matmul_tflops']:.4g} TFLOP/s")
  if "ratio" in values:
    lines.append(f"jaxlm / {job['peer']}: {values['ratio']:.3f}")
    lines.append(f"mean |loss difference|: {values['loss_difference']:.5f}")
  console.print("; ".join(lines), highlight=False)
  for row in rows:
    if "error" in row:
      console.print(f"{row['who']} failed: {row['error']}", highlight=False, markup=False)


def record(result: Mapping[str, Any], job: Mapping[str, Any], machine: Any) -> dict[str, Any]:
  """What is kept of one process: where, when, with what, and what came out."""
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    # Without paths of this machine.
    "arguments": {k: v for k, v in job.items() if k not in ("peer_python", "profile")},
    "machine": machine,
    **{key: value for key, value in result.items() if key != "losses"},
    "losses": [round(loss, 5) for loss in result.get("losses", [])],
  }


def describe_machine() -> dict[str, Any]:
  """The host: processor, cores, load, and the GPUs with their driver, where there are some."""
  values: dict[str, Any] = {
    "platform": f"{platform.system()} {platform.machine()}",
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "load": round(os.getloadavg()[0], 2),
  }
  with contextlib.suppress(OSError, subprocess.SubprocessError):
    query = "--query-gpu=name,driver_version,power.limit"
    values["gpu"] = subprocess.run(
      ["nvidia-smi", query, "--format=csv,noheader"],
      capture_output=True,
      text=True,
      timeout=20,
      check=True,
    ).stdout.strip()
  return values


def versions(*names: str) -> dict[str, str]:
  """Versions of installed packages, and of the GPU libraries that pip installed."""
  found = {"python": platform.python_version()}
  for distribution in metadata.distributions():
    name = distribution.metadata["Name"] or ""
    if name in names or name.startswith(("jax-cuda", "nvidia-cudnn", "nvidia-cublas")):
      found[name] = distribution.version
  return found


def run_process(who: str, job: Mapping[str, Any], directory: Path, python: str) -> dict[str, Any]:
  """Runs one side and reads what it measured; of a failed one, {"who", "error"}."""
  (directory / "job.json").write_text(json.dumps(job), encoding="utf-8")
  out = directory / "result.json"
  out.unlink(missing_ok=True)
  # jaxlm as its commands start it.
  environment = dict((who == "jaxlm" and hugepages.here()) or os.environ)
  # Compilation is timed: nothing may come from an earlier one.
  environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  if who == "jaxlm":
    command = [sys.executable, __file__, f"--worker={directory}"]
  else:
    command = [python, str(HERE / "torch_peer.py"), str(directory)]
  print(f"{who} …", file=sys.stderr, flush=True)
  with tempfile.TemporaryDirectory() as cache:
    environment["TORCHINDUCTOR_CACHE_DIR"] = cache
    try:
      done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    except OSError as error:
      return {"who": who, "error": f"{command[0]}: {error.strerror}"}
  if done.returncode or not out.exists():
    print(done.stderr[-6000:], file=sys.stderr)
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return {"who": who, "error": f"status {done.returncode}: {(lines or ['no message'])[-1][:300]}"}
  return {"who": who, **json.loads(out.read_text(encoding="utf-8"))}


# ---- jaxlm's process --------------------------------------------------------------------------


def worker(directory: Path) -> None:
  """Trains with jaxlm what DIR/job.json says; leaves DIR/result.json."""
  xla_flags.apply()
  import jax

  from jaxlm import run, tree
  from jaxlm.program import build_program
  from jaxlm.sharding import make_layout, to_device

  job = json.loads((directory / "job.json").read_text(encoding="utf-8"))
  config = run_config(job)
  run.setup_jax()
  devices = jax.devices()[: job.get("devices", 1)]
  config.validate_devices(len(devices))
  device = devices[0]
  with make_layout(config.mesh, devices).activate() as layout:
    program = build_program(config)
    arrays = dict(np.load(directory / "batches.npz"))
    batches = [
      to_device({name: x[i] for name, x in arrays.items()}, layout, use_segments=job["packed"])
      for i in range(len(arrays["inputs"]))
    ]
    state = jax.block_until_ready(program.init(jax.random.key(config.seed)))
    parameters = tree.count(state.params)
    if job["same_init"]:
      weights: Any = llama_weights(jax.device_get(state.params))
      np.savez(directory / "weights.npz", **weights)
    began = time.perf_counter()
    lowered = program.step.lower(state, batches[0])
    traced = time.perf_counter()
    step = lowered.compile()
    compiled = time.perf_counter()

    losses: list[Any] = []
    for i in range(job["warmup"]):
      state, metrics = step(state, batches[i % len(batches)])
      losses.append(metrics["loss"])
    jax.block_until_ready(state)
    # Each step is launched before the one before it is waited for, as training does.
    start, ends, previous = time.perf_counter(), [], None
    for i in range(job["warmup"], job["warmup"] + job["steps"]):
      state, metrics = step(state, batches[i % len(batches)])
      losses.append(metrics["loss"])
      if previous is not None:
        jax.block_until_ready(previous)
        ends.append(time.perf_counter())
      previous = metrics
    jax.block_until_ready((state, previous))
    ends.append(time.perf_counter())

    # Of the device that had most; CPU devices do not tell, there it is the process's.
    peak = max((one.memory_stats() or {}).get("peak_bytes_in_use", 0) for one in devices)
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sent = sent_bytes(step, layout.mesh) if len(devices) > 1 else {}
    if job["profile"]:
      import profile_step

      report = profile_step.profile(step, state, batches, Path(job["profile"]))
      print(profile_step.render(report), flush=True)
    # The matmul is measured with the memory free.
    del state, metrics, previous, step, lowered, batches
    gc.collect()
  best, median = measure_matmul(device)
  result = {
    "device": device.device_kind,
    "versions": versions("jax", "jaxlib", "flax", "optax", "numpy"),
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    "parameters": parameters,
    "step_ms": (np.diff([start, *ends]) * 1e3).tolist(),
    "block_seconds": ends[-1] - start,
    "losses": [float(loss) for loss in losses],
    "peak_bytes": peak,
    "sent_bytes": sent,
    "trace_seconds": traced - began,
    "compile_seconds": compiled - began,
    "matmul_tflops": median,
    "matmul_best_tflops": best,
  }
  (directory / "result.json").write_text(json.dumps(result), encoding="utf-8")


def sent_bytes(step: Any, mesh: Any) -> dict[str, float]:
  """Bytes that one device sends in a compiled step, by mesh axes; empty if it can't be read."""
  from jaxlm.plan import collectives

  try:
    found = collectives.by_axis(collectives.count(step, mesh))
  except (LookupError, TypeError, ValueError) as error:  # it is no reason to lose the times
    print(f"the collectives were not counted: {error}", file=sys.stderr)
    return {}
  return {"×".join(axes) or "?": sum(kinds.values()) for axes, kinds in found.items()}


def measure_matmul(device: Any, rounds: int = 5, calls: int = 50) -> tuple[float, float]:
  """TFLOP/s of a large square product of random numbers, back to back: best, median of rounds."""
  import jax
  import jax.numpy as jnp

  size, dtype = (1024, jnp.float32) if device.platform == "cpu" else (8192, jnp.bfloat16)

  def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b

  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.device_put(jax.random.normal(key, (size, size), dtype), device) for key in keys)
  product = jax.jit(multiply)
  for _ in range(3):
    product(a, b).block_until_ready()
  rates = []
  for _ in range(rounds):
    start = time.perf_counter()
    for _ in range(calls):
      out = product(a, b)
    out.block_until_ready()
    rates.append(2 * size**3 * calls / (time.perf_counter() - start) / 1e12)
  return max(rates), statistics.median(rates)


def llama_weights(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """jaxlm's parameters (unrolled, Llama's shape) under the names and layouts of transformers."""
  out = {
    "model.embed_tokens.weight": params["embed"]["table"],
    "model.norm.weight": params["final_norm"]["scale"],
  }
  if "unembed" in params:
    out["lm_head.weight"] = params["unembed"]["table"]
  for i, (_, block) in enumerate(sorted(params["stack"]["blocks"].items())):
    prefix = f"model.layers.{i}."
    attention, mlp = block["attention"], block["mlp"]
    for name in ("q", "k", "v"):
      weight = attention[name].reshape(attention[name].shape[0], -1)  # (D, H, K) to (D, H K)
      out[f"{prefix}self_attn.{name}_proj.weight"] = weight.T
    out[f"{prefix}self_attn.o_proj.weight"] = attention["out"].reshape(-1, weight.shape[0]).T
    for name in ("gate", "up", "down"):
      out[f"{prefix}mlp.{name}_proj.weight"] = mlp[name].T
    out[f"{prefix}input_layernorm.weight"] = block["attention_norm"]["scale"]
    out[f"{prefix}post_attention_layernorm.weight"] = block["mlp_norm"]["scale"]
  return {name: np.ascontiguousarray(x, np.float32) for name, x in out.items()}


# ---- the command ------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--model", default="1b", choices=list(SHAPES))
  parser.add_argument("--peer", default="hf", choices=["hf", "nanogpt", "none"])
  parser.add_argument("--steps", type=int, default=30, help="timed steps")
  parser.add_argument("--warmup", type=int, default=10, help="steps before them, not timed")
  parser.add_argument("--batch", type=int, help="rows a step (default: the model's)")
  parser.add_argument("--seq", type=int, help="tokens a row (default: the model's)")
  parser.add_argument("--packed", action="store_true", help="documents, kept apart")
  parser.add_argument("--remat", help="config.model.remat")
  parser.add_argument("--set", action="append", default=[], metavar="config.KEY=VALUE")
  parser.add_argument("--peer_attention", default="default", choices=["default", "cudnn", "flex"])
  parser.add_argument(
    "--peer_compile", default="default", choices=["default", "max-autotune", "eager"]
  )
  parser.add_argument("--peer_python", default=sys.executable, help="the Python that has torch")
  parser.add_argument("--same_init", action="store_true", help="the peer gets jaxlm's parameters")
  parser.add_argument("--rounds", type=int, default=1)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--profile", default="", metavar="DIR", help="profile jaxlm's step, too")
  parser.add_argument("--results", default=str(HERE / "results.jsonl"), help="empty: none")
  parser.add_argument("--worker", help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def make_job(arguments: argparse.Namespace) -> dict[str, Any]:
  """The arguments as plain values, defaults filled in. Raises UserError for what can't be run."""
  job = {k: v for k, v in vars(arguments).items() if k not in ("worker", "results", "rounds")}
  shape = SHAPES[job["model"]]
  job["batch"] = job["batch"] or shape.batch
  job["seq"] = job["seq"] or shape.seq
  remat = job.pop("remat")
  job["set"] = [*job["set"], *([f"config.model.remat={remat}"] if remat else [])]
  job["profile"] = str(Path(job["profile"]).absolute()) if job["profile"] else ""
  if job["warmup"] < 1 or job["steps"] < 1:
    raise UserError("--warmup and --steps must be at least 1")
  if job["peer"] != "none" and "num_experts" in shape.model:
    raise UserError(f"--model={job['model']}: the peers have no experts: --peer=none")
  if job["peer"] == "nanogpt" and shape.family != "gpt2":
    raise UserError("--peer=nanogpt has one shape: --model=gpt2")
  if job["peer"] == "nanogpt" and (job["packed"] or job["peer_attention"] == "flex"):
    raise UserError("--peer=nanogpt attends across documents: it has neither --packed nor flex")
  if job["same_init"] and (shape.family != "llama" or job["peer"] == "nanogpt"):
    raise UserError("--same_init is for Llama's shapes and --peer=hf")
  run_config(job)
  return job


def main(argv: Sequence[str]) -> int:
  """Runs the comparison; returns the exit status."""
  arguments = parse(argv)
  if arguments.worker:
    worker(Path(arguments.worker))
    return 0
  try:
    job = make_job(arguments)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  machine = describe_machine()
  rows: list[dict[str, Any]] = []
  with tempfile.TemporaryDirectory() as name:
    directory = Path(name)
    vocab = SHAPES[job["model"]].config(job["seq"]).vocab_size
    batches: Any = make_batches(
      job["seed"], DISTINCT_BATCHES, job["batch"], job["seq"], vocab, packed=job["packed"]
    )
    np.savez(directory / "batches.npz", **batches)
    for who in order(arguments.rounds, job["peer"]):
      its_job = job if who == "jaxlm" else peer_job(job)
      row = run_process(who, its_job, directory, arguments.peer_python)
      if "error" not in row:
        row = summarise(row, job)
      rows.append(row)
      # Written at once: what comes after may fail.
      if arguments.results:
        with Path(arguments.results).open("a", encoding="utf-8") as stream:
          stream.write(json.dumps(record(row, job, machine)) + "\n")
  print_table(rows, job)
  return 1 if any("error" in row for row in rows) else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
