"""Score a run on held-out text: loss, perplexity, bits per byte.

usage: python -m jaxlm.evaluate --workdir=DIR [--data=DATASET] [--step=N]

Prints a table beside what gzip and xz reach on the same text, and writes WORKDIR/evaluation.json.

examples:
  python -m jaxlm.evaluate --workdir=runs/tiny
  python -m jaxlm.evaluate --workdir=runs/tiny --data=data/mine --json
"""

import json
from pathlib import Path

from jaxlm import cli

WORKDIR = cli.define_string("workdir", None, "directory of the run", required=True)
DATA = cli.define_string("data", None, "a prepared dataset; by default the one trained on")
STEP = cli.define_integer("step", None, "the checkpoint; by default the newest", lower_bound=0)
JSON = cli.define_bool("json", False, "print JSON instead of a table")


def main() -> int:
  from jaxlm import report, trained

  opened = trained.open_run(WORKDIR.value, step=STEP.value, all_devices=True)
  scores, manifest = opened.evaluate(DATA.value)
  values = report.evaluation(opened, scores, manifest)
  file = Path(WORKDIR.value) / "evaluation.json"
  file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
  if JSON.value:
    print(json.dumps(values, indent=2))
  else:
    report.print_evaluation(values)
    print(f"written to {file}")
  return cli.OK


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
