"""Finds personal data: patterns first, then what a check digit or a registry says of them."""

import functools
import ipaddress
import re
from collections.abc import Callable
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.formatters.pii import PIIFormatter

from jaxlm.data.stages.ops.base import OpContext
from jaxlm.data.stages.ops.private_data import Handling, PrivateDataConfig
from jaxlm.data.stages.ops.steps import Op
from jaxlm.data.stages.stage_io import Count

# An address in 2000::/3, its last 32 bits also as 8.8.8.8. A label may stand before it
# ("ip:2a00:…"), but not the rest of a longer one. With a single group before "::" only what the
# registries have: 2024::12 is more often something else.
_IPV6 = (
  r"(?=[23][0-9a-fA-F]{3}:)(?<![\w.])(?<!::)"  # the first digits first: they are rare
  + "".join(rf"(?<!\b[0-9a-fA-F]{{{n}}}:)" for n in (1, 2, 3, 4))
  + r"(?:[23][0-9a-fA-F]{3}(?::[0-9a-fA-F]{1,4})+|2[4-9a-cA-C][0-9a-fA-F]{2}(?=::[0-9a-fA-F]))"
  r":[0-9a-fA-F:]{0,35}(?:(?<=:)\d{1,3}(?:\.\d{1,3}){3})?(?![\w:]|\.\d)"
)
_PHONE = re.compile(
  r"(?<![\w+./-])(?:"
  r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"
  r"|(?:1[ .-])?\(\d{3}\) ?\d{3}[ .-]\d{4}"
  r"|(?:1[ .-])?\d{3}([.-])\d{3}\1\d{4}"
  r")(?![\w-]|\.\d)"
)
# `less`: 19 digits in groups may also be 16 and a security code.
_GAP = "[ \u00a0\u202f]"
_CARD = re.compile(
  r"(?<![\w.-])(?P<less>[2-6]\d{3}"
  rf"(?:((?:{_GAP}|[.-])?)\d{{4}}\2\d{{4}}\2\d{{1,7}}|(?:{_GAP}|-)?\d{{6}}(?:{_GAP}|-)?\d{{4,5}}))"
  rf"(?:(?<=\d{{4}})(?:{_GAP}|[.-])\d{{3}})?(?![\w-]|\.\d)"
)

# Characters of an account number by country: the registry of ISO 13616, release 101.
_IBAN_LENGTHS = {
  "NO": 15, "BE": 16, "DK": 18, "FI": 18, "FO": 18, "GL": 18, "NL": 18, "MK": 19, "SI": 19,
  "AT": 20, "BA": 20, "EE": 20, "KZ": 20, "LT": 20, "LU": 20, "XK": 20, "CH": 21, "HR": 21,
  "LI": 21, "LV": 21, "BG": 22, "BH": 22, "CR": 22, "DE": 22, "GB": 22, "GE": 22, "IE": 22,
  "ME": 22, "RS": 22, "AE": 23, "GI": 23, "IL": 23, "AD": 24, "CZ": 24, "ES": 24, "MD": 24,
  "PK": 24, "RO": 24, "SA": 24, "SE": 24, "SK": 24, "TN": 24, "PT": 25, "IS": 26, "TR": 26,
  "FR": 27, "GR": 27, "IT": 27, "MC": 27, "MR": 27, "SM": 27, "AL": 28, "AZ": 28, "CY": 28,
  "DO": 28, "GT": 28, "HU": 28, "LB": 28, "PL": 28, "BR": 29, "PS": 29, "QA": 29, "UA": 29,
  "JO": 30, "KW": 30, "MU": 30, "MT": 31, "FK": 18, "SD": 18, "MN": 20, "VA": 22, "IQ": 23,
  "OM": 23, "SO": 23, "TL": 23, "VG": 24, "LY": 25, "ST": 25, "BI": 27, "DJ": 27, "BY": 28,
  "HN": 28, "NI": 28, "SV": 28, "EG": 29, "YE": 30, "SC": 31, "LC": 32, "RU": 33,
}  # fmt: skip
# As long as its country says and no longer: a word in capitals may follow.
_IBAN = re.compile(
  r"\b(?=[A-Z]{2}\d\d)(?:"
  + "|".join(rf"{c}\d\d(?:{_GAP}?[A-Z0-9]){{{n - 4}}}" for c, n in _IBAN_LENGTHS.items())
  + r")(?![A-Za-z0-9])"
)


def is_card(text: str) -> bool:
  """Whether it is the number of a payment card: issuer, length and Luhn's check digit."""
  digits = [int(c) for c in text if c.isdigit()]
  head, size = int("".join(map(str, digits[:4]))), len(digits)
  issued = (
    (head // 1000 == 4 and size in (13, 16, 19))
    or (size == 16 and (5100 <= head <= 5599 or 2221 <= head <= 2720))
    or (size == 15 and head // 100 in (34, 37))
    or (size == 16 and (head == 6011 or head // 100 == 65 or 6440 <= head <= 6499))
    or (size == 16 and 3528 <= head <= 3589)
    or (size == 14 and (3000 <= head <= 3059 or head // 100 in (36, 38)))
  )
  doubled = [d * 2 - 9 * (d > 4) for d in digits[-2::-2]]
  return issued and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
  """Whether it is the number of a bank account: the length of its country, and modulo 97."""
  plain = "".join(text.split())
  if _IBAN_LENGTHS.get(plain[:2]) != len(plain):
    return False
  return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def is_phone(text: str) -> bool:
  """Whether it has as many digits as a telephone number (ITU E.164), and they are not all one."""
  digits = [c for c in text if c.isdigit()]
  return 8 <= len(digits) <= 15 and len(set(digits)) > 2


def is_public_ipv6(text: str) -> bool:
  """Whether it is an address of the part of the space that is given out, 2000::/3."""
  try:
    address = ipaddress.IPv6Address(text)
  except ValueError:
    return False
  return address.is_global and int(address) >> 125 == 1


class _Kind:
  """One kind: where it may be, whether it is one, what stands in its place."""

  def __init__(
    self,
    patterns: list[tuple[re.Pattern[str], Callable[[str], bool] | None]],
    replacements: tuple[str, ...],
    sign: Callable[[str], object],
  ):
    self.patterns = patterns
    self.replacements = replacements
    self.sign = sign  # of a text: false where there can be none; much cheaper than the patterns
    self._found = 0

  def __call__(self, text: str, replace: bool) -> tuple[str, int]:
    """The text, changed if it is to be replaced, and how many there are."""
    # From the first replacement anew in each document: datatrove goes on where the last document
    # ended, so that the text would depend on the tasks.
    self._found = 0
    if self.sign(text):
      for pattern, check in self.patterns:
        text = pattern.sub(functools.partial(self._one, check, replace), text)
    return text, self._found

  def _one(self, check: Callable[[str], bool] | None, replace: bool, match: re.Match[str]) -> str:
    text = match.group()
    if check is not None and not check(text):
      text = match.groupdict().get("less") or ""
      if not text or not check(text):
        return match.group()
    chosen = self.replacements[self._found % len(self.replacements)]
    self._found += 1
    return chosen + match.group()[len(text) :] if replace else match.group()


def _kinds() -> dict[str, _Kind]:
  theirs = PIIFormatter()
  email, ip = theirs.emails_replacer, theirs.ip_replacer
  # Their pattern alone also takes the inside of 1.2.3.4.5.
  # Both at once: what the one has put in place is not to be found by the other.
  address = re.compile(rf"{_IPV6}|(?=\d)(?<![\d.])(?:{ip.regex.pattern})(?![\d]|\.\d)")
  digits = re.compile(r"\d\d").search
  dotted = re.compile(r"\d\.\d|:[0-9a-fA-F:]*:").search
  # Accounts and cards before telephones and addresses: their digits are not to be taken apart.
  return {
    "email": _Kind([(email.regex, None)], email.replacements, lambda text: "@" in text),
    "iban": _Kind([(_IBAN, is_iban)], ("IBAN",), digits),
    "card": _Kind([(_CARD, is_card)], ("CARD_NUMBER",), digits),
    "phone": _Kind([(_PHONE, is_phone)], ("PHONE_NUMBER",), digits),
    "ip": _Kind(
      [(address, lambda text: (is_public_ipv6 if ":" in text else ip.validator)(text))],
      ip.replacements,
      dotted,
    ),
  }


class PrivateData(Op):
  """Counts personal data of each kind, and replaces those that the config says."""

  def __init__(self, context: OpContext, config: PrivateDataConfig):
    super().__init__(context)
    self.handling: dict[str, Handling] = {
      kind: getattr(config, kind) for kind in ("email", "iban", "card", "phone", "ip")
    }
    self._kinds: Any = None

  def start(self) -> None:
    self._kinds = [
      (name, kind, self.handling[name] is Handling.REPLACE)
      for name, kind in _kinds().items()
      if self.handling[name] is not Handling.OFF
    ]

  def end(self, rank: int) -> None:
    self._kinds = None  # the steps are pickled for the next task

  def judge(self, document: Document, count: Count) -> str | None:
    text = document.text
    for name, kind, replace in self._kinds:
      text, found = kind(text, replace)
      document.metadata[f"pii_{name}"] = found
      if found:
        count.extra[name] += found
        count.extra[f"{name}_documents"] += 1
    count.extra["replaced_documents"] += text != document.text
    document.text = text
    return None
