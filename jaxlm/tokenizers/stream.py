"""Ids to text as they come, for generation that is shown while it goes on."""

import codecs
from collections.abc import Iterable

from jaxlm.tokenizers.base import Tokenizer


class StreamDecoder:
  """Gives the text of ids piece by piece; joined, the pieces are decode of all ids.

  An id may end in the middle of a character: its bytes wait for the rest.
  """

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

  def push(self, ids: Iterable[int]) -> str:
    """The characters that are complete now."""
    return self._decoder.decode(self._tokenizer.decode_bytes(ids))

  def finish(self) -> str:
    """What was left, U+FFFD for a character that never ended; the decoder begins anew."""
    text = self._decoder.decode(b"", final=True)
    self._decoder.reset()
    return text
