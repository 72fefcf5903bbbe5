# SPDX-FileCopyrightText: 2026 the immich_session authors
# SPDX-License-Identifier: ISC
"""Keep sessions for Immich photo servers in named profiles on disk, safely.

A session is a server, an account there and its secret: an API key or an access token.  A
script gets the right one in one call, on a laptop and in a container alike::

    import immich_session
    session = immich_session.get_session()
    requests.get(session.server_url + "/albums", headers=session.headers())

The same file is a command line: ``python -m immich_session --help``.

Sessions live in ``~/.config/immich`` (or ``$IMMICH_CONFIG_DIR``), in
``profiles/NAME/session.json``; ``config.json`` beside ``profiles`` names the current profile.
An OCaml Immich CLI reads and writes the same files.

Promised: a file is replaced as a whole or not at all, also in a crash or on a full disk; files
are made 0600 and directories 0700; reading writes nothing; no secret is in a repr, an error or
a warning.  Not promised: the secret is plain text, protected by file modes alone (on Windows, by
the access rights of your folder); whoever reads files as you reads it.  ``pickle`` and
``dataclasses.asdict`` hold the secret as well.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import errno
import json
import os
import re
import stat
import sys
import time
import warnings
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence, Tuple, Union

__version__ = "1.0.0"

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
    "is_valid",
    "login_api_key",
    "login_password",
    "logout",
    "main",
    "resolve_api_url",
    "session_from_env",
]

DEFAULT_PROFILE = "default"

_WINDOWS = os.name == "nt"
_COMMAND = "python -m immich_session"
_FILE_LIMIT = 1 << 20  # bytes: no session is larger, and nobody can make us read a whole disk
_STDIN_LIMIT = 1 << 16  # bytes
_STALE = 60.0  # seconds: a save that takes longer than this was killed
_PATIENCE = 1.0  # seconds: Windows refuses to touch a file that another process has open
_LONGEST = 86_400.0  # seconds: a longer time limit is none, and sockets cannot count much farther


# Errors


class SessionError(Exception):
    """Base of every error that this module raises on purpose; its text is one sentence."""


class InvalidProfileError(SessionError, ValueError):
    """A profile name that is none."""


class InvalidSessionError(SessionError, ValueError):
    """A session.json, config.json or auth.yml, or a field of a session, that cannot be used."""


class NotLoggedInError(SessionError):
    """There is no session to use, or it is expired.

    ``profile`` is the profile that was looked at, None if the session was the environment's.
    """

    def __init__(self, message: str, profile: Optional[str] = None) -> None:
        super().__init__(message)
        self.profile = profile


class ServerError(SessionError):
    """The server answered, and refused or made no sense.

    ``status`` is the HTTP status of its answer, or None.
    """

    def __init__(self, message: str, status: Optional[int] = None) -> None:
        super().__init__(message)
        self.status = status


class ServerUnreachableError(ServerError):
    """There was no complete HTTP answer; ``status`` is None."""


# Rules: what may be shown, and what is a profile name, a URL, a header


def _printable(text: str) -> str:
    """Return *text* with everything escaped that could drive or fool a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _shown_url(url: str) -> str:
    """Return *url* without what may be secret in it: user name, password, query, fragment."""
    scheme, found, rest = url.partition("://")
    if scheme.lower() not in ("http", "https"):
        scheme, found, rest = "", "", url
    shown = re.split("[?#]", rest)[0]
    if "@" in rest and shown != rest:  # nobody can tell which part is which
        shown = "***"
    elif "@" in rest:
        shown = f"***@{rest.rpartition('@')[2]}"
    elif shown != rest:
        shown += "***"
    return f"{scheme}{found}{shown}"


# Windows drops a dot at the end, and takes the name of a device for it whatever follows a dot.
_NOT_ON_WINDOWS = re.compile(
    r'.*[<>:"|?*].*|.*\.|(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?',
    re.IGNORECASE,
)


def _is_profile_name(name: str) -> bool:
    """Tell whether *name* is one visible path component: the only place that decides."""
    return (
        name.isprintable()
        and name not in ("", ".", "..")
        and "/" not in name
        and "\\" not in name
        and name.strip(" ") == name
        and len(name.encode("utf-8")) <= 255
        and not (_WINDOWS and _NOT_ON_WINDOWS.fullmatch(name))
    )


def _checked_profile(name: str, source: str = "profile") -> str:
    if _is_profile_name(name):
        return name
    rule = "one visible file name without / and \\, of at most 255 bytes"
    rule += ", that Windows allows" if _WINDOWS else ""
    raise InvalidProfileError(f"{_printable(source)}: {name[:80]!r} is no profile name: {rule}")


_VISIBLE = r"[!-~]+"
_FIELD_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 §5.6.2
_RESERVED = r"x-api-key|x-immich-.*|cookie|host|content-.*|transfer-encoding|connection|expect"
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
    raise InvalidSessionError(
        f"{source}: expected an http(s) URL with a host, and no user name, query or fragment"
    )


def _url_parts(url: str) -> re.Match[str]:
    """Match a URL without its query, which is a server's own business."""
    return _checked_url(re.split("[?#]", url)[0])


def _normalised_url(typed: str, source: str = "server_url") -> str:
    """Return the URL that a person means by *typed*: https by default, no trailing slash."""
    typed = typed.strip() if "://" in typed else f"https://{typed.strip()}"
    scheme, _, rest = typed.partition("://")
    host, slash, path = rest.partition("/")
    if not host.isascii():
        import urllib.parse

        with contextlib.suppress(ValueError):  # stays as it is, and is refused below
            urllib.parse.urlsplit(f"//{host}")  # refuses what IDNA would turn into a slash
            host = host.encode("idna").decode("ascii")
    url = f"{scheme.lower()}://{host}{slash}{path}".rstrip("/")
    _checked_url(url, source)
    return url


def _with_api(url: str) -> str:
    return url if url.endswith("/api") else url + "/api"


def _check_secret(secret: str, member: str) -> None:
    if not re.fullmatch(_VISIBLE, secret):
        raise InvalidSessionError(f"{member}: expected visible ASCII characters, no white space")


def _check_extra_headers(headers: Mapping[str, str]) -> None:
    """Refuse what may not be sent (RFC 9110 §5), or would shadow the credential."""
    for name, value in headers.items():
        if not re.fullmatch(_FIELD_NAME, name):  # not echoed: without its colon, it holds the value
            raise InvalidSessionError("headers: there is a name that HTTP does not allow")
        if not re.fullmatch(rf"{_VISIBLE}(?: {_VISIBLE})*", value):
            problem = "expected visible ASCII characters with single spaces inside"
        elif re.fullmatch(_RESERVED, name, re.IGNORECASE):
            problem = "this header is not for you to set"
        elif re.fullmatch("authorization: bearer( .*)?", f"{name}: {value}", re.IGNORECASE):
            problem = "the scheme Bearer is the session's own"
        else:
            continue
        raise InvalidSessionError(f"headers.{name}: {problem}")
    if len({name.lower() for name in headers}) < len(headers):
        raise InvalidSessionError("headers: there is a name twice, in different cases")


# JSON: strict where the meaning could differ

# Every number becomes a float, because Python refuses integers of more than 4,300 digits; and
# int() refuses the names NaN and Infinity, which are not JSON.  Of a member given twice the last
# one counts, unless objects become tuples of their (name, value) pairs.
_DECODER = json.JSONDecoder(parse_int=float, parse_constant=int)
_PAIRS_DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float, parse_constant=int)

_ENCODER = json.JSONEncoder(indent=2, ensure_ascii=False)  # as the OCaml CLI does

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
    except ValueError:
        problem = "NaN and Infinity are not JSON"
    raise InvalidSessionError(problem)


def _members(value: object, where: str = "") -> Dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidSessionError(f"{where}expected an object")
    return value


def _located(path: str, decode: Callable[..., Any], data: object) -> Any:
    """Decode what a file holds; let an error name the file as well as the member."""
    try:
        return decode(data)
    except InvalidSessionError as error:
        problem = str(error)
    raise InvalidSessionError(f"{_printable(path)}: {problem}")


def _string(members: Mapping[str, object], name: str, parent: str = "") -> str:
    """Return a member that has to be a string, and one that can be written as UTF-8."""
    value = members.get(name)
    problem = "expected a string"
    if isinstance(value, str):
        if value.isascii() or not re.search("[\ud800-\udfff]", value):
            return value
        problem = _NOT_UNICODE
    raise InvalidSessionError(f"{parent}{_printable(name)}: {problem}")


# JWT

# Three base64url segments without padding, of which the last one may be empty (RFC 7515 §3.1).
_JWT = re.compile("([A-Za-z0-9_-]+)[.]([A-Za-z0-9_-]+)[.]([A-Za-z0-9_-]*)")


def _jwt_expiry(token: str) -> Optional[float]:
    """Return the ``exp`` claim (seconds since the epoch), None for what is no JWT with one."""
    match = _JWT.fullmatch(token)
    if not match or 1 in {len(segment) % 4 for segment in match.groups()}:  # encodes nothing
        return None
    try:
        claims = _decode(base64.urlsafe_b64decode(match[2] + "=="), _PAIRS_DECODER)
    except InvalidSessionError:
        return None
    values = [value for name, value in claims if name == "exp"] if type(claims) is tuple else []
    return values[-1] if values and {type(value) for value in values} == {float} else None


def is_jwt_expired(token: str, leeway: float = 60) -> bool:
    """Tell whether a JWT is expired, or will be in *leeway* seconds (RFC 7519 §4.1.4).

    Whatever is not a JWT with a numeric ``exp`` claim is expired.  The signature is not checked:
    only the server can do that.  Never raises, whatever the text.
    """
    expiry = _jwt_expiry(token)
    # Not "now >= expiry - leeway": that is False for a NaN, and doubt has to mean expired.
    return expiry is None or not time.time() < expiry - leeway


# Values


@dataclass(frozen=True)
class Jwt:
    """What a login with a password gave: an access token (not always a JWT), and for whom."""

    access_token: str = field(repr=False)
    user_id: str
    email: str


@dataclass(frozen=True)
class ApiKey:
    """An API key, and the name that it has on the server, if known."""

    key: str = field(repr=False)
    name: Optional[str] = None


AuthMethod = Union[Jwt, ApiKey]

# What a session.json has under the type of its method.
_MEMBERS = {"jwt": ("access_token", "user_id", "email"), "api_key": ("key", "name")}


def _method(auth: AuthMethod) -> str:
    return "api_key" if isinstance(auth, ApiKey) else "jwt"


def _secret_of(auth: AuthMethod) -> str:
    return auth.key if isinstance(auth, ApiKey) else auth.access_token


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
        """Return a session that is created now, in UTC, in whole seconds."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S-00:00", time.gmtime(time.time()))
        return cls(server_url, auth, now, extra_headers)

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> Session:
        """Return the session that a session.json describes.

        Raise InvalidSessionError, which names the member and never its value.
        """
        return cls._from_members(_members(_decode(text)))

    @classmethod
    def _from_members(cls, top: Mapping[str, object]) -> Session:
        auth = _members(top.get("auth"), "auth: ")
        method = _string(auth, "type", "auth.")
        if method not in _MEMBERS:
            raise InvalidSessionError('auth.type: expected "api_key" or "jwt"')
        members = _members(auth.get(method), f"auth.{method}: ")
        names, parent = _MEMBERS[method], f"auth.{method}."
        if method == "api_key" and members.get("name") is None:  # which is no name, as none is
            names = names[:1]
        values = [_string(members, name, parent) for name in names]
        headers = _members(top.get("headers", {}), "headers: ")
        return cls(
            _string(top, "server_url"),
            Jwt(*values) if method == "jwt" else ApiKey(*values),
            _string(top, "created_at"),
            {name: _string(headers, name, "headers.") for name in headers},
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
            _string({"a name": name}, "a name", "headers: ")
        self._from_members(top)
        return _ENCODER.encode(top)

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
        with contextlib.suppress(OverflowError):  # farther away than a datetime can tell
            if expiry is not None:
                return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=expiry)
        return None

    def headers(self) -> Dict[str, str]:
        """Return the HTTP headers that a request to the server needs, the secret among them.

        Raise InvalidSessionError, naming the member, where one could not travel safely.
        """
        _checked_url(self.server_url)
        _check_extra_headers(self.extra_headers)
        headers = dict(self.extra_headers)
        secret, is_key = _secret_of(self.auth), isinstance(self.auth, ApiKey)
        _check_secret(secret, "auth.api_key.key" if is_key else "auth.jwt.access_token")
        if is_key:
            headers["x-api-key"] = secret
        elif "authorization" in (name.lower() for name in headers):
            headers["x-immich-user-token"] = secret
        else:
            headers["Authorization"] = f"Bearer {secret}"
        return headers

    def __repr__(self) -> str:
        return f"Session({_shown_url(self.server_url)!r}, {self.auth!r}, {self.created_at!r})"

    def __str__(self) -> str:
        """Return a description for people, a line for each fact."""
        if isinstance(self.auth, Jwt):
            facts = {"Email": self.auth.email, "User ID": self.auth.user_id}
            method = "access token"
        else:
            facts = {"API Key": self.auth.name or "<unnamed>"}
            method = "API key"
        facts.update(Server=_shown_url(self.server_url), Created=self.created_at, Auth=method)
        return "\n".join(f"{name}: {_printable(fact)}" for name, fact in facts.items() if fact)


# Files: one way to read, one to write, one to remove

_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
# With O_NONBLOCK, opening a FIFO does not wait for somebody to write.
_READ_FLAGS = os.O_RDONLY | sum(getattr(os, f"O_{n}", 0) for n in ("NONBLOCK", "NOCTTY", "BINARY"))


def _os_problem(path: str, what: str, error: OSError) -> str:
    return f"{_printable(path)}: {what}: {error.strerror}"


def _checked_path(path: str) -> str:
    """Refuse a path that is none here, for which the system has no error of its own."""
    if path and "\0" not in path:
        if path.isascii():
            return path
        with contextlib.suppress(UnicodeEncodeError):
            os.fsencode(path)
            return path
    raise SessionError(f"{path!a}: there can be no such path on this system")


def _check_size(size: int, path: str) -> None:
    if size > _FILE_LIMIT:
        raise InvalidSessionError(f"{_printable(path)}: it is larger than {_FILE_LIMIT} bytes")


def _warn_if_exposed(status: os.stat_result, path: str) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        problem = f"others may read or write it (its mode is {mode:04o}): chmod 600"
        warnings.warn(f"{_printable(path)}: {problem}", stacklevel=4)
    if status.st_uid not in (os.geteuid(), 0):
        problem = f"it belongs to another user (uid {status.st_uid})"
        warnings.warn(f"{_printable(path)}: {problem}", stacklevel=4)


def _patiently(call: Callable[..., Any], *args: Any) -> Any:
    """Call *call*; on Windows again for a while, if another process has the file open."""
    deadline = time.monotonic() + _PATIENCE if _WINDOWS else 0.0
    while True:
        try:
            return call(*args)
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0)  # any longer would miss the moments between busy readers


def _read_file(path: str, private: bool = False) -> Optional[bytes]:
    """Return what a file holds, None if there is none; warn if others reach what is *private*."""
    try:
        descriptor = _patiently(os.open, path, _READ_FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidSessionError(f"{_printable(path)}: it is not a regular file")
            # A read asks for one byte more than there should be, as a larger request costs more.
            # It is not the last one where the size was wrong: some file systems tell none.
            data = chunk = os.read(descriptor, min(status.st_size, _FILE_LIMIT) + 1)
            while chunk and len(data) != status.st_size and len(data) <= _FILE_LIMIT:
                chunk = os.read(descriptor, 4096)
                data += chunk
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidSessionError(_os_problem(path, "it cannot be read", error)) from error
    _check_size(len(data), path)
    if private and hasattr(os, "geteuid"):
        _warn_if_exposed(status, path)
    return data


def _sync_directory(path: str) -> None:
    """Make changes of names in a directory durable, where that is supported."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path or os.curdir, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _make_directory(path: str) -> None:
    """Make a directory and what is missing above it, each 0700 whatever the umask."""
    if os.path.isdir(path):
        return
    for directory in (*map(str, reversed(Path(path).parents)), path):
        try:
            os.mkdir(directory, 0o700)
        except OSError as error:
            if os.path.isdir(directory):  # it was there, or another process was faster
                continue
            problem = _os_problem(directory, "the directory cannot be made", error)
            raise SessionError(problem) from error
        with contextlib.suppress(OSError):  # the umask may have taken our own rights away
            os.chmod(directory, 0o700)
        _sync_directory(os.path.dirname(directory))


def _exists(path: str, follow_symlinks: bool = True) -> bool:
    """Tell whether something is there, if only perhaps: a directory may forbid to look."""
    try:
        os.stat(path, follow_symlinks=follow_symlinks)
    except OSError as error:
        return not isinstance(error, (FileNotFoundError, NotADirectoryError))
    return True


def _link_target(path: str) -> str:
    """Return the file that writing to *path* replaces: where a link leads, else *path* itself."""
    if os.path.islink(path):
        target = os.path.realpath(path)
        if os.path.isfile(target) or not os.path.lexists(target):
            return target
    return path


# The names that _replace makes, and version 1.0 made, of a file's name.
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp", re.DOTALL)


def _sweep(path: str, age: float) -> None:
    """Remove temporaries of *path* that killed processes left, if they are *age* seconds old."""
    directory, name = os.path.split(path)
    with contextlib.suppress(OSError):
        for match in filter(None, map(_TEMPORARY.fullmatch, os.listdir(directory))):
            temporary = os.path.join(directory, match[0])
            with contextlib.suppress(OSError):
                if match[1] == name and time.time() - os.lstat(temporary).st_mtime >= age:
                    os.unlink(temporary)


def _write_through(descriptor: int, data: bytes) -> None:
    """Write data, wait until it is on the disk, and close."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: str, data: bytes) -> None:
    directory, name = os.path.split(path)
    try:
        temporary = os.path.join(directory, f".{name}.{os.urandom(4).hex()}.tmp")
    except NotImplementedError as error:  # PyPy, which needs /dev/urandom
        raise OSError(errno.ENODEV, str(error)) from error
    descriptor = os.open(temporary, _NEW_FLAGS, 0o600)
    try:
        with contextlib.suppress(OSError):  # the umask may have taken our own rights away
            os.chmod(temporary, 0o600)
        _write_through(descriptor, data)
        _patiently(os.replace, temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            _patiently(os.unlink, temporary)
        raise
    _sync_directory(directory)


def _write_file(path: str, data: bytes) -> None:
    """Replace a file as a whole or not at all, durably, with mode 0600; make its directory."""
    _check_size(len(data), path)
    _make_directory(os.path.dirname(path))
    target = _link_target(path)
    _sweep(target, _STALE)
    try:
        try:
            _replace(target, data)
        except FileNotFoundError:  # clear() in another process swept our temporary away
            _replace(target, data)
    except OSError as error:
        raise SessionError(_os_problem(target, "it cannot be written", error)) from error


def _remove_file(path: str) -> None:
    """Remove a file, where it is a link the file behind it too, and all their temporaries."""
    for victim in (_link_target(path), path):
        _sweep(victim, float("-inf"))
        try:
            _patiently(os.unlink, victim)
            _sync_directory(os.path.dirname(victim))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            # A disk that is mounted read-only says so before it looks whether there is anything.
            if _exists(victim, follow_symlinks=False):
                raise SessionError(_os_problem(victim, "it cannot be removed", error)) from error


# The store


def _home() -> str:
    variable = "USERPROFILE" if _WINDOWS else "HOME"  # as the official CLI has it
    home = os.environ.get(variable)
    if home is None:
        try:
            import pwd

            home = pwd.getpwuid(os.getuid()).pw_dir
        except (ImportError, AttributeError, KeyError):  # Windows; a user id without an entry
            home = os.path.expanduser("~")
    if os.path.isabs(home):
        return home
    variables = f"set IMMICH_CONFIG_DIR, or {variable}, to an absolute path"
    raise SessionError(f"there is no home directory to keep sessions in: {variables}")


class SessionStore:
    """The sessions of one configuration directory, by profile.

    *base_dir* is that directory; without it ``$IMMICH_CONFIG_DIR``, else
    ``$HOME/.config/immich``, looked up at each use.  ``profile=None`` is the current profile.
    Every method may raise SessionError (no home directory, the system's refusal),
    InvalidProfileError and InvalidSessionError (a broken config.json).
    """

    def __init__(self, base_dir: Union[str, "os.PathLike[str]", None] = None) -> None:
        self._base_dir = None if base_dir is None else _checked_path(os.fspath(base_dir))

    def __repr__(self) -> str:
        return f"SessionStore({self._base_dir!r})"

    def _path(self, *parts: str) -> str:
        base = self._base_dir or os.environ.get("IMMICH_CONFIG_DIR")
        base = base or os.path.join(_home(), ".config", "immich")
        return _checked_path(os.sep.join((base.rstrip(os.sep), *parts)) or os.sep)

    def _profile_path(self, profile: Optional[str], *parts: str) -> str:
        name = self.get_current_profile() if profile is None else _checked_profile(profile)
        return self._path("profiles", name, *parts)

    def base_config_dir(self) -> Path:
        """Return the configuration directory; make it if needed."""
        base = self._path()
        _make_directory(base)
        return Path(base)

    def config_dir(self, profile: Optional[str] = None) -> Path:
        """Return the directory of a profile; make it if needed."""
        directory = self._profile_path(profile)
        _make_directory(directory)
        return Path(directory)

    def get_current_profile(self) -> str:
        """Return ``$IMMICH_PROFILE``, else what config.json says, else "default"."""
        name = os.environ.get("IMMICH_PROFILE")
        if name:
            return _checked_profile(name, "IMMICH_PROFILE")
        path = self._path("config.json")
        data = _read_file(path)
        where = f"{_printable(path)}: "
        members = {} if data is None else _members(_located(path, _decode, data), where)
        if "current_profile" not in members:
            return DEFAULT_PROFILE
        return _checked_profile(_string(members, "current_profile", where), path)

    def set_current_profile(self, profile: str) -> None:
        """Write the current profile into config.json; a broken one is replaced."""
        current = {"current_profile": _checked_profile(profile)}
        path = self._path("config.json")
        text = json.dumps(current, ensure_ascii=False)
        with contextlib.suppress(ValueError, RecursionError):  # nothing there worth keeping
            data = _read_file(path) or b""
            _members(_decode(data))
            text = json.dumps({**json.loads(data), **current}, ensure_ascii=False, allow_nan=False)
        _write_file(path, text.encode("utf-8"))

    def _entries(self) -> List[str]:
        """Return, sorted, what stands in profiles/, be it a profile or not."""
        profiles = self._path("profiles")
        try:
            return sorted(os.listdir(profiles))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SessionError(_os_problem(profiles, "it cannot be read", error)) from error

    def list_profiles(self) -> List[str]:
        """Return the profiles that have a session.json, sorted; open none of them."""
        profiles = self._path("profiles")
        names = filter(_is_profile_name, self._entries())
        return [name for name in names if _exists(f"{profiles}/{name}/session.json")]

    def save(self, session: Session, profile: Optional[str] = None) -> None:
        """Store a session, as a whole or not at all.

        Raise InvalidSessionError for a session that ``load`` would refuse.
        """
        data = session.to_json().encode("utf-8")
        _write_file(self._profile_path(profile, "session.json"), data)

    def load(self, profile: Optional[str] = None) -> Optional[Session]:
        """Return the session of a profile, None if there is none.

        Raise InvalidSessionError for a file that cannot be used.  Warn (UserWarning) if others
        have access to it.
        """
        path = self._profile_path(profile, "session.json")
        data = _read_file(path, private=True)
        return None if data is None else _located(path, Session.from_json, data)

    def clear(self, profile: Optional[str] = None) -> None:
        """Remove the session of a profile, if there is one."""
        _remove_file(self._profile_path(profile, "session.json"))


# Environment

_URL_VARIABLES = ("IMMICH_INSTANCE_URL", "IMMICH_SERVER")
_KEY_VARIABLES = ("IMMICH_API_KEY", "IMMICH_API_KEY_FILE")


def _environment_url(environ: Mapping[str, str]) -> Optional[str]:
    """Return the server that the environment names, None if it names none."""
    variable = next((name for name in _URL_VARIABLES if environ.get(name)), None)
    return None if variable is None else _normalised_url(environ[variable], variable)


def _text_file(path: str, source: str) -> str:
    """Return the text of a file that has to be there; *source* says who named it."""
    problem = f"{_printable(path)}: there is no such file"
    try:
        data = _read_file(_checked_path(path))
        if data is not None:
            return data.decode("utf-8")
    except UnicodeDecodeError:
        problem = f"{_printable(path)}: it is not UTF-8 text"
    except SessionError as error:
        problem = str(error)
    raise SessionError(f"{source}: {problem}")


def session_from_env(environ: Mapping[str, str] = os.environ) -> Optional[Session]:
    """Return the session that the environment describes, None if it does not.

    ``IMMICH_INSTANCE_URL`` (or ``IMMICH_SERVER``) is the server, ``IMMICH_API_KEY`` the key, or
    ``IMMICH_API_KEY_FILE`` a file with it.  No server is asked.  Raise SessionError for values
    that cannot be used.
    """
    url = _environment_url(environ)
    variables = [name for name in _KEY_VARIABLES if name in environ]
    # Without a URL the key is not looked at: it must not travel to another source's server.
    if url is None or not variables:
        return None
    if len(variables) > 1:
        raise SessionError(f"{' and '.join(variables)} are both set: unset one of them")
    source, key = variables[0], environ[variables[0]]
    if source == "IMMICH_API_KEY_FILE":
        source, key = f"{source}={_printable(key)}", _text_file(key, source)
    key = key.strip()
    if not key:
        raise SessionError(f"{source}: there is no key in it")
    _check_secret(key, source)
    return Session(_with_api(url), ApiKey(key), "")


def _find_session(
    profile: Optional[str], store: SessionStore
) -> Tuple[Optional[Session], Optional[str]]:
    """Return the session to use, and the profile that was looked at: None is the environment."""
    session = session_from_env() if profile is None else None
    if session is not None:
        return session, None
    name = store.get_current_profile() if profile is None else profile
    return store.load(name), name


def _usable(session: Optional[Session], profile: Optional[str], store: SessionStore) -> Session:
    """Return the session; raise NotLoggedInError if there is none or it is expired."""
    if session is not None and not session.is_expired():
        return session
    import shlex

    problem = "is not logged in" if session is None else "has a session that is expired"
    base = store._base_dir
    where = "" if base is None else f" --config-directory={shlex.quote(base)}"
    command = f"{_COMMAND}{where} login SERVER --profile={shlex.quote(str(profile))}"
    remedy = f'run "{command}", or set IMMICH_INSTANCE_URL and IMMICH_API_KEY'
    raise NotLoggedInError(f'profile "{profile}" {problem}: {remedy}', profile)


def get_session(profile: Optional[str] = None, *, store: Optional[SessionStore] = None) -> Session:
    """Return the session to use: the named profile's, else the environment's, else the current.

    Raise NotLoggedInError if there is none or it is expired, and what ``session_from_env`` and
    ``SessionStore.load`` raise.
    """
    store = SessionStore() if store is None else store
    return _usable(*_find_session(profile, store), store)


# Server: _Client.request sends; the rest says what to send, and what the answer means

_WELL_KNOWN = "/.well-known/immich"
_VALIDATE = "/auth/validateToken"
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass
class _Answer:
    """An HTTP answer of any status; *members* are those of a JSON object, None for all else."""

    status: int
    location: str
    members: Optional[Dict[str, object]]

    def get(self, name: str) -> object:
        """Return a member of a successful answer, None if there is none."""
        return self.members.get(name) if self.members and self.status in (200, 201) else None

    def refusal(self) -> Optional[str]:
        """Return the message of Immich's own error object, None for any other answer."""
        if self.members is None or not {"message", "statusCode"} <= self.members.keys():
            return None
        message = self.members["message"]
        texts = message if isinstance(message, list) else [message]
        return "; ".join(text for text in texts if isinstance(text, str))


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
            return self.do_open(http.client.HTTPSConnection, request)

        def do_open(self, http_class: Any, *args: Any, **options: Any) -> Any:
            class Connection(http_class):  # type: ignore[misc]
                def connect(self) -> None:
                    super().connect()
                    sockets.append(self.sock)
                    if late.is_set():  # nobody waits for an answer: do not send the secret
                        raise TimeoutError

            return super().do_open(Connection, *args, **options)

    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(Handler())
    return opener


def _unreachable_because(error: Exception, told: Callable[[str], str]) -> str:
    """Return in plain words why there is no complete answer; others' words as they are *told*."""
    import http.client
    import socket
    import urllib.error

    ssl = sys.modules.get("ssl")  # some Pythons have none
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "there is no server of that name (it does not resolve)"
    if ssl and isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {error.verify_message}"
    if ssl and isinstance(error, ssl.SSLError):
        return "it does not speak TLS as expected: is it an http server?"
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "there was no complete answer in time"
    if isinstance(error, (http.client.InvalidURL, urllib.error.URLError, ValueError)):
        return "the address of the proxy cannot be used"  # the other one is checked
    if isinstance(error, (http.client.HTTPException, EOFError)):
        return "the answer was cut short, or is no HTTP"
    if isinstance(error, OSError):
        return error.strerror or told(str(error))
    return f"the request failed ({type(error).__name__})"


def _exchange(request: Any, timeout: float, told: Callable[[str], str]) -> Any:
    """Return status, header fields and body of the answer, or why there is none.

    urllib's timeout is for each socket operation, and a server that drips outlives it.  So a
    thread does the work; when time is up it is left, and loses its connection.
    """
    import socket
    import threading

    outcome: List[Any] = []
    sockets: List[Any] = []
    late = threading.Event()

    def work() -> None:
        try:
            with _opener(sockets, late).open(request, timeout=timeout) as response:
                body = response.read(_FILE_LIMIT + 1)
                length = re.fullmatch("[0-9]{1,18}", response.headers.get("Content-Length", ""))
                if length and len(body) < min(int(length[0]), _FILE_LIMIT):
                    raise EOFError
                outcome.append((response.status, response.headers, body))
        except Exception as error:  # noqa: BLE001 - handed over to the thread that waits
            reason = getattr(error, "reason", None)  # what urllib has wrapped
            # Words, as the exception would keep the connection that it comes from.
            error = reason if isinstance(reason, Exception) else error
            outcome.append(_unreachable_because(error, told))

    worker = threading.Thread(target=work, daemon=True)
    try:
        worker.start()
        worker.join(timeout)
        return outcome[0] if outcome else _unreachable_because(TimeoutError(), told)
    except RuntimeError as error:  # the system gives out no more threads
        return _unreachable_because(error, told)
    finally:  # also when Ctrl-C ends the wait
        late.set()
        for connected in sockets:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)


def _where(url: str) -> str:
    """Return the URL as the subject of an error; it names the proxy, if one is in use."""
    import urllib.request

    match = _url_parts(url)
    proxy = urllib.request.getproxies().get(match["scheme"])
    if not proxy or urllib.request.proxy_bypass(match["netloc"]):
        return _shown_url(url)
    return f"{_shown_url(url)} (through the proxy {_printable(_shown_url(proxy))})"


class _Client:
    """What the requests of one operation share: extra headers, time limit, and our secrets."""

    def __init__(self, extra_headers: Mapping[str, str], timeout: float, *secrets: str) -> None:
        _check_extra_headers(extra_headers)
        self.extra_headers = dict(extra_headers)
        self.timeout = min(timeout, _LONGEST)
        values = list(extra_headers.values())
        whole = {*secrets, *values, *(value.split(" ")[-1] for value in values)} - {""}
        forms = [json.dumps(each, ensure_ascii=a)[1:-1] for each in whole for a in (True, False)]
        self.secrets = sorted({*whole, *forms}, key=len, reverse=True)  # one may be part of another

    def betrays(self, text: str) -> bool:
        """Tell whether a server put a secret of ours into what is to be stored and shown."""
        return any(secret in text for secret in self.secrets)

    def told(self, text: str) -> str:
        """Return what a server said as it may be shown: no secret of ours, no controls, short."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return _printable(text[:200])[:200]

    def request(
        self, method: str, url: str, headers: Mapping[str, str] = {}, body: Optional[bytes] = None
    ) -> _Answer:
        """Send a request and return the answer, whatever its status; follow no redirect."""
        import urllib.request

        headers = {**self.extra_headers, **headers, "User-Agent": f"immich-session/{__version__}"}
        request = urllib.request.Request(url, body, headers, method=method)
        outcome = _exchange(request, self.timeout, self.told)
        if isinstance(outcome, str):
            raise ServerUnreachableError(f"{_where(url)}: {outcome}")
        status, fields, content = outcome
        if len(content) > _FILE_LIMIT:
            problem = f"the answer is larger than {_FILE_LIMIT} bytes"
            raise ServerError(f"{_where(url)}: {problem}", status)
        members = None
        with contextlib.suppress(InvalidSessionError):
            members = _members(_decode(content))
        return _Answer(status, fields.get("Location", ""), members)

    def call(self, session: Session, path: str, yes: str, *refusals: int) -> int:
        """POST as *session* and return the status of an answer whose member *yes* is true.

        Return it as well if Immich refused with one of *refusals*; all else is an error.
        """
        base = session.server_url.rstrip("/")
        answer = self.request("POST", base + path, session.headers())
        told = answer.status in refusals and answer.refusal() is not None
        if told or answer.get(yes) is True:
            return answer.status
        raise self.refused(base, path, answer)

    def refused(self, base: str, path: str, answer: _Answer) -> ServerError:
        """Return the error that says what an answer means that is not what was asked for."""
        status, refusal = answer.status, answer.refusal()
        if status in _REDIRECTS:
            problem = self._other_address(base, path, answer.location)
        elif status == 404 and self._is_in_maintenance(base):
            problem = "the server is in maintenance mode: try again later"
        elif status == 404:
            problem = "there is no Immich API (status 404): is this the right address?"
        elif refusal is not None:
            problem = f"the server refused: {self.told(refusal) or 'no reason'} (status {status})"
        elif status < 300:
            problem = "the answer is not Immich's (a web page?): is this the right address?"
        else:
            problem = f"no Immich server, or something in front of it, refused (status {status})"
        return ServerError(f"{_where(base)}: {problem}", status)

    def _other_address(self, base: str, path: str, location: str) -> str:
        import urllib.parse

        if not location:
            return "it redirects, and does not say where"
        with contextlib.suppress(ValueError):  # no URL: shown as it is
            location = urllib.parse.urljoin(base + path, location)
        address = location[: -len(path)] if location.endswith(path) else location
        return f"it redirects: use the address {self.told(_shown_url(address))} instead"

    def _is_in_maintenance(self, base: str) -> bool:
        with contextlib.suppress(ServerError):
            return self.request("GET", base + "/server/config").get("maintenanceMode") is True
        return False

    def follow(self, url: str, reference: str, status: int) -> str:
        """Return the URL that a redirect or a discovery answer names, if it is the same server.

        The host has to be the same, never from https to http, and with extra headers the port too.
        """
        import urllib.parse

        with contextlib.suppress(ValueError):
            target = urllib.parse.urljoin(url, reference)
            old, new = (_url_parts(each) for each in (url, target))
            ports = [int(m["port"] or {"http": 80, "https": 443}[m["scheme"]]) for m in (old, new)]
            if (
                old["host"].lower() == new["host"].lower()
                and (old["scheme"], new["scheme"]) != ("https", "http")
                and (not self.extra_headers or ports[0] == ports[1] or ports == [80, 443])
                and re.fullmatch(_VISIBLE, target)
            ):
                return target
        shown = self.told(_shown_url(reference))
        problem = f"it leads to {shown}, another or a less safe server: is that the right address?"
        raise ServerError(f"{_where(url)}: {problem}", status)


def _resolve(client: _Client, server_url: str) -> str:
    url = _normalised_url(server_url)
    if url.endswith("/api"):
        return url
    target = url + _WELL_KNOWN
    for _ in range(5):
        answer = client.request("GET", target)
        if answer.status not in _REDIRECTS:
            break
        target = client.follow(target, answer.location, answer.status)
    else:
        raise ServerError(f"{_where(url)}: it redirects without end", answer.status)
    if answer.status == 404 or answer.members is None:
        place, _, path = re.split("[?#]", target)[0].rpartition(_WELL_KNOWN)
        if path:  # a redirect led elsewhere on the server: only its origin counts
            place = _url_parts(target)["origin"] + (_url_parts(url)["path"] or "")
        return _with_api(place)
    api = answer.get("api")
    endpoint = api.get("endpoint") if isinstance(api, dict) else None
    if not isinstance(endpoint, str) or re.search("[?#]", endpoint):
        raise client.refused(url, _WELL_KNOWN, answer)
    return _normalised_url(client.follow(target, endpoint, answer.status))


def resolve_api_url(
    server_url: str, *, extra_headers: Mapping[str, str] = {}, timeout: float = 10.0
) -> str:
    """Return the API base of the server that a person means by *server_url*.

    ``https://`` is added if missing.  A URL that ends in /api is taken as it is; otherwise the
    server is asked for ``/.well-known/immich``, with the extra headers and without credential;
    redirects are followed on the same host.  *timeout*: seconds for each request.  Raise
    InvalidSessionError for what is no such URL, ServerUnreachableError and ServerError.
    """
    return _resolve(_Client(extra_headers, timeout), server_url)


def login_password(
    server_url: str,
    email: str,
    password: str,
    *,
    extra_headers: Mapping[str, str] = {},
    timeout: float = 10.0,
) -> Session:
    """Log in with a password and return the session; nothing is stored.

    *timeout*: seconds for each request.  Raise what ``resolve_api_url`` raises; a ServerError
    with status 401 means that the server does not accept the password.
    """
    client = _Client(extra_headers, timeout, password)
    body = None
    with contextlib.suppress(UnicodeEncodeError):
        body = json.dumps({"email": email, "password": password}, ensure_ascii=False).encode()
    if body is None:
        raise InvalidSessionError("email and password: expected Unicode text")
    base = _resolve(client, server_url)
    content_type = {"Content-Type": "application/json"}
    answer = client.request("POST", base + "/auth/login", content_type, body)
    values = [answer.get(name) for name in ("accessToken", "userId", "userEmail")]
    token, user_id, user_email = (value if isinstance(value, str) else "" for value in values)
    if not user_id or not user_email or not re.fullmatch(_VISIBLE, token):
        raise client.refused(base, "/auth/login", answer)
    user_id = "" if client.betrays(user_id) else user_id
    user_email = email if client.betrays(user_email) else user_email
    return Session.create(base, Jwt(token, user_id, user_email), extra_headers)


def _key_details(session: Session, timeout: float) -> Tuple[Optional[str], List[str]]:
    """Return name and permissions of an API key, as far as the server tells."""
    client = _Client(session.extra_headers, timeout, _secret_of(session.auth))
    name, permissions = None, None
    with contextlib.suppress(ServerError):
        answer = client.request("GET", session.server_url + "/api-keys/me", session.headers())
        name, permissions = answer.get("name"), answer.get("permissions")
    if not isinstance(name, str) or client.betrays(name):
        name = None
    permissions = permissions if isinstance(permissions, list) else []
    return name, [client.told(each) for each in permissions if isinstance(each, str)]


def login_api_key(
    server_url: str,
    key: str,
    name: Optional[str] = None,
    *,
    extra_headers: Mapping[str, str] = {},
    timeout: float = 10.0,
) -> Session:
    """Have the server check an API key and return the session; nothing is stored.

    Without *name*, the server is asked for the key's.  *timeout*: seconds for each request.
    Raise what ``resolve_api_url`` raises; a ServerError with status 401 means an invalid key.
    """
    _check_secret(key, "key")
    client = _Client(extra_headers, timeout, key)
    base = _resolve(client, server_url)
    session = Session.create(base, ApiKey(key, name), extra_headers)
    client.call(session, _VALIDATE, "authStatus", 403)  # see is_valid
    if name is not None:
        return session
    return dataclasses.replace(session, auth=ApiKey(key, _key_details(session, timeout)[0]))


def is_valid(session: Session, *, timeout: float = 10.0) -> bool:
    """Ask the server whether it accepts the session.

    *timeout*: seconds for each request.  Raise InvalidSessionError for a session that cannot be
    sent, ServerUnreachableError, and ServerError for any answer but yes and no.
    """
    # A 403 for an API key is a yes: v1.136 to v1.141 know the key, and want a permission.
    refusals = (401, 403) if isinstance(session.auth, ApiKey) else (401,)
    client = _Client(session.extra_headers, timeout, _secret_of(session.auth))
    return client.call(session, _VALIDATE, "authStatus", *refusals) != 401


def logout(session: Session, *, timeout: float = 10.0) -> bool:
    """End the session on the server; True if it was ended, False if there was nothing to end.

    That is so for an API key, which stays valid (remove it in Immich), and for a session that
    had ended already.  *timeout*: seconds for each request.  Raises what ``is_valid`` raises.
    """
    if isinstance(session.auth, ApiKey):
        return False
    client = _Client(session.extra_headers, timeout, session.auth.access_token)
    return client.call(session, "/auth/logout", "successful", 401) != 401


# The official CLI's auth.yml

# What is no plain string: other syntax, null, and "a: b" within a line.
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


def _parse_auth_yml(text: str) -> Tuple[str, str]:
    """Return URL and key from the flat "name: value" lines that the official CLI writes."""
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
    return url, key


# Command line: what it tells people and programs, and where it has secrets from


def _silence(stream: Any) -> None:
    """Let what a broken stream still buffers go nowhere, or it fails once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _say(message: object) -> None:
    """Tell a person something on standard error, if there is one (print takes None for stdout)."""
    if sys.stderr is not None:
        try:
            print(_printable(f"immich_session: {message}"), file=sys.stderr, flush=True)
        except (OSError, ValueError):
            _silence(sys.stderr)


_CLOSED_EARLY = (errno.EPIPE, errno.EINVAL) if _WINDOWS else (errno.EPIPE,)


def _emit(data: str, errors: str = "strict") -> None:
    """Write data to standard output; a reader that left early has read enough.

    With *errors* "backslashreplace", escape what the encoding of standard output lacks.
    """
    problem = "it is closed"
    try:
        if sys.stdout is not None:
            encoding = sys.stdout.encoding or "utf-8"
            print(data.encode(encoding, errors).decode(encoding), flush=True)
            return
    except UnicodeEncodeError:
        problem = "its encoding lacks a character"
    except (OSError, ValueError) as error:
        _silence(sys.stdout)
        if getattr(error, "errno", None) in _CLOSED_EARLY:
            return
        problem = getattr(error, "strerror", None) or problem
    raise SessionError(f"standard output: {problem}")


def _exit_status(error: Exception) -> int:
    if isinstance(error, ServerUnreachableError):
        return 3
    refused = isinstance(error, ServerError) and error.status in (401, 403)
    return 4 if refused or isinstance(error, NotLoggedInError) else 1


def _from_stdin(what: str) -> str:
    """Read a secret from standard input; take one line end off."""
    problem = "it is closed"
    if sys.stdin is not None:
        try:
            data = getattr(sys.stdin, "buffer", sys.stdin).read(_STDIN_LIMIT + 1) or b""
            if len(data) <= _STDIN_LIMIT:
                text = data if isinstance(data, str) else data.decode("utf-8")
                return re.sub(r"\r?\n\Z", "", text)
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


def _secret(given: Optional[str], what: str, flag: str) -> str:
    """Return a secret: as *given*, for "-" from standard input, else from a hidden prompt."""
    if given is not None and given != "-":
        _say(f'warning: other users can see a secret on the command line: "{flag} -" hides it')
        return given
    on_terminal = _on_terminal()
    if given == "-" and not on_terminal:
        return _from_stdin(what)
    problem = "there is no terminal to ask on"
    try:
        if on_terminal:
            import getpass

            with warnings.catch_warnings():
                warnings.simplefilter("error", getpass.GetPassWarning)  # it would echo
                return getpass.getpass(f"{what}: ")
    except (EOFError, UnicodeError):
        problem = "nothing legible was typed"
    except ImportError:
        problem = "this Python lacks the module getpass, which hides what is typed"
    except (UserWarning, OSError, AttributeError):  # it would echo; standard error may be closed
        pass
    raise SessionError(f'no {what}: {problem}; "{flag} -" reads it from standard input')


def _extra_headers(given: Sequence[str]) -> Dict[str, str]:
    """Return the headers that -H gave, each as "NAME: VALUE" or as a file of such lines."""
    headers: Dict[str, str] = {}
    for text in given:
        if text.startswith("@"):
            lines = [line for line in _text_file(text[1:], "-H").splitlines() if line.strip()]
        else:
            _say('warning: other users can see a header on the command line: "-H @FILE" hides it')
            lines = [text]
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise SessionError('-H: expected "NAME: VALUE"')
            if name.strip() in headers:
                raise SessionError("-H: a header is given twice")
            headers[name.strip()] = value.strip()
    _check_extra_headers(headers)
    return headers


# Command line: the commands, each of which returns the exit status


def _note_overrides() -> None:
    """Say that the environment has the last word, where it has: people wonder otherwise."""
    url = next((name for name in _URL_VARIABLES if os.environ.get(name)), None)
    key = next((name for name in _KEY_VARIABLES if name in os.environ), None)
    if url and key:
        _say(f"note: {url} and {key} are set, and override every profile")
    elif os.environ.get("IMMICH_PROFILE"):
        _say("note: IMMICH_PROFILE is set, and overrides the current profile")


def _settled_profile(args: Any, store: SessionStore) -> str:
    """Return the profile that a command is to change: no guess, where config.json is broken."""
    if args.profile is not None:
        return _checked_profile(args.profile)
    try:
        return store.get_current_profile()
    except (InvalidProfileError, InvalidSessionError) as error:
        raise type(error)(f"{error}; name the profile with -P") from None


def _store_session(args: Any, store: SessionStore, session: Session, profile: str) -> int:
    """Save a session and tell what is stored where.

    Its profile becomes current if it was named, or is the first one ever.
    """
    try:
        switch = args.profile is not None or not store.list_profiles()
        store.save(session, profile)
    except SessionError:
        with contextlib.suppress(SessionError):
            logout(session)  # nobody else knows its token
        raise
    if switch:
        try:
            store.set_current_profile(profile)
        except SessionError as error:
            problem = f'the session is stored in profile "{profile}", which is not current: {error}'
            raise SessionError(problem) from None
    auth = session.auth
    who = auth.email if isinstance(auth, Jwt) else f"API key {auth.name or '<unnamed>'}"
    suffix = ", which is now the current one" if switch else ""
    _say(f'{who} at {_shown_url(session.server_url)} is stored in profile "{profile}"{suffix}')
    _note_overrides()
    return 0


def _renewed(args: Any, store: SessionStore, profile: str) -> Session:
    """Return the session that says what flags that are left out mean, and the server."""
    typed = args.SERVER
    url = _environment_url(os.environ) if typed is None else _normalised_url(typed, "SERVER")
    if url is not None:
        return Session(url, ApiKey(""), "")
    session = store.load(profile)
    if session is None:
        raise SessionError(f'profile "{profile}" has no session to renew: name the SERVER')
    return dataclasses.replace(session, server_url=_normalised_url(session.server_url))


def _check_login_flags(args: Any) -> None:
    if args.email is not None and args.api_key is not None:
        args.parser.error("-k and -e do not go together")
    if args.email is not None and (args.name is not None or args.no_verify):
        args.parser.error("-n and --no-verify do not go with a password login")


def _new_session(
    args: Any, store: SessionStore, profile: str, url: str, headers: Mapping[str, str]
) -> Session:
    """Ask for the secret, then the server for a session."""
    if args.email is not None:
        secret = _secret(args.password, "password", "-p")
    else:
        secret = _secret(args.api_key, "API key", "-k").strip()
        if not secret:
            raise SessionError("no API key: nothing was given")
        _check_secret(secret, "API key")
    store.config_dir(profile)  # before the server gives out a token that could then get lost
    options: Any = {"extra_headers": headers, "timeout": args.timeout}
    if args.email is not None:
        return login_password(url, args.email, secret, **options)
    if args.no_verify:
        return Session.create(_with_api(url), ApiKey(secret, args.name), headers)
    session = login_api_key(url, secret, args.name or "", **options)
    name, permissions = _key_details(session, args.timeout)
    if permissions and "all" not in permissions:
        _say(f"the key has these permissions only: {', '.join(permissions)[:2000]}")
    return dataclasses.replace(session, auth=ApiKey(secret, args.name or name))


def _login(args: Any, store: SessionStore) -> int:
    _check_login_flags(args)
    profile = _settled_profile(args, store)
    old = _renewed(args, store, profile)
    if args.email is None and args.api_key is None and isinstance(old.auth, Jwt):
        args.email = old.auth.email
        _check_login_flags(args)
    if args.email is None and args.password is not None:
        args.parser.error("-p goes with -e")
    if args.name is None and isinstance(old.auth, ApiKey):
        args.name = old.auth.name
    headers = _extra_headers(args.header) or old.extra_headers
    try:
        session = _new_session(args, store, profile, old.server_url, headers)
    except ServerUnreachableError as error:
        if args.SERVER is None or "://" in args.SERVER:
            raise
        hint = f"if the server has no https, write http://{args.SERVER}"
        raise ServerUnreachableError(f"{error}; {hint}") from None
    return _store_session(args, store, session, profile)


def _log_out_of(profile: str, store: SessionStore, args: Any) -> int:
    session, status = None, 0
    outcome = f'the session of profile "{profile}" is removed here'
    try:
        session = store.load(profile)
        if session is None:
            outcome = f'profile "{profile}" is not logged in'
    except InvalidSessionError as error:
        _say(error)
    if session is not None and not args.local:
        told = "the session had ended on the server already"
        if isinstance(session.auth, ApiKey):
            told = "the API key stays valid on the server: remove it there, in the account settings"
        try:
            if logout(session, timeout=args.timeout):
                told = "the session is ended on the server"
        except SessionError as error:
            told = f"{error}; the session may live on there"
            status = _exit_status(error)
        _say(told)
    store.clear(profile)
    _say(outcome)
    return status


def _logout(args: Any, store: SessionStore) -> int:
    if args.all and args.profile is not None:
        args.parser.error("--all and -P do not go together")
    if args.all:
        directory = store._path("profiles")
        profiles = [n for n in store._entries() if os.path.isdir(os.path.join(directory, n))]
    else:
        profiles = [_settled_profile(args, store)]
    if not profiles:
        _say("there is no profile to log out of")
    statuses = [0]
    for profile in profiles:
        try:
            statuses.append(_log_out_of(profile, store, args))
        except SessionError as error:  # and go on with the others
            _say(error)
            statuses.append(1)
    _note_overrides()
    return max(statuses)


def _facts(session: Optional[Session]) -> Dict[str, object]:
    """Return what JSON output says of a session: everything but its secrets."""
    names = "server_url method name email user_id created_at expires_at expired"
    facts: Dict[str, object] = dict.fromkeys(names.split())
    if session is not None:
        expires = session.expires_at()
        facts["server_url"] = _shown_url(session.server_url)
        facts["method"] = _method(session.auth)
        for name in ("name", "email", "user_id"):
            facts[name] = getattr(session.auth, name, None)
        facts["created_at"] = session.created_at or None
        facts["expires_at"] = expires and expires.isoformat()
        facts["expired"] = session.is_expired()
    return facts


def _expiry(session: Session) -> str:
    if isinstance(session.auth, ApiKey):
        return "never"
    if "." not in session.auth.access_token:
        return "expiry known to the server only"
    moment = session.expires_at()
    told = "time not known" if moment is None else moment.isoformat()
    return f"expired, {told}" if session.is_expired() else told


def _status(args: Any, store: SessionStore) -> int:
    session, profile = _find_session(args.profile, store)
    source = "environment" if profile is None else "file"
    report = {"profile": profile, "source": source, **_facts(session)}
    problem: Optional[SessionError] = None
    if args.check:
        report["valid"] = None
        try:
            report["valid"] = is_valid(session, timeout=args.timeout) if session else None
        except SessionError as error:
            problem = error
    if args.json:
        _emit(json.dumps(report, indent=2))
    elif session is not None:
        source = "environment" if profile is None else f'profile "{profile}"'
        _emit(f"Source: {source}\n{session}\nExpires: {_expiry(session)}", "backslashreplace")
        if args.check and problem is None:
            _emit(f"Valid: {'yes' if report['valid'] else 'no'}")
    _usable(session, profile, store)
    if problem is not None:
        raise problem
    return 4 if report.get("valid") is False else 0


def _profile_line(row: Mapping[str, object]) -> str:
    told = f"broken: {row['error']}" if row["error"] else f"{row['server_url']}  {row['method']}"
    expired = "  expired" if row["expired"] else ""
    return _printable(f"{'*' if row['current'] else ' '} {row['name']}  {told}{expired}")


def _profile_list(args: Any, store: SessionStore) -> int:
    current = None
    try:
        current = store.get_current_profile()
    except (InvalidProfileError, InvalidSessionError) as error:
        _say(error)
    rows = []
    for name in store.list_profiles():
        session, problem = None, None
        try:
            session = store.load(name)
        except InvalidSessionError as error:
            problem = str(error)
        if session is None and problem is None:  # removed in the meantime
            continue
        facts = _facts(session)
        shown = {fact: facts[fact] for fact in ("server_url", "method", "expired")}
        rows.append({"name": name, "current": name == current, **shown, "error": problem})
    if args.json:
        _emit(json.dumps(rows, indent=2))
    elif rows:
        _emit("\n".join(map(_profile_line, rows)), "backslashreplace")
    else:
        _say("no profile has a session")
    return 0


def _profile_current(_: Any, store: SessionStore) -> int:
    _emit(store.get_current_profile())
    return 0


def _profile_switch(args: Any, store: SessionStore) -> int:
    profile = _checked_profile(args.NAME)
    profiles = store.list_profiles()
    if profile not in profiles:
        others = ", ".join(profiles) or "none"
        raise SessionError(f'profile "{profile}" has no session; these profiles have one: {others}')
    store.set_current_profile(profile)
    _say(f'profile "{profile}" is now the current one')
    _note_overrides()
    return 0


def _token(args: Any, store: SessionStore) -> int:
    _emit(_secret_of(get_session(args.profile, store=store).auth))
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
    """Run a command in place of this process; return only if that is not possible.

    On Windows it never is: there, wait for the command, and return its status.
    """
    import signal

    # Python ignores these signals, and a command would inherit that.
    names, action = ["SIGPIPE", "SIGXFSZ"], signal.SIG_DFL
    if _WINDOWS:  # Ctrl-C reaches the command as well, which decides what to do
        names, action = ["SIGINT"], signal.SIG_IGN
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    handlers = {number: signal.signal(number, action) for number in numbers}
    try:
        if _WINDOWS:
            import subprocess

            child = [_command_path(command[0]), *command[1:]]
            status = subprocess.run(child, env=environ, check=False).returncode  # noqa: S603
            return status - (status >> 31 << 32)  # signed: sys.exit knows no larger ones
        os.execvpe(command[0], command, environ)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or "it is no command"
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    _say(f"{command[0]}: it cannot be run: {problem}")
    places = [""] if os.path.dirname(command[0]) else os.get_exec_path()
    found = any(os.path.exists(os.path.join(place, command[0])) for place in places)
    return 126 if found and command[0] else 127


def _exec(args: Any, store: SessionStore) -> int:
    command = args.COMMAND[1:] if args.COMMAND[0] == "--" else args.COMMAND
    found, profile = _find_session(args.profile, store)
    session = _usable(found, profile, store)
    session.headers()  # what could not stand in a header is refused here as well
    if session.extra_headers:
        _say("warning: the extra headers of this session do not reach the command")
    others = (*_URL_VARIABLES, *_KEY_VARIABLES, "IMMICH_ACCESS_TOKEN", "IMMICH_PROFILE")
    environ = {name: value for name, value in os.environ.items() if name not in others}
    environ["IMMICH_INSTANCE_URL"] = session.server_url
    is_key = isinstance(session.auth, ApiKey)
    environ["IMMICH_API_KEY" if is_key else "IMMICH_ACCESS_TOKEN"] = _secret_of(session.auth)
    if profile is not None:
        environ["IMMICH_PROFILE"] = profile
    if args.config_directory is not None:
        environ["IMMICH_CONFIG_DIR"] = os.path.abspath(args.config_directory)
    return _become(command, environ)


def _import(args: Any, store: SessionStore) -> int:
    profile = _settled_profile(args, store)
    path = store._path("auth.yml") if args.FILE is None else args.FILE
    url, key = _located(path, _parse_auth_yml, _text_file(path, "import"))
    _check_secret(key, f"{_printable(path)}: key")
    url = _with_api(_normalised_url(url, f"{_printable(path)}: url"))
    return _store_session(args, store, Session.create(url, ApiKey(key)), profile)


# Command line: its grammar


def _seconds(text: str) -> float:
    if not 0 < float(text) <= _LONGEST:
        raise ValueError
    return float(text)


_seconds.__name__ = "seconds"  # argparse tells it to people


_OPTIONS: Dict[str, Dict[str, Any]] = {
    "SERVER": {"nargs": "?", "help": "its address; default: the one of the session to renew"},
    "NAME": {"help": "of a profile that has a session"},
    "FILE": {"nargs": "?", "help": "default: auth.yml in the configuration directory"},
    # "A..." is argparse.PARSER: a command, and whatever follows it.
    "COMMAND": {"nargs": "A...", "metavar": "-- COMMAND", "help": "and its arguments"},
    "-P --profile": {"help": "default: the current one"},
    "-k --api-key": {"metavar": "KEY", "help": "asked for if left out; - is standard input"},
    "-e --email": {"help": "log in with a password, as this user"},
    "-p --password": {"help": "asked for if left out; - is standard input"},
    "-n --name": {"help": "a name for the API key"},
    "-H --header": {"action": "append", "default": [], "help": "NAME: VALUE for a proxy, or @FILE"},
    "--no-verify": {"action": "store_true", "help": "store the API key without asking the server"},
    "--timeout": {"type": _seconds, "default": 10.0, "metavar": "SECONDS", "help": "per request"},
    "--all": {"action": "store_true", "help": "every profile"},
    "--local": {"action": "store_true", "help": "do not ask the server"},
    "--check": {"action": "store_true", "help": "ask the server too"},
    "--json": {"action": "store_true", "help": "for programs"},
}
_COMMANDS: Dict[str, Tuple[Callable[[Any, SessionStore], int], str, str]] = {
    "login": (_login, "store a session", "SERVER -P -k -e -p -n -H --no-verify --timeout"),
    "logout": (_logout, "end and remove a session", "-P --all --local --timeout"),
    "status": (_status, "tell which session is used", "-P --check --json --timeout"),
    "profile list": (_profile_list, "list the profiles that have a session", "--json"),
    "profile current": (_profile_current, "print the current profile", ""),
    "profile switch": (_profile_switch, "make another profile the current one", "NAME"),
    "token": (_token, "print the bare secret", "-P"),
    "exec": (_exec, "run a command with the session in its environment", "-P COMMAND"),
    "import": (_import, "store the session of the official CLI", "FILE -P"),
}


def _parser() -> Any:
    import argparse
    import functools

    class Parser(argparse.ArgumentParser):
        def __init__(self, **options: Any) -> None:
            # A fixed width, because to look at the terminal argparse loads half a dozen modules;
            # and no colours in Python 3.14, which fails to choose them where the output is closed.
            plain: Dict[str, Any] = {"color": False} if sys.version_info[:2] == (3, 14) else {}
            formatter = functools.partial(argparse.HelpFormatter, width=90, **plain)
            options.update(plain, allow_abbrev=False, formatter_class=formatter)
            super().__init__(**options)

        def print_help(self, _: Any = None) -> None:
            _emit(self.format_help().rstrip())

        def error(self, message: str) -> NoReturn:
            # What argparse quotes first is what somebody typed, and may be a secret.
            message = re.sub(r"""'(\\.|[^'])*'|"(\\.|[^"])*\"""", "...", message, count=1)
            _say(f'{message}; see "{self.prog} --help"')
            raise SystemExit(2)

    parser = Parser(prog=_COMMAND, description="Keep sessions for Immich servers in profiles.")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument(
        "-d", "--config-directory", metavar="DIR", help="in place of ~/.config/immich"
    )
    parser.set_defaults(run=None, parser=parser)
    groups = {"": parser.add_subparsers(metavar="COMMAND", prog=_COMMAND)}
    arguments = {key.split()[0]: (key.split(), value) for key, value in _OPTIONS.items()}
    for name, (run, text, options) in _COMMANDS.items():
        group, _, verb = name.rpartition(" ")
        if group not in groups:
            command = groups[""].add_parser(group, help="list and switch profiles")
            command.set_defaults(parser=command)
            groups[group] = command.add_subparsers(metavar="COMMAND", prog=f"{_COMMAND} {group}")
        command = groups[group].add_parser(verb, help=text, description=text)
        command.set_defaults(run=run, parser=command)
        for option in options.split():
            names, settings = arguments[option]
            command.add_argument(*names, **settings)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return its exit status.

    0 done; 1 failed; 2 wrong usage; 3 no complete answer from the server; 4 not logged in,
    expired or refused; 130 interrupted.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
        try:
            args, surplus = _parser().parse_known_args(argv)
            if surplus:  # not echoed: it may be a key
                args.parser.error(
                    "an option is unknown, or an argument too many; a key goes behind -k"
                )
            if args.run is None and not args.version:
                args.parser.error("name a COMMAND")
            if args.version:
                _emit(f"immich_session {__version__}")
                return 0
            status: int = args.run(args, SessionStore(args.config_directory))
            return status
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
