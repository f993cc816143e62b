"""What a tracker is, and how a failing one is kept from stopping the training."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

logger = logging.getLogger("jaxlm.tracking")


class Tracker(Protocol):
  """Takes a run's numbers. Made on one process only: the others use NoTracker."""

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Records numbers at a step."""

  def log_config(self, config: Mapping[str, Any]) -> None:
    """Records the run's config (plain JSON values, secrets redacted)."""

  def close(self) -> None:
    """Writes what is still held back."""


class NoTracker:
  """Records nothing."""

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Nothing."""

  def log_config(self, config: Mapping[str, Any]) -> None:
    """Nothing."""

  def close(self) -> None:
    """Nothing."""


class Composite:
  """Several trackers; one that fails is reported once and dropped (or kept, if `essential`)."""

  def __init__(self, trackers: Mapping[str, Tracker], essential: Sequence[str] = ()):
    self._trackers = dict(trackers)
    self._essential = frozenset(essential)
    self._reported: set[str] = set()

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Sends the values, as Python floats, to each tracker."""
    plain = {name: float(value) for name, value in values.items()}
    self._each(lambda tracker: tracker.log(step, plain))

  def log_config(self, config: Mapping[str, Any]) -> None:
    """Sends the config, with secrets redacted, to each tracker."""
    safe = redact(config)
    self._each(lambda tracker: tracker.log_config(safe))

  def close(self) -> None:
    """Closes each tracker."""
    self._each(lambda tracker: tracker.close())

  def _each(self, call: Any) -> None:
    for name, tracker in list(self._trackers.items()):
      try:
        call(tracker)
      except Exception as error:  # whatever a tracker's network or disk does, training goes on
        report_failure(name, error, self._reported, dropped=name not in self._essential)
        if name not in self._essential:
          del self._trackers[name]
      else:
        self._reported.discard(name)


def report_failure(name: str, error: Exception, reported: set[str], *, dropped: bool) -> None:
  """Warns, once until it works again, that a tracker failed."""
  if name not in reported:
    what = "it is dropped" if dropped else "it will be tried again"
    logger.warning("tracker %s failed, %s: %s: %s", name, what, type(error).__name__, error)
  reported.add(name)


_SECRET = frozenset({"key", "token", "secret", "password", "passwd", "credential", "apikey"})
_USERINFO = re.compile(r"(\w+://)[^/@\s]+@")
REDACTED = "(redacted)"


def redact(value: Any, *, secret: bool = False) -> Any:
  """A copy of plain JSON values without secrets.

  Text under a key that has key, token, secret, password… as a whole word is hidden, and so is
  `user:password@` inside URLs. Numbers stay: `num_experts_per_token` is no secret.
  """
  if isinstance(value, Mapping):
    return {key: redact(item, secret=secret or _is_secret(key)) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [redact(item, secret=secret) for item in value]
  if isinstance(value, str):
    return REDACTED if secret and value else _USERINFO.sub(r"\1", value)
  return value


def _is_secret(key: str) -> bool:
  words = re.findall(r"[a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower())
  return not _SECRET.isdisjoint(words)
