"""The pipeline: rows depend on their number alone; refusals are one line."""

import sys

import numpy as np
import pytest
from absl import flags

from jaxlm.data.config import DataConfig, Phase, SyntheticConfig, TokenShardsConfig
from jaxlm.data.pipeline import build_pipeline
from jaxlm.data.testing import random_documents, write_dataset
from jaxlm.errors import UserError

T = 32
START = 40  # of the second phase; a multiple of no batch size used below


def _config(tmp_path, **overrides):
  sources = []
  for i, name in enumerate(("web", "code", "late")):
    if not (tmp_path / name).exists():
      write_dataset(tmp_path / name, random_documents(i, 30 + 40 * i), shard_tokens=700)
    sources.append(TokenShardsConfig(name=name, path=str(tmp_path / name)))
  values = {
    "seq_len": T,
    "sources": sources,
    "phases": [
      Phase(weights={"web": 0.7, "code": 0.3}),
      Phase(start_row=START, weights={"web": 0.2, "code": 0.3, "late": 0.5}),
    ],
    "block_rows": 4,
    "window_blocks": 3,
  }
  return DataConfig(**(values | overrides))


def _take(iterator, steps):
  with iterator:
    return [next(iterator) for _ in range(steps)]


def _join(batches):
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def _assert_equal(a, b):
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def _global(pipeline, batch_size, start_row, steps, hosts):
  """The global batches, put together from the slices of all hosts."""
  slices = [_take(pipeline.iterator(batch_size, start_row, h, hosts), steps) for h in range(hosts)]
  assert all(b["inputs"].shape == (batch_size // hosts, T) for s in slices for b in s)
  return _join([_join([s[step] for s in slices]) for step in range(steps)])


def test_hosts_batch_size_and_weights_may_change_on_the_way(tmp_path):
  """2 hosts, then 4 with another batch size after a weight change, then 1 = one uninterrupted run.

  Breaks where a row depends on anything but its global number.
  """
  one = _take(build_pipeline(_config(tmp_path, num_threads=0)).iterator(4), 42)
  before = build_pipeline(_config(tmp_path, phases=_config(tmp_path).phases[:1]))
  parts = [_global(before, 8, 0, 5, 2)]
  after = build_pipeline(_config(tmp_path, num_threads=3))
  parts.append(_global(after, 12, 40, 4, 4))
  parts.append(_global(after, 20, 88, 4, 1))
  assert before.fingerprint(40) == after.fingerprint(40)
  _assert_equal(_join(parts), _join(one))


def test_state_is_the_number_of_rows(tmp_path):
  """Resuming at next_row goes on with the next batch, prefetched or not."""
  pipeline = build_pipeline(_config(tmp_path))
  iterator = pipeline.iterator(4)
  first = [next(iterator) for _ in range(3)]
  assert iterator.next_row == 12
  rest = _take(pipeline.iterator(4, iterator.next_row), 3)
  iterator.close()
  _assert_equal(_join(first + rest), _join(_take(pipeline.iterator(4), 6)))


def test_worker_processes_give_the_same_rows(tmp_path, monkeypatch):
  """Breaks where a worker's copy of a source, or its share of the batches, differs."""
  monkeypatch.setattr(sys, "argv", ["test"])
  if not flags.FLAGS.is_parsed():
    with pytest.raises(UserError, match=r"data.num_workers: worker processes need parsed flags"):
      build_pipeline(_config(tmp_path, num_workers=1)).iterator(4)
    flags.FLAGS(["test"])
  expected = _take(build_pipeline(_config(tmp_path)).iterator(4, 36), 5)
  for workers in (1, 2):
    found = _take(build_pipeline(_config(tmp_path, num_workers=workers)).iterator(4, 36), 5)
    _assert_equal(_join(found), _join(expected))
  file = tmp_path / "web/train/shard-00000.bin"
  file.write_bytes(b"\xff" * file.stat().st_size)
  with (
    build_pipeline(_config(tmp_path, num_workers=1)).iterator(60) as iterator,
    pytest.raises(UserError, match=r"shard-00000.bin: holds id 65535"),
  ):
    next(iterator)


def test_rows_are_those_of_the_mixture(tmp_path):
  """Each global row is the row of the source that `locate` names; an epoch has each row once."""
  pipeline = build_pipeline(_config(tmp_path))
  by_name = {s.name: s for s in pipeline.sources}
  batch = _join(_take(pipeline.iterator(10), 12))
  for r in range(120):
    name, row = pipeline.locate(r)
    np.testing.assert_array_equal(batch["inputs"][r], by_name[name][row][:-1])
    np.testing.assert_array_equal(batch["targets"][r], by_name[name][row][1:])
  n = len(by_name["web"])
  web = [row for name, row in (pipeline.locate(r) for r in range(2000)) if name == "web"]
  assert sorted(web[:n]) == list(range(n)) == sorted(web[n : 2 * n])
  assert web[:n] != web[n : 2 * n]
  assert pipeline.epochs(2000)["web"] == pytest.approx(len(web) / n)


def test_without_phases_shares_follow_tokens(tmp_path):
  pipeline = build_pipeline(_config(tmp_path, phases=[]))
  total = sum(len(s) for s in pipeline.sources)
  names = [pipeline.locate(r)[0] for r in range(total)]
  for source in pipeline.sources:
    assert abs(names.count(source.name) - len(source)) <= 1


def test_fingerprint_follows_all_that_decides_a_row(tmp_path):
  """Breaks where a setting that moves rows is left out, or one that does not is in."""
  base = build_pipeline(_config(tmp_path)).fingerprint()
  moved = [
    {"seed": 1},
    {"shuffle": False},
    {"block_rows": 8},
    {"window_blocks": 4},
    {"seq_len": 16},
    {"attend_across_documents": True},
    {"predict_first_token": False},
    {"phases": []},
    {"phases": _config(tmp_path).phases[:1]},
  ]
  found = [build_pipeline(_config(tmp_path, **change)).fingerprint() for change in moved]
  assert len({base, *found}) == len(moved) + 1
  same = [
    {"num_threads": 4},
    {"prefetch": 5},
    {"num_workers": 2},
    {"sources": _config(tmp_path).sources[::-1]},
  ]
  for change in same:
    assert build_pipeline(_config(tmp_path, **change)).fingerprint() == base
  write_dataset(tmp_path / "late", random_documents(77, 50))
  changed = build_pipeline(_config(tmp_path))
  assert changed.fingerprint() != base
  # A source of no weight below START is free to change until then.
  phases = _config(tmp_path).phases[:1]
  two = build_pipeline(_config(tmp_path, sources=_config(tmp_path).sources[:2], phases=phases))
  assert changed.fingerprint(START) == two.fingerprint(START)
  assert changed.fingerprint(START + 1) != two.fingerprint(START + 1)


def test_a_single_row_is_a_dataset(tmp_path):
  """Breaks where blocks or windows must be full."""
  ids = write_dataset(tmp_path / "tiny", [np.arange(10, 10 + T)])
  assert ids.size == T + 1
  config = DataConfig(seq_len=T, sources=[TokenShardsConfig(path=str(tmp_path / "tiny"))])
  batch = _join(_take(build_pipeline(config).iterator(3), 2))
  np.testing.assert_array_equal(batch["inputs"], np.tile(ids[:-1], (6, 1)))


def test_a_split_shorter_than_a_row_names_the_fix(tmp_path):
  write_dataset(tmp_path / "tiny", [np.arange(10, 9 + T)])
  config = DataConfig(seq_len=T, sources=[TokenShardsConfig(path=str(tmp_path / "tiny"))])
  with pytest.raises(
    UserError, match=r"32 tokens, one row takes 33; lower data.seq_len \(at most 31\) or add text"
  ):
    build_pipeline(config)
  config.seq_len = 31
  assert len(build_pipeline(config).sources[0]) == 1


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"tokenizer_sha256": "e" * 64}, "'a' has the tokenizer ffffffffffff, 'b' has eeeeeeeeeeee"),
    ({"vocab_size": 600}, "'a' has a vocab_size of 500, 'b' has 600: one mixture takes one"),
    ({"eos_id": 2}, "'a' has an eos_id of 3, 'b' has 2"),
  ],
)
def test_sources_of_two_tokenizers_are_refused(tmp_path, overrides, message):
  write_dataset(tmp_path / "a", random_documents(0, 10))
  write_dataset(tmp_path / "b", random_documents(1, 10), **overrides)
  sources = [TokenShardsConfig(name=n, path=str(tmp_path / n)) for n in "ab"]
  with pytest.raises(UserError, match=message):
    build_pipeline(DataConfig(seq_len=T, sources=sources))


def test_damage_found_while_reading_reaches_the_caller(tmp_path):
  """A reading thread's error must not be lost, nor next_row move past it."""
  config = _config(tmp_path)
  file = tmp_path / "web/train/shard-00000.bin"
  file.write_bytes(b"\xff" * file.stat().st_size)
  iterator = build_pipeline(config).iterator(60)
  with pytest.raises(UserError, match=r"shard-00000.bin: holds id 65535"):
    next(iterator)
  assert iterator.next_row == 0
  iterator.close()


@pytest.mark.parametrize(
  "change, message",
  [
    ({"seq_len": 1}, "data.seq_len=1: must be at least 2"),
    ({"block_rows": 0}, "data.block_rows=0: must be at least 1"),
    ({"prefetch": 0}, "data.prefetch=0: must be at least 1"),
    ({"num_workers": -1}, "data.num_workers=-1: must be at least 0"),
    ({"sources": []}, "data.sources: empty"),
    ({"sources": [SyntheticConfig(vocab_size=9)] * 2}, r"data.sources\[1\].name='data': taken"),
    ({"sources": [SyntheticConfig(vocab_size=1)]}, r"data.sources\[0\].vocab_size=1: must be"),
    (
      {"phases": [Phase(weights={"dat": 1})]},
      r"data.phases\[0\].weights: no source is named 'dat'",
    ),
  ],
)
def test_config_errors_name_the_key(change, message):
  config = DataConfig(**({"sources": [SyntheticConfig(vocab_size=9)]} | change))
  with pytest.raises(UserError, match=message):
    config.validate("data")


def test_a_batch_that_hosts_cannot_share_is_refused():
  pipeline = build_pipeline(DataConfig(seq_len=4, sources=[SyntheticConfig(vocab_size=9)]))
  with pytest.raises(UserError, match="10 rows cannot be split evenly over 4 hosts"):
    pipeline.iterator(10, shard_count=4)
