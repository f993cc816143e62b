"""Prove that a restart of a run gives the same rows and losses, on the same or another mesh.

usage: python -m jaxlm.verify_resume --workdir=DIR [--config.mesh.axis=size …] [--steps=4]

Restarts from a checkpoint of the run in a directory of its own and compares each step with what the
run recorded after that checkpoint; where it recorded too little, with steps that are made anew. The
run itself is only read. Losses must be equal bit for bit on the same mesh; on another one within
1e-5 (float32) or 2e-2 (bfloat16), relative. Status 1 if something differs.

examples:
  python -m jaxlm.verify_resume --workdir=runs/tiny
  python -m jaxlm.verify_resume --workdir=runs/tiny --config.mesh.data=2 --steps=2
"""

from jaxlm import cli

CONFIG = cli.define_config(default="WORKDIR/config.json", expected=cli.run_config)
WORKDIR = cli.define_string("workdir", None, "directory of the run", required=True)
STEPS = cli.define_integer("steps", 4, "steps to compare", lower_bound=1)
RERUN = cli.define_bool(
  "rerun", False, "compare with steps made anew here, not with those that the run recorded"
)
SCRATCH = cli.define_string(
  "scratch", None, "where the restart is written and removed again; by default beside the run"
)


def main() -> int:
  from jaxlm import distributed, resume_proof

  distributed.initialize()
  good = resume_proof.verify(
    WORKDIR.value, CONFIG.value, steps=STEPS.value, rerun=RERUN.value, scratch=SCRATCH.value
  )
  return cli.OK if good else 1


if __name__ == "__main__":
  cli.run(main, doc=__doc__)
