"""Long texts in parts."""


def cut(text: str, max_bytes: int) -> list[str]:
  """Parts of at most max_bytes of UTF-8 that joined are the text and hold more than white space.

  Cut at the last line end of the second half of a part, else at its last space, else anywhere
  between two characters.
  """
  data = text.encode()
  parts: list[bytes] = []
  start = 0
  while len(data) - start > max_bytes:
    end = start + max_bytes
    middle = start + max_bytes // 2
    at = data.rfind(b"\n", middle, end) + 1 or data.rfind(b" ", middle, end) + 1
    if not at:
      at = end
      while data[at] & 0xC0 == 0x80:
        at -= 1
    parts.append(data[start:at])
    start = at
  parts.append(data[start:])
  joined: list[bytes] = []
  for part in parts:
    if joined and not (part.strip() and joined[-1].strip()):
      joined[-1] += part
    else:
      joined.append(part)
  return [part.decode() for part in joined]
