"""Checkpoints over Orbax: the state, and beside it what is needed to trust and continue it.

    DIR/<step>/state    arrays, in Orbax's format; any mesh may read what another wrote
    DIR/<step>/meta     JSON: format, step, next_row, seed, seal (see lineage), digests

Orbax notices a file that is missing or cut short, but mostly not a changed bit. So the meta holds a
digest of each array's bits, made on the devices at saving and compared at restoring.

Saving is asynchronous: the arrays are copied to the host, and written while training goes on. A
checkpoint appears under its name only once it is whole; what an interrupted save leaves behind is
removed at the next start.
"""

import contextlib
import dataclasses
import functools
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding

from jaxlm.errors import UserError
from jaxlm.lineage import Seal
from jaxlm.tree import path_str

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Meta:
  """What a checkpoint says of itself.

  Attributes:
    step: updates made.
    next_row: global rows consumed: the whole state of the data pipeline.
    seed: the run's; every random key is a function of it and of the step.
    seal: what it was made from.
  """

  step: int
  next_row: int
  seed: int
  seal: Seal


class Checkpointer:
  """Saves and restores the training state of a run.

  Args:
    directory: made if missing.
    keep_last, keep_every: see training.config.CheckpointConfig.
    read_only: nothing is made, removed or saved.
  """

  def __init__(
    self,
    directory: str | Path,
    *,
    keep_last: int = 2,
    keep_every: int = 0,
    read_only: bool = False,
  ):
    # Orbax reports each save in dozens of lines, and a read-only manager as a warning.
    logging.getLogger("absl").setLevel(logging.ERROR)
    self.directory = Path(directory).absolute()
    policies = ocp.checkpoint_managers.preservation_policy
    keep: list[Any] = [policies.LatestN(keep_last)]
    if keep_every:
      keep.append(policies.EveryNSteps(keep_every))
    self._manager = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
        enable_async_checkpointing=not read_only,
      ),
      item_names=("state", "meta"),
    )

  def latest(self) -> int | None:
    """The newest whole checkpoint's step, or None."""
    return self._manager.latest_step() if self.directory.is_dir() else None

  def steps(self) -> list[int]:
    """The steps of all whole checkpoints, oldest first."""
    return sorted(self._manager.all_steps()) if self.directory.is_dir() else []

  def save(self, state: Any, meta: Meta) -> None:
    """Starts saving. Blocks only while arrays are copied, or while an earlier save still runs.

    Raises:
      UserError: this save or the one before it failed (a full disk, mostly).
    """
    if meta.step in self.steps():
      return
    plain = _plain(state)
    values = dataclasses.asdict(meta) | {"format": FORMAT, "digests": digests(plain)}
    try:
      self._manager.save(
        meta.step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(plain), meta=ocp.args.JsonSave(values)),
        force=True,
      )
    except (OSError, ValueError) as error:
      raise self._failed(error) from error

  def wait(self) -> None:
    """Blocks until what was saved is on disk. Raises UserError if a save failed."""
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError) as error:
      raise self._failed(error) from error

  def _failed(self, error: Exception) -> UserError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
      f"{self.directory}: saving a checkpoint failed ({first[:200]}): free space or check the"
      " folder, then run the same command again: it resumes from the last whole checkpoint"
    )

  def meta(self, step: int) -> Meta:
    """What the checkpoint of a step says of itself. Raises UserError when it can't be read."""
    where = f"{self.directory}/{step}"
    try:
      values = self._read_meta(step)
      if values["format"] != FORMAT:
        raise UserError(
          f"{where}: checkpoint format {values['format']}, this jaxlm reads {FORMAT}: use the jaxlm"
          " that wrote it"
        )
      seal = Seal.from_dict(values["seal"], where)
      return Meta(int(values["step"]), int(values["next_row"]), int(values["seed"]), seal)
    except UserError:
      raise
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise _unreadable(where, error) from error

  def _read_meta(self, step: int) -> dict[str, Any]:
    values = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
    return dict(values["meta"])

  def restore(self, step: int, target: Any) -> Any:
    """The state of a step, laid out as `target`, on whatever mesh the target names.

    Args:
      step: one of steps().
      target: a state of jax.ShapeDtypeStruct with shardings (jax.eval_shape of the init function).
    """
    where = f"{self.directory}/{step}"
    _ignore_late_reads()
    try:
      restored = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_plain(target)))
      )
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise _unreadable(where, error) from error
    self._verify(step, restored["state"])
    return type(target)(**restored["state"])

  def restore_params(self, step: int, target: Any) -> Any:
    """The parameters alone, laid out as the tree `target`: the optimizer's state is not read."""
    where = f"{self.directory}/{step}"
    _ignore_late_reads()
    try:
      # PLACEHOLDER would need the names of the optimizer's leaves; a partial restore does not.
      checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
      restored = checkpointer.restore(
        Path(where) / "state",
        args=ocp.args.PyTreeRestore(
          item={"params": target},
          restore_args=ocp.checkpoint_utils.construct_restore_args({"params": target}),
          partial_restore=True,
        ),
      )
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise _unreadable(where, error) from error
    self._verify(step, {"params": restored["params"]})
    return restored["params"]

  def _verify(self, step: int, tree: dict[str, Any]) -> None:
    """Raises UserError if an array's bits are not those that were saved."""
    where = f"{self.directory}/{step}"
    saved = self._read_meta(step)["digests"]
    wrong = [name for name, digest in digests(tree).items() if saved.get(name) != digest]
    if wrong:
      raise _unreadable(where, ValueError(f"{wrong[0]} holds other bits than were saved"))

  def reached_preemption(self, step: int) -> bool:
    """Whether any host was told to stop, agreed on by all of them (see jax.distributed)."""
    return self._manager.reached_preemption(step)

  def close(self) -> None:
    """Waits for running saves and stops the threads."""
    self._manager.close()


def digests(tree: Any) -> dict[str, int]:
  """A 32-bit digest of each array of a tree, by path: the same on every mesh.

  The sum, modulo 2^32, of each element's bits times an odd number made from its place. Integer sums
  don't depend on their order, so no array is gathered; an odd factor hides no single flipped bit.
  """
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  sharding = getattr(leaves[0][1], "sharding", None)
  mesh: Any = contextlib.nullcontext()
  if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, jax.sharding.Mesh):
    mesh = jax.set_mesh(sharding.mesh)
  with mesh:
    values = jax.device_get(_digest_all([leaf for _, leaf in leaves]))
  return {path_str(path): int(v) for (path, _), v in zip(leaves, values, strict=True)}


@jax.jit
def _digest_all(leaves: list[jax.Array]) -> list[jax.Array]:
  return [_digest(x) for x in leaves]


def _digest(x: jax.Array) -> jax.Array:
  unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
  bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  place, stride = jnp.zeros((1,) * x.ndim, jnp.uint32), 1
  for dim in reversed(range(x.ndim)):
    index = jnp.arange(x.shape[dim], dtype=jnp.uint32) * jnp.uint32(stride % 2**32)
    place = place + index.reshape([-1 if d == dim else 1 for d in range(x.ndim)])
    stride *= x.shape[dim]
  return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def _plain(state: Any) -> dict[str, Any]:
  """A dataclass of arrays as a dict, so that the format on disk is nobody's class."""
  return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


@functools.cache
def _ignore_late_reads() -> None:
  """Keeps a failed restore to one line.

  When one array can't be read, Orbax closes its event loop while TensorStore still reads the
  others; each of these then reports from a thread of its own, where nothing can catch it.
  """
  previous = sys.unraisablehook
  late = ("Event loop is closed", "Encountered error while reading array index")

  def hook(unraisable: "sys.UnraisableHookArgs") -> None:
    if not str(unraisable.exc_value).startswith(late):
      previous(unraisable)

  sys.unraisablehook = hook


def _unreadable(where: str, error: Exception) -> UserError:
  first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
  return UserError(
    f"{where}: the checkpoint can't be read ({first[:300]}): move this folder away to fall back to"
    " the one before it"
  )
