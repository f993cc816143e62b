"""Continue a prompt with a trained run, or answer a chat message.

usage: python -m jaxlm.generate --workdir=DIR --prompt=TEXT [--temperature=T …]
       python -m jaxlm.generate --workdir=DIR --chat=MESSAGE [--system=TEXT …]

examples:
  python -m jaxlm.generate --workdir=runs/tiny --prompt='def '
  python -m jaxlm.generate --workdir=runs/tiny --prompt='import ' --temperature=0
  python -m jaxlm.generate --workdir=runs/tiny --prompt='class ' --num_samples=3 --top_k=40
  python -m jaxlm.generate --workdir=runs/smollm2 --chat='What is the capital of France?'
"""

from typing import Any

from jaxlm import cli
from jaxlm.errors import UserError

WORKDIR = cli.define_string("workdir", None, "directory of the run", required=True)
PROMPT = cli.define_string("prompt", "", "the text to continue; by default a new document begins")
CHAT = cli.define_string(
  "chat", None, "a message to answer, by the chat template of the run's tokenizer"
)
SYSTEM = cli.define_string("system", None, "the system message before --chat; by default none")
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
  if CHAT.value is not None and PROMPT.value:
    raise UserError("--prompt and --chat: give one of them")
  if SYSTEM.value is not None and CHAT.value is None:
    raise UserError("--system: needs --chat")
  opened = trained.open_run(WORKDIR.value, step=STEP.value)
  if CHAT.value is not None:
    return _chat(opened, sampling)
  texts = opened.generate(
    [PROMPT.value] * NUM_SAMPLES.value,
    max_new_tokens=MAX_NEW_TOKENS.value,
    sampling=sampling,
    seed=SEED.value,
  )
  _print([PROMPT.value + text for text in texts])
  return cli.OK


def _chat(opened: Any, sampling: Any) -> int:
  from jaxlm.inference.chat import load_chat
  from jaxlm.workdir import Workdir

  chat = load_chat(Workdir(WORKDIR.value).tokenizer, opened.tokenizer)
  messages = [{"role": "user", "content": CHAT.value}]
  if SYSTEM.value is not None:
    messages.insert(0, {"role": "system", "content": SYSTEM.value})
  ids = chat.encode(messages, opened.tokenizer)
  generator = opened.generator()
  with opened.layout.activate():
    answers = generator(
      [ids] * NUM_SAMPLES.value,
      max_new_tokens=MAX_NEW_TOKENS.value,
      sampling=sampling,
      seed=SEED.value,
    )
  known = opened.tokenizer.vocab_size  # the model's table may have more rows
  _print([opened.tokenizer.decode([i for i in chat.cut(a) if i < known]) for a in answers])
  return cli.OK


def _print(texts: list[str]) -> None:
  for i, text in enumerate(texts):
    if i:
      print("-" * 40)
    print(text)


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
