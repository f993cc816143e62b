"""Eight fake devices on the CPU, strict shapes, and compiled programs kept between runs."""

import os
from pathlib import Path

# Commands that tests start inherit these, so they are set before jax is imported.
_CACHE = Path(__file__).parent.parent / ".pytest_cache/jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile more than they compute: less optimised programs are ready in half the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
from flax import nnx

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
nnx.set_graph_mode(False)
nnx.set_graph_updates(False)
