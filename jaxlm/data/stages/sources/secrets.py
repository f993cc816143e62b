"""Keys and tokens in texts, found by the patterns of detect-secrets; nothing is verified online."""

import functools
import re
from typing import Any

# Addresses are private data, which `clean` looks after; entropy alone flags every checksum.
_LEFT_OUT = ("IPPublicDetector", "Base64HighEntropyString", "HexHighEntropyString")
_PRIVATE_KEY = re.compile(
  r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----[\s\S]*?"
  r"(?:-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|\Z)"
)
MARK = "<SECRET>"


class SecretFinder:
  """Finds and replaces secrets. keywords: also values given to names such as `password`."""

  def __init__(self, keywords: bool = False):
    self._patterns = _patterns()
    self._keywords = _keyword_detector() if keywords else None

  def find(self, text: str) -> set[str]:
    """The distinct secrets of a text; of a private key its first line."""
    found = set()
    for pattern, hint in self._patterns:
      if hint and not any(word in text for word in hint):
        continue
      for match in pattern.finditer(text):
        part = next((group for group in match.groups() if group), match.group())
        if not _is_placeholder(part):
          # A group may be a prefix alone, or a word that stands in other places of the text too.
          found.add(part if len(part) >= 16 else match.group().strip())
    if self._keywords is not None:
      for number, line in enumerate(text.splitlines()):
        if len(line) < 1000:
          for one in self._keywords.analyze_line("", line, number):
            if one.secret_value and not _is_placeholder(one.secret_value):
              found.add(one.secret_value)
    return found

  def replace(self, text: str, found: set[str]) -> str:
    """The text with MARK in their place."""
    if any("PRIVATE KEY" in secret for secret in found):
      text = _PRIVATE_KEY.sub(MARK, text)
    for secret in sorted(found, key=len, reverse=True):
      text = text.replace(secret, MARK)
    return text


# A pattern is tried only where one of these words is: that is many times faster.
_HINTS: dict[str, tuple[str, ...]] = {
  "ArtifactoryDetector": ("AKC", "AP"),
  "AzureStorageKeyDetector": ("AccountKey=",),
  "BasicAuthDetector": ("://",),
  "JwtTokenDetector": ("eyJ",),
  "MailchimpDetector": ("-us",),
  "NpmDetector": (":_authToken",),
  "OpenAIDetector": ("T3BlbkFJ",),
  "PrivateKeyDetector": ("PRIVATE KEY", "PuTTY-User-Key-File-2"),
  "PypiTokenDetector": ("pypi-Ag",),
  "SendGridDetector": ("SG.",),
  "SlackDetector": ("xox", "hooks.slack.com"),
  "SquareOAuthDetector": ("sq0csp-",),
  "StripeDetector": ("k_live_",),
  "TwilioKeyDetector": ("AC", "SK"),
  "GitHubTokenDetector": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
  "GitLabTokenDetector": ("gl", "GR1348941"),
  "CloudantDetector": ("cloudant", "cl_", "cl-", "clou"),
  "IbmCloudIamDetector": ("ibm", "IBM", "cloud"),
  "IbmCosHmacDetector": ("cos", "COS", "secret"),
  "SoftlayerDetector": ("softlayer", "SOFTLAYER", "sl_", "sl-"),
}


@functools.cache
def _patterns() -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
  from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

  found = []
  kinds: dict[str, Any] = get_mapping_from_secret_type_to_class()
  for kind in kinds.values():
    denylist = getattr(kind, "denylist", None)
    if kind.__name__ in _LEFT_OUT or not isinstance(denylist, list | tuple):
      continue
    found += [(pattern, _HINTS.get(kind.__name__, ())) for pattern in denylist]
  return found


def _keyword_detector() -> Any:
  from detect_secrets.plugins.keyword import KeywordDetector

  return KeywordDetector()


_WORDS = "pass passwd password pwd pw secret token user username xxx xxxx"
_EXAMPLES = frozenset(_WORDS.split())


def _is_placeholder(secret: str) -> bool:
  from detect_secrets.filters import heuristic

  return (
    secret.lower() in _EXAMPLES
    or heuristic.is_templated_secret(secret)
    or heuristic.is_prefixed_with_dollar_sign(secret)
    or heuristic.is_not_alphanumeric_string(secret)
    or (secret.strip(' :="').startswith("AP") and not re.search(r"[0-9]", secret))
  )
