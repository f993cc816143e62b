"""The hosts of one run agree before it starts, or none of them starts.

A host with another config, another version or its own damaged copy of the data would otherwise be
found by a hang: the others wait for it in a collective that it never joins. Here each host learns
what the others have, and all of them end with the same line.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxlm import __version__, configlib, lineage
from jaxlm.errors import UserError

SHOWN = 4  # differences named in the line


def facts(config: Any, **more: Any) -> dict[str, Any]:
  """What must be the same on all hosts of a run. more: what else, as plain JSON values."""
  return {
    "config": configlib.to_dict(config) if dataclasses.is_dataclass(config) else config,
    "jaxlm": f"{__version__} ({lineage.code_fingerprint()[:12]})",
    "jax": jax.__version__,
    **more,
  }


def check(mine: Mapping[str, Any]) -> None:
  """Compares this host's facts with those of all others. Every host of the run must call it.

  Args:
    mine: plain JSON values, nested as one likes.

  Raises:
    UserError: on every host, with the same line: which process has what, and what process 0 has.
  """
  if jax.process_count() == 1:
    return
  _check_devices()
  text = json.dumps(mine, sort_keys=True, ensure_ascii=False)
  digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  found = multihost_utils.process_allgather(digest)
  if (found == found[0]).all():
    return
  everyone = [json.loads(one) for one in _gather(text)]
  parts, seen = [], set()
  for process, one in enumerate(everyone):
    for line in configlib.diff(everyone[0], one):
      key, _, values = line.partition(": ")
      before, _, after = values.partition(" → ")
      if key not in seen:  # the first process that has something else stands for all
        parts.append(f"process {process} has {key}={after}, process 0 has {before}")
      seen.add(key)
  rest = f"; {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
  raise UserError(
    f"the hosts do not agree: {'; '.join(parts[:SHOWN])}{rest}: start every process with the same"
    " command and the same installation"
  )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """What fails inside on one host fails on all: each raises the UserError of the first.

  Nothing inside may wait for other hosts. An exception that is no UserError is raised as it is
  where it occurred, and named in a UserError by the others.
  """
  failure: Exception | None = None
  try:
    yield
  except Exception as error:
    failure = error
  if jax.process_count() > 1:
    is_bug = failure is not None and not isinstance(failure, UserError)
    kind = f"{type(failure).__name__}: " if is_bug else ""
    texts = _gather("" if failure is None else f"{kind}{failure}" or "?")
    first = next((i for i, text in enumerate(texts) if text), None)
    if first is not None and not is_bug:
      everywhere = all(text == texts[first] for text in texts)
      raise UserError(texts[first] if everywhere else f"process {first}: {texts[first]}")
  if failure is not None:
    raise failure


def _check_devices() -> None:
  """Hosts with a device missing: JAX's own collectives would fail without naming them."""
  counts = [0] * jax.process_count()
  for device in jax.devices():
    counts[device.process_index] += 1
  for process, count in enumerate(counts):
    if count != counts[0]:
      raise UserError(
        f"process {process} has {count} devices, process 0 has {counts[0]}: look for a device that"
        " failed, or start every process with as many"
      )


def _gather(text: str) -> list[str]:
  """The text of every process, in their order."""
  mine = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.array([mine.size], np.int32))[:, 0]
  padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
  padded[: mine.size] = mine
  everyone = multihost_utils.process_allgather(padded)
  return [bytes(row[:n]).decode() for row, n in zip(everyone, lengths, strict=True)]
