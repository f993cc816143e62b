"""What of a stage's fingerprint is another than it was, in words."""

from collections.abc import Iterator, Mapping
from typing import Any


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
  """In words, what of a fingerprint's parts is another than it was."""
  for key in dict.fromkeys([*before, *now]):
    old, new = before.get(key), now.get(key)
    if old == new:
      continue
    if key.startswith("config"):
      yield from _fields(key, old, new)
    elif key == "upstream":
      yield f"upstream {_short(old)} → {_short(new)}"
    elif key == "tokenizer":
      yield f"the tokenizer {_short(old)} → {_short(new)}"
    elif key == "files" and isinstance(old, dict) and isinstance(new, dict):
      for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
          yield f"files of source {name!r} (names, sizes or times)"
    elif key == "models" and isinstance(old, dict) and isinstance(new, dict):
      for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
          yield f"a model file of op {name!r}"
    elif key.startswith("text of"):
      yield key
    else:
      yield f"{key} {old} → {new}"


def _fields(path: str, old: Any, new: Any) -> Iterator[str]:
  if isinstance(old, dict) and isinstance(new, dict):
    # An op's `version` is of its code; its name and its class are in the path already.
    for key in dict.fromkeys([*old, *new]):
      if old.get(key) == new.get(key) and (key in old) == (key in new):
        continue
      inner = f"{path}[{key!r}]" if path.endswith(("sources", "weights")) else f"{path}.{key}"
      if key not in old:
        yield f"{inner} is new"
      elif key not in new:
        yield f"{inner} is gone"
      elif key == "version" and "op" in new:
        yield f"op version of {path} {old[key]} → {new[key]}"
      else:
        yield from _fields(inner, old[key], new[key])
    return
  before, after = _named(old), _named(new)
  if before is not None and after is not None:
    for name in dict.fromkeys([*before, *after]):
      if name not in after:
        yield f"{path}[{name!r}] is gone"
      elif name not in before:
        yield f"{path}[{name!r}] is new"
      else:
        yield from _fields(f"{path}[{name!r}]", before[name], after[name])
    if [n for n in before if n in after] != [n for n in after if n in before]:
      yield f"the order of {path}"
    return
  yield f"{path} {_value(old)} → {_value(new)}"


def _named(value: Any) -> dict[str, Any] | None:
  """A list of named things by their names; None for anything else."""
  if isinstance(value, list) and value and all(isinstance(v, dict) and "name" in v for v in value):
    return {str(one["name"]): one for one in value}
  return None


def _value(value: Any) -> str:
  text = " ".join(repr(value).split())
  return text if len(text) <= 60 else text[:59] + "…"


def _short(fingerprint: Any) -> str:
  return str(fingerprint)[:8]
