"""The one exception that is shown to users as one line, without a traceback."""


class UserError(ValueError):
  """Bad input: the message is one line that names the place and the remedy.

  Every command prints it as `error: …` and exits with status 2. Anything else that escapes a
  command is a bug in jaxlm and keeps its traceback.
  """
