"""Chat: a tokenizer's template (Jinja, as Hugging Face has it) rendered safely into ids.

A template is a program that came with a checkpoint: it runs in Jinja's immutable sandbox, in a
process of its own that is ended after TIMEOUT seconds, and makes at most MAX_CHARS characters.

What users write can't leave their message: the names of control tokens in a message stay text. (A
template alone does not see to that: it only joins strings.)
"""

import dataclasses
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.errors import UserError
from jaxlm.tokenizers.base import Tokenizer

TEMPLATE = "chat_template.jinja"
SETTINGS = "chat.json"
MAX_TEMPLATE_CHARS = 1 << 18
MAX_CHARS = 1 << 22
TIMEOUT = 10.0

Messages = Sequence[Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Chat:
  """A chat template and what it needs.

  Attributes:
    template: Jinja.
    tokens: bos_token, eos_token and so on, by these names.
    control: name → id of every control token.
    stop: ids that end an answer.
  """

  template: str
  tokens: Mapping[str, str]
  control: Mapping[str, int]
  stop: frozenset[int]

  def render(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
    """The text of a conversation, as the model was trained on it.

    Args:
      messages: {"role", "content"} each, the roles that the template knows.
      add_generation_prompt: ends where the assistant's answer begins.

    Raises:
      UserError: the template refuses the messages, is broken, takes too long or writes too much.
    """
    variables = {
      "messages": [dict(m) for m in messages],
      "tools": None,  # not undefined, which can't be JSON
      "documents": None,
      "add_generation_prompt": add_generation_prompt,
      **self.tokens,
    }
    return _in_process(self.template, variables)

  def encode(self, messages: Messages, tokenizer: Tokenizer) -> list[int]:
    """The ids of a conversation up to where the answer begins; see `render`."""
    names = "|".join(re.escape(n) for n in sorted(self.control, key=len, reverse=True)) or r"(?!)"
    # While the template runs, a control token's name in a message is a mark that no one can guess.
    mark = f"\ue000{secrets.token_hex(16)}:"
    held: list[str] = []

    def hold(found: re.Match[str]) -> str:
      held.append(found[0])
      return f"{mark}{len(held) - 1}\ue001"

    safe = [{k: re.sub(names, hold, v) for k, v in m.items()} for m in messages]
    ids: list[int] = []
    for part in re.split(f"({names})", self.render(safe)):
      if part in self.control:
        ids.append(self.control[part])
      elif part:
        text = re.sub(re.escape(mark) + r"(\d+)\ue001", lambda found: held[int(found[1])], part)
        ids += tokenizer.encode(text)
    return ids

  def cut(self, ids: Sequence[int]) -> list[int]:
    """An answer's ids up to the first that ends it."""
    end = next((i for i, token in enumerate(ids) if token in self.stop), len(ids))
    return list(ids[:end])


def save_chat(
  directory: Path, template: str, tokens: Mapping[str, str], stop: Sequence[int]
) -> None:
  """Writes a template into a tokenizer's directory, which is copied from run to run.

  tokens: see Chat. stop: ids that end an answer beside eos_token's.
  """
  (directory / TEMPLATE).write_text(template, encoding="utf-8")
  values = {"tokens": dict(tokens), "stop": sorted(set(stop))}
  (directory / SETTINGS).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_chat(directory: Path, tokenizer: Tokenizer) -> Chat:
  """The chat template in a tokenizer's directory.

  Raises:
    UserError: there is none, or it can't be read.
  """
  try:
    template = (directory / TEMPLATE).read_text(encoding="utf-8")
  except OSError:
    raise UserError(
      f"{directory}: its tokenizer has no chat template: use --prompt, or put {TEMPLATE} there"
    ) from None
  if len(template) > MAX_TEMPLATE_CHARS:
    raise UserError(f"{directory / TEMPLATE}: longer than {MAX_TEMPLATE_CHARS} characters")
  values: dict[str, Any] = {}
  if (directory / SETTINGS).is_file():
    try:
      values = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
      tokens = {str(k): str(v) for k, v in values.get("tokens", {}).items()}
      stop = {int(i) for i in values.get("stop", [])}
    except (ValueError, AttributeError, TypeError) as e:
      raise UserError(f"{directory / SETTINGS}: damaged ({e}); remove or correct it") from None
  else:
    tokens, stop = {}, set()
  control = control_tokens(tokenizer)
  by_id = {i: name for name, i in control.items()}
  if tokenizer.eos_id in by_id:
    tokens.setdefault("eos_token", by_id[tokenizer.eos_id])
  for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
    tokens.setdefault(name, "")
  if tokens["eos_token"] in control:
    stop.add(control[tokens["eos_token"]])
  return Chat(template, tokens, control, frozenset(stop | {tokenizer.eos_id}))


def control_tokens(tokenizer: Tokenizer) -> dict[str, int]:
  """Name → id of a tokenizer's control tokens; empty where it gives them no names."""
  one: Any = tokenizer
  if tokenizer.kind == "huggingface":
    return {t["content"]: t["id"] for t in one.values.get("added_tokens") or [] if t["special"]}
  if tokenizer.kind == "tiktoken":
    return dict(one.settings["special_tokens"])
  if tokenizer.kind == "sentencepiece":
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=one.model)
    return {
      processor.id_to_piece(i): i for i in range(processor.vocab_size()) if processor.is_control(i)
    }
  return {}


def _in_process(template: str, variables: Mapping[str, Any]) -> str:
  """Renders in another process, which alone can be stopped in the midst of an endless loop."""
  source = json.dumps([template, variables, MAX_CHARS])
  try:
    done = subprocess.run(
      [sys.executable, "-I", str(Path(__file__).with_name("chat_sandbox.py"))],
      input=source.encode("utf-8", "surrogatepass"),
      capture_output=True,
      timeout=TIMEOUT,
      check=False,
    )
  except subprocess.TimeoutExpired:
    raise UserError(f"the chat template took longer than {TIMEOUT:g} s: correct it") from None
  try:
    answer = json.loads(done.stdout)
  except ValueError:
    raise UserError("the chat template ended its process (memory or time): correct it") from None
  if "error" in answer:
    raise UserError(f"the chat template refuses: {answer['error'][:300]}")
  return answer["text"]
