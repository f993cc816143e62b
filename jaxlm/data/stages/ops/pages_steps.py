"""Pages to text by resiliparse or trafilatura, and repair of characters by ftfy."""

import abc
import re
import unicodedata
from multiprocessing import Pipe, Process
from typing import Any, Literal

from datatrove.data import Document
from datatrove.pipeline.extractors.base import ExtractorSandbox

from jaxlm.data.stages.ops.base import OpContext
from jaxlm.data.stages.ops.pages import ExtractConfig, FixTextConfig, Normalization
from jaxlm.data.stages.ops.steps import Op
from jaxlm.data.stages.stage_io import Count
from jaxlm.errors import UserError

_START_S = 120.0


class _Extract(Op):
  @abc.abstractmethod
  def extract(self, text: str) -> str:
    """The text of a page; empty where there is none."""

  def judge(self, document: Document, count: Count) -> str | None:
    if document.metadata.get("format") != "html":
      return None
    text = self.extract(document.text).strip()
    if not text:
      return "no text"
    document.text = text
    del document.metadata["format"]  # it is no page any more
    return None


class ResiliparseExtract(_Extract):
  """resiliparse, in this process."""

  def extract(self, text: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(
      text, main_content=True, alt_texts=False, links=False, form_fields=False
    )


class _Sandbox(ExtractorSandbox):
  """datatrove's child process, whose start-up does not count against the first page.

  With datatrove's own, a child that is slow to start, or that dies for want of a package, makes
  every page a "timeout".
  """

  process: Process | None

  def _ensure_process(self, extract_fn: Any) -> None:
    if self.process is not None and self.process.is_alive():
      return
    self._cleanup_process()
    self.parent_conn, self.child_conn = Pipe()
    self.process = Process(target=self._worker, args=(self.child_conn, extract_fn), daemon=True)
    self.process.start()
    self.child_conn.close()  # the child has its own; with two the end of it is never seen
    try:
      if not self.parent_conn.poll(_START_S):
        raise EOFError(f"not within {_START_S:.0f} s")
      self.parent_conn.recv()
    except EOFError as error:
      self._cleanup_process()
      raise UserError(
        f"trafilatura's process did not start ({error or 'it died'}); check that its packages are "
        "whole: pip install --force-reinstall trafilatura lxml lxml_html_clean"
      ) from None


class _Trafilatura:
  """Called in the child; an exception is a result there, since it would end the child."""

  def __init__(self, favour_precision: bool):
    self.favour_precision = favour_precision

  def __call__(self, text: str) -> str | Exception:
    from trafilatura import extract

    if not text:  # the sandbox's warm-up
      return ""
    try:
      # deduplicate=True, datatrove's choice, remembers earlier pages: the result would hang on
      # which pages the same process saw before.
      found = extract(
        text, favor_precision=self.favour_precision, include_comments=False, deduplicate=False
      )
      return found or ""
    except Exception as error:
      return error


class TrafilaturaExtract(_Extract):
  """trafilatura, in a child process that is killed when a page takes too long."""

  def __init__(self, context: OpContext, config: ExtractConfig):
    super().__init__(context)
    self.timeout_s = config.timeout_s
    self.call: Any = _Trafilatura(config.favour_precision)
    self._sandbox: _Sandbox | None = None

  def start(self) -> None:
    try:
      import trafilatura  # noqa: F401  # here, so that the child finds it imported
    except ImportError as error:
      raise UserError(
        f"trafilatura can not be imported ({error}): pip install trafilatura lxml_html_clean, or "
        "set engine=RESILIPARSE"
      ) from None
    self._sandbox = _Sandbox(self.timeout_s)
    self._sandbox._ensure_process(self.call)

  def extract(self, text: str) -> str:
    assert self._sandbox is not None
    try:
      return self._sandbox.process_document(text, self.call)
    except EOFError:
      raise ChildProcessError("trafilatura's process died on the page (out of memory?)") from None

  def end(self, rank: int) -> None:
    if self._sandbox is not None:
      self._sandbox._cleanup_process()
      self._sandbox = None


# C0 without \t and \n, DEL, C1, the byte order mark: what makes ftfy worth calling on ASCII text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")


class FixText(Op):
  """ftfy, a normal form and control characters."""

  def __init__(self, context: OpContext, config: FixTextConfig):
    super().__init__(context)
    self.config = config

  def judge(self, document: Document, count: Count) -> str | None:
    text = self.fix(document.text)
    if text != document.text:
      count.extra["changed"] += 1
      document.text = text
    return None if text.strip() else "empty"

  def fix(self, text: str) -> str:
    """The text repaired."""
    # Nine documents of ten: ASCII has one decoding and one normal form.
    if text.isascii() and not _CONTROL.search(text):
      return text
    import ftfy

    config, control = self.config, self.config.control_characters
    settings = ftfy.TextFixerConfig(
      unescape_html=False,
      fix_encoding=config.mojibake,
      restore_byte_a0=config.mojibake,
      replace_lossy_sequences=config.mojibake,
      decode_inconsistent_utf8=config.mojibake,
      fix_c1_controls=config.mojibake,
      fix_latin_ligatures=False,
      fix_character_width=False,
      uncurl_quotes=False,
      fix_line_breaks=control,
      remove_terminal_escapes=control,
      remove_control_chars=control,
      normalization=None,
      explain=False,
    )
    text = ftfy.fix_text(text, settings)
    if control:
      text = _CONTROL.sub("", text)
    if config.normalization is not Normalization.NONE:
      form: Literal["NFC", "NFKC"] = "NFC" if config.normalization is Normalization.NFC else "NFKC"
      text = unicodedata.normalize(form, text)
    return text
