"""A config in small still has every axis, fits its mesh, and any number of processes shares it."""

import json
import math

import jax
import pytest

from jaxlm import resume_proof, resumption
from jaxlm.config import RunConfig
from jaxlm.data.config import DataConfig, SyntheticConfig, TokenShardsConfig
from jaxlm.data.pipeline import build_pipeline
from jaxlm.data.task import FillInTheMiddleConfig, FimSplit, MaskedConfig
from jaxlm.mesh import MESH_AXES, Context, MeshConfig, Zero
from jaxlm.models.config import DecoderConfig
from jaxlm.models.encoder_config import EncoderConfig
from jaxlm.rehearsal import checks, memory, scale
from jaxlm.rehearsal.starts import Outcome

ONE = dict.fromkeys(MESH_AXES, 1)


@pytest.mark.parametrize("processes", [2, 3, 4, 8])
@pytest.mark.parametrize(
  "sizes",
  [
    {},
    {"fsdp": 2},
    {"data": 2, "fsdp": 2},
    {"data": 16, "fsdp": 8},
    {"fsdp": 128, "model": 8},
    {"stage": 4, "data": 8, "model": 4},
    {"fsdp": 3, "sequence": 4},
    {"model": 8},
  ],
)
def test_axes_stay_and_processes_divide_them(sizes, processes):
  """Breaks if an axis is rehearsed away, or processes are left without a device."""
  sizes = ONE | sizes
  small, changes = scale.scale_mesh(sizes, processes)
  assert math.prod(small.values()) % processes == 0
  assert math.prod(small.values()) <= 8 * processes
  for axis in MESH_AXES:
    assert small[axis] > 1 or sizes[axis] == 1, axis
    assert sizes[axis] % small[axis] == 0 or axis == "data"
    assert (small[axis] == sizes[axis]) == (not any(line.startswith(axis) for line in changes))


@pytest.mark.parametrize(
  "mesh",
  [
    MeshConfig(data=4, fsdp=16),
    MeshConfig(stage=2, fsdp=4, model=2),
    MeshConfig(fsdp=2, sequence=4, model=4, context=Context.ULYSSES),
    MeshConfig(fsdp=2, sequence=8, context=Context.RING),
  ],
)
def test_what_is_scaled_fits_its_own_mesh(mesh):
  """Breaks if a dim is scaled to something that an axis does not divide."""
  config = RunConfig(
    model=DecoderConfig(
      vocab_size=32_000, num_heads=32, num_kv_heads=16, embed_dim=4096, mlp_dim=11_264
    ),
    data=DataConfig(seq_len=2048, sources=[SyntheticConfig(vocab_size=32_000)]),
    mesh=mesh,
    global_batch_size=512,
    num_microbatches=4,
  )
  devices = scale.devices_of(config, 4)
  sizes = config.validate_devices(devices)
  small, small_sizes, changes = scale.scaled(config, 4, sizes, config.data)
  small.validate()
  assert small.validate_devices(math.prod(small_sizes.values())) == small_sizes
  assert small.model.num_heads > small.model.num_kv_heads, "grouped queries stay grouped"
  assert small.model.num_params() < 5_000_000
  assert config.model.num_heads == 32, "the config itself is left alone"
  assert any(line.startswith("seq_len 2048 → ") for line in changes)


@pytest.mark.parametrize("zero", Zero)
def test_memory_of_a_device_is_the_closed_form(zero):
  """Breaks if a dim is divided by an axis that does not split it. AdamW has two moments."""
  config = RunConfig(
    model=DecoderConfig(vocab_size=1024, num_layers=2, embed_dim=128, num_heads=8, mlp_dim=256),
    data=DataConfig(seq_len=64, sources=[SyntheticConfig(vocab_size=1024)]),
    mesh=MeshConfig(data=2, fsdp=4, model=2, zero=zero),
  )
  found = memory.state_bytes(config, config.mesh.sizes(16))
  model = config.model
  norms = (2 * model.num_layers + 1) * model.embed_dim  # on every device
  matrices = model.num_params() - norms
  split = 8 if zero is Zero.ZERO3 else 2
  assert found["parameters"] == 4 * (matrices / split + norms)
  assert found["gradients"] == found["parameters"]
  if zero is Zero.ZERO3:
    counts = 2 * 4  # int32, in two places of the optimizer's chain, at most
    assert 0 <= found["optimizer state"] - 2 * found["parameters"] <= counts
  assert len(jax.live_arrays()) < 100, "nothing of that size is made"


@pytest.mark.parametrize(
  "task",
  [
    MaskedConfig(whole_words=True, symbol="[MASK]"),
    FillInTheMiddleConfig(split=FimSplit.CHARACTER, symbols=("<a>", "<b>", "<c>")),
  ],
)
def test_random_ids_stand_in_for_the_data_of_any_task(task):
  """Breaks if a run's own config.json, whose vocab_size counts the ids that its task adds, asks
  more of random ids than they have: rehearse would call that FAILED."""
  model = EncoderConfig if isinstance(task, MaskedConfig) else DecoderConfig
  config = RunConfig(
    model=model(vocab_size=8195, num_layers=2, embed_dim=64, num_heads=4, mlp_dim=128),
    data=DataConfig(seq_len=64, sources=[TokenShardsConfig(path="nowhere")], task=task),
  )
  data = scale.stand_in(config)
  assert build_pipeline(data).vocab_size == 8195
  small, _, _ = scale.scaled(config, 2, ONE | {"fsdp": 2}, data)
  small.validate()
  assert small.model.vocab_size == 8195


def test_a_loss_that_is_not_finite_fails_in_plain_words(tmp_path):
  """metrics.jsonl holds "nan" as a string. Breaks if it is compared as text, or ends in a
  traceback."""
  lines = [{"step": n, "loss": 5.0 if n < 4 else "nan"} for n in range(1, scale.STEPS + 1)]
  run = tmp_path / "straight"
  run.mkdir()
  (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
  found = resumption.losses(run)
  assert math.isnan(found[4])
  for a, b in ((found[4], found[4]), (math.inf, math.inf), (5.0, math.nan)):
    step = resumption.Step(4, a, b, True)
    assert step.difference == math.inf and not step.finite
  assert resumption.Step(4, 5.0, None, True).finite
  joined = [[{"event": "joined", "processes": 1, "devices": 1}]]
  out = Outcome(0, 1.0, tmp_path / "log", joined)
  (steps,) = [c for c in checks.of_straight(out, run, None, None, 1, 1) if c.name == "steps run"]
  assert steps.state == checks.FAILED and steps.detail.startswith("the loss is not finite: ")


def test_a_verdict_on_losses_that_are_not_finite(capsys):
  steps = [resumption.Step(4, math.nan, math.nan, True)]
  config = RunConfig(data=DataConfig(seq_len=64, sources=[SyntheticConfig(vocab_size=1024)]))
  assert not resume_proof._verdict(steps, True, config, False)
  assert "the loss of step 4 is not finite" in capsys.readouterr().out
