"""Score documents with a run: how many bits a byte of each it takes, for the op `perplexity`.

usage: python -m jaxlm.score_documents --workdir=DIR [--step=N] < DOCUMENTS > SCORES

A line of DOCUMENTS is a JSON object {"text", "ends"}; ends (true by default) says whether the text
is the whole document, so that its end is to be predicted too. For each the answer is one line,
written at once: {"nll" (nats), "tokens", "bytes" (of UTF-8)}; nll / (ln 2 * bytes) are bits per
byte. The first line, {"step", "seq_len"}, says that the run is open.

A text is cut into windows of the run's seq_len tokens that follow each other. A window is given the
last token of the one before it (the first one EOS) and sees nothing else of it, so every token is
predicted once, those at the beginning of a window from little context. It is how `evaluate` cuts
held-out text: of one document both give the same number.
"""

import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from jaxlm import cli
from jaxlm.errors import UserError

if TYPE_CHECKING:  # imported late: --help answers at once
  import numpy as np

  from jaxlm.evals.perplexity import Score
  from jaxlm.trained import Run

WORKDIR = cli.define_string("workdir", None, "directory of the run", required=True)
STEP = cli.define_integer("step", None, "the checkpoint; by default the newest", lower_bound=0)

ROWS = 8  # windows of a call at most
SHORTEST = 64  # tokens: shorter texts are padded to it


class Scorer:
  """Scores texts with an opened run.

  Raises:
    UserError: the run does not predict the next token.
  """

  def __init__(self, run: "Run"):
    import numpy as np

    from jaxlm.data.task import MaskedConfig
    from jaxlm.evals.perplexity import make_scoring_step
    from jaxlm.models.encoder_config import EncoderConfig
    from jaxlm.program import make_loss_fn
    from jaxlm.training.step import make_eval_step

    model: Any = run.config.model
    if isinstance(model, EncoderConfig) or isinstance(run.config.data.task, MaskedConfig):
      raise UserError(
        f"--workdir={WORKDIR.value}: fills gaps and predicts no next token; name a decoder's run"
      )
    self._run = run
    self._eos = run.tokenizer.eos_id
    # EOS, but for a model that came from elsewhere.
    self._begin = (run.begin or (self._eos,))[-1]
    self._across = run.config.data.attend_across_documents
    self.seq_len = run.config.data.seq_len
    self._step = make_scoring_step(
      make_eval_step(run.model, make_loss_fn(run.config)),
      np.zeros(model.vocab_size, np.int32),  # bytes are the text's own
      run.layout,
    )

  def __call__(self, text: str, ends: bool = True) -> "Score":
    """The score of one text. ends: whether EOS is predicted behind it."""
    import numpy as np

    from jaxlm.evals.perplexity import score

    ids = [self._begin, *self._run.tokenizer.encode(text), *([self._eos] if ends else [])]
    with self._run.layout.activate():
      found = score(
        self._step,
        self._run.params,
        (
          self._batch(part)
          for part in _groups(np.asarray(ids, np.int32), self.seq_len)
          if len(part[0]) > 1
        ),
        self._run.layout,
        use_segments=not self._across,
      )
    return dataclasses.replace(found, bytes=len(text.encode()))

  def _batch(self, windows: "list[np.ndarray]") -> "dict[str, np.ndarray]":
    import numpy as np

    from jaxlm.data.rows import batch_from_rows, clear_padding

    # Of few shapes, since each is compiled: powers of two.
    lengths = np.array([len(window) - 1 for window in windows])
    width = min(self.seq_len, _power(max(SHORTEST, int(lengths.max()))))
    rows = np.zeros((_power(len(windows)), width + 1), np.int32)
    for row, window in zip(rows, windows, strict=False):
      row[: len(window)] = window
    batch = batch_from_rows(rows, self._eos, attend_across_documents=self._across)
    clear_padding(batch, np.pad(lengths, (0, len(rows) - len(windows))))
    return batch


def _groups(ids: "np.ndarray", seq_len: int) -> "list[list[np.ndarray]]":
  """Windows of seq_len + 1 ids, each beginning with the last of the one before; ROWS at a time."""
  windows = [ids[at : at + seq_len + 1] for at in range(0, max(len(ids) - 1, 1), seq_len)]
  return [windows[at : at + ROWS] for at in range(0, len(windows), ROWS)]


def _power(n: int) -> int:
  return 1 << (n - 1).bit_length()


def main() -> int:
  out = _own_stdout()
  from jaxlm import trained

  run = trained.open_run(WORKDIR.value, step=STEP.value)
  scorer = Scorer(run)
  _say(out, {"step": run.step, "seq_len": scorer.seq_len})
  for number, line in enumerate(sys.stdin, 1):
    try:
      asked = json.loads(line)
      text, ends = asked["text"], bool(asked.get("ends", True))
      text.encode()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise UserError(
        f"line {number}: not a JSON object with a field text ({type(error).__name__}: {error})"
      ) from None
    found = scorer(text, ends)
    _say(out, {"nll": found.nll, "tokens": found.tokens, "bytes": found.bytes})
  return cli.OK


def _own_stdout() -> TextIO:
  """Standard output for answers alone: what else is printed there goes to standard error."""
  out = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)
  return out


def _say(out: TextIO, values: dict[str, Any]) -> None:
  out.write(json.dumps(values) + "\n")
  out.flush()


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
