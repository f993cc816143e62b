"""Renders a chat template: JSON [template, variables, limit] on stdin, {"text"} or {"error"} out.

Run as a script by chat.py, with nothing of jaxlm in it. Jinja's immutable sandbox keeps templates
from attributes that lead to code and from changing their arguments; the system bounds time and
memory.
"""

import datetime
import json
import resource
import sys
from typing import Any

CPU_SECONDS = 8
MEMORY = 1 << 30


def render(template: str, variables: dict[str, Any], limit: int) -> str:
  """The text. Raises jinja2's errors, OverflowError past `limit` characters."""
  import jinja2
  import jinja2.ext
  import jinja2.nodes
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  class Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %} marks what an assistant says: its body, as it is."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's name and type)

    def parse(self, parser: Any) -> Any:
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      # A scope of its own, as in transformers, where it is the body of a call.
      return jinja2.nodes.Scope(body).set_lineno(line)

  def tojson(x: Any, ensure_ascii: bool = False, indent: int | None = None, **other: Any) -> str:
    # Jinja's own escapes what HTML would misread.
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, **other)

  # As transformers sets it up (utils/chat_template_utils.py), of which templates make use.
  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
  )
  environment.filters["tojson"] = tojson
  environment.globals["raise_exception"] = raise_exception
  environment.globals["strftime_now"] = lambda f: datetime.datetime.now().strftime(f)
  parts, length = [], 0
  for part in environment.from_string(template).generate(**variables):
    length += len(part)
    if length > limit:
      raise OverflowError(f"it writes more than {limit} characters")
    parts.append(part)
  return "".join(parts)


def main() -> None:
  resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
  resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
  template, variables, limit = json.load(sys.stdin)
  try:
    answer = {"text": render(template, variables, limit)}
  except ImportError:
    answer = {"error": "jinja2 is not installed: pip install 'jaxlm[interop]'"}
  except Exception as e:
    answer = {"error": f"{e}" or type(e).__name__}
  json.dump(answer, sys.stdout)


if __name__ == "__main__":
  main()
