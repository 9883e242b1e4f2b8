"""Ready-made ``authenticate`` hooks. `jwt` needs PyJWT: ``pip install "dialogue[jwt]"``."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, Unauthenticated
from .events import ERASED_USER
from .server.admit import SERVER_SENDER
from .server.handles import Identity

if TYPE_CHECKING:
    from jwt import PyJWT

_WHERE = "dialogue.auth.jwt"

MAX_TOKEN_CHARACTERS = 16_384
"""A longer token is refused unread: servers take no header or cookie of that size, and a login no token."""

KEY_THREADS = 4
"""Threads in which a function of yours looks keys up; a `PyJWKClient` locks itself, and so has one."""

_MIN_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The shortest secrets that RFC 7518, section 3.2, allows."""

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

Authenticate = Callable[..., Awaitable[Identity]]


def jwt(
    key: Any,
    *,
    algorithms: Sequence[str],
    audience: str | Sequence[str] | None = None,
    issuer: str | Sequence[str] | None = None,
    leeway_seconds: float = 0,
    user_claim: str = "sub",
    require: Sequence[str] = ("exp",),
    cookie: str | None = None,
    token_from: Callable[[Any, dict[str, Any]], str | None] | None = None,
    logger: logging.Logger | None = None,
) -> Authenticate:
    """Return an ``authenticate`` hook that takes JSON Web Tokens.

    The token is ``auth["token"]``, else the request's ``Authorization: Bearer``, else its *cookie*. The identity has
    the token's claims, and ends with ``exp`` and the leeway.

    Args:
        key: The secret (``HS…``), or the public key as PEM or as PyJWT takes it; a ``PyJWKClient``; or a function
            that gets the token's header, which nothing has verified, and returns the key. An ``async def`` one runs
            in the loop, a ``def`` one in a thread. It returns None or raises `LookupError` if there is no such key;
            whatever else it raises is a fault of the server.
        algorithms: Those that are accepted, whatever a token says. ``none`` is not, nor secrets beside public keys.
        audience: One of which ``aud`` must name. None: a token that names an audience is refused.
        issuer: One of which ``iss`` must be; None: any.
        leeway_seconds: By how much clocks may differ; at least 0.
        user_claim: Where the user's id is: a string or a whole number.
        require: Claims without which a token is refused.
        cookie: The cookie that has the token.
        token_from: Returns the token of ``(request, auth)``, or None, instead of the places above. It runs in the
            loop and must not block.
        logger: Gets why a token was refused, at debug level and without the token; by default that of ``dialogue``.

    The hook raises:
        Unauthenticated: There is no token, or it is not good. The message tells no more than that it has expired.

    Raises:
        ConfigError: PyJWT is not installed, a secret is shorter than its algorithm allows, a key is not one of its
            algorithm, or another argument is wrong. The message never has the key.
    """
    tokens = _Tokens(
        algorithms=algorithms,
        audience=_names("audience", audience),
        issuer=_names("issuer", issuer),
        leeway_seconds=leeway_seconds,
        user_claim=user_claim,
        require=require,
    )
    if cookie is not None and token_from is not None:
        raise _wrong("cookie", "there is a token_from too", "Look into request.cookies there")
    find_key = _key_finder(key, tokens)
    log = logger or logging.getLogger("dialogue")

    async def authenticate(request: Any, auth: dict[str, Any]) -> Identity:
        token = _token(request, auth, cookie) if token_from is None else token_from(request, auth)
        if token is None:
            raise Unauthenticated("not authenticated")
        try:
            header = tokens.header(token)
        except Exception as error:
            # A parser's own errors quote what was sent: of this one only the name is told, to whoever debugs.
            log.debug("a token was refused: %s", type(error).__name__)
            raise Unauthenticated("not authenticated") from None
        found = await find_key(header)
        if found is None:
            log.debug("a token was refused: there is no such key")
            raise Unauthenticated("not authenticated")
        return tokens.identity(token, found, log)

    return authenticate


def _wrong(field: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError(f"{_WHERE}, field {field!r}", problem, remedy)


def _names(field: str, given: str | Sequence[str] | None) -> list[str] | None:
    if given is None:
        return None
    names = [given] if isinstance(given, str) else list(given)
    if not names or not all(isinstance(name, str) and name for name in names):
        # A setting that is missing in the environment must not become a check that nobody notices.
        raise _wrong(field, "it is empty, or not text", "Name one, or several in a list, or leave it out")
    return names


def _token(request: Any, auth: dict[str, Any], cookie: str | None) -> Any:
    token: Any = auth.get("token")
    if token is None:
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        token = value.strip() if scheme.lower() == "bearer" else None
    if token is None and cookie is not None:
        token = request.cookies.get(cookie)
    return token


class _Tokens:
    """What a token has to be."""

    def __init__(
        self,
        *,
        algorithms: Sequence[str],
        audience: list[str] | None,
        issuer: list[str] | None,
        leeway_seconds: float,
        user_claim: str,
        require: Collection[str],
    ) -> None:
        try:
            import jwt as pyjwt
        except ImportError as error:
            raise ConfigError(_WHERE, "PyJWT is not installed", 'Run: pip install "dialogue[jwt]"') from error
        self.module = pyjwt
        self._signatures = pyjwt.PyJWS()
        self._decoder: PyJWT = pyjwt.PyJWT({"enforce_minimum_key_length": True})
        self.algorithms = self._checked(algorithms)
        self._audience = audience
        self._issuer = issuer
        if (
            isinstance(leeway_seconds, bool)
            or not isinstance(leeway_seconds, int | float)
            or not 0 <= leeway_seconds < math.inf
        ):
            raise _wrong("leeway_seconds", "it is not a number of at least 0", "Write leeway_seconds=10")
        self._leeway_seconds = leeway_seconds
        if not isinstance(user_claim, str) or not user_claim:
            raise _wrong("user_claim", "it is not the name of a claim", 'Write user_claim="sub"')
        self._user_claim = user_claim
        if isinstance(require, str) or not all(isinstance(name, str) and name for name in require):
            raise _wrong("require", "it is not a list of claims", 'Write require=["exp"]')
        self._require = list(require)

    def _checked(self, algorithms: Sequence[str]) -> list[str]:
        remedy = 'Name what your tokens are signed with: algorithms=["RS256"]'
        if isinstance(algorithms, str) or not algorithms:
            raise _wrong("algorithms", "it is not a list, or empty", remedy)
        known = set(self._signatures.get_algorithms())
        for name in algorithms:
            if not isinstance(name, str) or name.lower() == "none":
                raise _wrong("algorithms", "'none' takes tokens that nobody has signed", remedy)
            if name not in known:
                raise _wrong("algorithms", f"{name!r} is not known", f"Known are: {', '.join(sorted(known))}")
        if len({name.startswith("HS") for name in algorithms}) > 1:
            # Whoever has the public key, and that is everyone, could sign with it as if it were the secret.
            raise _wrong(
                "algorithms", "secrets (HS…) and public keys in one list", "Accept one of the two kinds"
            )
        return list(algorithms)

    def check_key(self, key: Any) -> None:
        """Check that *key* is one of every algorithm.

        Raises:
            ConfigError: It is not; or it is a private key, or a secret that is too short.
        """
        if isinstance(key, self.module.PyJWK):
            if key.algorithm_name not in self.algorithms:
                raise _wrong("key", f"it is of {key.algorithm_name}", "Name that in 'algorithms'")
            key = key.key
        for name in self.algorithms:
            algorithm = self._signatures.get_algorithm_by_name(name)
            try:
                prepared = algorithm.prepare_key(key)
                is_weak = algorithm.check_key_length(prepared) is not None
            except Exception:
                remedy = (
                    "Give the secret as text or bytes"
                    if name.startswith("HS")
                    else "Give the public key as PEM, a PyJWKClient, or a function that returns the key"
                )
                # Not even the cause: what does not parse may still be a secret.
                raise _wrong("key", f"it is no key of {name}", remedy) from None
            if is_weak or len(prepared if name.startswith("HS") else b"") < _MIN_SECRET_BYTES.get(name, 0):
                least = _MIN_SECRET_BYTES.get(name)
                raise _wrong(
                    "key",
                    f"it is too short for {name}: it could be guessed",
                    f'Make a secret of {least} bytes or more: python -c "import secrets; '
                    f'print(secrets.token_hex({least}))"'
                    if least
                    else "Make a longer one: RSA keys have 2048 bits or more",
                )
            if hasattr(prepared, "public_key"):
                raise _wrong(
                    "key",
                    "it is a private key",
                    "Give the public one: a server that checks tokens makes none",
                )

    def header(self, token: Any) -> dict[str, Any]:
        """Return the header of *token*, which nothing has verified; raise anything if it is not to be looked at."""
        if not isinstance(token, str) or len(token) > MAX_TOKEN_CHARACTERS:
            raise ValueError("not a token")
        header = self._signatures.get_unverified_header(token)
        if header.get("alg") not in self.algorithms:
            # Before a key is looked up: what is never accepted costs no request to the issuer.
            raise self.module.InvalidAlgorithmError("not an accepted algorithm")
        return header

    def identity(self, token: str, key: Any, log: logging.Logger) -> Identity:
        """Return who *token* is for.

        Raises:
            Unauthenticated: It is not good.
            jwt.InvalidKeyError: The key is not one of its algorithm, or too short: a fault of the server.
        """
        jwt = self.module
        try:
            claims = self._decoder.decode(
                token,
                key,
                algorithms=self.algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_seconds,
                # A user id may be a number; it is checked below.
                options={"require": self._require, "verify_sub": False},
            )
            user_id = self._user_id(claims)
            expires_at = None
            if claims.get("exp") is not None:
                expires_at = float(int(claims["exp"]) + self._leeway_seconds)
        except jwt.InvalidKeyError:
            # Its message is PyJWT's own and quotes no key.
            raise
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except Exception as error:
            log.debug("a token was refused: %s", type(error).__name__)
            raise Unauthenticated("not authenticated") from None
        return Identity(user_id, claims, expires_at=expires_at)

    def _user_id(self, claims: dict[str, Any]) -> str:
        found = claims.get(self._user_claim)
        if isinstance(found, int) and not isinstance(found, bool):
            found = str(found)
        if not isinstance(found, str) or not found or _UNSAFE.search(found):
            raise ValueError("no user id")
        if found in (SERVER_SENDER, ERASED_USER):
            raise ValueError("a name of the server's own")
        return found


def _key_finder(key: Any, tokens: _Tokens) -> Callable[[dict[str, Any]], Awaitable[Any]]:
    if isinstance(key, tokens.module.PyJWKClient):
        return _in_threads(_from_key_set(key, tokens), 1, name="dialogue-key-set")
    if not callable(key):
        tokens.check_key(key)

        async def given(header: dict[str, Any]) -> Any:
            return key

        return given
    if inspect.iscoroutinefunction(key) or inspect.iscoroutinefunction(getattr(key, "__call__", None)):  # noqa: B004

        async def looked_up(header: dict[str, Any]) -> Any:
            try:
                return await key(header)
            except LookupError:
                return None

        return looked_up

    def look_up(header: dict[str, Any]) -> Any:
        try:
            return key(header)
        except LookupError:
            return None

    return _in_threads(look_up, KEY_THREADS, name="dialogue-keys")


def _from_key_set(client: Any, tokens: _Tokens) -> Callable[[dict[str, Any]], Any]:
    """Return a look-up in a key set; a set that cannot be fetched is a fault of the server and not of the token."""
    errors = tokens.module.exceptions

    def look_up(header: dict[str, Any]) -> Any:
        key_id = header.get("kid")
        if key_id is None:
            return None
        try:
            return client.get_signing_key(key_id)
        except errors.PyJWKClientConnectionError:
            raise
        except errors.PyJWKClientError:
            # There is no such key, unless what the issuer answers is no key set: then this raises again.
            client.get_signing_keys()
            return None

    return look_up


def _in_threads(
    function: Callable[[dict[str, Any]], Any], count: int, *, name: str
) -> Callable[[dict[str, Any]], Awaitable[Any]]:
    # Of its own: an issuer that does not answer must not hold the threads that other hooks wait for. What still
    # waits for a thread when its hook runs out of time is taken out of the queue.
    threads = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def look_up(header: dict[str, Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(threads, function, header)

    return look_up
