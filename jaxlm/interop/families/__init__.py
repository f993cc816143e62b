"""Models of other libraries as jaxlm's, and back: `FAMILIES` by Hugging Face's model_type.

  config = find_family(tensors.config).to_config(tensors.config)  # a ModelConfig, or UserError
  params = import_params(tensors, config, layout)     # sharded, tensor by tensor
  ...
  hf = hf_config(config)                              # config.json; UserError: no family has it
  for name, array in export_tensors(params, config):  # numpy, tensor by tensor
    ...

`tensors` is what interop/tensors.py opens. A family is a file of this package; `base.py` says what
it defines, `transfer.py` how its table of weights is followed.
"""

from jaxlm.interop.families.base import Family, Weight
from jaxlm.interop.families.registry import (
  FAMILIES,
  differences,
  family_of,
  find_family,
  hf_config,
)
from jaxlm.interop.families.transfer import export_tensors, import_params

__all__ = [
  "FAMILIES",
  "Family",
  "Weight",
  "differences",
  "export_tensors",
  "family_of",
  "find_family",
  "hf_config",
  "import_params",
]
