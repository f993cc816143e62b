"""jaxlm: pretrain a language model from scratch on JAX."""

__version__ = "0.1.0"
