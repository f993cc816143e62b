"""Hugging Face folders: config.json, safetensors (sharded or not), and what lies beside them."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.interop.safetensors_file import NAMES, SafetensorsFile, SafetensorsWriter
from jaxlm.interop.tensors import PICKLES, refused_pickle

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SUMS = "SHA256SUMS"


class Folder:
  """The tensors of a folder; see interop.tensors.Tensors.

  Raises:
    UserError: no config.json, no safetensors, an index that names a file outside the folder, or
      files and index that disagree on what is there.
  """

  def __init__(self, root: Path):
    self.where = str(root)
    self.config = read_json(root / CONFIG)
    self.files: list[Path] = []
    self._files: dict[str, SafetensorsFile] = {}
    if (root / INDEX).is_file():
      self._open_shards(root)
    elif (root / WEIGHTS).is_file():
      self._add(SafetensorsFile(root / WEIGHTS))
    else:
      pickles = sorted(p for p in root.iterdir() if p.suffix in PICKLES)
      named = [p for p in pickles if "model" in p.name] or pickles
      if named:
        raise refused_pickle(named[0])
      raise UserError(f"{root}: holds neither {WEIGHTS} nor {INDEX}: name a folder with weights")

  def _add(self, file: SafetensorsFile) -> None:
    self.files.append(file.path)
    self._files.update(dict.fromkeys(file.entries, file))

  def _open_shards(self, root: Path) -> None:
    index = root / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
      raise UserError(f"{index}: has no weight_map; copy it again")
    for name, shard in places.items():
      plain = isinstance(shard, str) and Path(shard).name == shard
      plain = plain and "\\" not in shard and "\0" not in shard
      if not plain or not shard.endswith(".safetensors"):
        raise UserError(
          f"{index}: tensor {name} is in {shard!r}, which is not the plain name of a safetensors "
          "file in this folder: correct the index"
        )
    for shard in sorted(set(places.values())):
      file = SafetensorsFile(root / shard)
      here = {name for name, place in places.items() if place == shard}
      if missing := sorted(here - set(file.entries)):
        raise UserError(f"{file.path}: has no tensor {missing[0]}, which {INDEX} places there")
      if extra := sorted(set(file.entries) - here):
        raise UserError(f"{file.path}: holds tensor {extra[0]}, which {INDEX} does not place there")
      self._add(file)

  def names(self) -> list[str]:
    return list(self._files)

  def _file(self, name: str) -> SafetensorsFile:
    if name not in self._files:
      raise UserError(f"{self.where}: no tensor {name} there: the checkpoint is not whole")
    return self._files[name]

  def shape(self, name: str) -> tuple[int, ...]:
    return self._file(name).entries[name][1]

  def dtype(self, name: str) -> np.dtype:
    return self._file(name).entries[name][0]

  def read(self, name: str) -> np.ndarray:
    return self._file(name).read(name)


def read_json(file: Path) -> dict[str, Any]:
  """A JSON object from a file, or a UserError."""
  try:
    values = json.loads(file.read_text(encoding="utf-8"))
  except OSError as e:
    raise UserError(f"{file}: {e.strerror or e}: name a Hugging Face folder") from None
  except (ValueError, RecursionError) as e:
    raise UserError(f"{file}: not JSON ({e}); correct or copy it again") from None
  if not isinstance(values, dict):
    raise UserError(f"{file}: holds {type(values).__name__}, not an object; copy it again")
  return values


def both_spellings(config: Mapping[str, Any], dtype: str | None = None) -> dict[str, Any]:
  """A config.json that transformers 4 and 5 read alike.

  rope_theta and rope_scaling are version 4's, rope_parameters (one object, or one for each kind of
  layer) version 5's; torch_dtype became dtype.
  """
  out = dict(config)
  parameters = out.get("rope_parameters")
  if isinstance(parameters, dict) and "full_attention" in parameters:
    wide, near = parameters["full_attention"], parameters.get("sliding_attention")
    out.setdefault("rope_theta", wide["rope_theta"])
    out.setdefault("rope_scaling", _scaling(wide))
    if near is not None:
      out.setdefault("rope_local_base_freq", near["rope_theta"])
  elif isinstance(parameters, dict) and "rope_theta" in parameters:
    out.setdefault("rope_theta", parameters["rope_theta"])
    out.setdefault("rope_scaling", _scaling(parameters))
    if "partial_rotary_factor" in parameters:
      out.setdefault("partial_rotary_factor", parameters["partial_rotary_factor"])
  elif "rope_theta" in out:
    scaling = out.get("rope_scaling")
    new = {"rope_type": "default", **(scaling or {}), "rope_theta": out["rope_theta"]}
    if "type" in new:  # what rope_type was called before 4.45
      new["rope_type"] = new.pop("type")
    if out.get("partial_rotary_factor") is not None:
      new["partial_rotary_factor"] = out["partial_rotary_factor"]
    if "rope_local_base_freq" in out:
      local = {"rope_type": "default", "rope_theta": out["rope_local_base_freq"]}
      out["rope_parameters"] = {"full_attention": new, "sliding_attention": local}
    else:
      out["rope_parameters"] = new
    out.setdefault("rope_scaling", None)
  dtype = dtype or out.get("dtype") or out.get("torch_dtype")
  if dtype is not None:
    out["dtype"] = out["torch_dtype"] = dtype
  return out


def _scaling(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
  left = ("rope_theta", "partial_rotary_factor")
  rest = {key: value for key, value in parameters.items() if key not in left}
  return None if rest.get("rope_type", "default") == "default" else rest


def write_folder(
  path: str | Path,
  config: Mapping[str, Any],
  tensors: Iterable[tuple[str, np.ndarray]],
  *,
  files: Mapping[str, bytes] | None = None,
  shard_bytes: int = 5_000_000_000,
) -> Path:
  """Writes a folder that transformers opens; whole or not at all.

  Args:
    path: a new directory, or an empty one.
    config: written in both spellings; its dtype becomes that of the largest share of the tensors.
    tensors: taken one at a time and dropped once written.
    files: what else is to lie there: plain names and contents.
    shard_bytes: a file is closed before it exceeds this (one tensor alone may).

  Raises:
    UserError: the place is taken or can't be written; a name stands twice; a dtype that
      safetensors lack.
  """
  root = Path(path)
  if not root.name:  # the current directory, which is not to be replaced under whoever is in it
    raise UserError(f"{root}: name a new directory, not the one that you are in")
  if root.exists() and (not root.is_dir() or any(root.iterdir())):
    raise UserError(f"{root}: is there already: name a new or an empty directory")
  fresh = root.with_name(f".{root.name}.partial")
  shutil.rmtree(fresh, ignore_errors=True)
  try:
    fresh.mkdir(parents=True)
    places, totals = _write_shards(fresh, tensors, shard_bytes)
    _name_shards(fresh, places, sum(totals.values()))
    dtype = max(totals, key=lambda key: totals[key], default=np.dtype(np.float32))
    whole = both_spellings(config, dtype.name)
    for name, data in {CONFIG: _json(whole), **(files or {})}.items():
      assert Path(name).name == name, name
      (fresh / name).write_bytes(data)
    write_sums(fresh)
    if root.exists():
      root.rmdir()
    fresh.rename(root)
  except OSError as e:
    raise UserError(f"{root}: {e.strerror or e}: free space or choose another place") from None
  finally:
    shutil.rmtree(fresh, ignore_errors=True)
  return root


def _write_shards(
  root: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> tuple[list[list[str]], dict[np.dtype, int]]:
  """The names in each file 0.part, 1.part, …; bytes of each dtype."""
  shards: list[list[str]] = []
  totals: dict[np.dtype, int] = {}
  seen: set[str] = set()
  writer: SafetensorsWriter | None = None
  for name, array in tensors:
    if name in seen:
      raise UserError(f"{root}: tensor {name} comes twice: the weight map is wrong")
    if array.dtype not in NAMES:
      raise UserError(f"{root}: tensor {name} is {array.dtype}, which safetensors lack: cast it")
    seen.add(name)
    full = writer is not None and (
      writer.nbytes + array.nbytes > shard_bytes or not writer.fits(name, array)
    )
    if writer is None or full:
      if writer is not None:
        writer.close()
      writer = SafetensorsWriter(root / f"{len(shards)}.part")
      shards.append([])
    writer.add(name, array)
    shards[-1].append(name)
    totals[array.dtype] = totals.get(array.dtype, 0) + array.nbytes
    del array  # the next one is made while this name would keep it
  if writer is None:
    raise UserError(f"{root}: no tensors to write")
  writer.close()
  return shards, totals


def _name_shards(root: Path, shards: list[list[str]], total: int) -> None:
  if len(shards) == 1:
    (root / "0.part").rename(root / WEIGHTS)
    return
  places = {}
  for i, names in enumerate(shards):
    file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
    (root / f"{i}.part").rename(root / file)
    places.update(dict.fromkeys(names, file))
  index = {"metadata": {"total_size": total}, "weight_map": places}
  (root / INDEX).write_bytes(_json(index))


def _json(values: Mapping[str, Any]) -> bytes:
  return (json.dumps(values, indent=2) + "\n").encode()


def write_sums(root: Path) -> None:
  """SHA256SUMS of the files of a folder, as sha256sum writes and checks them."""
  lines = [
    f"{sha256_file(file)}  {file.name}\n"
    for file in sorted(root.iterdir())
    if file.is_file() and file.name != SUMS
  ]
  (root / SUMS).write_text("".join(lines), encoding="utf-8")


def sha256_file(file: Path) -> str:
  """sha256 (hex) of a file. Raises UserError where it can't be read."""
  try:
    with file.open("rb") as stream:
      return hashlib.file_digest(stream, "sha256").hexdigest()
  except OSError as e:
    raise UserError(f"{file}: {e.strerror or e}; restore it") from None
