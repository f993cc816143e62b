"""Files of checkpoints: what is refused, what is streamed, what comes back equal."""

import hashlib
import json
import struct
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.interop import hf_folder
from jaxlm.interop.families import export_tensors, hf_config, import_params
from jaxlm.interop.hf_folder import both_spellings, write_folder
from jaxlm.interop.tensors import open_tensors, stream
from jaxlm.models.config import DecoderConfig

CONFIG = {"model_type": "llama", "vocab_size": 8, "rope_theta": 10000.0}
ARRAYS = {
  "a": np.arange(12, dtype=np.float32).reshape(3, 4),
  "b": np.ones((5,), ml_dtypes.bfloat16),
  "c": np.zeros((2, 0), np.float16),
}


def test_a_folder_comes_back_equal(tmp_path):
  write_folder(tmp_path / "x", CONFIG, ARRAYS.items(), files={"note.txt": b"hi"})
  found = dict(stream(open_tensors(tmp_path / "x")))
  assert list(found) == list(ARRAYS)
  for name, array in ARRAYS.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)
  for line in (tmp_path / "x/SHA256SUMS").read_text().splitlines():
    digest, name = line.split("  ")
    assert hashlib.sha256((tmp_path / "x" / name).read_bytes()).hexdigest() == digest
  with pytest.raises(UserError, match="is there already"):
    write_folder(tmp_path / "x", CONFIG, ARRAYS.items())


def test_shards_and_their_index(tmp_path):
  arrays = {f"t{i}": np.full((100,), i, np.float32) for i in range(7)}
  write_folder(tmp_path / "x", CONFIG, arrays.items(), shard_bytes=1000)
  index = json.loads((tmp_path / "x" / hf_folder.INDEX).read_text())
  assert set(index["weight_map"].values()) == {
    f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)
  }
  assert index["metadata"]["total_size"] == 2800
  found = dict(stream(open_tensors(tmp_path / "x")))
  assert all((found[name] == array).all() for name, array in arrays.items())


def test_the_safetensors_package_reads_what_is_written(tmp_path):
  numpy = pytest.importorskip("safetensors.numpy", reason="pip install safetensors")
  write_folder(tmp_path / "x", CONFIG, [("a", ARRAYS["a"])])
  found = numpy.load_file(tmp_path / "x/model.safetensors")
  np.testing.assert_array_equal(found["a"], ARRAYS["a"])


def _file(tmp_path, header, data=b"", length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  start = struct.pack("<Q", len(text) if length is None else length)
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  (tmp_path / "model.safetensors").write_bytes(start + text + data)


def _entry(first, last, shape, dtype="F32"):
  return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


@pytest.mark.parametrize(
  ("header", "data", "length", "message"),
  [
    (b"{}", b"", 1 << 62, "a header of"),
    (b"{]", b"", None, "not JSON"),
    (b"[]", b"", None, "not a JSON object"),
    (b'{"a": 1, "a": 2}', b"", None, "stands twice"),
    ({"a": 1}, b"", None, "a without a proper dtype"),
    ({"a": _entry(0, 8, [-2])}, b"12345678", None, "a without a proper dtype"),
    ({"a": _entry(0, 8, [2], [])}, b"12345678", None, "a without a proper dtype"),
    ({"a": _entry(0, 0, [0, 10**30])}, b"", None, "a without a proper dtype"),
    ({"a": _entry(0, 4, [1] * 99)}, b"1234", None, "a without a proper dtype"),
    ({"a": _entry(0, 8, [2], "F4")}, b"12345678", None, "a has dtype 'F4'"),
    ({"a": _entry(0, 8, [3])}, b"12345678", None, r"a: F32 \[3\] is not 8 bytes"),
    ({"a": _entry(0, 8, [2]), "b": _entry(4, 12, [2])}, b"1" * 12, None, "b, which overlaps"),
    ({"a": _entry(0, 8, [2]), "b": _entry(12, 20, [2])}, b"1" * 20, None, "b, which leaves a gap"),
    ({"a": _entry(0, 8, [2])}, b"1" * 6, None, "up to byte"),
    ({"a": _entry(0, 8, [2])}, b"1" * 9, None, "up to byte"),
  ],
)
def test_broken_headers_are_refused_by_name(tmp_path, header, data, length, message):
  _file(tmp_path, header, data, length)
  with pytest.raises(UserError, match=message) as error:
    open_tensors(tmp_path)
  assert "model.safetensors" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  "place", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", 3, "x.bin", "x\0.safetensors"]
)
def test_shard_names_with_a_path_are_refused(tmp_path, place):
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  (tmp_path / hf_folder.INDEX).write_text(json.dumps({"weight_map": {"t": place}}))
  with pytest.raises(UserError, match=r"tensor t is in .* not the plain name"):
    open_tensors(tmp_path)


def test_an_index_that_disagrees_is_refused(tmp_path):
  write_folder(tmp_path / "x", CONFIG, [("a", ARRAYS["a"]), ("b", ARRAYS["b"])], shard_bytes=1)
  index = tmp_path / "x" / hf_folder.INDEX
  places = json.loads(index.read_text())["weight_map"]
  index.write_text(json.dumps({"weight_map": places | {"z": places["a"]}}))
  with pytest.raises(UserError, match="has no tensor z"):
    open_tensors(tmp_path / "x")
  first = places["a"]
  index.write_text(json.dumps({"weight_map": {"other": first, "b": places["b"]}}))
  with pytest.raises(UserError, match="no tensor other"):
    open_tensors(tmp_path / "x")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused_with_a_recipe(tmp_path, name):
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  (tmp_path / name).write_bytes(b"\x80\x04")
  for path in (tmp_path, tmp_path / name):
    with pytest.raises(UserError, match=f"{name}.*safe_serialization"):
      open_tensors(path)


def test_memory_stays_at_a_tensor(tmp_path):
  """Fails if a writer or a reader keeps tensors: 2 GiB in all, 64 MiB each."""
  code = f"""
import resource, numpy as np
from jaxlm.interop.families import export_tensors, hf_config, import_params
from jaxlm.interop.hf_folder import write_folder
from jaxlm.interop.tensors import open_tensors, stream
from jaxlm.models.config import DecoderConfig
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = ((f"t{{i}}", np.full((4096, 4096), i, np.float32)) for i in range(32))
write_folder({str(tmp_path / "x")!r}, {{"model_type": "llama"}}, made, shard_bytes=1 << 29)
for name, array in stream(open_tensors({str(tmp_path / "x")!r})):
  assert array[0, 0] == int(name[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert int(done.stdout) * 1024 <= 3 * (64 << 20) + (64 << 20)


def test_both_spellings_of_rope_and_dtype():
  old = both_spellings({"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2.0}}, "x")
  assert old["rope_parameters"] == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}
  new = both_spellings({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}})
  assert new["rope_theta"] == 5.0 and new["rope_scaling"] is None
  assert old["dtype"] == old["torch_dtype"] == "x"


@pytest.mark.parametrize("dtype", ["int32", "bool", ml_dtypes.float8_e4m3fn])
def test_weights_that_are_no_plain_floats_are_refused(tmp_path, dtype):
  """Quantised files keep scales beside such tensors: taken as they are, they are another model."""
  model = DecoderConfig(vocab_size=8, num_layers=1, embed_dim=8, mlp_dim=8, num_heads=2)
  params = model.build().init(jax.random.key(0))

  def tensors():
    for name, array in export_tensors(params, model):
      yield name, array.astype(dtype) if "q_proj" in name else array

  write_folder(tmp_path / "x", hf_config(model), tensors())
  with pytest.raises(UserError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight: is ") as error:
    import_params(open_tensors(tmp_path / "x"), model)
  assert np.dtype(dtype).name in str(error.value)


def test_the_current_directory_is_not_replaced(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for place in ("", "."):
    with pytest.raises(UserError, match="not the one that you are in"):
      write_folder(place, CONFIG, ARRAYS.items())
