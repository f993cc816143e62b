"""What an import into sharded arrays needs on the host, beside the arrays."""

import json
import os
import subprocess
import sys

import pytest

MIB = 1 << 20
# XLA's compiled programs and thread pools, the allocator's slack and Python's own: what a
# checkpoint of 4 MB takes too (74 MiB).
SLACK = 112 * MIB

WRITE = """
import jax, jax.numpy as jnp
from flax import nnx
nnx.set_graph_mode(False)
nnx.set_graph_updates(False)
from jaxlm.interop.families import export_tensors, hf_config
from jaxlm.interop.hf_folder import write_folder
from jaxlm.models.config import DecoderConfig

config = DecoderConfig(**{config!r})
shapes = jax.eval_shape(config.build().init, jax.random.key(0))
params = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), shapes)
tensors = export_tensors(params, config)
write_folder({folder!r}, hf_config(config), tensors, shard_bytes=100 << 20)
"""
# CPU devices are host memory, so what the arrays take is told apart.
IMPORT = """
import json, resource, jax, numpy as np
from flax import nnx
nnx.set_graph_mode(False)
nnx.set_graph_updates(False)
from jaxlm.interop.families import find_family, import_params
from jaxlm.interop.tensors import open_tensors
from jaxlm.mesh import MeshConfig
from jaxlm.sharding import make_layout

def peak():
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

tensors = open_tensors({folder!r})
config = find_family(tensors.config).to_config(tensors.config)
layout = make_layout(MeshConfig(**{mesh!r}), jax.devices())
with layout.activate():
  before = peak()
  params = import_params(tensors, config, layout)
  jax.block_until_ready(params)
  after = peak()
leaves = jax.tree.leaves(params)
held = {{
  (s.device, id(x)): s.data.nbytes for x in leaves for s in x.addressable_shards
}}
sizes = [int(np.prod(tensors.shape(n))) * tensors.dtype(n).itemsize for n in tensors.names()]
print(json.dumps({{
  "grown": after - before,
  "arrays": sum(held.values()),
  "largest": max(sizes),
  "checkpoint": sum(sizes),
  "devices": len({{device for device, _ in held}}),
  "spread": sum(not x.sharding.is_fully_replicated for x in leaves) / len(leaves),
}}))
"""
CONFIG = {
  "vocab_size": 8192,
  "num_layers": 10,
  "embed_dim": 768,
  "mlp_dim": 2688,
  "num_heads": 12,
  "max_seq_len": 64,
  "tie_embeddings": False,
}


def _python(code):
  flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
  )
  assert not done.returncode, done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """400 MB of a Llama's float32 tensors in five shards."""
  folder = tmp_path_factory.mktemp("published") / "hf"
  _python(WRITE.format(config=CONFIG, folder=str(folder)))
  assert len(list(folder.glob("model-*.safetensors"))) >= 4
  return folder


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "model": 2}, {"fsdp": 4, "model": 2}])
def test_an_import_holds_a_few_tensors_at_a_time(published, mesh):
  """At most 3 × the largest tensor and the slack beside the arrays. Broken by a reader or an import
  that keeps tensors (375 MB more), or whole copies of an array on the way into its stack."""
  found = json.loads(_python(IMPORT.format(folder=str(published), mesh=mesh)))
  assert found["checkpoint"] > 380e6 and found["devices"] == 8 and found["spread"] > 0.5, found
  beside = found["grown"] - found["arrays"]
  assert beside <= 3 * found["largest"] + SLACK, found
