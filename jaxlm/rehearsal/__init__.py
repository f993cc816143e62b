"""A dress rehearsal of a big run on one machine: see jaxlm/rehearse.py."""
