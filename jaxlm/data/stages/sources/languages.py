"""ISO 639-3 codes, as crawls write them, to ISO 639-1 where there is one."""

_CODES = (
  "eng en deu de fra fr spa es ita it por pt nld nl pol pl rus ru ukr uk ces cs slk sk slv sl"
  " hrv hr srp sr bos bs bul bg ron ro hun hu fin fi est et lav lv lit lt swe sv dan da nor no"
  " nob nb nno nn isl is ell el tur tr ara ar heb he fas fa hin hi ben bn tam ta tel te mar mr"
  " guj gu kan kn mal ml pan pa urd ur zho zh jpn ja kor ko vie vi tha th ind id msa ms fil tl"
  " cat ca eus eu glg gl gle ga cym cy lat la epo eo sqi sq mkd mk bel be kat ka hye hy aze az"
  " kaz kk uzb uz mon mn nep ne sin si mya my khm km lao lo swa sw afr af amh am som so hau ha"
  " yor yo zul zu mlt mt ltz lb fao fo jav jv sun su tgl tl"
)
_PAIRS = _CODES.split()
_SHORT = dict(zip(_PAIRS[::2], _PAIRS[1::2]))


def iso_639_1(code: str) -> str:
  """ "eng" → "en", "en-GB" → "en"; another code as it is."""
  code = code.strip().lower().replace("_", "-").split("-")[0]
  return _SHORT.get(code, code)
