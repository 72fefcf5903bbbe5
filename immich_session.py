#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 the immich_session authors
# SPDX-License-Identifier: ISC
"""Keep sessions for Immich photo servers in named profiles on disk, safely.

A session is a server, an account there and its secret: an API key or an access token.  A
script gets the right one in one call, on a laptop and in a container alike::

    import immich_session
    session = immich_session.get_session()
    url, headers = session.server_url + "/albums", session.headers()
    requests.get(url, headers=headers, allow_redirects=False)

The same file is a command line: ``python3 immich_session.py --help``.  It has three parts, and
may be cut at each line that begins with "# ---- cut here": what is above is complete.

Sessions live in ``~/.config/immich`` (or ``$IMMICH_CONFIG_DIR``), in
``profiles/NAME/session.json``; ``config.json`` beside ``profiles`` names the current profile.
An OCaml Immich CLI reads and writes the same files.

Promised: a file is replaced as a whole or not at all, also in a crash or on a full disk; files
are made 0600 and directories 0700; reading writes nothing; no secret is in a repr, an error or
a warning.  Not promised: the secret is plain text, protected by file modes alone (on Windows by
the folder's access list); whoever can read files as you can read it.  ``pickle`` and
``dataclasses.asdict`` hold the secret as well.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import re
import stat
import time
import warnings
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

__version__ = "1.1.0"

__all__ = [
    "DEFAULT_PROFILE",
    "ApiKey",
    "AuthMethod",
    "InvalidProfileError",
    "InvalidSessionError",
    "Jwt",
    "NotLoggedInError",
    "ServerError",
    "ServerUnreachableError",
    "Session",
    "SessionError",
    "SessionStore",
    "get_session",
    "is_jwt_expired",
    "session_from_env",
]

DEFAULT_PROFILE = "default"

_WINDOWS = os.name == "nt"
_FILE_LIMIT = 1 << 20  # bytes of a file or an answer; no session is larger
_STALE = 60.0  # seconds; an older temporary file was left by a process that was killed
_PATIENCE = 1.0  # seconds to wait for another process that has a file open

# The environment variables that describe a session. Those that end in _FILE hold a path.
_URL_VARIABLES = ("IMMICH_INSTANCE_URL", "IMMICH_SERVER")
_SECRET_VARIABLES = ("IMMICH_API_KEY", "IMMICH_API_KEY_FILE", "IMMICH_ACCESS_TOKEN")
_HEADER_VARIABLES = ("IMMICH_HEADERS", "IMMICH_HEADERS_FILE")
_SESSION_VARIABLES = {*_URL_VARIABLES, *_SECRET_VARIABLES, *_HEADER_VARIABLES}
_SESSION_VARIABLES |= {"IMMICH_API_URL", "IMMICH_PROFILE"}


# Errors


def _printable(text: str) -> str:
    """Escape every character that could control or mislead a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _sentence(*parts: Optional[str]) -> str:
    """Compose the text of an error from where it happened and what is wrong."""
    return ": ".join(_printable(part) for part in parts if part)


class SessionError(Exception):
    """Base of every error that this module raises on purpose; its text is one sentence."""


class InvalidProfileError(SessionError, ValueError):
    """A profile name that is not allowed."""


class InvalidSessionError(SessionError, ValueError):
    """A session.json, config.json, auth.yml, field or environment variable that cannot be used.

    ``path`` is the file, and ``member`` the member of it, the field or the variable; each is None
    where there is none.
    """

    def __init__(
        self, problem: str, path: Optional[str] = None, member: Optional[str] = None
    ) -> None:
        # A file has members; but a variable or -H, which are in capitals, may name a file.
        where = (member, path) if member and member.isupper() else (path, member)
        super().__init__(_sentence(*where, problem))
        self.problem, self.path, self.member = problem, path, member


class NotLoggedInError(SessionError):
    """There is no session to use, or it has expired.

    ``profile`` is the profile that was looked at; None for a session from the environment.
    """

    def __init__(self, message: str, profile: Optional[str] = None) -> None:
        super().__init__(message)
        self.profile = profile


class ServerError(SessionError):
    """The server refused, or its answer made no sense.

    ``status`` is the HTTP status of its answer, or None.
    """

    def __init__(self, message: str, status: Optional[int] = None) -> None:
        super().__init__(message)
        self.status = status


class ServerUnreachableError(ServerError):
    """Try again later: there was no complete HTTP answer, or the server is not ready.

    ``status`` is None, or that of the answer: maintenance mode, or 429, 502, 503 or 504 of
    something in front of the server.
    """


# Rules: what may be shown, and what is a profile name, a URL, a header


def _without_query(url: str) -> str:
    return re.split("[?#]", url)[0]


def _public_url(url: str) -> str:
    """Return *url* without what may be secret in it: user name, password, query, fragment."""
    scheme, found, rest = url.partition("://")
    if scheme.lower() not in ("http", "https"):
        scheme, found, rest = "", "", url
    shown = _without_query(rest)
    if "@" in rest and shown != rest:  # nobody can tell which part is which
        shown = "***"
    elif "@" in rest:
        shown = f"***@{rest.rpartition('@')[2]}"
    elif shown != rest:
        shown += "***"
    return f"{scheme}{found}{shown}"


# Windows drops a dot at the end, and takes the name of a device for it whatever follows a dot.
_NOT_ON_WINDOWS = (
    r'.*[<>:"|?*].*|.*\.|(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?'
)


def _is_profile_name(name: str) -> bool:
    """Tell whether *name* is one visible path component; nothing else decides that."""
    return (
        name.isprintable()
        and name not in ("", ".", "..")
        and "/" not in name
        and "\\" not in name
        and name.strip(" ") == name
        and len(name.encode("utf-8")) <= 255
        and not (_WINDOWS and re.fullmatch(_NOT_ON_WINDOWS, name, re.IGNORECASE))
    )


def _checked_profile(name: str, source: str = "profile") -> str:
    if _is_profile_name(name):
        return name
    rule = "visible characters without / and \\, at most 255 bytes"
    rule += ", allowed by Windows" if _WINDOWS else ""
    raise InvalidProfileError(_sentence(source, f"{name[:80]!r} is not allowed: {rule}"))


_VISIBLE = r"[!-~]+"
_FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 §5.6.2
# Matched against "name: value": what carries the credential, or would change the request.
_RESERVED = (
    r"(x-api-key|x-immich-.*|cookie|host|content-.*|transfer-encoding|connection|expect): .*"
    r"|authorization: bearer( .*)?"
)
_URL = (
    r"(?P<origin>(?P<scheme>https?)://(?P<netloc>"
    r"(?P<host>(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?))"
    r"(?P<path>/[!\"$->@-~]*)?"  # visible ASCII but for # and ?
)


def _checked_url(url: str, source: str = "server_url") -> re.Match[str]:
    """Match http or https, a host, a port and a path: no user name, query or fragment."""
    match = re.fullmatch(_URL, url, re.ASCII)
    with contextlib.suppress(ValueError):
        if match and int(match["port"] or 80) in range(1, 65536):
            if match["host"].startswith("["):
                import ipaddress

                ipaddress.IPv6Address(match["host"][1:-1])
            return match
    problem = "expected an http(s) URL with a host, and no user name, query or fragment"
    raise InvalidSessionError(problem, None, source)


def _ascii_host(host: str, source: str) -> str:
    """Return a host, with its port, by its ASCII name (RFC 3490).

    Refuse what browsers, which follow UTS #46, take for another name ("ß" is "ss" in RFC 3490).
    """
    import unicodedata
    import urllib.parse

    name, colon, port = host.lower().partition(":")
    with contextlib.suppress(ValueError):
        urllib.parse.urlsplit(f"//{name}")  # refuses what would become a slash
        encoded = name.encode("idna")
        if encoded.decode("idna") == unicodedata.normalize("NFKC", name):
            return encoded.decode("ascii") + colon + port
    raise InvalidSessionError('write the name of its host in ASCII ("xn--...")', None, source)


def _normalised_url(typed: str, source: str = "server_url") -> str:
    """Return the URL that a person means by *typed*: https by default, no trailing slash."""
    typed = typed.strip() if "://" in typed else f"https://{typed.strip()}"
    scheme, _, rest = typed.partition("://")
    host, slash, path = rest.partition("/")
    host = host if host.isascii() else _ascii_host(host, source)
    url = f"{scheme.lower()}://{host}{slash}{path}".rstrip("/")
    _checked_url(url, source)
    return url


def _ends_in_api(url: str) -> bool:
    return (_checked_url(url)["path"] or "").endswith("/api")


def _with_api(url: str) -> str:
    return url if _ends_in_api(url) else url + "/api"


def _is_same_server(old: str, new: str) -> bool:
    """Tell whether two URLs have the same host and port, or lead from port 80 to 443."""
    with contextlib.suppress(InvalidSessionError):
        one, other = (_checked_url(_without_query(url)) for url in (old, new))
        default = {"http": 80, "https": 443}
        ports = [int(each["port"] or default[each["scheme"]]) for each in (one, other)]
        same_port = ports[0] == ports[1] or ports == [80, 443]
        return same_port and one["host"].lower() == other["host"].lower()
    return False


def _is_same_api(one: str, other: str) -> bool:
    """Tell whether two API bases have the same host, port (80 is 443 here) and path."""
    is_same_server = _is_same_server(one, other) or _is_same_server(other, one)
    paths = [url.rstrip("/").split("/", 3)[3:] for url in (one, other)]
    return is_same_server and paths[0] == paths[1]


def _check_secret(secret: str, member: str, path: Optional[str] = None) -> None:
    if not re.fullmatch(_VISIBLE, secret):
        problem = "expected visible ASCII characters, no spaces" if secret else "it is empty"
        raise InvalidSessionError(problem, path, member)


def _check_unquoted(text: str, member: str, path: Optional[str] = None) -> None:
    if re.fullmatch("\".*\"|'.*'", text, re.DOTALL):  # docker --env-file keeps them
        raise InvalidSessionError("it stands in quotes: remove them", path, member)


def _given_secret(text: str, member: str, path: Optional[str] = None) -> str:
    """Return the key or token that a person gave, without the white space around it."""
    secret = text.lstrip("\ufeff").strip()
    _check_secret(secret, member, path)
    _check_unquoted(secret, member, path)
    return secret


def _header_member(name: str) -> str:
    """Return what names a header in an error; a name that is not allowed may hold its value."""
    return f"headers.{name}" if re.fullmatch(_FIELD_NAME, name) else "headers"


def _check_extra_headers(headers: Mapping[str, str]) -> None:
    """Refuse what may not be sent (RFC 9110 §5), or would shadow the credential."""
    for name, value in headers.items():
        problem, member = None, _header_member(name)
        if member == "headers":
            problem = "a name has characters that HTTP does not allow"
        elif not re.fullmatch(rf"{_VISIBLE}(?: {_VISIBLE})*", value):
            problem = "expected visible ASCII characters with single spaces inside"
        elif re.fullmatch(_RESERVED, f"{name}: {value}", re.IGNORECASE):
            problem = "this header is reserved"
        if problem:
            raise InvalidSessionError(problem, None, member)
    if len({name.lower() for name in headers}) < len(headers):
        problem = "the same name is given twice, in different cases"
        raise InvalidSessionError(problem, None, "headers")


def _add_header(
    headers: Dict[str, str], line: str, member: str, path: Optional[str] = None, number: int = 0
) -> None:
    """Add a "NAME: VALUE" to *headers*; *number* is that of its line, where there are several."""
    name, colon, value = (part.strip() for part in line.partition(":"))
    problem = "" if colon else 'expected "NAME: VALUE"'
    if name.lower() in map(str.lower, headers):
        problem = "this header is given twice"
    try:
        _check_extra_headers({} if problem else {name: value})
    except InvalidSessionError as error:
        problem = str(error)
    if problem:
        where = f"line {number}: " if number else ""
        raise InvalidSessionError(where + problem, path, member)
    headers[name] = value


def _add_headers(
    headers: Dict[str, str], text: str, member: str, path: Optional[str] = None
) -> None:
    """Add what the lines of a variable hold to *headers*, or those of the file *path*."""
    known = len(headers)
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        # A variable has no comments, as "#" may begin the name of a header.
        if line and not (path is not None and line.startswith("#")):
            _add_header(headers, line, member, path, number)
    if path is not None and len(headers) == known:
        raise InvalidSessionError('expected "NAME: VALUE", one a line', path, member)


# JSON: strict where the meaning could differ

# Every number becomes a float, because Python refuses integers of more than 4,300 digits; and
# int() refuses the names NaN and Infinity, which are not JSON.  Of a member given twice the last
# one counts, unless objects become tuples of their (name, value) pairs.
_DECODER = json.JSONDecoder(parse_int=float, parse_constant=int)
_PAIRS_DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float, parse_constant=int)

_encoded = json.JSONEncoder(ensure_ascii=False).encode

_NOT_UNICODE = "it is not UTF-8, or has unpaired surrogates"


def _decode(text: Union[str, bytes], decoder: json.JSONDecoder = _DECODER) -> object:
    """Return the value of a JSON text (RFC 8259); raise InvalidSessionError, which names no value.

    The error is raised outside of the except blocks: JSONDecodeError carries the whole text,
    and ``from None`` would keep it in ``__context__``.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value: object = decoder.decode(text)
        if not text.isascii() or "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses unpaired surrogates
        return value
    except RecursionError:
        problem = "it is nested too deeply"
    except UnicodeError:
        problem = _NOT_UNICODE
    except json.JSONDecodeError as error:
        problem = f"it is not JSON (line {error.lineno}, column {error.colno})"
        if error.doc.startswith("\ufeff"):
            problem = "it begins with a byte order mark (BOM): save it as UTF-8 without one"
        elif not error.doc.strip():
            problem = "it is empty"
    except ValueError:
        problem = "NaN and Infinity are not JSON"
    raise InvalidSessionError(problem)


def _laid_out(value: object, line: str = "\n") -> str:
    """Return strings and objects of them as JSON, laid out as the OCaml CLI does it."""
    if not isinstance(value, dict):
        return _encoded(value)
    deeper = line + "  "  # json's own indent=2 is slow
    members = [f"{deeper}{_encoded(name)}: {_laid_out(value[name], deeper)}" for name in value]
    return f"{{{','.join(members)}{line}}}"


def _object(value: object, member: Optional[str] = None) -> Dict[str, object]:
    """Return a value that must be an object."""
    if not isinstance(value, dict):
        raise InvalidSessionError("expected an object", None, member)
    return value


def _string(value: object, member: str) -> str:
    """Return a value that must be a string that UTF-8 can encode."""
    problem = "expected a string"
    if isinstance(value, str):
        if value.isascii() or not re.search("[\ud800-\udfff]", value):
            return value
        problem = _NOT_UNICODE
    raise InvalidSessionError(problem, None, member)


def _parse_file(path: str, decode: Callable[..., Any], data: object) -> Any:
    """Decode the contents of a file; put its path into the error."""
    try:
        return decode(data)
    except InvalidSessionError as error:
        problem, member = error.problem, error.member
    raise InvalidSessionError(problem, path, member)


# JWT

# Three base64url segments without padding, of which the last one may be empty (RFC 7515 §3.1).
_JWT = re.compile("([A-Za-z0-9_-]+)[.]([A-Za-z0-9_-]+)[.]([A-Za-z0-9_-]*)")


def _jwt_expiry(token: str) -> Optional[float]:
    """Return the ``exp`` claim (seconds since the epoch); None if *token* is no JWT with one."""
    match = _JWT.fullmatch(token)
    if not match or 1 in {len(segment) % 4 for segment in match.groups()}:
        return None  # no base64 has such a length
    try:
        claims = _decode(base64.urlsafe_b64decode(match[2] + "=="), _PAIRS_DECODER)
    except InvalidSessionError:
        return None
    values = [value for name, value in claims if name == "exp"] if type(claims) is tuple else []
    return values[-1] if values and {type(value) for value in values} == {float} else None


def is_jwt_expired(token: str, leeway: float = 60) -> bool:
    """Tell whether a JWT has expired, or will within *leeway* seconds (RFC 7519 §4.1.4).

    Whatever is not a JWT with a numeric ``exp`` claim counts as expired.  The signature is not
    checked: only the server can do that.  Never raises, whatever the text.
    """
    expiry = _jwt_expiry(token)
    # Not "now >= expiry - leeway": that is False for a NaN, and doubt has to mean expired.
    return expiry is None or not time.time() < expiry - leeway


# Values


@dataclass(frozen=True)
class Jwt:
    """The result of a password login: an access token (not always a JWT) and whose it is."""

    access_token: str = field(repr=False)
    user_id: str
    email: str


@dataclass(frozen=True)
class ApiKey:
    """An API key, and the name that it has on the server, if known."""

    key: str = field(repr=False)
    name: Optional[str] = None


AuthMethod = Union[Jwt, ApiKey]

# The members of the object that auth.type names.
_MEMBERS = {"jwt": ("access_token", "user_id", "email"), "api_key": ("key", "name")}


def _method(auth: AuthMethod) -> str:
    return "api_key" if isinstance(auth, ApiKey) else "jwt"


@dataclass(frozen=True)
class Session:
    """A server, an account there, and its secret.

    ``server_url`` is the API base, e.g. ``https://photos.example.com/api``; ``created_at`` an
    RFC 3339 time, empty for a session from the environment; ``extra_headers`` are for a proxy in
    front of the server, and as secret as the rest.  Any strings are accepted here; ``headers``
    and every request check them.
    """

    server_url: str = field(repr=False)  # may hold a user name and a password
    auth: AuthMethod
    created_at: str
    extra_headers: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra_headers", dict(self.extra_headers))

    @classmethod
    def create(
        cls, server_url: str, auth: AuthMethod, extra_headers: Mapping[str, str] = {}
    ) -> Session:
        """Return a new session, stamped with the present moment in UTC."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S-00:00", time.gmtime(time.time()))
        return cls(server_url, auth, now, extra_headers)

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> Session:
        """Return the session that a session.json describes.

        Raise InvalidSessionError, which names the member and never its value.
        """
        return cls._from_members(_object(_decode(text)))

    @classmethod
    def _from_members(cls, top: Mapping[str, object]) -> Session:
        auth = _object(top.get("auth"), "auth")
        method = _string(auth.get("type"), "auth.type")
        if method not in _MEMBERS:
            raise InvalidSessionError('expected "api_key" or "jwt"', None, "auth.type")
        members = _object(auth.get(method), f"auth.{method}")
        values = [
            _string(members.get(name), f"auth.{method}.{name}")
            for name in _MEMBERS[method]
            if name != "name" or members.get(name) is not None  # null: as if it were left out
        ]
        headers = _object(top.get("headers", {}), "headers")
        return cls(
            _string(top.get("server_url"), "server_url"),
            Jwt(*values) if method == "jwt" else ApiKey(*values),
            _string(top.get("created_at"), "created_at"),
            {name: _string(headers[name], _header_member(name)) for name in headers},
        )

    def to_json(self) -> str:
        """Return the text of a session.json, byte for byte as the OCaml CLI writes it.

        Raise InvalidSessionError where ``from_json`` would refuse the text.
        """
        method = _method(self.auth)
        values = {name: getattr(self.auth, name, None) for name in _MEMBERS[method]}
        members = {name: value for name, value in values.items() if value is not None}
        top = {
            "server_url": self.server_url,
            "auth": {"type": method, method: members},
            "created_at": self.created_at,
        }
        if self.extra_headers:
            top["headers"] = self.extra_headers
        for name in self.extra_headers:  # JSON would make a string of a number
            _string(name, "headers: a name")
        self._from_members(top)
        return _laid_out(top)

    def is_expired(self, leeway: float = 60) -> bool:
        """Tell whether the session is known to end within *leeway* seconds.

        API keys do not expire.  A token without a dot is no JWT: only the server knows its end.
        """
        if isinstance(self.auth, ApiKey) or "." not in self.auth.access_token:
            return False
        return is_jwt_expired(self.auth.access_token, leeway)

    def expires_at(self) -> Optional[datetime]:
        """Return when the session ends, aware and in UTC; None if never, or not known."""
        expiry = _jwt_expiry(self.auth.access_token) if isinstance(self.auth, Jwt) else None
        with contextlib.suppress(OverflowError):  # beyond the year 9999
            if expiry is not None:
                return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=expiry)
        return None

    @property
    def secret(self) -> str:
        """The API key or the access token."""
        return self.auth.key if isinstance(self.auth, ApiKey) else self.auth.access_token

    @property
    def _secret_member(self) -> str:
        method = _method(self.auth)
        return f"auth.{method}.{_MEMBERS[method][0]}"

    def headers(self) -> Dict[str, str]:
        """Return the HTTP headers that a request to the server needs, the secret among them.

        Raise InvalidSessionError, naming the member that cannot be sent safely.
        """
        _checked_url(self.server_url)
        _check_extra_headers(self.extra_headers)
        headers = dict(self.extra_headers)
        _check_secret(self.secret, self._secret_member)
        # _RESERVED keeps extra headers from shadowing what carries the secret.
        if isinstance(self.auth, ApiKey):
            headers["x-api-key"] = self.secret
        elif "authorization" in map(str.lower, headers):
            headers["x-immich-user-token"] = self.secret
        else:
            headers["Authorization"] = f"Bearer {self.secret}"
        return headers

    def to_env(self, environ: Optional[Mapping[str, str]] = None) -> Dict[str, str]:
        """Return the variables that describe the session, the secret among them.

        ``session_from_env`` makes the same session of them, except for its time, name and user, if
        ``server_url`` ends in /api.
        With *environ*, return a whole environment for a child process: a copy without any other
        variable that describes a session, and these.  Raise InvalidSessionError, naming the
        member that cannot be sent safely.
        """
        self.headers()
        variable = "IMMICH_API_KEY" if isinstance(self.auth, ApiKey) else "IMMICH_ACCESS_TOKEN"
        url = self.server_url.rstrip("/")
        variables = {"IMMICH_INSTANCE_URL": url, "IMMICH_API_URL": url}
        variables[variable] = _given_secret(self.secret, self._secret_member)
        if self.extra_headers:
            lines = (f"{name}: {value}" for name, value in self.extra_headers.items())
            variables["IMMICH_HEADERS"] = "\n".join(lines)
        others = (environ or {}).items()
        return {**{n: v for n, v in others if n not in _SESSION_VARIABLES}, **variables}

    def __repr__(self) -> str:
        return f"Session({_public_url(self.server_url)!r}, {self.auth!r}, {self.created_at!r})"

    def __str__(self) -> str:
        """Return a description for people, a line for each fact."""
        if isinstance(self.auth, Jwt):
            facts = {"Email": self.auth.email, "User ID": self.auth.user_id}
            method = "access token"
        else:
            facts = {"API Key": self.auth.name or "<unnamed>"}
            method = "API key"
        facts.update(Server=_public_url(self.server_url), Created=self.created_at, Auth=method)
        return "\n".join(f"{name}: {_printable(fact)}" for name, fact in facts.items() if fact)


# Files: one way to read, one to write, one to remove

# With O_NONBLOCK, opening a FIFO does not wait for somebody to write.
_READ_FLAGS = os.O_RDONLY | sum(getattr(os, f"O_{n}", 0) for n in ("NONBLOCK", "NOCTTY", "BINARY"))
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_DIRECTORY_FLAGS = os.O_RDONLY | sum(getattr(os, f"O_{n}", 0) for n in ("DIRECTORY", "NOFOLLOW"))

_ELSEWHERE = "modes are not kept there: keep sessions on another file system"
_REASONS = {
    errno.EAGAIN: "another process has it open",
    errno.EBUSY: "it is in use; if it is a mount point of its own, mount its directory instead",
    errno.EEXIST: "it is no directory, or a link to one that is not mounted or may not be seen",
}


def _reason(error: OSError) -> str:
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def _checked_path(path: str) -> str:
    """Refuse what cannot be a path here: it would raise no OSError."""
    if path and "\0" not in path:
        if path.isascii():
            return path
        with contextlib.suppress(UnicodeEncodeError):
            os.fsencode(path)
            return path
    raise SessionError(f"{path!a}: this cannot be a path on this system")


def _directory_path(path: str) -> str:
    """Return the path of a directory without a slash at its end; a root stays one."""
    path = os.path.dirname(os.path.join(_checked_path(path), ""))
    return f"{path}." if _WINDOWS and path.endswith(":") else path  # C: is not the root of C:


def _check_size(size: int, path: str) -> None:
    if size > _FILE_LIMIT:
        raise InvalidSessionError(f"it is larger than {_FILE_LIMIT} bytes", path)


def _user() -> int:
    """Return whose process this is: 0 is root, -1 where a system has no users."""
    return os.geteuid() if hasattr(os, "geteuid") else -1


def _is_anothers(owner: int, path: str) -> bool:
    """Tell whether another user owns a file; for root, not if its directory is that user's too."""
    if owner in (_user(), 0):
        return False
    with contextlib.suppress(OSError):  # root may well look after somebody's whole directory
        return _user() != 0 or os.stat(os.path.dirname(path) or os.curdir).st_uid != owner
    return True


def _warn_if_exposed(status: os.stat_result, path: str, is_new: bool = False) -> None:
    """Warn if other users can access a file with a secret, where advice can be followed."""
    mode, owner, user = stat.S_IMODE(status.st_mode), status.st_uid, _user()
    problems: List[str] = []
    if mode & (0o077 if is_new or owner == user else 0o022):
        remedy = "chmod 600" if user in (0, owner) else f"its owner (uid {owner}) can chmod go-w it"
        remedy = _ELSEWHERE if is_new or mode & 0o111 else remedy
        problems.append(f"other users can read or write it (mode {mode:04o}): {remedy}")
    if is_new and user == 0 != owner:
        problems.append(f"it belongs to uid {owner}, not to root")
    if not is_new and _is_anothers(owner, path):
        problems.append(f"it belongs to another user (uid {owner})")
    for problem in problems if user >= 0 else ():
        warnings.warn(_sentence(path, problem), stacklevel=4)


# What Windows says of a file that another process has open, and Linux of one with a lease (Samba).
_IN_USE = PermissionError if _WINDOWS else BlockingIOError


def _patiently(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call *call*; try again for a while, if another process has the file open."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return call(*args, **options)
        except _IN_USE:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0)  # any longer would miss the moments between busy readers


def _read_file(path: str, private: bool = False) -> Optional[bytes]:
    """Return what a file holds, None if there is none; warn if a *private* one is exposed."""
    try:
        descriptor = _patiently(os.open, path, _READ_FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidSessionError("it is not a regular file", path)
            # Ask for one byte more than the size: larger requests are slow.  Read on where the
            # size was wrong (in /proc it is 0).
            data = chunk = os.read(descriptor, min(status.st_size, _FILE_LIMIT) + 1)
            while chunk and len(data) != status.st_size and len(data) <= _FILE_LIMIT:
                chunk = os.read(descriptor, 4096)
                data += chunk
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidSessionError(f"it cannot be read: {_reason(error)}", path) from error
    _check_size(len(data), path)
    if private:
        _warn_if_exposed(status, path)
    return data


def _sync(descriptor: int) -> None:
    """Make what was written survive a crash, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def _sync_directory(path: str) -> None:
    """Make renames and removals in a directory survive a crash; best effort."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path or os.curdir, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Place:
    """A directory in which something is made, until the end of a with statement; then it is synced.

    Root holds it by a descriptor: who owns a directory above could swap it for a link meanwhile.
    The sync is for failures too: without it, a crash could bring back what was removed.
    """

    held: Optional[int] = None

    def __init__(self, path: str, base: str) -> None:
        self.path, self.base = path, base

    def __enter__(self) -> _Place:
        if _user() == 0:
            self.held = os.open(self.path or os.curdir, os.O_RDONLY)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what was to be made is there by now
            if self.held is not None:
                os.close(self.held)
        _sync_directory(self.path)

    def entry(self, name: str) -> str:
        """Return the path of something in the directory, for calls with dir_fd=held."""
        return os.path.join(self.path, name) if self.held is None else name

    def heir(self) -> Optional[os.stat_result]:
        """Return the status of the directory if its owner gets what root makes there.

        None: it stays root's.  So it does where others may write, there or from above the base
        directory on: a directory that anybody could have placed is given no secret.
        """
        owner = None if self.held is None else os.fstat(self.held)
        if owner is None or owner.st_uid == 0 or owner.st_mode & 0o022:
            return None
        above = (os.path.dirname(self.base), os.path.join(self.base, os.pardir))
        for path in (*above, self.base, os.path.join(self.base, "profiles"), self.path):
            with contextlib.suppress(FileNotFoundError):  # it is still to be made
                status = os.stat(path or os.curdir)
                if status.st_mode & 0o022 or status.st_uid not in (0, owner.st_uid):
                    return None
        return owner

    def settle(self, descriptor: int, mode: int) -> os.stat_result:
        """Give what was just made its mode, and what root made its owner; return its status."""
        heir, status = self.heir(), os.fstat(descriptor)
        if heir is None and stat.S_IMODE(status.st_mode) == mode:
            return status
        with contextlib.suppress(OSError, AttributeError):  # not every system can
            os.fchmod(descriptor, mode)  # the umask may have taken our own rights away
            if heir is not None:
                os.fchown(descriptor, heir.st_uid, heir.st_gid)
        return os.fstat(descriptor)


def _settle_directory(place: _Place, entry: str) -> None:
    """Give a directory that was just made its mode, and what root made its owner."""
    with contextlib.suppress(OSError):
        try:
            descriptor = os.open(entry, _DIRECTORY_FLAGS, dir_fd=place.held)
        except PermissionError:  # the umask took our right to read it
            os.chmod(entry, 0o700, dir_fd=place.held)
            descriptor = os.open(entry, _DIRECTORY_FLAGS, dir_fd=place.held)
        try:
            if os.fstat(descriptor).st_uid == _user() and not os.listdir(descriptor):
                place.settle(descriptor, 0o700)
        finally:
            os.close(descriptor)


def _temporary_name(name: str) -> str:
    """Return a name for a new temporary file; _temporaries finds it by the name of the file."""
    try:
        unique = os.urandom(4)
    except NotImplementedError:  # PyPy, which needs /dev/urandom; no secret depends on it
        unique = (time.time_ns() % 2**32).to_bytes(4, "big")
    return f".{name}.{unique.hex()}.tmp"


def _refuse_to_replace(path: str) -> None:
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _make_one_directory(path: str, base: str) -> None:
    """Make a directory that has its mode and owner from the moment at which it has its name."""
    _refuse_to_replace(path)
    above, name = os.path.split(path)
    with _Place(above, base) as place:
        made, wanted = place.entry(_temporary_name("new")), place.entry(name)
        try:
            os.mkdir(made, 0o700, dir_fd=place.held)
            _settle_directory(place, made)
            _refuse_to_replace(path)  # rename would, if it is empty
            _patiently(os.rename, made, wanted, src_dir_fd=place.held, dst_dir_fd=place.held)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.rmdir(made, dir_fd=place.held)
            if not isinstance(error, OSError):
                raise
            os.mkdir(wanted, 0o700, dir_fd=place.held)  # some file systems rename none
            _settle_directory(place, wanted)


def _make_directory(path: str, base: str, tries: int = 9) -> None:
    """Make a directory and what is missing above it, each 0700 whatever the umask."""
    if os.path.isdir(path):
        return
    for directory in (*map(str, reversed(Path(path).parents)), path):
        try:
            if not os.path.isdir(directory):
                _make_one_directory(directory, base)
        except OSError as error:
            if os.path.isdir(directory):  # another process was faster
                continue
            is_above = os.path.isdir(os.path.dirname(directory) or os.curdir)
            if isinstance(error, FileNotFoundError) and tries and is_above:  # it replaced that one
                _make_directory(path, base, tries - 1)
                return
            problem = "the directory cannot be created"
            raise SessionError(_sentence(directory, problem, _reason(error))) from error


def _found(look: Callable[[str], object], path: str) -> bool:
    """Tell whether *look* finds something; if looking is forbidden, assume that it would."""
    try:
        return bool(look(path))
    except OSError as error:
        return not isinstance(error, (FileNotFoundError, NotADirectoryError))


def _read_link(path: str) -> Tuple[int, str]:
    """Return whose a link is, and where it leads."""
    if not hasattr(os, "O_PATH"):  # macOS, PyPy
        return os.lstat(path).st_uid, os.readlink(path)
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)  # others could exchange it meanwhile
    try:
        return os.fstat(descriptor).st_uid, os.readlink("", dir_fd=descriptor)
    finally:
        os.close(descriptor)


def _link_target(path: str) -> str:
    """Return the file to replace or remove for *path*: where links of the user or root lead.

    A link of anybody else's is itself that file, and so is a link to what is no regular file.
    """
    target = path
    for _ in range(41):  # Linux follows 40
        try:
            kind = os.lstat(target).st_mode
            if not stat.S_ISLNK(kind):
                return target if stat.S_ISREG(kind) else path
            owner, destination = _read_link(target)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES):  # where we may not look, it may be
                return target
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL):
                return path
            raise SessionError(_sentence(target, "it cannot be read", _reason(error))) from error
        if owner not in (0, _user()) and _user() >= 0:
            return target
        target = os.path.join(os.path.dirname(target), destination)
    return path


def _remove(path: str) -> None:
    """Remove a file, if it is there."""
    try:
        _patiently(os.unlink, path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        # A read-only file system refuses before it looks whether the file exists.
        if _found(os.lstat, path):
            raise SessionError(_sentence(path, "it cannot be removed", _reason(error))) from error


def _entries(directory: str, empty: Tuple[Type[OSError], ...] = (FileNotFoundError,)) -> List[str]:
    """Return the names in a directory; none for an error that means that it is *empty*."""
    try:
        return os.listdir(directory or os.curdir)
    except empty:
        return []
    except OSError as error:
        raise SessionError(_sentence(directory, "it cannot be read", _reason(error))) from error


def _temporaries(path: str) -> List[str]:
    """Return what killed processes left, or live ones are writing, for *path*."""
    directory, name = os.path.split(path)
    # Where the names may not be read, a directory counts as empty.
    entries = _entries(directory, (FileNotFoundError, NotADirectoryError, PermissionError))
    start = f".{name}."
    ends = (entry[len(start) :] for entry in entries if entry.startswith(start))
    found = (end for end in ends if re.fullmatch(r"[a-z0-9_]{8}\.tmp", end))
    return [os.path.join(directory, start + end) for end in found]


def _sweep(path: str, now: float) -> None:
    """Remove the temporaries of *path* that killed processes left; younger ones may be in use."""
    for temporary in _temporaries(path):
        with contextlib.suppress(OSError, SessionError):
            if now - os.lstat(temporary).st_mtime >= _STALE:
                _remove(temporary)


def _replace(path: str, data: bytes, base: str) -> os.stat_result:
    """Put a new file in the place of *path*, and return its status."""
    directory, name = os.path.split(path)
    with _Place(directory, base) as place:
        temporary, wanted = place.entry(_temporary_name(name)), place.entry(name)
        try:
            descriptor = os.open(temporary, _CREATE_FLAGS, 0o600, dir_fd=place.held)
            try:
                status = place.settle(descriptor, 0o600)
                with contextlib.suppress(SessionError):  # by the file system's clock
                    _sweep(path, status.st_mtime)
                while data:
                    data = data[os.write(descriptor, data) :]
                _sync(descriptor)
            finally:
                os.close(descriptor)
            _patiently(os.replace, temporary, wanted, src_dir_fd=place.held, dst_dir_fd=place.held)
        except BaseException:  # Ctrl-C too, wherever it comes
            with contextlib.suppress(OSError):
                _patiently(os.unlink, temporary, dir_fd=place.held)
            raise
        return status


def _write_file(path: str, data: bytes, base: str, private: bool = False) -> None:
    """Replace a file as a whole or not at all, durably; warn if a *private* one is not so."""
    target = _link_target(path)
    try:
        try:
            status = _replace(target, data, base)
        except (FileNotFoundError, FileExistsError):  # clear() swept it, or its name was taken
            status = _replace(target, data, base)
    except OSError as error:
        link = f"it leads to {target}" if target != path else None
        raise SessionError(_sentence(path, link, "it cannot be written", _reason(error))) from error
    if private:
        _warn_if_exposed(status, target, is_new=True)


def _remove_file(path: str) -> None:
    """Remove a file, where it is a link the file behind it too, and all their temporaries."""
    target, problem = _link_target(path), None
    files = dict.fromkeys((target, path))  # one, where there is no link
    temporaries = [each for file in files for each in _temporaries(file)]
    for each in dict.fromkeys((target, *temporaries, path)):
        if each == path and problem is not None:  # the link stays while something is behind it
            break
        try:
            _remove(each)
        except SessionError as error:  # and go on with the others
            problem = error
    for directory in dict.fromkeys(map(os.path.dirname, files)):
        _sync_directory(directory)
    if problem is not None:
        raise problem


# The store


def _home() -> str:
    variable = "USERPROFILE" if _WINDOWS else "HOME"  # as the official CLI has it
    home = os.environ.get(variable)
    if home is None:
        try:
            import pwd

            home = pwd.getpwuid(os.getuid()).pw_dir
        except (ImportError, AttributeError, KeyError):  # Windows; a user id without an entry
            home = os.path.expanduser("~") if _WINDOWS else ""
    if os.path.isabs(home):
        return home
    remedy = f"set {variable} or IMMICH_CONFIG_DIR to an absolute path"
    raise SessionError(f"no home directory: {remedy}")


def _decode_config(data: bytes) -> str:
    """Return the current profile that a config.json names."""
    name = _object(_decode(data)).get("current_profile", DEFAULT_PROFILE)
    return _string(name, "current_profile")


def _check_spelling(directory: str) -> None:
    """Refuse a profile that is there in another spelling, on a file system that folds case."""
    profiles, name = os.path.split(directory)
    other = "".join(c.swapcase() if c.swapcase().swapcase() == c else c for c in name)
    if other == name or not os.path.exists(os.path.join(profiles, other)):
        return
    import unicodedata

    with contextlib.suppress(OSError):
        wanted = unicodedata.normalize("NFC", name)
        names = [unicodedata.normalize("NFC", each) for each in os.listdir(profiles)]
        if wanted not in names and os.path.exists(directory):
            same = [repr(each) for each in names if each.casefold() == wanted.casefold()]
            other = ", ".join(same) or "a longer name"  # NAME~1 is one that Windows makes up
            problem = f"{name!r} is there in another spelling: {other}"
            raise InvalidProfileError(_sentence("profile", problem))


def _base_from_env() -> str:
    base = os.environ.get("IMMICH_CONFIG_DIR")
    if not base:
        return os.path.join(_home(), ".config", "immich")
    if os.path.isabs(base) and base == base.strip():
        return _directory_path(base)
    meant = base
    with contextlib.suppress(OSError):  # the working directory may be deleted
        meant = os.path.abspath(base)
    rule = "expected an absolute path without white space at its ends"
    problem = f'{rule}; until 1.0 it meant "{meant}"'
    raise InvalidSessionError(problem, None, "IMMICH_CONFIG_DIR")


class SessionStore:
    """The sessions of one configuration directory, by profile.

    *base_dir* is that directory; without it ``$IMMICH_CONFIG_DIR``, else
    ``$HOME/.config/immich``, looked up at each use.  ``profile=None`` is the current profile.
    Every method may raise SessionError (no home directory, the system's refusal),
    InvalidProfileError and InvalidSessionError (a broken config.json).
    """

    def __init__(self, base_dir: Union[str, "os.PathLike[str]", None] = None) -> None:
        self._base_dir = None if base_dir is None else _directory_path(os.fspath(base_dir))

    def __repr__(self) -> str:
        return f"SessionStore({self._base_dir!r})"

    def _path(self, *parts: str) -> str:
        base = self._base_dir or _base_from_env()
        return _checked_path(os.sep.join((base.rstrip(os.sep), *parts)) if parts else base)

    def _profile_path(self, profile: Optional[str], *parts: str) -> str:
        name = self.get_current_profile() if profile is None else _checked_profile(profile)
        return self._path("profiles", name, *parts)

    def base_config_dir(self) -> Path:
        """Return the configuration directory; make it if needed."""
        base = self._path()
        _make_directory(base, base)
        return Path(base)

    def config_dir(self, profile: Optional[str] = None) -> Path:
        """Return the directory of a profile; make it if needed."""
        directory = self._profile_path(profile)
        _make_directory(directory, self._path())
        _check_spelling(directory)
        return Path(directory)

    def get_current_profile(self) -> str:
        """Return ``$IMMICH_PROFILE``, else what config.json says, else "default"."""
        name = os.environ.get("IMMICH_PROFILE")
        if name:
            return _checked_profile(name, "IMMICH_PROFILE")
        path = self._path("config.json")
        data = _read_file(path)
        name = DEFAULT_PROFILE if data is None else _parse_file(path, _decode_config, data)
        return _checked_profile(name, path)

    def set_current_profile(self, profile: str) -> None:
        """Write the current profile into config.json, unless it is there; replace a broken one."""
        current = {"current_profile": _checked_profile(profile)}
        # Unlike the path of a session, it need not be one that this locale can spell.
        _check_spelling(os.path.join(self._path("profiles"), profile))
        base, path = self._path(), self._path("config.json")
        text = json.dumps(current, ensure_ascii=False)
        with contextlib.suppress(ValueError, RecursionError):  # nothing there worth keeping
            data = _read_file(path) or b""
            if _object(_decode(data)).get("current_profile") == profile:
                _sync_directory(os.path.dirname(_link_target(path)))  # who wrote it was killed
                return
            text = json.dumps({**json.loads(data), **current}, ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8")
        _check_size(len(data), path)
        _make_directory(base, base)
        _write_file(path, data, base)

    def list_profiles(self) -> List[str]:
        """Return the profiles that have a session.json, sorted; open none of them."""
        profiles = self._path("profiles")
        names = sorted(filter(_is_profile_name, _entries(profiles)))
        return [name for name in names if _found(os.stat, f"{profiles}/{name}/session.json")]

    def save(self, session: Session, profile: Optional[str] = None) -> None:
        """Store a session, as a whole or not at all.

        Raise InvalidSessionError for a session that ``load`` would refuse.  Warn (UserWarning)
        where the file system keeps no modes, and as root of a file that became its user's.
        """
        data = session.to_json().encode("utf-8")
        directory, base = self._profile_path(profile), self._path()
        path = os.path.join(directory, "session.json")
        _check_size(len(data), path)
        _make_directory(directory, base)
        _check_spelling(directory)
        _write_file(path, data, base, private=True)

    def load(self, profile: Optional[str] = None) -> Optional[Session]:
        """Return the session of a profile, None if there is none.

        Raise InvalidSessionError for a file that cannot be used.  Warn (UserWarning) if others
        have access to it.
        """
        path = self._profile_path(profile, "session.json")
        data = _read_file(path, private=True)
        return None if data is None else _parse_file(path, Session.from_json, data)

    def clear(self, profile: Optional[str] = None) -> None:
        """Remove the session of a profile, if there is one."""
        _remove_file(self._profile_path(profile, "session.json"))


# Environment


def _filled(environ: Mapping[str, str], names: Sequence[str]) -> List[str]:
    """Return those of these variables that are set, and not to nothing."""
    return [name for name in names if environ.get(name)]


def _variable(environ: Mapping[str, str], names: Sequence[str]) -> Optional[str]:
    """Return the first of these variables that is not empty, else the first that is set."""
    given = _filled(environ, names) or [name for name in names if name in environ]
    return given[0] if given else None


def _environment_url(environ: Mapping[str, str]) -> Optional[str]:
    """Return the server that the environment names, None if it names none."""
    names = _filled(environ, _URL_VARIABLES)
    urls = [_normalised_url(environ[name], name) for name in names]
    if len(urls) > 1 and not _is_same_api(*map(_with_api, urls)):
        problem = f"it names another server than {names[0]}: unset one of them"
        raise InvalidSessionError(problem, None, names[1])
    return urls[0] if urls else None


def _text_file(path: str, member: Optional[str] = None, private: bool = False) -> str:
    """Return the text of a file that must be there; *member* is what names it."""
    problem, where = "there is no such file", path or None
    try:
        data = _read_file(_checked_path(path), private)
        if data is not None:
            return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text"
    except InvalidSessionError as error:
        problem = error.problem
    except SessionError as error:  # it cannot be a path
        problem, where = str(error), None
    raise InvalidSessionError(problem, where, member)


def _from_variables(
    environ: Mapping[str, str], names: Sequence[str]
) -> Tuple[str, Optional[str], str]:
    """Return what the one of these variables that is set holds: text, file, and its name."""
    filled = _filled(environ, names)
    if len(filled) > 1:
        problem = f"set only one of {', '.join(filled)}"
        raise InvalidSessionError(problem, None, filled[0])
    name = _variable(environ, names) or ""
    text = environ.get(name, "")
    if text and name.endswith("_FILE"):
        return _text_file(text, name), text, name
    return text, None, name


def _environment_headers(environ: Mapping[str, str]) -> Dict[str, str]:
    text, path, name = _from_variables(environ, _HEADER_VARIABLES)
    if text.startswith('"'):  # no name begins so, but one may begin with a single quote
        _check_unquoted(text.strip(), name, path)
    headers: Dict[str, str] = {}
    _add_headers(headers, text, name, path)
    return headers


def session_from_env(environ: Optional[Mapping[str, str]] = None) -> Optional[Session]:
    """Return the session that the environment describes, None if it does not.

    ``IMMICH_INSTANCE_URL`` (or ``IMMICH_SERVER``) is the server; ``IMMICH_API_KEY`` the key,
    ``IMMICH_API_KEY_FILE`` a file with it, or ``IMMICH_ACCESS_TOKEN`` a token; ``IMMICH_HEADERS``
    or the file ``IMMICH_HEADERS_FILE`` holds extra headers, a line each.  No server is asked.
    *environ*: instead of ``os.environ``.  Raise InvalidSessionError, naming the variable, for
    values that cannot be used.
    """
    environ = os.environ if environ is None else environ
    url = _environment_url(environ)
    # Without a URL the secret is not looked at: it must not travel to another source's server.
    if url is None or _variable(environ, _SECRET_VARIABLES) is None:
        return None
    text, path, variable = _from_variables(environ, _SECRET_VARIABLES)
    secret = _given_secret(text, variable, path)
    is_token = variable == "IMMICH_ACCESS_TOKEN"
    auth = Jwt(secret, "", "") if is_token else ApiKey(secret)
    return Session(_with_api(url), auth, "", _environment_headers(environ))


# The session to use

# What may help where a session is missing; the command line adds its login.
_REMEDIES: List[Callable[[Optional[Session], str, SessionStore], str]] = []


def _refuse_half_environment(session: Session) -> None:
    """Refuse to use a stored session where the environment may mean another one."""
    url = _environment_url(os.environ)
    given = _filled(os.environ, _SECRET_VARIABLES if url is None else _URL_VARIABLES)
    if not given or (url is not None and _is_same_server(url, session.server_url)):
        return
    missing = "IMMICH_INSTANCE_URL" if url is None else "IMMICH_API_KEY"
    ways = f"set that too, unset {given[0]}, or name a profile (IMMICH_PROFILE)"
    raise InvalidSessionError(f"it is set, and {missing} is not: {ways}", None, given[0])


def _find_session(
    profile: Optional[str], store: SessionStore
) -> Tuple[Optional[Session], Optional[str]]:
    """Return the session to use, and the profile that was looked at; None: the environment."""
    is_explicit = profile is not None or store._base_dir is not None
    session = None if is_explicit else session_from_env()
    if session is not None:
        return session, None
    name = store.get_current_profile() if profile is None else profile
    session = store.load(name)
    if session is not None and not is_explicit and not os.environ.get("IMMICH_PROFILE"):
        _refuse_half_environment(session)
    return session, name


def _require_session(
    session: Optional[Session], profile: Optional[str], store: SessionStore, is_named: bool
) -> Session:
    """Return the session; raise NotLoggedInError if there is none or it has expired.

    *is_named*: the profile was asked for by name, so that the environment does not count.
    """
    if session is not None and not session.is_expired():
        return session
    if profile is None:
        problem = "the session of the environment has expired: set IMMICH_ACCESS_TOKEN anew"
        raise NotLoggedInError(problem)
    problem = "is not logged in" if session is None else "has an expired session"
    where = store._path("profiles", profile)
    remedies = [remedy(session, profile, store) for remedy in _REMEDIES]
    if store._base_dir is None and not is_named:
        sources = (_URL_VARIABLES, _SECRET_VARIABLES)
        missing = [names[0] for names in sources if not _filled(os.environ, names)]
        remedies.append(f"set {' and '.join(missing)}")
    remedy = f": {', or '.join(remedies)}" if remedies else ""
    text = f'profile "{profile}" {problem} ({where}){remedy}'
    raise NotLoggedInError(_printable(text), profile)


def get_session(profile: Optional[str] = None, *, store: Optional[SessionStore] = None) -> Session:
    """Return the session to use: the named profile's, else the environment's, else the current.

    A *store* with a directory of its own is as explicit as a profile: the environment's session
    is not looked at.  Raise NotLoggedInError if there is none or it has expired, SessionError
    where the environment describes half a session and another one is stored, and what
    ``session_from_env`` and ``SessionStore.load`` raise.
    """
    store = SessionStore() if store is None else store
    return _require_session(*_find_session(profile, store), store, profile is not None)


# ---- cut here ---- Above: keeping sessions, complete by itself. Below: asking the server.

import sys  # noqa: E402 - what is above has no use for these
from dataclasses import replace  # noqa: E402
from typing import Iterator  # noqa: E402

__all__ += [
    "Account",
    "is_valid",
    "login_api_key",
    "login_password",
    "logout",
    "resolve_api_url",
    "whoami",
]

_TIMEOUT = 10.0  # seconds for each request, unless the caller says otherwise
_GRACE = 0.5  # seconds that Ctrl-C gives an answer
_LONGEST = 86_400.0  # seconds; longer limits are cut to this, because socket timeouts overflow
_WELL_KNOWN = "/.well-known/immich"
_PING = "/server/ping"
_VALIDATE = "POST /auth/validateToken"
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_READY = (429, 502, 503, 504)
_LOGIN_PAGE = "a login page in front of the server (it may need extra headers)"


def _texts(value: object) -> List[str]:
    """Return the string that *value* is, or those in it if it is an array."""
    values = value if isinstance(value, list) else [value]
    return [each for each in values if isinstance(each, str)]


@dataclass
class _Answer:
    """An HTTP answer of any status; *members* are those of a JSON object, None for all else."""

    status: int
    fields: Any
    members: Optional[Dict[str, object]]

    def get(self, name: str) -> object:
        """Return a member of a successful answer, None if there is none."""
        return self.members.get(name) if self.members and self.status in (200, 201) else None

    def is_error_of_immich(self) -> bool:
        """Tell whether this is Immich's own error object, not one of something in front of it.

        Up to v2 the object has a statusCode; from v3 on the answer has a correlation ID.
        """
        members, identity = self.members or {}, self.fields.get("X-Correlation-ID", "")
        is_own = "statusCode" in members or re.fullmatch("[a-z0-9]{8}|undefined", identity)
        return "message" in members and bool(is_own)

    def refusal(self) -> Optional[str]:
        """Return the message of Immich's own error object, None for any other answer."""
        if self.members is None or not self.is_error_of_immich():
            return None
        members, texts = self.members, _texts(self.members["message"])
        errors = members.get("errors")  # of v3: what did not pass its validation
        for error in errors if isinstance(errors, list) else []:
            if isinstance(error, dict) and isinstance(error.get("message"), str):
                path = error.get("path")
                where = ".".join(_texts(path)) if isinstance(path, list) else ""
                texts.append(f"{where}: {error['message']}" if where else error["message"])
        return "; ".join(texts)


def _connection(kind: Any, sockets: List[Any], late: Any) -> Any:
    """Return a *kind* of connection that tells its socket, and sends nothing when it is *late*."""

    class Connection(kind):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)
            if late.is_set():  # nobody waits for an answer: do not send the secret
                raise TimeoutError

        def send(self, data: Any) -> None:
            try:
                super().send(data)
            except OSError:
                if hasattr(self.sock, "cipher") and not late.is_set():  # TLS may say why
                    self.sock.recv(1)
                raise

    return Connection


def _opener(sockets: List[Any], late: Any) -> Any:
    """Return an opener that uses the proxies of the environment, and takes every status as it is.

    It has no handler that follows redirects: urllib's would hand the credential to any host.
    """
    import http.client
    import urllib.request

    class Handler(urllib.request.HTTPHandler):
        # Not HTTPSHandler: from 3.12 on it reads all certificates when it is made, for http too.
        https_request = urllib.request.HTTPHandler.http_request

        def https_open(self, request: Any) -> Any:
            import ssl  # noqa: F401 - some Pythons have none, and then no HTTPSConnection

            return self.do_open(http.client.HTTPSConnection, request)

        def do_open(self, http_class: Any, *args: Any, **options: Any) -> Any:
            return super().do_open(_connection(http_class, sockets, late), *args, **options)

    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(Handler())
    return opener


def _why_untrusted(error: Any) -> str:
    """Return in plain words why a certificate cannot be verified."""
    problem = f"its certificate cannot be verified: {error.verify_message}"
    if error.verify_code not in (2, 18, 19, 20, 21):  # X509_V_ERR: the issuer is not known
        return problem
    path = os.environ.get("SSL_CERT_FILE")
    if not path:
        return f"{problem}; for a CA of your own, let SSL_CERT_FILE name its certificate"
    fault = "is not a file" if os.path.exists(path) else "does not exist"
    fault = "does not hold its issuer" if os.path.isfile(path) else fault
    return f"{problem}; the file that SSL_CERT_FILE names, {path}, {fault}"


def _why_no_tls(error: Any) -> str:
    reason = error.reason or "EOF"
    if "CERTIFICATE" in reason or "HANDSHAKE_FAILURE" in reason:  # alerts 42, 116; 40
        return "it refused the TLS connection: it may want a client certificate (not supported)"
    if re.fullmatch("WRONG_VERSION_NUMBER|UNKNOWN_PROTOCOL|RECORD_LAYER_FAILURE", reason):
        return "TLS failed: is this an http server?"
    words = "the connection broke" if "EOF" in reason else reason.lower().replace("_", " ")
    return f"TLS failed: {words}"


def _why_unreachable(error: Any, redact: Callable[[str], str]) -> str:
    """Return in plain words why there is no complete answer; *redact* makes foreign text safe."""
    import http.client
    import socket
    import urllib.error

    wrapped = getattr(error, "reason", None)  # by urllib
    error = wrapped if isinstance(wrapped, Exception) else error
    ssl = sys.modules.get("ssl")  # some Pythons have none
    if ssl and isinstance(error, ssl.SSLCertVerificationError):
        return _why_untrusted(error)
    if ssl and isinstance(error, ssl.SSLError):
        return _why_no_tls(error)
    proxy_errors = (http.client.InvalidURL, urllib.error.URLError, ValueError)
    reasons = (
        ((socket.gaierror, UnicodeError), "its name does not resolve"),
        (ImportError, "https needs Python's module ssl, which is missing here"),
        ((TimeoutError, socket.timeout), "no complete answer in time"),
        (proxy_errors, "the address of the proxy cannot be used"),  # the server's was checked
        ((http.client.HTTPException, EOFError), "the answer was cut short, or is not HTTP"),
    )
    for kinds, words in reasons:
        if isinstance(error, kinds):
            return words
    if isinstance(error, OSError):
        return error.strerror or redact(str(error))
    return f"the request failed ({type(error).__name__})"


def _fetch(opener: Any, request: Any, timeout: float) -> Tuple[int, Any, bytes]:
    """Return status, header fields and body of an answer that came whole."""
    with opener.open(request, timeout=timeout) as response:
        try:
            body = response.read(_FILE_LIMIT + 1)
        except ValueError:  # the size of a chunk is negative
            raise EOFError from None
        length = re.fullmatch("[0-9]{1,4000}", response.headers.get("Content-Length", ""))
        if length and len(body) < min(int(length[0]), _FILE_LIMIT):
            raise EOFError
        return response.status, response.headers, body


def _server_error(
    url: str, problem: str, status: Optional[int], is_ready: bool = True
) -> ServerError:
    """Return the error of a server; it names the proxy, if one is in use."""
    import urllib.request

    match, where = _checked_url(_without_query(url)), _public_url(url)
    proxy = urllib.request.getproxies().get(match["scheme"])
    if proxy and not urllib.request.proxy_bypass(match["netloc"]):
        where += f" (through the proxy {_public_url(proxy)})"
    kind = ServerError if is_ready else ServerUnreachableError
    return kind(_sentence(where, problem), status)


def _wait(event: Any, timeout: float) -> None:
    """Wait for an event, a while at a time: on Windows, Ctrl-C comes through only between them."""
    spans = [timeout % _GRACE] + [_GRACE] * int(timeout // _GRACE)
    any(map(event.wait, spans))


class _Client:
    """What the requests of one operation share: extra headers, time limit, and our secrets."""

    def __init__(self, extra_headers: Mapping[str, str], timeout: float, *secrets: str) -> None:
        _check_extra_headers(extra_headers)
        if not timeout > 0:  # also NaN
            raise InvalidSessionError("expected a number of seconds above 0", None, "timeout")
        self.extra_headers = dict(extra_headers)
        self.timeout = min(timeout, _LONGEST)
        self.secrets = [*secrets]  # keys and tokens
        values = extra_headers.values()
        self.words = [*values, *(value.rpartition(" ")[2] for value in values)]  # Basic …
        self.redirected: Optional[ServerError] = None
        self.arrived: List[Any] = []

    def text(self, value: object) -> Optional[str]:
        """Return what a server said if it is a text without a secret of ours, else None."""
        words = [word for word in self.words if len(word) >= 8]  # a shorter one proves nothing
        if isinstance(value, str) and not any(each in value for each in (*self.secrets, *words)):
            return value
        return None

    def redact(self, text: str) -> str:
        """Make text from a server safe to show: our secrets replaced, 200 characters at most."""
        whole = {*self.secrets, *self.words} - {""}
        forms = [json.dumps(each, ensure_ascii=a)[1:-1] for each in whole for a in (True, False)]
        for secret in sorted({*whole, *forms}, key=len, reverse=True):  # one may be part of another
            text = text.replace(secret, "***")
        return _printable(text[:200])[:200]

    def request(
        self, method: str, url: str, headers: Mapping[str, str] = {}, body: Optional[bytes] = None
    ) -> _Answer:
        """Send a request and return the answer, whatever its status; follow no redirect."""
        try:
            import urllib.request
        except ImportError as error:  # Debian's python3-minimal has no http
            problem = f"requests need Python's module {error.name}, which is missing here"
            raise SessionError(problem) from None
        headers = {**self.extra_headers, **headers, "User-Agent": f"immich-session/{__version__}"}
        request = urllib.request.Request(url, body, headers, method=method)
        self.exchange(request)
        return self.answer(url)

    def exchange(self, request: Any) -> None:
        """Put what *request* fetches into ``arrived``, or in words why there is no whole answer.

        urllib's timeout is for each socket operation, and a server that sends a byte at a time
        outlasts it.  So a thread does the work; when time is up, it is abandoned and its
        connection is shut.
        """
        import socket
        import threading

        arrived: List[Any] = []
        self.arrived = arrived  # an abandoned thread may still fill the last one
        sockets: List[Any] = []
        late, done = threading.Event(), threading.Event()

        def work() -> None:
            try:
                arrived.append(_fetch(_opener(sockets, late), request, self.timeout))
            except Exception as error:  # noqa: BLE001 - handed over to the thread that waits
                # Words, as the exception would keep the connection that it comes from.
                arrived.append(_why_unreachable(error, self.redact))
            finally:
                done.set()

        try:
            threading.Thread(target=work, daemon=True).start()
            _wait(done, self.timeout)
            if not arrived:
                arrived.append(_why_unreachable(TimeoutError(), self.redact))
        except KeyboardInterrupt:
            late.set()
            done.wait(_GRACE)  # an answer that is on its way may hold a token
            raise
        except RuntimeError:
            arrived.append("this system starts no thread, which a request with a time limit needs")
        finally:  # also when Ctrl-C ends the wait
            late.set()
            for connected in sockets:
                with contextlib.suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)

    def answer(self, url: str) -> _Answer:
        """Return the answer to the last request."""
        outcome = self.arrived[0]
        if isinstance(outcome, str):
            raise _server_error(url, outcome, None, is_ready=False)
        status, fields, content = outcome
        members = None
        with contextlib.suppress(InvalidSessionError):
            _check_size(len(content), url)
            members = _object(_decode(content))
        return _Answer(status, fields, members)

    def ask(self, session: Session, line: str, *refusals: int, member: str = "") -> _Answer:
        """Ask as *session* for a "METHOD /path"; return an object whose *member* is true.

        Return Immich's own refusal with one of *refusals* as well; all else is an error.
        """
        base = session.server_url.rstrip("/")
        method, path = line.split()
        answer = self.request(method, base + path, session.headers())
        is_refusal = answer.status in refusals and answer.is_error_of_immich()
        is_object = answer.status == 200 and answer.members is not None
        if is_refusal or (answer.get(member) is True if member else is_object):
            return answer
        raise self.refused(base, path, answer)

    def refused(self, base: str, path: str, answer: _Answer) -> ServerError:
        """Return the error that explains an unexpected answer."""
        status, refusal = answer.status, answer.refusal()
        is_ready = status not in _NOT_READY or refusal is not None
        if status in _REDIRECTS:
            problem = self._redirect_problem(base + path, path, answer)
        elif not is_ready:
            problem = f"the server is not ready (status {status}): try again later"
        elif status == 404 and self._is_in_maintenance(base):
            problem, is_ready = "the server is in maintenance mode: try again later", False
        elif status == 404:
            problem = "there is no Immich API (status 404): is this the right address?"
        elif refusal is not None:
            problem = f"the server refused: {self.redact(refusal) or 'no reason'} (status {status})"
        elif status < 300:
            problem = "this is no answer from Immich (a web page?): is this the right address?"
        else:
            problem = f"refused, but not by Immich: by a proxy in front of it? (status {status})"
        return _server_error(base, problem, status, is_ready)

    def _redirect_problem(self, url: str, path: str, answer: _Answer) -> str:
        import urllib.parse

        location = answer.fields.get("Location", "")
        if not location:
            return "it redirects without saying where"
        with contextlib.suppress(ValueError):  # no URL: shown as it is
            location = urllib.parse.urljoin(url, location)
        plain, asked = _without_query(location), _checked_url(_without_query(url))
        is_less_secure = asked["scheme"] == "https" and not plain.startswith("https:")
        is_moved = url.endswith(path) and plain.endswith(asked["path"]) and plain == location != url
        if is_moved and not is_less_secure:
            address = self.redact(_public_url(plain[: -len(path)]))
            return f"it redirects: use the address {address} instead"
        shown = self.redact(_public_url(location))
        return f"it redirects to {shown}: to {_LOGIN_PAGE}, or this is the wrong address"

    def _is_in_maintenance(self, base: str) -> bool:
        with contextlib.suppress(ServerError):
            return self.request("GET", base + "/server/config").get("maintenanceMode") is True
        return False

    def follow(self, url: str, reference: str) -> Optional[str]:
        """Return the URL that a redirect or a discovery answer names, None for another server.

        The host has to be the same, never from https to http, and with extra headers the port too.
        """
        import urllib.parse

        with contextlib.suppress(ValueError):
            target = urllib.parse.urljoin(url, reference)
            old, new = (_checked_url(_without_query(each)) for each in (url, target))
            if (
                old["host"].lower() == new["host"].lower()
                and (old["scheme"], new["scheme"]) != ("https", "http")
                and (not self.extra_headers or _is_same_server(url, target))
                and re.fullmatch(_VISIBLE, target)
            ):
                return target
        return None

    def get(self, base: str, path: str, url: str = "", hops: int = 4) -> Tuple[str, _Answer]:
        """GET *base* + *path*, follow redirects on the server; return the last URL and its answer.

        A redirect that leads elsewhere is not followed; ``redirected`` keeps its error.  *url* is
        where redirects have led so far, and *hops* how many more are followed.
        """
        url = url or base + path
        answer = self.request("GET", url)
        if answer.status in _NOT_READY:
            raise self.refused(base, path, answer)
        if answer.status not in _REDIRECTS:
            return url, answer
        location = answer.fields.get("Location")
        followed = self.follow(url, location) if location else None
        if followed and hops:
            return self.get(base, path, followed, hops - 1)
        problem = "too many redirects" if followed else self._redirect_problem(url, path, answer)
        self.redirected = self.redirected or _server_error(base + path, problem, answer.status)
        return url, answer


def _possible_bases(client: _Client, url: str, is_base: bool) -> Iterator[str]:
    """Yield what may be the API base of a server, in the order in which it is looked for."""
    if is_base or _ends_in_api(url):
        yield url
    origin = _checked_url(url)["origin"]
    for _ in range(6):
        target, answer = client.get(url, _WELL_KNOWN)
        api = answer.get("api")
        endpoint = api.get("endpoint") if isinstance(api, dict) else None
        if isinstance(endpoint, str) and not re.search("[?#]", endpoint):
            base = client.follow(_without_query(target), endpoint)
            if base is None:
                shown = client.redact(_public_url(endpoint))
                problem = f"it points to {shown}, a different or less secure server"
                raise _server_error(url, f"{problem}: is that intended?", answer.status)
            yield _normalised_url(base)
        yield f"{url}/api"
        if url == origin:
            return
        url = url.rpartition("/")[0].rstrip("/")


def _find_api(client: _Client, typed: str, is_base: bool = False, hint: str = "") -> str:
    """Return the API base that says pong, for an address of the server or of a page of it.

    *is_base*: the address was found to be one before; *hint*: what else may help if none does.
    """
    url, status = _normalised_url(_without_query(typed)), 0
    tried: List[str] = []
    for base in _possible_bases(client, url, is_base):
        if base in tried:
            continue
        tried.append(base)
        target, answer = client.get(base, _PING)
        if answer.get("res") == "pong" and _without_query(target).endswith(_PING):
            return _normalised_url(_without_query(target)[: -len(_PING)])
        status = answer.status
    if client.redirected is not None:
        raise client.redirected
    addresses = ", ".join(map(_public_url, tried))
    advice = f"a wrong address, or {_LOGIN_PAGE}{hint}"
    if status == 400 and url.startswith("http:"):  # what many a web server says of plain HTTP
        advice = "is this an https server?"
    problem = f"there is no Immich API (tried {addresses}; last status {status}): {advice}"
    raise _server_error(url, problem, status)


def resolve_api_url(
    server_url: str, *, extra_headers: Mapping[str, str] = {}, timeout: float = _TIMEOUT
) -> str:
    """Return the API base of a server, given its address, or that of a page, as a person types it.

    ``https://`` is added if missing, a query and a fragment are dropped.  The API is found where
    ``GET …/server/ping`` is answered: at the address if it ends in /api, where the server's
    ``/.well-known/immich`` says, at /api below the address, or a few path components higher.  The
    extra headers are sent, and no credential; redirects are followed on the same host.  *timeout*:
    seconds for each request.  Raise InvalidSessionError for an unusable URL,
    ServerUnreachableError and ServerError.
    """
    return _find_api(_Client(extra_headers, timeout), server_url)


def _log_in(client: _Client, base: str, email: str, password: str) -> Session:
    """Log in with a password at a known API."""
    import socket

    client.words.append(password)
    members = {"email": _string(email, "email"), "password": _string(password, "password")}
    body = json.dumps(members, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json", "deviceType": "immich-session"}
    device = "".join(re.findall("[!-~]", socket.gethostname()))
    if device:
        headers["deviceModel"] = device
    answer = client.request("POST", base + "/auth/login", headers, body)
    values = [answer.get(name) for name in ("accessToken", "userId", "userEmail")]
    token, user_id, user_email = (value if isinstance(value, str) else "" for value in values)
    client.secrets += filter(None, [token])
    if not user_id or not user_email or not re.fullmatch(_VISIBLE, token):
        raise client.refused(base, "/auth/login", answer)
    auth = Jwt(token, client.text(user_id) or "", client.text(user_email) or email)
    return Session.create(base, auth, client.extra_headers)


def login_password(
    server_url: str,
    email: str,
    password: str,
    *,
    extra_headers: Mapping[str, str] = {},
    timeout: float = _TIMEOUT,
) -> Session:
    """Log in with a password and return the session; nothing is stored.

    The password is sent once ``resolve_api_url`` has found the API.  *timeout*: seconds for each
    request.  Raise what ``resolve_api_url`` raises; a ServerError with status 401 means that the
    server does not accept the password.
    """
    client = _Client(extra_headers, timeout)
    client.words.append(password)
    return _log_in(client, _find_api(client, server_url), email, password)


@dataclass(frozen=True)
class Account:
    """Whose session it is, and what it may do, as far as the server tells; None: it does not.

    ``permissions`` are those of an API key, such as ``("asset.upload", "album.read")``, or
    ``("all",)``, which a password login has too.
    """

    email: Optional[str]
    user_id: Optional[str]
    key_name: Optional[str]
    permissions: Optional[Tuple[str, ...]]


def _key_facts(client: _Client, session: Session) -> Account:
    """Return name and permissions of an API key, as far as the server tells."""
    answer = client.ask(session, "GET /api-keys/me", 400, 403)
    told, permissions = answer.get("permissions"), None
    if isinstance(told, list):
        permissions = tuple(filter(None, map(client.text, told)))
    return Account(None, None, client.text(answer.get("name")), permissions)


def _check_key(client: _Client, base: str, key: str, name: Optional[str]) -> Session:
    """Have a known API check an API key."""
    client.secrets.append(key)
    session = Session.create(base, ApiKey(key, name), client.extra_headers)
    client.ask(session, _VALIDATE, 403, member="authStatus")  # see is_valid
    return session


def login_api_key(
    server_url: str,
    key: str,
    name: Optional[str] = None,
    *,
    extra_headers: Mapping[str, str] = {},
    timeout: float = _TIMEOUT,
) -> Session:
    """Have the server check an API key and return the session; nothing is stored.

    The key is sent once ``resolve_api_url`` has found the API.  Without *name*, it is fetched from
    the server.  *timeout*: seconds for each request.  Raise what ``resolve_api_url`` raises; a
    ServerError with status 401 means that the key is invalid.
    """
    _check_secret(key, "key")
    client = _Client(extra_headers, timeout, key)
    session = _check_key(client, _find_api(client, server_url), key, name)
    if name is None:
        with contextlib.suppress(ServerError):
            return replace(session, auth=ApiKey(key, _key_facts(client, session).key_name))
    return session


def is_valid(session: Session, *, timeout: float = _TIMEOUT) -> bool:
    """Ask the server whether it accepts the session.

    *timeout*: seconds for each request.  Raise InvalidSessionError for a session that cannot be
    sent, ServerUnreachableError, and ServerError for any answer but yes and no.
    """
    # A 403 for an API key is a yes: v1.136 to v1.141 know the key, and want a permission.
    refusals = (401, 403) if isinstance(session.auth, ApiKey) else (401,)
    client = _Client(session.extra_headers, timeout, session.secret)
    return client.ask(session, _VALIDATE, *refusals, member="authStatus").status != 401


def whoami(session: Session, *, timeout: float = _TIMEOUT) -> Account:
    """Ask the server whose session it is, and what it may do.

    An API key needs the permission ``user.read`` to know its account.  *timeout*: seconds for
    each request.  Raise what ``is_valid`` raises; a ServerError with status 401 means that the
    session has ended, or that the key is invalid.
    """
    client = _Client(session.extra_headers, timeout, session.secret)
    user = client.ask(session, "GET /users/me", 403)
    is_key = isinstance(session.auth, ApiKey)
    known = _key_facts(client, session) if is_key else Account(None, None, None, ("all",))
    email, user_id = client.text(user.get("email")), client.text(user.get("id"))
    return replace(known, email=email, user_id=user_id)


def logout(session: Session, *, timeout: float = _TIMEOUT) -> bool:
    """End the session on the server; True if it was ended, False if there was nothing to end.

    That is so for an API key, which stays valid (revoke it in Immich), and for a session that
    had ended already.  *timeout*: seconds for each request.  Raise what ``is_valid`` raises.
    """
    if isinstance(session.auth, ApiKey):
        return False
    client = _Client(session.extra_headers, timeout, session.secret)
    return client.ask(session, "POST /auth/logout", 401, member="successful").status != 401


# ---- cut here ---- Above: keeping sessions and asking the server. Below: the command line.

__all__ += ["main"]

_LOGIN_PAGE = _LOGIN_PAGE.replace("headers", "headers, -H")
_STDIN_LIMIT = 1 << 16  # bytes
_CLOSED_EARLY = (errno.EPIPE, errno.EINVAL) if _WINDOWS else (errno.EPIPE,)


# The official CLI's auth.yml

# What does not start a plain string: other syntax, null, and "a: b" within a line.
_NOT_PLAIN = r"[]#[{},>|*&!%@`?\"'-]|(~|null|Null|NULL)$|.*:(\s|$)"


def _yaml_string(text: str) -> Optional[str]:
    """Return the string behind a "name:" (YAML 1.2 §7.3), None if it is anything else."""
    quoted = re.fullmatch(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*')(?:\s+#.*)?""", text)
    if quoted and quoted[1].startswith("'"):
        return quoted[1][1:-1].replace("''", "'")
    if quoted:
        with contextlib.suppress(ValueError):
            return str(json.loads(quoted[1]))  # a JSON string is a YAML one
        return None
    plain = re.split(r"\s#", text)[0].rstrip()
    return None if re.match(_NOT_PLAIN, plain) else plain


def _parse_auth_yml(text: str) -> Session:
    """Return the session that the flat "name: value" lines of the official CLI describe."""
    values: Dict[str, Optional[str]] = {}
    for number, line in enumerate(map(str.rstrip, text.split("\n")), 1):
        if line in ("", "---") or line.lstrip().startswith("#"):
            continue
        match = re.fullmatch(r"(\w+):\s+(.+)", line)
        value = _yaml_string(match[2]) if match else None
        if match is None or value is None or match[1] in values:
            raise InvalidSessionError(f'line {number}: expected "name: value", each name once')
        values[match[1]] = value
    url = values.get("url", values.get("instanceUrl"))
    key = values.get("key", values.get("apiKey"))
    if not url or not key:
        raise InvalidSessionError("expected url and key, or instanceUrl and apiKey")
    api = _with_api(_normalised_url(url, "url"))
    return Session.create(api, ApiKey(_given_secret(key, "key")))


# Command line: what it tells people and programs, and where it has secrets from
def _print(text: str, stream: Any) -> None:
    """Print to a standard stream; raise OSError or ValueError where that is not possible."""
    if stream is None:
        raise ValueError("it is closed")
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):
        # Discard what the stream still buffers; flushing it at exit would fail again.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
        raise


def _tell(text: str) -> None:
    """Write to standard error, if anybody reads it."""
    with contextlib.suppress(OSError, ValueError):
        _print(text, sys.stderr)


def _say(message: object) -> None:
    """Tell a person something, on a line."""
    _tell(_printable(f"immich_session: {message}"))


def _emit(data: str, errors: str = "strict") -> None:
    """Write data to standard output; a reader that left early has read enough.

    With *errors* "backslashreplace", escape what the encoding of standard output lacks.
    """
    problem = "it is closed"
    try:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        _print(data.encode(encoding, errors).decode(encoding), sys.stdout)
        return
    except UnicodeEncodeError:
        problem = "its encoding lacks a character"
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in _CLOSED_EARLY:
            return
        problem = getattr(error, "strerror", None) or problem
    raise SessionError(f"standard output: {problem}")


def _exit_status(error: Exception) -> int:
    if isinstance(error, ServerUnreachableError):
        return 3
    refused = isinstance(error, ServerError) and error.status in (401, 403)
    return 4 if refused or isinstance(error, NotLoggedInError) else 1


def _cmd_word(word: str) -> str:
    """Quote a word for cmd.exe, where "&" and the like end a command that is not in quotes."""
    if re.fullmatch(r"[\w@%+=:,./~\\-]+", word, re.ASCII):
        return word
    word = re.sub(r'\\+(?="|\Z)', r"\g<0>\g<0>", word).replace('"', r"\"")
    return f'"{word}"'


def _shell_words(words: Sequence[str]) -> str:
    """Quote *words* for the shell of this system."""
    if os.name != "posix":
        return " ".join(map(_cmd_word, words))
    # Not shlex.quote: Debian's python3-minimal has no shlex.
    plain = re.compile(r"[\w@%+=:,./-]+", re.ASCII).fullmatch
    quoted = (_printable(word).replace("'", "'\"'\"'") for word in words)
    return " ".join(word if plain(word) else f"'{word}'" for word in quoted)


def _as_typed(program: str) -> str:
    """Return the bare name of *program* if that is how a shell finds it."""
    name = os.path.basename(program)
    places = (os.path.join(place, name) for place in os.get_exec_path())
    found = next(filter(os.path.isfile, places), None)
    return name if found == program else program


def _own_command() -> str:
    """Return the command that starts this command line as it was started, for a shell."""
    python, script = _as_typed(sys.executable or "python3"), sys.argv[0] if sys.argv else ""
    spec, path = globals().get("__spec__"), os.path.abspath(__file__)
    if __name__ == "__main__":
        if spec is not None and spec.name != "__main__":  # that is a zip's
            return _shell_words([python, "-m", spec.name])
        return _shell_words([python, script])
    if os.path.basename(script) in ("immich-session", "immich-session.exe"):
        return _shell_words([_as_typed(script)])
    if os.path.isfile(path):
        return _shell_words([python, path])
    root = str(Path(path).parents[__name__.count(".")])  # a zip
    code = f"import sys; sys.path.insert(0, {root!r}); import {__name__} as m; sys.exit(m.main())"
    return _shell_words([python, "-c", code])


def _login_remedy(session: Optional[Session], profile: str, store: SessionStore) -> str:
    base = store._base_dir
    directory = [] if base is None else [f"--config-directory={base}"]
    server = ["SERVER"] if session is None else []
    arguments = _shell_words([*directory, "login", *server, f"--profile={profile}"])
    return f'run "{_own_command()} {arguments}"'


_REMEDIES.append(_login_remedy)


def _from_stdin(what: str) -> str:
    """Read a secret from standard input; take one line end off."""
    problem = "it is closed"
    if sys.stdin is not None:
        try:
            data = getattr(sys.stdin, "buffer", sys.stdin).read(_STDIN_LIMIT + 1) or b""
            if len(data) <= _STDIN_LIMIT:
                text = data if isinstance(data, str) else data.decode("utf-8")
                return re.sub(r"\r?\n\Z", "", text.lstrip("\ufeff"))
            problem = f"it is larger than {_STDIN_LIMIT} bytes"
        except (OSError, ValueError):
            problem = "it cannot be read as UTF-8 text"
    raise SessionError(f"no {what}: standard input: {problem}")


def _on_terminal() -> bool:
    """Tell whether a person types what comes from standard input."""
    if _WINDOWS:  # where isatty() is true of NUL; Python reads a console in a class of its own
        raw = getattr(getattr(sys.stdin, "buffer", None), "raw", None)
        return type(raw).__name__ == "_WindowsConsoleIO"
    return sys.stdin is not None and sys.stdin.isatty()


def _from_prompt(what: str, url: str) -> Optional[str]:
    """Ask for a secret at the terminal, hidden; return None if it cannot be asked for."""
    import getpass

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # it would echo
            return getpass.getpass(f"{what} for {_printable(url)}: ")
    except (getpass.GetPassWarning, OSError, AttributeError):  # standard error may be closed
        return None
    except BaseException:
        _tell("")  # the cursor stands behind the prompt
        raise


def _secret(given: Optional[str], what: str, flag: str, url: str) -> str:
    """Return a secret: as *given*, for "-" from standard input, else from a hidden prompt."""
    if given is not None and given != "-":
        _say(f'warning: other users can see secrets on the command line; use "{flag} -"')
        return given
    on_terminal = _on_terminal()
    if given == "-" and not on_terminal:
        return _from_stdin(what)
    problem = "there is no terminal to prompt on"
    try:
        typed = _from_prompt(what, url) if on_terminal else None
        if typed:
            return typed
        problem = problem if typed is None else "nothing was entered"
    except EOFError:
        problem = "nothing was entered"
    except UnicodeError:
        problem = "it is not valid text"
    except ImportError as error:
        problem = f"a hidden prompt needs Python's module {error.name}, which is missing here"
    raise SessionError(f'no {what}: {problem}; "{flag} -" reads it from standard input')


def _given_headers(given: Sequence[str]) -> Dict[str, str]:
    """Return the headers that -H gave, each as "NAME: VALUE" or as a file of such lines."""
    headers: Dict[str, str] = {}
    for text in given:
        if text.startswith("@"):
            _add_headers(headers, _text_file(text[1:], "-H"), "-H", text[1:])
        else:
            _say('warning: other users can see secrets on the command line; use "-H @FILE"')
            _add_header(headers, text, "-H")
    return headers


# Command line: the commands, each of which returns the exit status

_UNKNOWN_KEY = ApiKey("")  # one that is still to be asked for


def _described(session: Session) -> str:
    """Return whose session it is and where, for people."""
    who = "an API key without a name"
    if isinstance(session.auth, Jwt):
        who = f"the session of {session.auth.email or 'a password login'}"
    elif session.auth.name:
        who = f'API key "{session.auth.name}"'
    return f"{who} for {_public_url(session.server_url)}"


def _note_overrides(store: SessionStore) -> None:
    """Tell people where the environment overrides what they have just set."""
    urls, secret = _filled(os.environ, _URL_VARIABLES), _variable(os.environ, _SECRET_VARIABLES)
    if store._base_dir is None and urls and secret:
        _say(f"note: {urls[0]} and {secret} are set, and override the current profile")
    elif os.environ.get("IMMICH_PROFILE"):
        _say("note: IMMICH_PROFILE is set, and overrides the current profile")


def _target_profile(args: Any, store: SessionStore) -> str:
    """Return the profile that a command is to change; with a broken config.json, do not guess."""
    if args.profile is not None:
        return _checked_profile(args.profile)
    try:
        return store.get_current_profile()
    except (InvalidProfileError, InvalidSessionError) as error:
        raise SessionError(f"{error}; name the profile with -P") from None


def _loaded(store: SessionStore, profile: str) -> Tuple[Optional[Session], Optional[Exception]]:
    """Return the session of a profile, or what is wrong with its file."""
    try:
        return store.load(profile), None
    except InvalidSessionError as error:
        return None, error


def _stored(store: SessionStore, profile: str, strict: bool = False) -> Optional[Session]:
    """Return the session that a new one would replace; a broken file is no loss.

    *strict*: refuse where the file cannot be read, because a key may be in it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its mode does not matter any more
        session, problem = _loaded(store, profile)
    if strict and problem is not None and isinstance(problem.__cause__, PermissionError):
        replacing = _shell_words([f"--profile={profile}"])
        raise SessionError(f"{problem}; use -P NAME, or replace it with {replacing}")
    return session


def _account_name(session: Session) -> str:
    """Return the e-mail or the key's name; Immich calls a key "API Key" that nobody named."""
    if isinstance(session.auth, Jwt):
        return session.auth.email.lower()
    return "" if session.auth.name in (None, "API Key") else session.auth.name


def _is_same_account(old: Session, new: Session) -> bool:
    """Tell whether nothing is lost where *new* replaces *old*; an unknown key may be the same."""
    names = _account_name(old), _account_name(new)
    same = names[0] == names[1] != "" or new.secret == old.secret or new.auth == _UNKNOWN_KEY
    is_same_kind = type(old.auth) is type(new.auth)
    return same and is_same_kind and _is_same_api(old.server_url, new.server_url)


def _to_replace(args: Any, store: SessionStore, profile: str, new: Session) -> Optional[Session]:
    """Return the session that *new* would replace; refuse to lose one by accident."""
    old = _stored(store, profile, args.profile is None)
    if old in (None, args.renewed) or args.profile is not None or _is_same_account(old, new):
        return old
    replacing = _shell_words([f"--profile={profile}"])
    ways = f"-P NAME stores the new session elsewhere, {replacing} replaces it"
    raise SessionError(f'profile "{profile}" holds {_described(old)}: {ways}')


def _end_session(session: Session, timeout: Optional[float], what: str = "the session") -> int:
    """End a session on the server, tell the outcome, and return the exit status.

    *timeout* None: ask no server.
    """
    outcome, status = f"{what} may still be valid on the server", 0
    try:
        if isinstance(session.auth, ApiKey):
            outcome = "the API key stays valid: revoke it in the account settings of Immich"
        elif timeout is not None and logout(session, timeout=timeout):
            outcome = f"{what} has ended on the server"
        elif timeout is not None:
            outcome = f"{what} had ended on the server already"
    except SessionError as error:
        outcome, status = f"{error}; {outcome}", _exit_status(error)
    finally:  # Ctrl-C too
        _say(outcome)
    return status


def _end_replaced(old: Session, new: Session, timeout: Optional[float]) -> None:
    """End a session where *new* has just been made, if that is the same server."""
    urls = old.server_url, new.server_url
    if _is_same_api(*urls) and _is_same_server(*urls):  # which admits no way back to http
        old = replace(old, server_url=new.server_url, extra_headers=new.extra_headers)
    _end_session(old, timeout, "the replaced session")


def _store_session(args: Any, store: SessionStore, profile: str, session: Session) -> None:
    """Save a session, and tell what is stored where; end a password session that it replaces.

    Its profile becomes current if it was named, or is the first one ever.
    """
    # Again: another process may have stored one meanwhile.
    old = _to_replace(args, store, profile, session)
    is_current = args.profile is not None or not store.list_profiles()
    is_saved = False
    try:
        store.save(session, profile)
        is_saved = True
        if is_current:
            try:
                store.set_current_profile(profile)
            except SessionError as error:
                problem = f'the session is stored in profile "{profile}", but not made current'
                raise SessionError(f"{problem}: {error}") from None
        suffix = ", now the current one" if is_current else ""
        _say(f'{_described(session)} is stored in profile "{profile}"{suffix}')
        if old and replace(old, created_at=session.created_at) != session:
            is_lost = old.extra_headers and old.extra_headers != session.extra_headers
            _say(f"it replaced {_described(old)}{' and its extra headers' if is_lost else ''}")
        _note_overrides(store)
    finally:  # Ctrl-C too, wherever it comes
        is_saved = is_saved or _stored(store, profile) == session
        if is_saved and old and isinstance(old.auth, Jwt) and old.secret != session.secret:
            _end_replaced(old, session, None if args.no_verify else args.timeout)


def _check_login_flags(args: Any) -> None:
    if args.email is None and args.password is not None:
        args.parser.error("-p needs -e")
    if args.email is not None and (args.name is not None or args.no_verify):
        args.parser.error("-n and --no-verify do not go with a password login")


def _login_server(args: Any, store: SessionStore, profile: str) -> Tuple[str, Mapping[str, str]]:
    """Return the server to log in to, and its extra headers.

    Without one, a session is renewed, and says what the options do not.
    """
    if args.SERVER is not None:
        typed = args.SERVER if args.no_verify else _without_query(args.SERVER)
        return _normalised_url(typed, "SERVER"), {}
    url = _environment_url(os.environ)
    if url is None:
        session, problem = _loaded(store, profile)
        if session is None:
            missing = f'profile "{profile}" has no session to renew'
            raise SessionError(f"{problem or missing}: give the SERVER")
        if args.email is None and args.api_key is None and isinstance(session.auth, Jwt):
            args.email = session.auth.email
        elif args.email is None and args.name is None and isinstance(session.auth, ApiKey):
            args.name = session.auth.name
        args.renewed = session
        return _normalised_url(session.server_url), session.extra_headers
    old = _stored(store, profile) if args.profile is not None else None
    if old is not None and not _is_same_server(url, old.server_url):
        there = f'profile "{profile}" has a session for {_public_url(old.server_url)}'
        raise SessionError(f"{there}, the environment names {url}: give the SERVER")
    return url, {} if args.header else _environment_headers(os.environ)


def _find_login_api(args: Any, client: _Client, url: str) -> str:
    """Return the API to log in to; nothing secret is sent before it is found."""
    is_base = args.renewed is not None
    if args.no_verify:
        return url if is_base else _with_api(url)
    # A proxy may block the ping.
    hint = "; --no-verify stores an API key without asking the server" if args.email is None else ""
    try:
        return _find_api(client, url, is_base, hint)
    except ServerUnreachableError as error:
        problem, status = str(error), error.status
    # Where a certificate is at fault, there is https, and http would give the secret away.
    if status is None and "certificate" not in problem:
        given = (args.SERVER, *(os.environ[name] for name in _filled(os.environ, _URL_VARIABLES)))
        typed = _without_query(next(filter(None, given), "://"))
        problem += "" if "://" in typed else f"; if the server has no https, write http://{typed}"
    raise ServerUnreachableError(problem, status)


def _note_plain_http(api: str) -> None:
    match = _checked_url(api)
    loopback = r"(.*\.)?localhost|127(\.[0-9]+){3}|\[::1\]"
    if match["scheme"] == "http" and not re.fullmatch(loopback, match["host"], re.IGNORECASE):
        _say(f"note: to {_public_url(api)}, secrets travel unencrypted")


def _make_profile_writable(store: SessionStore, profile: str) -> None:
    directory, reason = str(store.config_dir(profile)), errno.EACCES
    if not os.access(directory, os.W_OK | os.X_OK):
        with contextlib.suppress(OSError, AttributeError):  # not every system tells
            is_read_only = os.statvfs(directory).f_flag & getattr(os, "ST_RDONLY", 1)  # PyPy
            reason = errno.EROFS if is_read_only else reason
        raise SessionError(_sentence(directory, "it cannot be written to", os.strerror(reason)))


def _new_session(args: Any, client: _Client, api: str) -> Session:
    """Ask for the secret, then the server for a session."""
    if args.email is not None:
        password = _secret(args.password, "password", "-p", api)
        return _log_in(client, api, args.email, password)
    key = _given_secret(_secret(args.api_key, "API key", "-k", api), "API key")
    if args.no_verify:
        return Session.create(api, ApiKey(key, args.name), client.extra_headers)
    session = _check_key(client, api, key, args.name)
    with contextlib.suppress(ServerError):
        known = _key_facts(client, session)
        if known.permissions and "all" not in known.permissions:
            names = ", ".join(known.permissions)[:2000]
            _say(f"note: this key has only these permissions: {names}")
        return replace(session, auth=ApiKey(key, args.name or known.key_name))
    return session


def _end_unstored(client: _Client, api: str, store: SessionStore, profile: str) -> None:
    """End the session of a password login that is not stored: nobody else knows its token."""
    with contextlib.suppress(SessionError):
        token = client.arrived and client.answer(api).get("accessToken")
        stored = _stored(store, profile)
        if isinstance(token, str) and (stored is None or stored.secret != token):
            session = Session(api, Jwt(token, "", ""), "", client.extra_headers)
            logout(session, timeout=client.timeout)


def _login(args: Any, store: SessionStore) -> int:
    if args.email is not None:  # wrong usage comes first, whatever is stored
        _check_login_flags(args)
    profile = _target_profile(args, store)
    url, headers = _login_server(args, store, profile)
    _check_login_flags(args)
    client = _Client(_given_headers(args.header) or headers, args.timeout)
    api = _find_login_api(args, client, url)
    auth = _UNKNOWN_KEY if args.email is None else Jwt("", "", args.email)
    _to_replace(args, store, profile, Session(api, auth, ""))
    _make_profile_writable(store, profile)
    _note_plain_http(api)
    try:
        _store_session(args, store, profile, _new_session(args, client, api))
    except BaseException:  # Ctrl-C too
        _end_unstored(client, api, store, profile)
        raise
    return 0


def _log_out_of(args: Any, store: SessionStore, profile: str) -> int:
    session, problem = _loaded(store, profile)
    status, outcome = 0, f'the session of profile "{profile}" is removed from this computer'
    if problem is not None:
        _say(f"{problem}; its session may still be valid on the server")
    elif session is None:
        outcome = f'profile "{profile}" is not logged in'
    elif not args.local:
        status = _end_session(session, args.timeout)
    if problem is None and _stored(store, profile) not in (None, session):
        _say(f'profile "{profile}" holds another session by now, which stays')
        return status
    path = store._path("profiles", profile, "session.json")
    target = os.path.realpath(path) if os.path.islink(path) else path
    store.clear(profile)
    _say(outcome)
    if target != path and os.path.exists(target):
        _say(f"note: a link of another user led to {target}, which stays")
    return status


def _logout(args: Any, store: SessionStore) -> int:
    if args.all:
        directory = store._path("profiles")
        names = sorted(_entries(directory))
        profiles = [n for n in names if _found(os.listdir, os.path.join(directory, n))]
    else:
        profiles = [_target_profile(args, store)]
    if not profiles:
        _say("there is no profile to log out of")
    statuses = [0]
    for profile in profiles:
        try:
            statuses.append(_log_out_of(args, store, profile))
        except SessionError as error:  # and go on with the others
            _say(error)
            statuses.append(1)
    _note_overrides(store)
    return max(statuses)


def _facts(session: Optional[Session]) -> Dict[str, object]:
    """Return what JSON output says of a session: everything but its secrets."""
    names = "server_url method name email user_id created_at expires_at expired"
    facts: Dict[str, object] = {**dict.fromkeys(names.split())}
    if session is not None:
        expires = session.expires_at()
        facts.update({name: getattr(session.auth, name, None) or None for name in facts})
        facts.update(
            server_url=_public_url(session.server_url),
            method=_method(session.auth),
            created_at=session.created_at or None,
            expires_at=expires and expires.isoformat(),
            expired=session.is_expired(),
        )
    return facts


def _expiry(session: Session) -> str:
    if isinstance(session.auth, ApiKey):
        return "never"
    if "." not in session.auth.access_token:
        return "known to the server only"
    moment = session.expires_at()
    when = "unknown" if moment is None else moment.isoformat()
    return f"expired, {when}" if session.is_expired() else when


def _check(
    session: Optional[Session], timeout: float
) -> Tuple[Dict[str, Any], Optional[SessionError]]:
    """Return what the server says of a session, or why it does not."""
    report: Dict[str, Any] = {"valid": None, "account": None, "permissions": None}
    try:
        if session is not None:
            report["valid"] = is_valid(session, timeout=timeout)
        if session is not None and report["valid"]:
            with contextlib.suppress(SessionError):
                account = whoami(session, timeout=timeout)
                report.update(account=account.email, permissions=account.permissions)
    except SessionError as error:
        return report, error
    return report, None


def _status_text(session: Session, source: str, check: Mapping[str, Any]) -> str:
    permissions = check.get("permissions")
    facts = {
        "Valid": {True: "yes", False: "no"}.get(check.get("valid", None)),
        "Account": check.get("account"),
        "Permissions": None if permissions is None else ", ".join(permissions) or "none",
    }
    told = [f"{name}: {_printable(fact)}" for name, fact in facts.items() if fact is not None]
    return "\n".join([f"Source: {source}", f"{session}", f"Expires: {_expiry(session)}", *told])


def _status(args: Any, store: SessionStore) -> int:
    session, profile = _find_session(args.profile, store)
    source = "environment" if profile is None else "file"
    check, problem = _check(session, args.timeout) if args.check else ({}, None)
    if args.json:
        report = {"profile": profile, "source": source, **_facts(session), **check}
        _emit(json.dumps(report, indent=2))
    elif session is not None:
        if profile is not None:
            path = store._path("profiles", profile, "session.json")
            source = f'profile "{profile}" ({_printable(path)})'
        _emit(_status_text(session, source, check), "backslashreplace")
    _require_session(session, profile, store, args.profile is not None)
    if problem is not None:
        raise problem
    return 4 if check.get("valid") is False else 0


def _profile_line(row: Mapping[str, object]) -> str:
    facts = (row[name] for name in ("server_url", "method", "who"))
    shown = f"broken: {row['error']}" if row["error"] else "  ".join(str(f) for f in facts if f)
    expired = "  expired" if row["expired"] else ""
    return _printable(f"{'*' if row['current'] else ' '} {row['name']}  {shown}{expired}")


def _profile_list(args: Any, store: SessionStore) -> int:
    current = None
    try:
        current = store.get_current_profile()
    except (InvalidProfileError, InvalidSessionError) as error:
        _say(error)
    rows = []
    for name in store.list_profiles():
        session, problem = _loaded(store, name)
        if session is None and problem is None:  # removed in the meantime
            continue
        facts = _facts(session)
        facts["who"] = facts["email"] or facts["name"]
        shown = {fact: facts[fact] for fact in ("server_url", "method", "who", "expired")}
        rows.append(
            {"name": name, "current": name == current, **shown, "error": problem and str(problem)}
        )
    if args.json:
        _emit(json.dumps(rows, indent=2))
    elif rows:
        _emit("\n".join(map(_profile_line, rows)), "backslashreplace")
    else:
        _say("no profile is logged in")
    return 0


def _profile_current(_: Any, store: SessionStore) -> int:
    _emit(store.get_current_profile())
    return 0


def _profile_switch(args: Any, store: SessionStore) -> int:
    profile = _checked_profile(args.NAME)
    profiles = store.list_profiles()
    if profile not in profiles:
        others = ", ".join(profiles) or "none"
        raise SessionError(f'profile "{profile}" has no session (profiles with one: {others})')
    store.set_current_profile(profile)
    _say(f'profile "{profile}" is now the current one')
    _note_overrides(store)
    return 0


def _token(args: Any, store: SessionStore) -> int:
    _emit(get_session(args.profile, store=store).secret)
    return 0


def _headers(args: Any, store: SessionStore) -> int:
    headers = get_session(args.profile, store=store).headers()
    _emit("\n".join(f"{name}: {value}" for name, value in headers.items()))
    return 0


def _command_path(name: str) -> str:
    """Return the file that is meant by *name* on Windows, where PATHEXT says what is a command.

    The current directory is no place to look: what lies there would be given the secret.
    """
    endings = os.environ.get("PATHEXT", ".COM;.EXE;.BAT;.CMD").lower().split(os.pathsep)
    if name.lower().endswith(tuple(endings)):
        endings.insert(0, "")
    places = [""] if os.path.dirname(name) else list(filter(None, os.get_exec_path()))
    paths = [os.path.join(place, name + ending) for place in places for ending in (*endings, "")]
    return next(filter(os.path.isfile, paths), paths[-1] if paths else "")


def _become(command: List[str], environ: Dict[str, str]) -> int:
    """Run a command in place of this process; return only with an error."""
    import signal

    # Python ignores these signals, and a command would inherit that.
    numbers = [getattr(signal, n) for n in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, n)]
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        os.execvpe(command[0], command, environ)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _run_on_windows(command: List[str], environ: Dict[str, str]) -> int:
    """Run a command, where no process can become another one, and return its status."""
    import signal
    import subprocess

    # Ctrl-C reaches the command as well, which decides what to do.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = [_command_path(command[0]), *command[1:]]
        status = subprocess.run(child, env=environ, check=False).returncode  # noqa: S603
        return status - (status >> 31 << 32)  # signed: sys.exit knows no larger ones
    finally:
        signal.signal(signal.SIGINT, handler)


def _run_command(command: List[str], environ: Dict[str, str]) -> int:
    """Run a command and return its status, or tell why it cannot be run."""
    try:
        return (_run_on_windows if _WINDOWS else _become)(command, environ)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "this cannot be a command"
        is_forbidden = isinstance(error, PermissionError)
    name = command[0]
    _say(f"{name or repr(name)}: it cannot be run: {problem}")
    places = [""] if os.path.dirname(name) else os.get_exec_path()
    paths = [os.path.join(place, name) for place in places]
    paths += [_command_path(name)] if _WINDOWS else []
    is_there = any(map(os.path.exists, paths)) or (is_forbidden and os.path.dirname(name))
    return 126 if name and is_there else 127


def _exec(args: Any, store: SessionStore) -> int:
    command = args.COMMAND[1:] if args.COMMAND[0] == "--" else args.COMMAND
    found, profile = _find_session(args.profile, store)
    session = _require_session(found, profile, store, args.profile is not None)
    environ = session.to_env(os.environ)
    if isinstance(session.auth, Jwt):
        others = "programs that expect an API key (the official CLI, immichpy)"
        _say(f"warning: with a password login, {others} may use, or send, one of their own")
    if session.extra_headers:
        _say("warning: the extra headers reach only programs that read IMMICH_HEADERS")
    if profile is not None:
        environ["IMMICH_PROFILE"] = profile
    if args.config_directory is not None:
        environ["IMMICH_CONFIG_DIR"] = os.path.abspath(args.config_directory)
    return _run_command(command, environ)


def _import(args: Any, store: SessionStore) -> int:
    profile = _target_profile(args, store)
    path = store._path("auth.yml") if args.FILE is None else args.FILE
    session = _parse_file(path, _parse_auth_yml, _text_file(path, private=True))
    args.no_verify = True  # as in a login that asks no server
    _store_session(args, store, profile, session)
    return 0


# Command line: its grammar
def _seconds(text: str) -> float:
    import argparse

    with contextlib.suppress(ValueError):
        if 0 < float(text) <= _LONGEST:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a number of seconds up to {_LONGEST:.0f}")


_STDIN = "prompted for if omitted; -: from standard input"
_EXEC = (
    "and its arguments; it finds the session in IMMICH_INSTANCE_URL (and IMMICH_API_URL), in "
    "IMMICH_API_KEY or IMMICH_ACCESS_TOKEN, IMMICH_HEADERS, IMMICH_PROFILE"
)
_OPTIONAL, _FLAG = {"nargs": "?"}, {"action": "store_true"}
# Of each option or argument: what it is for, and how argparse is to read it.
_OPTIONS: Dict[str, Tuple[str, Dict[str, Any]]] = {
    "SERVER": ("address (default: IMMICH_INSTANCE_URL, else of the session to renew)", _OPTIONAL),
    "NAME": ("the profile to switch to", {}),
    "FILE": ("default: auth.yml in the configuration directory", _OPTIONAL),
    # "A..." is argparse.PARSER: a command, and whatever follows it.
    "COMMAND": (_EXEC, {"nargs": "A...", "metavar": "-- COMMAND"}),
    "-P --profile": ("default: the session of the environment, else the current one", {}),
    # The same, of commands that change a profile.
    "--profile -P": ("default: the current one", {}),
    "-k --api-key": (_STDIN, {"metavar": "KEY"}),
    "-e --email": ("log in with the password of this user", {}),
    "-p --password": (_STDIN, {}),
    "-n --name": (
        "a name for the API key (default: its name on the server; renewing keeps it)",
        {},
    ),
    "-H --header": (
        "extra header for a proxy: 'NAME: VALUE', or @FILE with one a line; repeatable "
        "(default: of the session to renew; with the server of the environment, IMMICH_HEADERS)",
        {"action": "append", "default": [], "metavar": "HEADER"},
    ),
    "--no-verify": ("store the API key without asking the server", _FLAG),
    "--timeout": (
        f"time limit per request (default: {_TIMEOUT:.0f})",
        {"type": _seconds, "default": _TIMEOUT, "metavar": "SECONDS"},
    ),
    "--all": ("every profile", _FLAG),
    "--local": ("do not ask the server", _FLAG),
    "--check": ("ask the server whether it is valid, and whose", _FLAG),
    "--json": ("output for programs", _FLAG),
}
_ADDRESS = "https://photos.example.com"
# Of each command: what it runs, what it does, its options (of A|B, one excludes the other), and
# an example.
_COMMANDS: Dict[str, Tuple[Optional[Callable[[Any, SessionStore], int]], str, str, str]] = {
    "login": (
        _login,
        "log in and store the session",
        "SERVER --profile -k|-e -p -n -H --no-verify --timeout",
        f"{_ADDRESS} -P work",
    ),
    "logout": (_logout, "end and remove a session", "--profile|--all --local --timeout", "-P work"),
    "status": (_status, "show which session is used", "-P --check --json --timeout", "--check"),
    "profile": (None, "list and switch profiles", "", "list"),
    "profile list": (_profile_list, "list the profiles that have a session", "--json", "--json"),
    "profile current": (_profile_current, "print the current profile", "", ""),
    "profile switch": (_profile_switch, "make another profile the current one", "NAME", "work"),
    "token": (_token, "print the API key or access token", "-P", "-P work"),
    "headers": (
        _headers,
        "print the HTTP headers that a request needs, one a line",
        "-P",
        f"| curl -H @- {_ADDRESS}/api/users/me",
    ),
    "exec": (
        _exec,
        "run a command with the session in its environment",
        "-P COMMAND",
        "-- python3 my_script.py",
    ),
    "import": (_import, "store the session of the official CLI", "FILE --profile", "-P work"),
}
_VARIABLES = """\
environment variables:
  IMMICH_INSTANCE_URL   the server; or IMMICH_SERVER
  IMMICH_API_KEY        the API key; or IMMICH_API_KEY_FILE: a file that holds it
  IMMICH_ACCESS_TOKEN   instead of a key, the token of a password login
  IMMICH_HEADERS        extra headers, one a line; or IMMICH_HEADERS_FILE: a file of them
  IMMICH_API_URL        set by exec beside IMMICH_INSTANCE_URL, and not read
  IMMICH_PROFILE        the current profile
  IMMICH_CONFIG_DIR     the directory of the files (default: ~/.config/immich)
  SSL_CERT_FILE         certificates to trust, for a CA of your own
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY"""


def _refuse_usage(parser: Any, problem: str) -> None:
    _say(f'{problem}; see "{parser.prog} --help"')
    raise SystemExit(2)


def _parser_class() -> Any:
    import argparse

    class Parser(argparse.ArgumentParser):
        def __init__(self, **options: Any) -> None:
            # A fixed width, because to look at the terminal argparse loads half a dozen modules;
            # and no colours in Python 3.14, which fails to choose them where the output is closed.
            plain: Dict[str, Any] = {"color": False} if sys.version_info[:2] == (3, 14) else {}
            layout = argparse.RawDescriptionHelpFormatter
            options.update(plain, allow_abbrev=False)
            options["formatter_class"] = lambda prog: layout(prog, width=90, **plain)
            super().__init__(**options)

        def print_help(self, file: Any = None) -> None:  # noqa: ARG002 - it is data
            _emit(self.format_help().rstrip())

        def error(self, message: str) -> Any:
            # argparse quotes what was typed, and that may be a secret.
            message = re.sub(r"""'(\\.|[^'])*'|"(\\.|[^"])*\"""", "...", message, count=1)
            _refuse_usage(self, message)

    return Parser


def _add_options(command: Any, options: str) -> None:
    """Add options to the parser of a command."""
    for choice in options.split():
        group = command.add_mutually_exclusive_group() if "|" in choice else command
        for option in choice.split("|"):
            key = next(key for key in _OPTIONS if key.split()[0] == option)
            text, settings = _OPTIONS[key]
            group.add_argument(*sorted(key.split(), key=len), help=text, **settings)


def _parsers() -> Tuple[Any, Any]:
    """Return the parser of the command line, and one that knows the options before a command."""
    prog, kind = _own_command(), _parser_class()
    description = "Keep sessions for Immich servers in profiles."
    parser = kind(prog=prog, description=description, epilog=_VARIABLES)
    leading = kind(prog=prog, add_help=False)
    leading.add_argument("-h", "--help", action="store_true")
    leading.add_argument("words", nargs="A...").required = False
    directory = "the directory of the files (default: IMMICH_CONFIG_DIR, else ~/.config/immich)"
    for each in (parser, leading):
        each.add_argument("--version", action="store_true", help="print the version")
        each.add_argument("-d", "--config-directory", metavar="DIR", help=directory)
    parser.set_defaults(run=None, parser=parser, renewed=None)
    groups = {"": parser.add_subparsers(metavar="COMMAND", prog=prog)}
    for name, (run, text, options, example) in _COMMANDS.items():
        group, _, verb = name.rpartition(" ")
        epilog = f"example: {prog} {name} {example}".rstrip()
        command = groups[group].add_parser(verb, help=text, description=text, epilog=epilog)
        command.set_defaults(run=run, parser=command)
        if run is None:
            groups[name] = command.add_subparsers(metavar="COMMAND", prog=f"{prog} {name}")
        _add_options(command, options)
    return parser, leading


def _refuse_option(parser: Any) -> None:
    """Refuse an unknown option; it is not echoed, because it may be a key."""
    _refuse_usage(parser, f"unknown option; {' '.join(parser.format_usage().split())}")


def _refuse_surplus(args: Any, surplus: Sequence[str]) -> None:
    if any(word.startswith("-") for word in surplus):
        _refuse_option(args.parser)
    hint = "; an API key goes after -k" if hasattr(args, "api_key") else ""
    _refuse_usage(args.parser, f"too many arguments{hint}")


def _run(argv: Optional[Sequence[str]]) -> int:
    parser, leading = _parsers()
    if leading.parse_known_args(argv)[1]:  # what follows would be taken for the command
        _refuse_option(parser)
    args, surplus = parser.parse_known_args(argv)
    if surplus:
        _refuse_surplus(args, surplus)
    if args.version:
        _emit(f"immich_session {__version__}")
        return 0
    if args.run is None:
        _tell(args.parser.format_help().rstrip())
        return 2
    try:
        store = SessionStore(args.config_directory)
    except SessionError as error:
        raise SessionError(f"-d: {error}") from None
    status: int = args.run(args, store)
    return status


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return its exit status.

    0 done; 1 failed; 2 wrong usage; 3 the server could not be asked, or is not ready; 4 not
    logged in, expired or refused; 130 interrupted.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
        try:
            return _run(argv)
        except SystemExit as stop:
            return int(stop.code or 0)
        except KeyboardInterrupt:
            _say("interrupted")
            return 130
        except (SessionError, OSError) as error:  # OSError: the working directory is deleted
            _say(error)
            return _exit_status(error)


if __name__ == "__main__":
    sys.exit(main())
