"""Masked tokens, fill-in-the-middle and prefix-LM: which ids and weights the rows get."""

import numpy as np
import pytest

from jaxlm.data.config import DataConfig, SyntheticConfig, TokenShardsConfig
from jaxlm.data.fim import FillInTheMiddle, rearrange, restore
from jaxlm.data.mlm import Masking
from jaxlm.data.pipeline import build_pipeline, evaluation_batches
from jaxlm.data.prefix import Prefix
from jaxlm.data.prep.config import TokenizerKind, TokenizerTrainConfig
from jaxlm.data.prep.train_tokenizer import train_any
from jaxlm.data.rows import batch_from_rows
from jaxlm.data.task import (
  FillInTheMiddleConfig,
  FimSplit,
  MaskedConfig,
  PrefixConfig,
  Vocabulary,
)
from jaxlm.errors import UserError
from jaxlm.tokenizers.byte import ByteTokenizer
from jaxlm.tokenizers.symbols import control_ids

EOS, T = 256, 64
BYTES = Vocabulary(257, EOS, ByteTokenizer())


def rows_of(text, count=1, width=T + 1):
  ids = list((text.encode() * width * count)[: width * count])
  return np.array(ids, np.int32).reshape(count, width)


def masked(config, rows, numbers=None, vocabulary=BYTES, seed=0):
  task = Masking(config, vocabulary, seed)
  batch = batch_from_rows(rows, EOS)
  original = batch["inputs"].copy()
  numbers = np.arange(len(rows), dtype=np.uint64) if numbers is None else numbers
  task.on_batch(batch, numbers)
  return task, original, batch


def random_rows(count=400):
  rng = np.random.default_rng(0)
  rows = rng.integers(0, 256, (count, T + 1)).astype(np.int32)
  rows[rng.random(rows.shape) < 0.03] = EOS
  return rows


def test_shares_of_masking():
  """15 % of each row, of which 80 % masked, 10 % random, 10 % as they are; never EOS."""
  rows = random_rows()
  task, original, batch = masked(MaskedConfig(), rows)
  chosen = batch["loss_weights"] > 0
  eligible = original != EOS
  np.testing.assert_array_equal(chosen.sum(1), np.rint(0.15 * eligible.sum(1)))
  assert not chosen[~eligible].any()
  np.testing.assert_array_equal(batch["targets"], original)
  np.testing.assert_array_equal(batch["inputs"][~chosen], original[~chosen])
  shown = batch["inputs"][chosen]
  assert task.mask_id == 257 and task.added == 1
  assert abs((shown == 257).mean() - 0.8) < 0.03
  kept = (shown == original[chosen]).mean()
  assert abs(kept - 0.1) < 0.02
  assert not (shown == EOS).any()  # nor is it what a random token becomes
  # Every place is as likely as every other.
  assert abs(chosen[:, : T // 2].mean() - chosen[:, T // 2 :].mean()) < 0.02


def test_masks_are_of_the_row_number_alone():
  """A row has its mask in whatever batch it comes; another number or seed gives another."""
  rows = random_rows(8)
  whole = masked(MaskedConfig(), rows)[2]
  numbers = np.arange(8, dtype=np.uint64)
  part = masked(MaskedConfig(), rows[5:], numbers[5:])[2]
  for key in whole:
    np.testing.assert_array_equal(whole[key][5:], part[key])
  for other in (
    masked(MaskedConfig(), rows, numbers + 8)[2],
    masked(MaskedConfig(), rows, seed=1)[2],
  ):
    assert (other["loss_weights"] != whole["loss_weights"]).any()


def test_whole_words():
  """All bytes of a word are chosen or none, up to the share of the row."""
  rows = rows_of("the quick_brown fox; jümps over lazy2 dogs. ", 50)
  _, original, batch = masked(MaskedConfig(whole_words=True, rate=0.3), rows)
  chosen = batch["loss_weights"] > 0

  def inside(byte):
    return byte >= 128 or chr(byte).isalnum() or byte == ord("_")

  split = 0
  for ids, row in zip(original, chosen):
    assert row.sum() <= round(0.3 * T)
    for t in range(1, T):
      if inside(ids[t - 1]) and inside(ids[t]):
        assert row[t] == row[t - 1]
      else:
        split += row[t] != row[t - 1]
  assert split > 50
  assert chosen.mean() > 0.2
  single = masked(MaskedConfig(rate=0.3), rows)[2]["loss_weights"]
  assert (single != chosen).any()


def test_whole_words_fill_the_share_of_short_rows():
  """A word that no longer fits is passed over and the next one tried, and each row has one at
  least; broken by stopping at the first that does not fit, which left rows without a target and
  hardly ever chose a long word."""
  text = "an interpretation of it is as long as extraordinarily thorough is; so we go on at it "
  rows = np.stack([np.roll(rows_of(text, 1, len(text))[0], -7 * i)[:33] for i in range(600)])
  rate = 0.15
  _, _, batch = masked(MaskedConfig(whole_words=True, rate=rate), rows)
  chosen = batch["loss_weights"] > 0
  assert chosen.any(1).all()
  assert 0.8 * rate < chosen.mean() < 1.3 * rate
  # A row of one word longer than the share still has it.
  word = np.full((4, 33), ord("a"), np.int32)
  _, _, batch = masked(MaskedConfig(whole_words=True, rate=rate), word)
  assert (batch["loss_weights"] > 0).all()


TEXTS = ["the first text has some words, which are many\n", "def f(x):\n  return x + 1\n"] * 40


def trained(kind, *symbols):
  config = TokenizerTrainConfig(kind=kind, control_symbols=symbols)
  return train_any(TEXTS, config, 320)


@pytest.mark.parametrize("kind", [TokenizerKind.SENTENCEPIECE, TokenizerKind.HUGGINGFACE])
def test_symbols_of_the_tokenizer_are_used(kind):
  fim = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
  tokenizer = trained(kind, "[MASK]", *fim)
  known = control_ids(tokenizer)
  ids = Vocabulary(tokenizer.vocab_size, tokenizer.eos_id, tokenizer)
  masking = Masking(MaskedConfig(), ids, 0)
  assert (masking.mask_id, masking.added) == (known["[MASK]"], 0)
  middle = FillInTheMiddle(FillInTheMiddleConfig(), ids, 0)
  assert middle.symbols == tuple(known[name] for name in fim)
  assert middle.added == 0
  with pytest.raises(UserError, match="no such control symbol"):
    Masking(MaskedConfig(symbol="<nothing>"), ids, 0)


class _Lossy(ByteTokenizer):
  lossless = False


def test_what_a_task_lacks_is_said():
  with pytest.raises(UserError, match=r"CHARACTER.*use TOKEN"):  # else each piece gains a space
    fim = FillInTheMiddleConfig(split=FimSplit.CHARACTER)
    FillInTheMiddle(fim, Vocabulary(257, EOS, _Lossy()), 0)
  blind = Vocabulary(50, 0, None)
  with pytest.raises(UserError, match="whole_words"):
    Masking(MaskedConfig(whole_words=True), blind, 0)
  with pytest.raises(UserError, match="split=CHARACTER"):
    FillInTheMiddle(FillInTheMiddleConfig(split=FimSplit.CHARACTER), blind, 0)
  for task in (MaskedConfig(rate=0.0), MaskedConfig(mask=0.9, random=0.2), PrefixConfig(rate=2.0)):
    with pytest.raises(UserError, match="task"):
      task.validate("config.data.task")


# ---- fill in the middle -----------------------------------------------------------------------


@pytest.mark.parametrize("spm", [False, True])
@pytest.mark.parametrize("cuts", [(0, 0), (0, 10), (3, 7), (10, 10)])
def test_restore_is_the_inverse(spm, cuts):
  ids, symbols = np.arange(10), (90, 91, 92)
  a, b = cuts
  changed = rearrange(ids[:a], ids[a:b], ids[b:], symbols, spm=spm)
  assert changed.size == 13
  np.testing.assert_array_equal(restore(changed, symbols), ids)
  np.testing.assert_array_equal(restore(ids, symbols), ids)


@pytest.mark.parametrize("split", FimSplit)
def test_documents_come_back(split):
  """Each document, restored, is itself less its last three tokens; EOS and the rest stay put."""
  text = "naïve café, “quoted” — ünïcode and plain words 日本語. "
  rows = np.frombuffer((text.encode() * 40)[: 20 * (T + 1)], np.uint8).astype(np.int32)
  rows = rows.reshape(20, T + 1).copy()
  rows[:, [4, 30]] = EOS
  task = FillInTheMiddle(FillInTheMiddleConfig(rate=0.7, split=split), BYTES, 0)
  changed = task.on_rows(rows, np.arange(20, dtype=np.uint64))
  np.testing.assert_array_equal(changed == EOS, rows == EOS)
  np.testing.assert_array_equal(changed[:, :4], rows[:, :4])  # too short to be cut
  seen, orders = 0, set()
  for before, after in zip(rows, changed):
    for part in (slice(5, 30), slice(31, T + 1)):
      found = restore(after[part], task.symbols)
      if after[part][0] == task.symbols[0]:
        seen += 1
        orders.add(int(after[part][1] == task.symbols[1]))
        np.testing.assert_array_equal(found, before[part][:-3])
      else:
        np.testing.assert_array_equal(found, before[part])
  assert 18 <= seen <= 36 and orders == {0, 1}
  batch = batch_from_rows(changed, EOS)
  task.on_batch(batch, np.arange(20, dtype=np.uint64))
  np.testing.assert_array_equal(batch["loss_weights"] == 0, np.isin(batch["targets"], task.symbols))


def test_character_cuts_are_encoded_again():
  """The pieces are what the tokenizer makes of them alone, not slices of the whole's tokens."""
  tokenizer = trained(TokenizerKind.SENTENCEPIECE)
  ids = Vocabulary(tokenizer.vocab_size, tokenizer.eos_id, tokenizer)
  text = "".join(TEXTS[:4])
  row = np.asarray(tokenizer.encode(text), np.int32)[None]
  task = FillInTheMiddle(FillInTheMiddleConfig(rate=1.0, split=FimSplit.CHARACTER), ids, 0)
  re_encoded = 0
  for number in range(30):
    changed = task.on_rows(row, np.array([number], np.uint64))[0]
    back = restore(changed, task.symbols)
    assert text.startswith(tokenizer.decode(back.tolist()))
    re_encoded += not np.array_equal(back, row[0][: back.size])
  assert re_encoded > 10


# ---- prefix -----------------------------------------------------------------------------------


def test_prefixes():
  """A prefix begins its document; loss is on every target outside of it, and on no other."""
  rows = random_rows(100)
  batch = batch_from_rows(rows, EOS)
  Prefix(PrefixConfig(rate=0.8), 0).on_batch(batch, np.arange(100, dtype=np.uint64))
  prefix, segments = batch["prefix"], batch["segment_ids"]
  lengths = []
  for b in range(100):
    for s in range(1, segments[b].max() + 1):
      own = np.flatnonzero(segments[b] == s)
      if not own.size:
        continue  # a row that begins with EOS has no document 1
      p = prefix[b, own]
      assert (np.diff(p) <= 0).all() and p[-1] == 0
      lengths.append(p.sum() / own.size)
      # Input t predicts what stands at t + 1 of its document.
      expected = np.append(p[1:], 0) == 0
      np.testing.assert_array_equal(batch["loss_weights"][b, own] > 0, expected)
  assert np.mean(np.array(lengths) > 0) > 0.5
  assert 0.2 < np.mean(lengths) < 0.5


# ---- in the pipeline --------------------------------------------------------------------------

SOURCE = SyntheticConfig(name="ids", vocab_size=100, num_rows=20, document_len=30)


@pytest.mark.parametrize(
  "task",
  [MaskedConfig(), FillInTheMiddleConfig(rate=0.9), PrefixConfig()],
  ids=lambda t: type(t).__name__,
)
def test_any_start_host_and_batch_size_gives_the_same_rows(task):
  """So a resumed run is bit for bit the same; epochs differ; the fingerprint knows the task."""
  config = DataConfig(seq_len=T, sources=[SOURCE], task=task)
  pipeline = build_pipeline(config)

  def take(steps, *args):
    with pipeline.iterator(*args) as batches:
      found = [next(batches) for _ in range(steps)]
    return {k: np.concatenate([b[k] for b in found]) for k in found[0]}

  whole = take(10, 4)  # two epochs
  later = take(4, 8, 8)
  for key, values in whole.items():
    np.testing.assert_array_equal(values[8:], later[key], err_msg=key)
    np.testing.assert_array_equal(values[4:8][2:], take(1, 4, 4, 1, 2)[key])
  plain = build_pipeline(DataConfig(seq_len=T, sources=[SOURCE]))
  assert plain.fingerprint() != pipeline.fingerprint()
  assert pipeline.vocab_size == 100 + {MaskedConfig: 1, FillInTheMiddleConfig: 3}.get(type(task), 0)
  # The second epoch has the same rows in another order, and asks something else of them.
  kinds = [
    {r.tobytes() for r in whole["loss_weights"][part]} for part in (slice(20), slice(20, 40))
  ]
  assert kinds[0] != kinds[1]


def test_masked_evaluation_is_fixed():
  """The same tokens are asked for at every evaluation, whatever the batch; padding never is."""
  source = SOURCE.build(T)

  def take(batch_size):
    found = list(evaluation_batches(source, batch_size, task=MaskedConfig(), max_rows=7))
    return {k: np.concatenate([b[k] for b in found])[:7] for k in found[0]}

  a, b = take(4), take(7)
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])
  assert 0.1 < (a["loss_weights"] > 0).mean() < 0.2
  fim = next(evaluation_batches(source, 4, task=FillInTheMiddleConfig(rate=1.0)))
  np.testing.assert_array_equal(fim["inputs"], next(evaluation_batches(source, 4))["inputs"])


def test_old_settings_have_no_task():
  config = DataConfig(sources=[TokenShardsConfig(path="somewhere")])
  assert config.task is None
