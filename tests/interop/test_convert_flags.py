"""What convert's command line refuses before anything is read."""

import subprocess
import sys

import numpy as np
import pytest

from jaxlm.convert import check_flags
from jaxlm.errors import UserError
from jaxlm.interop.written import Export, gguf_place, write


@pytest.mark.parametrize(
  ("target", "expected"),
  [
    ("gguf:x.gguf", ("x.gguf", "F16")),
    ("gguf:x.gguf:q8_0", ("x.gguf", "Q8_0")),
    ("gguf:x.gguf:BF16", ("x.gguf", "BF16")),
    ("gguf:/a:b/x.gguf", ("/a:b/x.gguf", "F16")),
    ("gguf:a:x.gguf", ("a:x.gguf", "F16")),
    ("gguf:a:x.gguf:f32", ("a:x.gguf", "F32")),
  ],
)
def test_type_of_a_gguf_target(target, expected):
  assert gguf_place(target) == expected


@pytest.mark.parametrize("kind", ["Q4_K_M", "q4_0", "float16", ""])
def test_types_that_are_not_written_are_refused(kind):
  """Once they became a part of the file's name, and the file F16."""
  with pytest.raises(UserError, match="must be one of F32, F16, BF16, Q8_0"):
    gguf_place(f"gguf:x.gguf:{kind}")


@pytest.mark.parametrize(
  ("source", "target", "flags", "message"),
  [
    ("runs/x", "gguf:x", {"dtype": "float32"}, "--dtype=float32: say it in the target"),
    ("hf:x", "gguf:x", {"dtype": "float32"}, "--dtype=float32: say it in the target"),
    ("runs/x", "hf:y", {"tokenizer": "t"}, "--tokenizer=t: is for --from=hf: or gguf:"),
    ("hf:x", "runs/y", {"step": 0}, "--step=0: is for --from=RUN"),
    ("hf:x", "hf:y", {"optimizer": False}, "--nooptimizer: is for --to=RUN"),
    ("runs/x", "gguf:x.gguf:Q4_K_M", {}, "'Q4_K_M' must be one of"),
    ("runs/x", "runs/y", {}, "one of them must begin with hf: or gguf:"),
  ],
)
def test_flags_without_a_use_are_refused(source, target, flags, message):
  with pytest.raises(UserError, match=message) as error:
    check_flags(source, target, **flags)
  assert "\n" not in str(error.value)


def test_flags_with_a_use():
  check_flags("hf:x", "runs/y", tokenizer="t", dtype="bfloat16", optimizer=False)
  check_flags("runs/x", "hf:y", dtype="bfloat16", step=0)
  check_flags("gguf:x", "gguf:y", tokenizer="t")


def test_the_command_checks_them(tmp_path):
  """Broken when main does not call check_flags."""
  command = [sys.executable, "-m", "jaxlm.convert", f"--from=hf:{tmp_path}", "--to=gguf:x.gguf:Q9"]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode != 0 and "must be one of F32" in done.stderr
  assert "Traceback" not in done.stderr


def test_weights_that_float16_can_not_hold(tmp_path):
  """Infinite weights would be written without a word."""
  tensors = {"a": np.asarray([1.0, 1e6], np.float32)}
  for dtype in ("bfloat16", "float16"):
    export = Export({"model_type": "llama"}, tensors.items, {}, {})
    if dtype == "bfloat16":
      write(export, f"hf:{tmp_path / dtype}", dtype)
      continue
    with pytest.raises(UserError, match="a: has weights that exceed float16"):
      write(export, f"hf:{tmp_path / dtype}", dtype)
