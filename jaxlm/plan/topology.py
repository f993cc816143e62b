"""Compiles a training step for TPUs that are not there.

PyPI's libtpu holds the whole TPU compiler; `jax.experimental.topologies` describes slices to it.
What comes out is the program that the slice would run: whether it compiles, what it needs of each
chip's memory, and what its chips send one another.
"""

import contextlib
import dataclasses
import importlib.util
import os
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from jaxlm.batch import Batch
from jaxlm.config import RunConfig
from jaxlm.errors import UserError
from jaxlm.plan import collectives
from jaxlm.plan.collectives import Collective
from jaxlm.sharding import Layout, make_layout


def available() -> str | None:
  """Why nothing can be compiled for TPUs here; None where it can."""
  if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
    return "libtpu is missing: pip install libtpu"
  return None


def devices(name: str) -> list[jax.Device]:
  """The chips of a slice: "v5e:4x4", "v5p:4x4x4", "v6e:16x16", ….

  Raises:
    UserError: libtpu is missing, or knows no such slice.
  """
  if reason := available():
    raise UserError(f"--topology={name}: {reason}")
  from jax.experimental import topologies

  # Without these libtpu asks a metadata server that is not there, for minutes.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  # It takes a lock, as if it had a TPU to itself; compilers can work side by side.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
  except Exception as error:
    line = (str(error).splitlines() or ["?"])[0]
    raise UserError(
      f"--topology={name}: {line[:200]}; write for example v5e:4x4, v5p:4x4x4 or v6e:16x16"
    ) from None


@contextlib.contextmanager
def as_backend(platform: str) -> Iterator[None]:
  """Makes what is traced inside choose its kernels and dtypes for this platform.

  AUTO choices ask `jax.default_backend()`, which tells what is here, not what is compiled for.
  """
  with mock.patch.object(jax, "default_backend", lambda: platform):
    yield


def lower(config: RunConfig, program: Any, layout: Layout) -> Any:
  """The training step of a resolved config, lowered from shapes alone, under its active layout.

  program: jaxlm.program.Program (its `init` and `step`).
  """
  # A key as a shape: a real one would have to be made on devices that are not there.
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = layout.eval_shape(program.init, key)
  rows = (config.global_batch_size, config.data.seq_len)
  where = layout.sharding(("act_batch", "act_seq"))

  def array(dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(rows, dtype, sharding=where)

  ids = array(jnp.int32)
  batch = Batch(
    inputs=ids,
    targets=ids,
    loss_weights=array(jnp.float32),
    segment_ids=None if config.data.attend_across_documents else ids,
    positions=ids,
  )
  return program.step.lower(state, batch)


@dataclasses.dataclass(frozen=True)
class Report:
  """What a compiled step is.

  Attributes:
    text: the program.
    collectives: of the program.
    state_bytes: arguments on one device: state and batch.
    temporary_bytes: what else the step needs at its peak.
    seconds: compilation.
  """

  text: str
  collectives: list[Collective]
  state_bytes: int
  temporary_bytes: int
  seconds: float

  @property
  def bytes_needed(self) -> int:
    """Device memory in all, on one device."""
    return self.state_bytes + self.temporary_bytes


def compile_and_look(lowered: Any, mesh: Any) -> Report:
  """Compiles, and counts memory and collectives.

  Raises:
    UserError: the compiler refuses it, for lack of memory above all.
  """
  begin = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    line = next((x for x in str(error).splitlines() if x.strip()), "?")
    raise UserError(
      f"the step does not compile: {line[:300]}; for less memory set a larger "
      "config.num_microbatches, config.model.remat=FULL or larger config.mesh axes"
    ) from None
  seconds = time.perf_counter() - begin
  memory, text = compiled.memory_analysis(), compiled.as_text()
  new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Report(
    text=text,
    collectives=collectives.count(text, mesh),
    state_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes + new_outputs,
    seconds=seconds,
  )


@contextlib.contextmanager
def layout_for(config: RunConfig, name: str) -> Iterator[Layout]:
  """The config's layout over the chips of a slice, active, with the choices made for TPUs."""
  chips = devices(name)
  config.validate_devices(len(chips))
  with as_backend("tpu"):
    layout = make_layout(config.mesh, chips)
    with layout.activate():
      yield layout
