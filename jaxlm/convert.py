"""Convert checkpoints between jaxlm, Hugging Face folders and GGUF files.

usage: python -m jaxlm.convert --from=SOURCE --to=TARGET

A source or target is hf:PATH (a folder with config.json and safetensors), gguf:FILE, or the
directory of a run. A target gguf:FILE:TYPE is F32, F16 (as without a type), BF16 or Q8_0.

examples:
  python -m jaxlm.convert --from=hf:/models/SmolLM2-135M --to=runs/smollm2
  python -m jaxlm.convert --from=gguf:/models/smollm2.Q4_1.gguf --to=runs/smollm2
  python -m jaxlm.convert --from=runs/tiny --to=hf:exports/tiny
  python -m jaxlm.convert --from=runs/tiny --to=gguf:exports/tiny.gguf:Q8_0
  python -m jaxlm.generate --workdir=runs/smollm2 --chat='What is the capital of France?'
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from jaxlm import cli
from jaxlm.errors import UserError
from jaxlm.interop.written import Export, gguf_place, write

FROM = cli.define_string("from", None, "hf:PATH, gguf:FILE or a run's directory", required=True)
TO = cli.define_string("to", None, "hf:PATH, gguf:FILE[:TYPE] or a new directory", required=True)
TOKENIZER = cli.define_string(
  "tokenizer", None, "a folder whose tokenizer is taken instead of the source's own"
)
DTYPE = cli.define_enum(
  "dtype",
  None,
  ["float32", "bfloat16", "float16"],
  "of the weights in the target; by default as they are (float32 for a run)",
)
STEP = cli.define_integer("step", None, "a run's checkpoint; by default the newest", lower_bound=0)
OPTIMIZER = cli.define_bool(
  "optimizer",
  True,
  "a run gets a new optimizer's state too, so that train goes on from it (three times the memory)",
)

HUGGING_FACE = "huggingface"  # in a run's directory: what came with the weights, as it was
_PUBLISHED = ("hf:", "gguf:")


def main() -> int:
  source, target = FROM.value, TO.value
  check_flags(
    source,
    target,
    tokenizer=TOKENIZER.value,
    dtype=DTYPE.value,
    step=STEP.value,
    optimizer=OPTIMIZER.value,
  )
  if source.startswith(_PUBLISHED):
    from jaxlm.interop.bundle import open_bundle

    bundle = open_bundle(source.partition(":")[2], TOKENIZER.value)
    if target.startswith(_PUBLISHED):
      from jaxlm.interop.tensors import stream

      export = Export(
        bundle.tensors.config, lambda: stream(bundle.tensors), bundle.files, bundle.generation
      )
    else:
      import_run(bundle, target, source, optimizer=OPTIMIZER.value, dtype=DTYPE.value)
      print(f"{target}: imported from {source}")
      return cli.OK
  else:
    export = export_of_run(source, STEP.value)
  print(f"{write(export, target, DTYPE.value)}: written from {source}")
  return cli.OK


def check_flags(
  source: str,
  target: str,
  *,
  tokenizer: str | None = None,
  dtype: str | None = None,
  step: int | None = None,
  optimizer: bool = True,
) -> None:
  """Raises UserError for what --from or --to has no use for; see the flags."""
  published, exported = source.startswith(_PUBLISHED), target.startswith(_PUBLISHED)
  if not (published or exported):
    raise UserError(f"--from={source} --to={target}: one of them must begin with hf: or gguf:")
  if tokenizer is not None and not published:
    raise UserError(
      f"--tokenizer={tokenizer}: is for --from=hf: or gguf:; a run is exported with its own"
    )
  if step is not None and published:
    raise UserError(f"--step={step}: is for --from=RUN; {source} has no checkpoints to choose from")
  if target.startswith("gguf:"):
    gguf_place(target)
    if dtype is not None:
      raise UserError(f"--dtype={dtype}: say it in the target: --to=gguf:FILE:TYPE")
  if not optimizer and exported:
    raise UserError("--nooptimizer: is for --to=RUN; a published checkpoint holds no such state")


# ---- into a run -------------------------------------------------------------------------------


def import_run(
  bundle: Any, workdir: str | Path, source: str, *, optimizer: bool = True, dtype: str | None = None
) -> None:
  """Makes a run's directory of a published checkpoint: config, tokenizer, checkpoint of step 0.

  Its seal says what the weights were read from; there is no data behind it to check.

  Args:
    bundle: interop.bundle.Bundle.
    workdir: new or empty.
    source: for the record.
    optimizer: with a new optimizer's state.
    dtype: of the parameters; None: float32.

  Raises:
    UserError: the place is taken, or the checkpoint is not one that jaxlm can hold.
  """
  from jaxlm import configlib, lineage
  from jaxlm.run import setup_jax
  from jaxlm.tokenizers.base import LOSSY, is_lossless
  from jaxlm.workdir import Workdir

  setup_jax()
  directory = Workdir(workdir)
  if directory.exists():
    raise UserError(f"--to={directory.path}: a run is there already: name a new directory")
  config = _run_config(bundle, dtype)
  try:
    tokenizer = bundle.tokenizer()
  except UserError as error:
    tokenizer = None
    print(
      f"warning: {error}; imported without a tokenizer: export works, but nothing that reads text",
      file=sys.stderr,
    )
  if tokenizer is not None and not is_lossless(tokenizer):
    print(
      "note: its tokenizer does not give every text back as it was (it adds, drops or changes "
      "characters): no bits per byte, and data is prepared with it only as "
      f"--config.tokenizer.path={LOSSY}{directory.tokenizer}",
      file=sys.stderr,
    )
  with directory.lock():
    made = [directory.checkpoints, directory.tokenizer, directory.path / HUGGING_FACE]
    try:
      _write_tokenizer(bundle, tokenizer, directory)
      _write_checkpoint(bundle, config, tokenizer, directory, optimizer)
      record = {
        "from": source,
        "sha256": bundle.sources,
        "begin": [] if tokenizer is None else bundle.begin_ids(tokenizer),
        "model_type": bundle.tensors.config.get("model_type"),
        "token_ids": {
          key: value
          for key, value in bundle.tensors.config.items()
          if key.endswith("_token_id") and isinstance(value, int | list)
        },
      }
      text = json.dumps(record, indent=2) + "\n"
      (directory.path / lineage.IMPORTED).write_text(text, encoding="utf-8")
      configlib.save_json(config, directory.config)  # last: it makes the directory a run
    except BaseException:
      for path in made:
        shutil.rmtree(path, ignore_errors=True)
      (directory.path / lineage.IMPORTED).unlink(missing_ok=True)
      raise


def _run_config(bundle: Any, dtype: str | None) -> Any:
  from jaxlm.config import RunConfig
  from jaxlm.data.task import MaskedConfig
  from jaxlm.interop.families import find_family
  from jaxlm.layers.config import DType
  from jaxlm.models.encoder_config import EncoderConfig

  hf = bundle.tensors.config
  model: Any = find_family(hf).to_config(hf)
  if dtype is not None:
    if dtype.upper() not in DType.__members__:
      raise UserError(f"--dtype={dtype}: a run's parameters are float32 or bfloat16")
    model.param_dtype = DType[dtype.upper()]
  model.validate("config.model")
  config = RunConfig(model=model)
  if isinstance(model, EncoderConfig):
    config.data.task = MaskedConfig()
  config.data.seq_len = min(config.data.seq_len, getattr(model, "max_seq_len", 1 << 30))
  return config


def _write_tokenizer(bundle: Any, tokenizer: Any, directory: Any) -> None:
  from jaxlm.inference.chat import save_chat
  from jaxlm.interop.bundle import GENERATION, named_tokens

  if tokenizer is not None:
    tokenizer.save(directory.tokenizer)
    template = bundle.chat_template()
    if template is not None:
      save_chat(directory.tokenizer, template, named_tokens(bundle.files), bundle.stop_ids())
  beside = directory.path / HUGGING_FACE
  beside.mkdir()
  for name, data in bundle.files.items():
    (beside / name).write_bytes(data)
  if bundle.generation:
    (beside / GENERATION).write_text(json.dumps(bundle.generation, indent=2) + "\n", "utf-8")


def _write_checkpoint(
  bundle: Any, config: Any, tokenizer: Any, directory: Any, optimizer: bool
) -> None:
  import jax
  import jax.numpy as jnp

  from jaxlm import lineage, sharding
  from jaxlm.checkpoint import Checkpointer, Meta
  from jaxlm.config import model_fingerprint
  from jaxlm.interop.families import import_params
  from jaxlm.program import make_optimizer
  from jaxlm.training.placement import for_optimizer
  from jaxlm.training.state import TrainState

  layout = _layout(config)
  with layout.activate():
    params = import_params(bundle.tensors, config.model, layout)
    opt_state: Any = {}
    if optimizer:
      model = config.model.build()
      tx, axes = make_optimizer(config, model), model.logical_axes()
      opt_state = jax.jit(lambda p: sharding.settle(tx.init(for_optimizer(p, axes))))(params)
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state)
    seal = lineage.Seal(
      model=model_fingerprint(config.model),
      tokenizer=None if tokenizer is None else tokenizer.fingerprint(),
      data=lineage.imported_data(bundle.sources),
      code=lineage.code_fingerprint(),
    )
    checkpointer = Checkpointer(directory.checkpoints)
    checkpointer.save(state, Meta(0, 0, config.seed, seal))
    checkpointer.wait()
    checkpointer.close()


def _layout(config: Any) -> Any:
  """All devices where the model's dims divide by them, else one."""
  import jax

  from jaxlm.sharding import make_layout

  devices = jax.devices()
  try:
    config.model.validate_mesh("config.model", config.mesh.sizes(len(devices)))
  except UserError:
    devices = devices[:1]
  return make_layout(config.mesh, devices)


# ---- out of a run -----------------------------------------------------------------------------


def export_of_run(workdir: str | Path, step: int | None = None) -> Export:
  """What a run's checkpoint becomes for others.

  Raises:
    UserError: no such run or checkpoint, another model than it was sealed with, or one that no
      Hugging Face family can hold.
  """
  from jaxlm import configlib, lineage
  from jaxlm.checkpoint import Checkpointer
  from jaxlm.config import model_fingerprint
  from jaxlm.interop.families import export_tensors, hf_config
  from jaxlm.mesh import MeshConfig
  from jaxlm.run import setup_jax
  from jaxlm.workdir import Workdir

  setup_jax()
  directory = Workdir(workdir).require()
  config: Any = configlib.load_json(directory.config)
  hf = hf_config(config.model)  # refuses before anything is read
  checkpointer = Checkpointer(directory.checkpoints, read_only=True)
  steps = checkpointer.steps()
  if not steps or (step is not None and step not in steps):
    there = ", ".join(map(str, steps)) or "none yet"
    raise UserError(f"{directory.checkpoints}: no such checkpoint; there are {there}")
  step = steps[-1] if step is None else step
  sealed = checkpointer.meta(step).seal
  found = dataclasses.replace(sealed, model=model_fingerprint(config.model))
  lineage.check(sealed, found, f"{directory.checkpoints}/{step}", ("model",))
  config.mesh = MeshConfig()
  layout = _layout(config)
  target = layout.eval_shape(_built(config, layout).init, _key())
  params = checkpointer.restore_params(step, target)
  checkpointer.close()
  files, ids, generation = _tokenizer_of_run(directory, sealed.tokenizer, config.model)
  return Export(hf | ids, lambda: export_tensors(params, config.model), files, generation)


def _built(config: Any, layout: Any) -> Any:
  with layout.activate():
    return config.model.build()


def _key() -> Any:
  import jax

  return jax.random.key(0)


def _tokenizer_of_run(
  directory: Any, sealed: str | None, model: Any
) -> tuple[dict[str, bytes], dict[str, Any], dict[str, Any]]:
  """(files, ids for config.json, generation_config.json): those it came with, or new ones."""
  from jaxlm import lineage
  from jaxlm.inference.chat import SETTINGS, TEMPLATE
  from jaxlm.interop import bundle as bundles
  from jaxlm.interop.hf_folder import read_json
  from jaxlm.interop.tokenizer_files import read_files, tokenizer_files
  from jaxlm.tokenizers.base import load_tokenizer

  beside, own = directory.path / HUGGING_FACE, directory.tokenizer
  files = read_files(beside) if beside.is_dir() else {}
  has = own.is_dir()
  if has:
    tokenizer = load_tokenizer(own, lossy=True)
    if sealed != tokenizer.fingerprint():
      raise UserError(f"{own}: not the tokenizer that the checkpoint was sealed with: restore it")
  if beside.is_dir() and (not has or _fingerprint(files) == sealed):
    record = read_json(directory.path / lineage.IMPORTED)
    generation = beside / bundles.GENERATION
    return files, record["token_ids"], read_json(generation) if generation.is_file() else {}
  if not has:
    return {}, {}, {}
  template = own / TEMPLATE
  settings = read_json(own / SETTINGS) if (own / SETTINGS).is_file() else {}
  files = tokenizer_files(
    tokenizer,
    chat_template=template.read_text("utf-8") if template.is_file() else None,
    bos_token=settings.get("tokens", {}).get("bos_token"),
    max_length=getattr(model, "max_seq_len", None),
  )
  # Families have defaults (Llama's: 1 and 2), which would be ids of other tokens here.
  ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_id, "pad_token_id": None}
  stop = sorted({tokenizer.eos_id, *settings.get("stop", [])})
  return files, ids, {"eos_token_id": stop if len(stop) > 1 else stop[0]}


def _fingerprint(files: dict[str, bytes]) -> str | None:
  from jaxlm.interop.bundle import load_files

  try:
    return load_files(files, HUGGING_FACE).fingerprint()
  except UserError:
    return None


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
