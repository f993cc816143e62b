"""Train a model, or continue where a run stands.

usage: python -m jaxlm.train --config=FILE --workdir=DIR [--config.key=value …]

Started again with the same workdir, a run resumes from its last checkpoint: same rows, same random
numbers, bit for bit on the same devices. Where that one is damaged, from the one before it. A
SIGTERM saves and exits with status 75.

examples:
  python -m jaxlm.train --config=configs/tiny.py --workdir=runs/tiny
  python -m jaxlm.train --config=configs/tiny.py --workdir=runs/hot --config.optim.peak_lr=1e-2
  python -m jaxlm.train --config=runs/tiny/config.json --workdir=runs/tiny   # resume
"""

from jaxlm import cli

CONFIG = cli.define_config(example="configs/tiny.py", expected=cli.run_config)
WORKDIR = cli.define_string("workdir", None, "directory of the run", required=True)
ACCEPT_CHANGES = cli.define_bool(
  "accept_changes", False, "resume although the config differs from the one the run began with"
)
STOP_AT = cli.define_integer(
  "stop_at", None, "save and stop after so many steps in all, with status 75", lower_bound=1
)
FALLBACK = cli.define_bool(
  "fallback",
  True,
  "where the newest checkpoint is damaged, set it aside and resume from the newest that is not",
)


def main() -> int:
  from jaxlm import distributed, run

  distributed.initialize()
  finished = run.train(
    CONFIG.value,
    WORKDIR.value,
    accept_changes=ACCEPT_CHANGES.value,
    stop_at=STOP_AT.value,
    fallback=FALLBACK.value,
  )
  if not finished:
    how = "run the same command again" if STOP_AT.value is None else "raise or leave out --stop_at"
    distributed.say(f"stopped and saved; {how} to go on ({WORKDIR.value})")
    return cli.PREEMPTED
  distributed.say(f"done; next: {cli.module_command('evaluate')} --workdir={WORKDIR.value}")
  return cli.OK


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
