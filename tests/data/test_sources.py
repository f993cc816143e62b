"""Each source of rows: right rows, picklable, and one line where its files do not fit."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from jaxlm.data.config import ArrayRecordConfig, ParquetConfig, SyntheticConfig, TokenShardsConfig
from jaxlm.data.testing import EOS, write_dataset
from jaxlm.errors import UserError

T = 16


def _ids(rows=11, seed=0):
  return np.random.default_rng(seed).integers(0, 500, (rows, T + 1))


def _array_record(tmp_path, ids, name="rows.array_record", dtype="<u2"):
  writer = ArrayRecordWriter(str(tmp_path / name), "group_size:1")
  for row in ids:
    writer.write(np.asarray(row).astype(dtype).tobytes())
  writer.close()
  return ArrayRecordConfig(path=str(tmp_path / "*.array_record"), vocab_size=500, eos_id=EOS)


def _parquet(tmp_path, ids, name="rows.parquet"):
  table = pa.table({"input_ids": [list(map(int, row)) for row in ids], "n": list(range(len(ids)))})
  pq.write_table(table, tmp_path / name, row_group_size=4)
  return ParquetConfig(path=str(tmp_path / "*.parquet"), vocab_size=500, eos_id=EOS)


def _all(source):
  return np.stack([source[i] for i in range(len(source))])


@pytest.mark.parametrize("write", [_array_record, _parquet])
def test_files_of_rows_are_read_in_order(tmp_path, write):
  """Breaks where rows are counted over from a file or a row group to the next."""
  a, b = _ids(11), _ids(6, seed=1)
  write(tmp_path, a, "1" + ("." + ("parquet" if write is _parquet else "array_record")))
  config = write(tmp_path, b, "2" + ("." + ("parquet" if write is _parquet else "array_record")))
  source = config.build(T)
  assert len(source) == 17 and source.eos_id == EOS and source.vocab_size == 500
  for copy in (source, pickle.loads(pickle.dumps(source))):
    rows = _all(copy)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, np.concatenate([a, b]))
    assert copy.fingerprint() == source.fingerprint()
  for bad in (-1, 17):
    with pytest.raises(IndexError):
      source[bad]


@pytest.mark.parametrize("write", [_array_record, _parquet])
def test_files_of_rows_that_do_not_fit_are_refused(tmp_path, write):
  config = write(tmp_path, _ids())
  config.validate("data.sources[0]")
  with pytest.raises(
    UserError, match=r"row 0 has 17 ids, but data.seq_len=8 .* set data.seq_len=16"
  ):
    config.build(8)
  config.vocab_size = 10
  with pytest.raises(UserError, match=r"holds id \d+, which is not in \[0, 10\)"):
    config.build(T)
  config.path = str(tmp_path / "none*")
  with pytest.raises(UserError, match=r"none\*: no such file"):
    config.build(T)
  config.path = "s3://bucket/rows"
  with pytest.raises(UserError, match="only local files are read"):
    config.build(T)
  (tmp_path / "broken").write_bytes(b"no such format" * 1000)
  config.path = str(tmp_path / "broken")
  with pytest.raises(UserError, match=r"broken: (not a readable|no records)") as e:
    config.build(T)
  assert "\n" not in str(e.value)


def test_an_array_record_file_without_records_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"no records: empty"):
    _array_record(tmp_path, []).build(T)


def test_a_wrong_dtype_is_refused(tmp_path):
  config = _array_record(tmp_path, _ids(), dtype="<u2")
  config.dtype = "<u4"
  with pytest.raises(UserError, match="no multiple of dtype <u4"):
    config.build(T)


def test_parquet_columns_that_do_not_fit_are_refused(tmp_path):
  config = _parquet(tmp_path, _ids())
  config.column = "tokens"
  with pytest.raises(UserError, match="no column 'tokens'; set column to one of: input_ids, n"):
    config.build(T)
  config.column = "n"
  with pytest.raises(UserError, match="column 'n' is int64; lists of integers are needed"):
    config.build(T)
  table = pa.table({"input_ids": [[1] * (T + 1), None]})
  pq.write_table(table, tmp_path / "rows.parquet")
  config.column = "input_ids"
  with pytest.raises(UserError, match="null"):
    config.build(T)


@pytest.mark.parametrize("write", [_array_record, _parquet])
def test_fingerprints_follow_the_content(tmp_path, write):
  (tmp_path / "x").mkdir()
  (tmp_path / "y").mkdir()
  ids = _ids()
  a = write(tmp_path, ids).build(T).fingerprint()
  assert write(tmp_path / "x", ids).build(T).fingerprint() == a
  ids[3, 3] ^= 1
  assert write(tmp_path / "y", ids).build(T).fingerprint() != a


@pytest.mark.parametrize("seq_len", [2, 16, 37, 200])
def test_token_shards_serve_any_seq_len(dataset, seq_len):
  """The same files, rows of any length: each row's last target opens the next row."""
  directory, ids = dataset
  source = TokenShardsConfig(path=str(directory)).build(seq_len)
  assert len(source) == (ids.size - 1) // seq_len
  for r in range(len(source)):
    np.testing.assert_array_equal(source[r], ids[r * seq_len : (r + 1) * seq_len + 1])
  with pytest.raises(IndexError):
    source[len(source)]
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy[0], source[0])


def test_token_shards_fingerprint_follows_tokens_not_places(tmp_path):
  documents = [[10, 11, 12, 13], [14, 15]]
  write_dataset(tmp_path / "a", documents)
  write_dataset(tmp_path / "b", documents, name="other", created="later", jaxlm_version="9")
  write_dataset(tmp_path / "c", [[10, 11, 12, 13], [14, 16]])
  a, b, c = (TokenShardsConfig(path=str(tmp_path / x)).build(2).fingerprint() for x in "abc")
  assert a == b != c


def test_synthetic_rows():
  """One stream whatever seq_len; documents of the asked length; the same numbers for ever."""
  config = SyntheticConfig(vocab_size=50, num_rows=100, document_len=7)
  short, long = config.build(10), config.build(30)
  np.testing.assert_array_equal(
    np.concatenate([short[r][:-1] for r in range(30)]),
    np.concatenate([long[r][:-1] for r in range(10)]),
  )
  assert short[0][-1] == short[1][0]
  stream = np.concatenate([long[r][:-1] for r in range(100)])
  np.testing.assert_array_equal(np.flatnonzero(stream == 0), np.arange(6, 3000, 7))
  assert stream.min() == 0 and stream.max() == 49
  plain = SyntheticConfig(vocab_size=50).build(8)
  assert plain.eos_id is None
  assert plain[3].tolist() == [26, 11, 42, 37, 31, 35, 28, 49, 35]
  assert SyntheticConfig(vocab_size=50, seed=1).build(8)[3].tolist() != plain[3].tolist()


@pytest.mark.parametrize("write", [_array_record, _parquet])
def test_threads_share_a_fresh_source(tmp_path, write):
  """Breaks where readers are opened twice or a file handle is used by two threads at once."""
  ids = _ids(200)
  config = write(tmp_path, ids)
  built = config.build(T)
  for _ in range(5):
    source = pickle.loads(pickle.dumps(built))
    with ThreadPoolExecutor(8) as pool:
      rows = list(pool.map(source.__getitem__, range(200)))
    np.testing.assert_array_equal(np.stack(rows), ids)
