"""Plan a run: memory, messages and step time of a config on so many chips, by arithmetic.

usage: python -m jaxlm.plan --config=FILE --chip=NAME --num_chips=N [--config.key=value …]

Nothing is compiled or allocated. --search tries the sizes of fsdp, model and sequence that fit and
lists the fastest.

examples:
  python -m jaxlm.plan --config=configs/7b.py --chip=h100 --num_chips=8
  python -m jaxlm.plan --config=configs/7b.py --chip=v5p --num_chips=64 --search
"""

from jaxlm import cli

CONFIG = cli.define_config(example="configs/7b.py", expected=cli.run_config)
CHIP = cli.define_string("chip", None, "h100, h200, a100, v5e, v5p or v6e", required=True)
NUM_CHIPS = cli.define_integer("num_chips", 8, "devices", lower_bound=1)
VOCAB_SIZE = cli.define_integer("vocab_size", 32_000, "where the config leaves it to the data")
SEARCH = cli.define_bool("search", False, "list the fastest meshes instead")


def main() -> int:
  from jaxlm.plan import chips, report

  config = CONFIG.value
  config.model.vocab_size = config.model.vocab_size or VOCAB_SIZE.value
  chip = chips.chip(CHIP.value)
  if SEARCH.value:
    print(report.search(config, chip, NUM_CHIPS.value))
  else:
    print(report.plan(config, chip, NUM_CHIPS.value))
  return cli.OK


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
