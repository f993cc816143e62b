"""A published checkpoint: tensors, config, tokenizer, chat template, generation config."""

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.interop import tokenizer_files
from jaxlm.interop.hf_folder import Folder, read_json, sha256_file
from jaxlm.interop.tensors import Tensors, open_tensors
from jaxlm.tokenizers.base import Tokenizer, load_tokenizer
from jaxlm.tokenizers.symbols import control_ids

GENERATION = "generation_config.json"
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclasses.dataclass
class Bundle:
  """What is converted.

  Attributes:
    tensors: opened.
    files: of the tokenizer, by name, as Hugging Face has them; may be empty.
    generation: generation_config.json; may be empty.
    sources: path → sha256 of every file that weights were read from.
  """

  tensors: Tensors
  files: dict[str, bytes]
  generation: dict[str, Any]
  sources: dict[str, str]

  def chat_template(self) -> str | None:
    """The chat template, if there is one."""
    if tokenizer_files.TEMPLATE in self.files:
      return self.files[tokenizer_files.TEMPLATE].decode("utf-8", "replace")
    found = tokenizer_config(self.files).get("chat_template")
    if isinstance(found, list):  # several, each with a name
      named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
      found = named.get("default")
    return found if isinstance(found, str) else None

  def stop_ids(self) -> list[int]:
    """The ids that end an answer, as generation_config.json and config.json say."""
    found = self.generation.get("eos_token_id", self.tensors.config.get("eos_token_id"))
    return [i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int)]

  def tokenizer(self) -> Tokenizer:
    """The tokenizer as jaxlm's. Raises UserError where jaxlm has none like it, or there is none."""
    return load_files(self.files, self.tensors.where)

  def begin_ids(self, tokenizer: Tokenizer) -> list[int]:
    """What stands before every text in this model; see the function of that name."""
    return begin_ids(self.files, control_ids(tokenizer))


def open_bundle(path: str | Path, tokenizer: str | Path | None = None) -> Bundle:
  """Opens a Hugging Face folder or a GGUF file.

  Args:
    path: see interop.tensors.open_tensors.
    tokenizer: a folder (or a file in it) whose tokenizer is taken instead.
  """
  root, tensors = Path(path), open_tensors(path)
  generation: dict[str, Any] = {}
  if isinstance(tensors, Folder):
    files = tokenizer_files.read_files(root)
    if (root / GENERATION).is_file():
      generation = read_json(root / GENERATION)
    weights = tensors.files
  else:
    from jaxlm.interop import gguf_import, gguf_tokenizer

    assert isinstance(tensors, gguf_import.GgufTensors)
    weights = [root]
    files = {} if tokenizer is not None else gguf_tokenizer.files_of(tensors.file)
  if tokenizer is not None:
    own = Path(tokenizer)
    files = tokenizer_files.read_files(own if own.is_dir() else own.parent)
    if not files:
      raise UserError(f"--tokenizer={tokenizer}: none of {', '.join(tokenizer_files.FILES)} there")
  sums = {str(file): sha256_file(file) for file in weights}
  return Bundle(tensors, files, generation, sums)


def tokenizer_config(files: Mapping[str, bytes]) -> dict[str, Any]:
  """tokenizer_config.json over special_tokens_map.json; tokens as their text."""
  out: dict[str, Any] = {}
  for name in ("special_tokens_map.json", "tokenizer_config.json"):
    try:
      values = json.loads(files.get(name, b"{}"))
    except ValueError as e:
      raise UserError(f"{name}: not JSON ({e}); correct it") from None
    out |= values if isinstance(values, dict) else {}
  for key in _TOKENS:
    if isinstance(out.get(key), dict):
      out[key] = out[key].get("content")
  return out


def named_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
  """bos_token and so on, as far as the files name them."""
  config = tokenizer_config(files)
  return {key: config[key] for key in _TOKENS if isinstance(config.get(key), str)}


def begin_ids(files: Mapping[str, bytes], ids: Mapping[str, int]) -> list[int]:
  """The ids that transformers puts before a text: BOS, where the model was trained with one.

  As transformers 5.23 does it: the post-processor in tokenizer.json says so; where there is no
  tokenizer.json, add_bos_token of tokenizer_config.json, without which a SentencePiece model has a
  BOS (as in llama.cpp).

  Args:
    ids: name → id of the control symbols.
  """
  config = tokenizer_config(files)
  data = files.get("tokenizer.json")
  try:
    values = json.loads(data or b"{}")
  except ValueError:  # then the tokenizer came from another file
    data, values = None, {}
  if data is not None:
    return [] if values.get("post_processor") is None else _template_ids(values)
  if not config.get("add_bos_token", "tokenizer.model" in files):
    return []
  found = ids.get(config.get("bos_token") or "<s>")
  return [] if found is None else [found]


def _template_ids(values: Mapping[str, Any]) -> list[int]:
  """What a tokenizer.json's post-processor puts before a text."""
  import tokenizers

  one = tokenizers.Tokenizer.from_str(json.dumps(values))
  one.no_truncation()
  one.no_padding()
  encoding = one.encode("a")
  added = encoding.special_tokens_mask
  return encoding.ids[: added.index(0) if 0 in added else 0]


def load_files(files: Mapping[str, bytes], where: str) -> Tokenizer:
  """The tokenizer in these files: a lossless one if there is one."""
  if not files:
    raise UserError(f"{where}: no tokenizer there: name one with --tokenizer=PATH")
  with tempfile.TemporaryDirectory() as folder:
    for name, data in files.items():
      (Path(folder) / name).write_bytes(data)
    try:
      return load_tokenizer(folder)
    except UserError as error:
      first = str(error).replace(f"{folder}/", "").replace(folder, where)
    # A SentencePiece model that was also written as tokenizer.json is better taken as it was.
    model = Path(folder) / "tokenizer.model"
    both = "tokenizer.model" in files and "tokenizer.json" in files
    for path, lossy in ((model, False), (Path(folder), True), (model, True)):
      if path != model or both:
        try:
          return load_tokenizer(path, lossy=lossy)
        except UserError:
          pass
  raise UserError(f"{where}: {first}")
