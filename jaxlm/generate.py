"""Continue a prompt with a trained run.

usage: python -m jaxlm.generate --workdir=DIR --prompt=TEXT [--temperature=T …]

examples:
  python -m jaxlm.generate --workdir=runs/tiny --prompt='def '
  python -m jaxlm.generate --workdir=runs/tiny --prompt='import ' --temperature=0
  python -m jaxlm.generate --workdir=runs/tiny --prompt='class ' --num_samples=3 --top_k=40
"""

from jaxlm import cli

WORKDIR = cli.define_string("workdir", None, "directory of the run", required=True)
PROMPT = cli.define_string("prompt", "", "the text to continue; by default a new document begins")
MAX_NEW_TOKENS = cli.define_integer("max_new_tokens", 128, "tokens to add", lower_bound=1)
TEMPERATURE = cli.define_float("temperature", 0.8, "0 takes the likeliest token", lower_bound=0.0)
TOP_K = cli.define_integer("top_k", 0, "only the k likeliest tokens count; 0: all", lower_bound=0)
TOP_P = cli.define_float("top_p", 0.95, "only the likeliest tokens that reach this probability")
SEED = cli.define_integer("seed", 0, "of the draws", lower_bound=0)
NUM_SAMPLES = cli.define_integer("num_samples", 1, "continuations to draw", lower_bound=1)
STEP = cli.define_integer("step", None, "the checkpoint; by default the newest", lower_bound=0)


def main() -> int:
  from jaxlm import trained
  from jaxlm.inference.sampling import Sampling

  sampling = Sampling(temperature=TEMPERATURE.value, top_k=TOP_K.value, top_p=TOP_P.value)
  opened = trained.open_run(WORKDIR.value, step=STEP.value)
  texts = opened.generate(
    [PROMPT.value] * NUM_SAMPLES.value,
    max_new_tokens=MAX_NEW_TOKENS.value,
    sampling=sampling,
    seed=SEED.value,
  )
  for i, text in enumerate(texts):
    if i:
      print("-" * 40)
    print(PROMPT.value + text)
  return cli.OK


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
