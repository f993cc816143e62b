"""Loss curves in bfloat16 and float8 beside float32: python benchmarks/numerics.py

usage: python benchmarks/numerics.py [--config=configs/tiny.py] [--steps=200] [--out=DIR]
         [--formats=FLOAT32,BFLOAT16,FP8] [--model=1b|3b|… --batch=N
         --remat=MINIMAL]

Trains the same config on the same rows from the same start, once in each format of the matrix
products (FP8: in a bfloat16 model), and compares each with the first. The dataset must be prepared
(`python -m jaxlm.prepare --config=configs/data/stdlib.py`). CPUs emulate the narrow formats: slow,
with the same rounding. With --model the config's data trains a shape of benchmarks/train.py at its
batch and a learning rate of 3e-4. Leaves losses.json and losses.svg in DIR.
"""

import argparse
import dataclasses
import importlib.util
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
import train  # beside this file

from jaxlm import run, xla_flags
from jaxlm.config import RunConfig
from jaxlm.data.pipeline import build_pipeline
from jaxlm.layers.config import DType, Matmul, Remat
from jaxlm.optim.adamw import AdamWConfig
from jaxlm.optim.schedules import ScheduleConfig, ScheduleKind
from jaxlm.program import build_program
from jaxlm.sharding import make_layout, to_device

WINDOW = 20  # steps that the last column averages over
COLOURS = ("#222222", "#0072b2", "#d55e00")


def load(file: str) -> RunConfig:
  """get_config() of a config file."""
  spec = importlib.util.spec_from_file_location("config", file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config: RunConfig = module.get_config()
  return config


def losses(file: str, name: str, steps: int, change: argparse.Namespace) -> list[float]:
  """The loss of each step with matrix products in the format of this name."""
  config = load(file)
  if change.model:
    shape = train.SHAPES[change.model]
    config.model = dataclasses.replace(shape.config(shape.seq), vocab_size=0)  # the data's
    config.data.seq_len, config.global_batch_size = shape.seq, change.batch or shape.batch
    schedule = ScheduleConfig(kind=ScheduleKind.CONSTANT, warmup_steps=steps // 10)
    config.optim = AdamWConfig(peak_lr=3e-4, b2=0.95, schedule=schedule)
  if change.remat:
    config.model.remat = Remat[change.remat]  # type: ignore
  pipeline = build_pipeline(config.data)
  config = run.resolve(config, pipeline)
  config.model.compute_dtype = DType.BFLOAT16 if name == "FP8" else DType[name]  # type: ignore
  config.model.matmul = Matmul.FP8 if name == "FP8" else Matmul.COMPUTE  # type: ignore
  found = []
  with (
    make_layout(config.mesh, jax.devices()[:1]).activate() as layout,
    pipeline.iterator(config.global_batch_size) as batches,
  ):
    program = build_program(config)
    state = program.init(jax.random.key(config.seed))
    began = time.perf_counter()
    for i in range(steps):
      state, metrics = program.step(state, to_device(next(batches), layout))
      found.append(float(metrics["loss"]))
      if i % 20 == 19:
        print(
          f"{name} step {i + 1}: {found[-1]:.4f}, {time.perf_counter() - began:.0f} s", flush=True
        )
  return found


def picture(curves: dict[str, list[float]]) -> str:
  """The curves as an SVG."""
  width, height, left, top = 640, 360, 50, 20
  low = min(min(c) for c in curves.values())
  high = max(max(c) for c in curves.values())
  count = max(len(c) for c in curves.values())

  def at(step: int, loss: float) -> str:
    x = left + (width - left - 20) * step / max(count - 1, 1)
    y = top + (height - top - 40) * (high - loss) / max(high - low, 1e-9)
    return f"{x:.1f},{y:.1f}"

  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-size="12">'
  ]
  parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
  for loss in np.linspace(low, high, 5):
    y = at(0, loss).split(",")[1]
    parts.append(f'<text x="8" y="{y}">{loss:.2f}</text>')
    parts.append(f'<path d="M{left},{y}H{width - 20}" stroke="#ddd"/>')
  for (name, curve), colour, row in zip(curves.items(), COLOURS, range(len(COLOURS))):
    points = " ".join(at(i, loss) for i, loss in enumerate(curve))
    parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
    parts.append(
      f'<text x="{width - 120}" y="{top + 16 * (row + 1)}" fill="{colour}">{name}</text>'
    )
  parts.append(f'<text x="{width // 2 - 40}" y="{height - 8}">steps: 1 … {count}</text></svg>')
  return "\n".join(parts)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/tiny.py")
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--out", default="runs/numerics")
  parser.add_argument("--formats", default="FLOAT32,BFLOAT16,FP8")
  parser.add_argument("--model", choices=list(train.SHAPES))
  parser.add_argument("--batch", type=int, help="rows a step (default: the model's)")
  parser.add_argument("--remat", choices=[r.name for r in Remat])
  arguments = parser.parse_args()
  xla_flags.apply()
  run.setup_jax()
  out = Path(arguments.out)
  out.mkdir(parents=True, exist_ok=True)
  curves: dict[str, list[float]] = {}
  for name in arguments.formats.split(","):
    curves[name] = losses(arguments.config, name, arguments.steps, arguments)
    (out / "losses.json").write_text(json.dumps(curves), encoding="utf-8")
    (out / "losses.svg").write_text(picture(curves), encoding="utf-8")
  reference = np.array(next(iter(curves.values())))
  print(
    f"{'format':10} {'first':>8} {'last':>8} {'max |difference|':>17} last {WINDOW} steps, mean"
  )
  for name, curve in curves.items():
    apart = np.abs(np.array(curve) / reference - 1)
    mean = np.mean(curve[-WINDOW:]) / np.mean(reference[-WINDOW:]) - 1
    print(f"{name:10} {curve[0]:8.4f} {curve[-1]:8.4f} {apart.max():16.2%} {mean:+9.2%}")


if __name__ == "__main__":
  sys.exit(main())
