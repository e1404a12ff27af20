"""The patterns that find secrets in a text, for `_notices.redacted`.

They are many, so they are compiled when the first text passes through them that may hold a secret: an exception's, or
that of a header which is refused. A start without either does not wait for them.
"""

from __future__ import annotations

import re
import string
from typing import Final

_HIDDEN: Final = "REDACTED"
# RFC 3986, section 3.2.1, as it is and percent-encoded in a query. Passwords that hold a `/`, `?` or `#`, which they
# may not, are common in DSNs: behind a colon that no port follows, everything up to the @ is one. It holds no `://`:
# so no part of a text is looked at for two URLs, and the time does not grow faster than the text.
_URL_CREDENTIALS: Final = re.compile(
    r"""(?<=[a-z0-9+.=-])(://|%3a%2f%2f)(?:"""
    r"""[^\s/?#@:"'<>%]*+(?::|%3a)(?!\d{1,5}(?:[/?#]|\Z))(?:[^\s@"'<>:%]++|:(?!//)|%(?!3a%2f%2f|40)|(?<=\w)["'](?=\w))*+(?:@|%40)"""
    r"""(?:[^\s/?#@"'<>&:%]*+@)*+"""
    r"""|(?:[^\s/?#"'<>&@%]++|%(?!40|2f))*+(?:@|%40))""",
    re.IGNORECASE,
)
# A value in quotes, as `repr` shows it; it may be cut off.
_QUOTED: Final = r"""b?(?:'(?:[^'\\]|\\.)*+'?|"(?:[^"\\]|\\.)*+"?)"""
# The same within another text that quotes it, such as JSON in a JSON string: its quotes have backslashes before them.
_ESCAPED: Final = r"""\\++["'](?:[^"'\\]++|\\++[^"'\\])*+"""
_VALUE: Final = rf"{_QUOTED}|{_ESCAPED}|\{{[^{{}}\r\n]*+"
# RFC 9110, section 11.4. `Basic authentication` is no credential: those hold more than small letters.
_SCHEMES: Final = re.compile(
    r"""\b([Bb]earer[\s:]\s{0,4}|BEARER\s{1,4}|(?:Digest|OAuth)\s{1,4}(?=[\w-]{1,32}=)|(?:[Bb]asic|BASIC|Negotiate|NTLM"""
    r"""|DPoP|SSWS|SharedKey|Splunk|[Tt]oken|A(?:pi|PI)[- ]?[Kk]ey)\s{1,4}(?=[a-z]{0,64}[A-Z0-9+/=]))"""
    r"""(?:(?<=Digest )[^\r\n]++|(?<=OAuth )[^\r\n]++|[^\s'",;]++)"""
)

# The patterns from here on see small letters alone. Each begins with a character or with a class of characters: `re`
# skips what begins otherwise, and an exception may quote 32 KiB of what a stranger has sent.
#
# A user's name and password without a scheme, as some drivers take them. What follows `mailto:` is no password.
_BARE_CREDENTIALS: Final = re.compile(
    r"""([\s'"=(,/](?!(?:mailto|sips?|xmpp|acct):)[\w.+-]{1,64}:)(?!//)[^\s/@:'"]{1,128}(?=@[\w\[(])"""
)
# A header with its value: in a line, in a pair, in a mapping, in a named tuple, in a WSGI environ.
_SECRET_HEADERS: Final = re.compile(
    r"((?:authorization(?:-bin)?|auth[-_]token|cookies?2?|x[-_]forwarded[-_]client[-_]cert)"
    rf"""\\{{0,4}}["']?\s{{0,4}}[:=,]\s{{0,4}}(?:value\s{{0,4}}=\s{{0,4}})?)(?:{_VALUE}|[^\r\n]++)"""
)
# `http.cookiejar` shows one so.
_COOKIES: Final = re.compile(r"(<cookie [^\s=<>]{1,256}=)[^\s<>]++")
# h11, h2, http.client and requests quote the value that they refuse, and most do not say which header it is of.
_REFUSED_VALUES: Final = re.compile(
    rf"""(header (?:field )?(?:value|part)[^\r\n'"]{{0,80}}?)({_QUOTED}|(?<=value: )[^\s'"][^\r\n]*+)"""
)
# `?token=...`, `dbPassword='...'`, `"api_key": "..."`; then `X-Vault-Token: ...`, `--password ...`.
_SENSITIVE_NAMES: Final = (
    r"pass(?:word|wd|phrase)|pwd|p(?<![a-z0-9]p)(?:w|ass|sk)|secret|s(?<![a-z0-9]s)ig|signature|credentials?"
    r"|awsaccesskeyid|x-honeycomb-team|k(?<=[a-z0-9]-k)ey|j(?<![a-z0-9]j)wt"
    r"|(?:api|access|account|auth|client|encryption|functions|ingestion|license|master|private|secret|service|session"
    r"|shared|signing|storage|subscription)[_-]?key"
)
_PAIR_VALUE: Final = rf"""(?:[a-z_.]{{0,64}}\([^()\r\n]*+|{_VALUE}|[^\s&'",;)}}\]\\]++)"""
_SECRET_PAIRS: Final = re.compile(
    rf"((?:{_SENSITIVE_NAMES}|token|a(?<![a-z0-9]a)uth)(?:_?(?:id|key|value))?"
    rf"""(?:\s?=\s?|\\{{0,4}}["']\s{{0,4}}[:=,]\s{{0,4}})){_PAIR_VALUE}"""
)
_SECRET_FIELDS: Final = re.compile(
    rf"([^a-z0-9.](?:(?:{_SENSITIVE_NAMES}|token(?<=[a-z0-9][-_]token))\s?:\s{{1,4}}"
    r"|token:\s{1,4}(?=[a-z_.+/=-]{0,64}[0-9])"
    rf"|-(?:[a-z]{{1,16}}-){{0,3}}(?:password|passwd|secret|token|key)\s{{1,4}})){_PAIR_VALUE}"
)
# What stands in a URL's query or fragment and opens something, under a name that means other things elsewhere.
_SECRET_PARAMETERS: Final = re.compile(
    r"""([?&#;](?:code|key|sid|session(?:[_-]?id)?|otp|ticket|assertion|samlresponse)=)[^\s&#'"<>;]++"""
)
# Tokens that are known by how they begin, and a key in PEM (RFC 7468), whose end may be cut off.
_KNOWN_TOKENS: Final = re.compile(
    r"(g(?<![a-z0-9]g)(?:h[pousr]_|ithub_pat_|lpat-)|xox[a-z]-|npm_|pypi-|hvs\.|ya29\.|aiza|dop_v1_|rk_live_"
    r"|s(?<![a-z0-9]s)(?:k[-_](?:live|test|proj|ant)[-_]|g\.)|hooks\.slack\.com/services/"
    r"|begin [a-z ]{0,24}private key-----)(?:(?<=-----)(?:[^-]++|-(?!----))++|[\w./-]{6,}+)"
    r"|a(?<![a-z0-9]a)(?:ki|si)a[a-z0-9]{16}(?![a-z0-9])"
)
# RFC 7519: the first part is a JSON object, which begins so in base64.
_JSON_WEB_TOKENS: Final = re.compile(r"\beyJ[\w-]++\.[\w-]++(?:\.[\w-]*+)?")

_IN_SMALL_LETTERS: Final = (
    *(_SECRET_HEADERS, _COOKIES, _REFUSED_VALUES, _SECRET_PAIRS, _SECRET_FIELDS, _SECRET_PARAMETERS),
    _KNOWN_TOKENS,
)
_SMALL_LETTERS: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def without_secrets(text: str) -> str:
    """Return a text in which what looks like a secret is replaced by `REDACTED`."""
    text = _SCHEMES.sub(rf"\1{_HIDDEN}", without_url_credentials(text))
    # The character in front is one that a secret's name may stand behind.
    text = f"\n{text}"
    if "@" in text:
        text = _hide(_BARE_CREDENTIALS, text)
    for pattern in _IN_SMALL_LETTERS:
        text = _hide(pattern, text)
    return _JSON_WEB_TOKENS.sub(_HIDDEN, text[1:])


def _hide(pattern: re.Pattern[str], text: str) -> str:
    """Hide what of each match is not in the first group."""
    end, parts = 0, list[str]()
    # Not str.lower(): that makes two characters of some.
    for match in pattern.finditer(text.translate(_SMALL_LETTERS)):
        parts += text[end : max(match.end(1), match.start())], _HIDDEN
        end = match.end()
    return "".join([*parts, text[end:]])


def without_url_credentials(text: str) -> str:
    """Return a text with the user's part of each URL replaced by `REDACTED`."""
    return _URL_CREDENTIALS.sub(rf"\1{_HIDDEN}@", text)
