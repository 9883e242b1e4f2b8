"""`dialogue.auth.jwt`: which tokens let whom in, and that nothing of a token is told to anyone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from dialogue import Client, ConfigError, Dialogue, DialogueClient, Identity, Unauthenticated
from dialogue.auth import MAX_TOKEN_CHARACTERS, jwt

from .server.harness import Refused, rooms, serve, wire

SECRET = "a secret that is as long as it has to be: 64 bytes, for all of HS512"
RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
CLAIM = "what-only-the-token-says"


def pem(key: Any) -> str:
    """Return the public half of *key*."""
    text: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return text.decode()


def private_pem(key: Any) -> str:
    """Return *key* itself."""
    text: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return text.decode()


def soon(**more: Any) -> dict[str, Any]:
    """Return the claims of a good token."""
    return {"sub": "ann", "exp": int(time.time()) + 600, "note": CLAIM} | more


def signed(claims: dict[str, Any], *, key: Any = SECRET, algorithm: str = "HS256", **header: Any) -> str:
    """Return a token that PyJWT has made."""
    return pyjwt.encode(claims, key, algorithm=algorithm, headers=header or None)


def forged(header: dict[str, Any] | bytes, claims: dict[str, Any], secret: bytes = b"") -> str:
    """Return a token that PyJWT would not make: any header, signed with HMAC under *secret*."""

    def part(value: Any) -> bytes:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    said = part(header) + b"." + part(claims)
    signature = hmac.digest(secret, said, hashlib.sha256) if secret else b""
    return (said + b"." + part(signature)).decode()


def request(**headers: str) -> Any:
    """Return what a hook sees of an upgrade request; ``cookie_x`` is the cookie x."""
    cookies = {name[7:]: value for name, value in headers.items() if name.startswith("cookie_")}
    return SimpleNamespace(headers=headers, cookies=cookies)


async def who(hook: Any, token: Any = None, **headers: str) -> Identity:
    """Return what *hook* answers to a token in ``auth``."""
    found: Identity = await hook(request=request(**headers), auth={} if token is None else {"token": token})
    return found


# -- tokens --------------------------------------------------------------------------------------------------------


async def test_a_good_token_is_an_identity() -> None:
    """User, claims and the time at which it ends, the leeway included."""
    claims = soon()
    found = await who(jwt(SECRET, algorithms=["HS256"], leeway_seconds=5), signed(claims))
    assert (found.user_id, found.claims, found.meta) == ("ann", claims, {})
    assert found.expires_at == claims["exp"] + 5


async def test_a_token_without_end_has_none_if_that_is_allowed() -> None:
    """`require` may leave `exp` out; then the identity does not end."""
    found = await who(jwt(SECRET, algorithms=["HS256"], require=[]), signed({"sub": "ann"}))
    assert found.expires_at is None
    assert Identity("ann").expires_at is None


async def test_the_leeway_is_for_clocks_that_differ() -> None:
    """A token that ended within the leeway is good, and one that ended before is not."""
    hook = jwt(SECRET, algorithms=["HS256"], leeway_seconds=300)
    assert (await who(hook, signed(soon(exp=int(time.time()) - 100)))).user_id == "ann"
    with pytest.raises(Unauthenticated):
        await who(hook, signed(soon(exp=int(time.time()) - 1000)))


@pytest.mark.parametrize("user", [7, "7", "bob"])
async def test_the_user_may_be_a_number_and_another_claim(user: Any) -> None:
    """`user_claim` names the claim; a whole number becomes text."""
    hook = jwt(SECRET, algorithms=["HS256"], user_claim="uid")
    assert (await who(hook, signed(soon(uid=user)))).user_id == str(user)


BAD: dict[str, Any] = {
    "wrong signature": lambda: signed(soon(), key="another secret, which is long enough to be one"),
    "tampered claims": lambda: forged({"alg": "HS256"}, soon(sub="root")),
    "tampered header": lambda: forged({"alg": "HS512"}, soon(), SECRET.encode()),
    "alg none": lambda: forged({"alg": "none"}, soon()),
    "alg None in capitals": lambda: forged({"alg": "NONE"}, soon()),
    "alg missing": lambda: forged({"typ": "JWT"}, soon(), SECRET.encode()),
    "alg that is not text": lambda: forged({"alg": ["HS256"]}, soon(), SECRET.encode()),
    "unknown critical header": lambda: forged({"alg": "HS256", "crit": ["x"]}, soon(), SECRET.encode()),
    "missing exp": lambda: signed({"sub": "ann"}),
    "exp that is null": lambda: signed(soon(exp=None)),
    "exp that is no number": lambda: forged({"alg": "HS256"}, soon(exp="soon"), SECRET.encode()),
    "exp beyond numbers": lambda: forged({"alg": "HS256"}, soon(exp=float("inf")), SECRET.encode()),
    "exp beyond floats": lambda: forged({"alg": "HS256"}, soon(exp=10**400), SECRET.encode()),
    "not yet": lambda: signed(soon(nbf=int(time.time()) + 500)),
    "an audience that is not ours": lambda: signed(soon(aud="elsewhere")),
    "no user": lambda: signed({"exp": soon()["exp"]}),
    "empty user": lambda: signed(soon(sub="")),
    "user that is a bool": lambda: signed(soon(sub=True)),
    "user that is a list": lambda: signed(soon(sub=["ann"])),
    "user with control characters": lambda: signed(soon(sub="a\nb")),
    "user that is the server": lambda: signed(soon(sub="system")),
    "user that is erased": lambda: signed(soon(sub="$erased")),
    "claims that are no object": lambda: forged({"alg": "HS256"}, [1], SECRET.encode()),  # type: ignore[arg-type]
    "deep header": lambda: forged(b'{"alg":' + b"[" * 5000, soon()),
    "not a token": lambda: "three.little.words",
    "one word": lambda: "hocuspocus",
    "empty": lambda: "",
    "not ASCII": lambda: "ä.ö.ü",
    "surrogates": lambda: "\ud800.\ud800.\ud800",
    "a number": lambda: 7,
    "an object": lambda: {"token": "x"},
    "too long": lambda: signed(soon(more="x" * MAX_TOKEN_CHARACTERS)),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_token_is_refused_without_a_word_of_it(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One message for all, with nothing chained to it; debug level says why, and no level the token."""
    caplog.set_level(logging.DEBUG)
    token = BAD[case]()
    with pytest.raises(Unauthenticated) as refused:
        await who(jwt(SECRET, algorithms=["HS256"]), token)
    assert str(refused.value) == "not authenticated"
    assert refused.value.details is None
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    assert caplog.records
    for record in caplog.records:
        assert record.levelno == logging.DEBUG
        assert not token or str(token) not in record.getMessage()
        assert CLAIM not in record.getMessage()


async def test_an_expired_token_is_told_apart() -> None:
    """A client may get a new one; it is told only of a token that is good otherwise."""
    hook = jwt(SECRET, algorithms=["HS256"])
    with pytest.raises(Unauthenticated, match=r"^the token has expired$"):
        await who(hook, signed(soon(exp=1)))
    with pytest.raises(Unauthenticated, match=r"^not authenticated$"):
        await who(hook, signed(soon(exp=1), key="another secret, which is long enough to be one"))


async def test_no_token_is_not_authenticated() -> None:
    """Nothing, null, and a header of another scheme."""
    hook = jwt(SECRET, algorithms=["HS256"], cookie="session")
    for headers in ({}, {"authorization": "Basic YTpi"}, {"authorization": ""}, {"cookie_other": "x"}):
        with pytest.raises(Unauthenticated, match=r"^not authenticated$"):
            await who(hook, **headers)
    with pytest.raises(Unauthenticated):
        await hook(request=request(), auth={"token": None})


@pytest.mark.parametrize("given", ["chat", ["other", "chat"]])
async def test_audience_and_issuer_are_held(given: Any) -> None:
    """A token must name one of them; not a part of one, and not none."""
    hook = jwt(SECRET, algorithms=["HS256"], audience=given, issuer=given)
    assert (await who(hook, signed(soon(aud=["x", "chat"], iss="chat")))).user_id == "ann"
    for claims in (
        {"aud": "chat"},
        {"iss": "chat"},
        {"aud": "cha", "iss": "chat"},
        {"aud": "chat", "iss": "cha"},
    ):
        with pytest.raises(Unauthenticated, match=r"^not authenticated$"):
            await who(hook, signed(soon(**claims)))


async def test_where_the_token_is() -> None:
    """`auth` goes first, then the header, then the cookie; a bad one is not skipped for a good one."""
    hook = jwt(SECRET, algorithms=["HS256"], cookie="session")
    good = {name: signed(soon(sub=name)) for name in ("auth", "header", "cookie")}
    headers = {"authorization": f"bearer  {good['header']}", "cookie_session": good["cookie"]}
    assert (await who(hook, good["auth"], **headers)).user_id == "auth"
    assert (await who(hook, **headers)).user_id == "header"
    assert (await who(hook, cookie_session=good["cookie"])).user_id == "cookie"
    with pytest.raises(Unauthenticated):
        await who(hook, "bad", **headers)
    with pytest.raises(Unauthenticated):
        await who(jwt(SECRET, algorithms=["HS256"]), cookie_session=good["cookie"])
    own = jwt(SECRET, algorithms=["HS256"], token_from=lambda request, auth: auth.get("ticket"))
    assert (await own(request=request(), auth={"ticket": good["auth"]})).user_id == "auth"
    with pytest.raises(Unauthenticated):
        await who(own, good["auth"])


# -- keys ----------------------------------------------------------------------------------------------------------


async def test_public_keys() -> None:
    """PEM, a key object, and more than one algorithm of a key."""
    curve = ec.generate_private_key(ec.SECP256R1())
    for private, algorithm in ((RSA, "RS256"), (RSA, "PS384"), (curve, "ES256")):
        token = signed(soon(), key=private, algorithm=algorithm)
        for key in (pem(private), pem(private).encode(), private.public_key()):
            algorithms = ["RS256", "PS384"] if private is RSA else ["ES256"]
            assert (await who(jwt(key, algorithms=algorithms), token)).user_id == "ann"
        with pytest.raises(Unauthenticated):
            await who(jwt(pem(OTHER_RSA), algorithms=["RS256", "PS384"]), token)


async def test_a_public_key_is_never_a_secret() -> None:
    """A token that is signed with the public key as if it were a secret is refused, however the key is given."""
    public = pem(RSA)
    token = forged({"alg": "HS256", "kid": "1"}, soon(sub="root"), public.encode())
    with pytest.raises(Unauthenticated):
        await who(jwt(public, algorithms=["RS256"]), token)
    with pytest.raises(ConfigError, match="no key of HS256"):
        jwt(public, algorithms=["HS256"])
    with pytest.raises(ConfigError, match="in one list"):
        jwt(public, algorithms=["HS256", "RS256"])
    with pytest.raises(ConfigError, match="in one list"):
        jwt(lambda header: public, algorithms=["HS256", "RS256"])
    # A function's answer is seen when it is used: a fault of the server, which lets nobody in.
    with pytest.raises(pyjwt.InvalidKeyError):
        await who(jwt(lambda header: public, algorithms=["HS256"]), token)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_short_secret_is_a_config_error(algorithm: str) -> None:
    """As long as the hash or longer; the message does not have it."""
    least = int(algorithm[2:]) // 8
    jwt("s" * least, algorithms=[algorithm])
    with pytest.raises(ConfigError, match=f"too short for {algorithm}.*{least} bytes") as error:
        jwt("s" * (least - 1), algorithms=[algorithm])
    assert "sss" not in str(error.value)


async def test_a_short_secret_from_a_function_lets_nobody_in() -> None:
    """What cannot be checked when declared is checked when used."""
    hook = jwt(lambda header: "short", algorithms=["HS256"])
    token = forged({"alg": "HS256"}, soon(), b"short")
    with pytest.raises(pyjwt.InvalidKeyError):
        await who(hook, token)


def test_wrong_declarations() -> None:
    """Each is a `ConfigError` that names the field, and never the key."""
    weak = rsa.generate_private_key(public_exponent=65_537, key_size=1024)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("algorithms", {"algorithms": []}),
        ("algorithms", {"algorithms": "HS256"}),
        ("algorithms", {"algorithms": ["none"]}),
        ("algorithms", {"algorithms": ["HS256", "None"]}),
        ("algorithms", {"algorithms": ["HS1"]}),
        ("key", {"key": ""}),
        ("key", {"key": None}),
        ("key", {"key": SECRET, "algorithms": ["RS256"]}),
        ("key", {"key": private_pem(RSA), "algorithms": ["RS256"]}),
        ("key", {"key": pem(RSA), "algorithms": ["ES256"]}),
        ("key", {"key": pem(weak), "algorithms": ["RS256"]}),
        ("key", {"key": pyjwt.PyJWK({"kty": "oct", "k": "c2VjcmV0", "alg": "HS512"})}),
        ("audience", {"audience": ""}),
        ("audience", {"audience": []}),
        ("issuer", {"issuer": [None]}),
        ("leeway_seconds", {"leeway_seconds": -1}),
        ("leeway_seconds", {"leeway_seconds": float("nan")}),
        ("leeway_seconds", {"leeway_seconds": True}),
        ("user_claim", {"user_claim": ""}),
        ("require", {"require": "exp"}),
        ("cookie", {"cookie": "session", "token_from": lambda request, auth: None}),
    ]
    for field, arguments in wrong:
        chosen: dict[str, Any] = {"key": SECRET, "algorithms": ["HS256"]} | arguments
        with pytest.raises(ConfigError, match=f"^dialogue.auth.jwt, field '{field}'") as error:
            jwt(**chosen)
        assert SECRET not in str(error.value)
        assert "-----BEGIN" not in str(error.value)
        assert error.value.__cause__ is None


def test_without_pyjwt_it_says_what_to_install() -> None:
    """The rest of the package does not need it."""
    code = (
        "import sys; sys.modules['jwt'] = None; import dialogue.auth\n"
        "try: dialogue.auth.jwt('s' * 32, algorithms=['HS256'])\n"
        "except dialogue.ConfigError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "dialogue[jwt]"' in out.stdout


async def test_a_function_finds_the_key() -> None:
    """It gets the header; `def` in a thread, `async def` in the loop; no such key is no such user."""
    keys = {"one": SECRET, "two": SECRET[::-1]}
    threads = []

    def find(header: dict[str, Any]) -> str:
        threads.append(threading.current_thread())
        return keys[header["kid"]]

    async def find_async(header: dict[str, Any]) -> str | None:
        return keys.get(header["kid"])

    for function in (find, find_async):
        hook = jwt(function, algorithms=["HS256"])
        assert (await who(hook, signed(soon(), key=keys["two"], kid="two"))).user_id == "ann"
        for kid in ("one", "three"):
            with pytest.raises(Unauthenticated, match=r"^not authenticated$"):
                await who(hook, signed(soon(), key=keys["two"], kid=kid))
    assert threading.current_thread() not in threads
    before = len(threads)
    with pytest.raises(Unauthenticated):
        await who(jwt(find, algorithms=["HS256"]), forged({"alg": "none", "kid": "one"}, soon()))
    assert len(threads) == before, "no key is looked up for what is never accepted"


class _KeySet(http.server.BaseHTTPRequestHandler):
    keys: list[dict[str, Any]]
    requests: int

    def do_GET(self) -> None:
        type(self).requests += 1
        body = json.dumps({"keys": self.keys}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def issuer(**keys: Any) -> Iterator[tuple[str, type[_KeySet]]]:
    """Serve a key set with the public halves of *keys*; yield its URL, and what was asked of it."""

    def jwk(kid: str, key: Any) -> dict[str, Any]:
        found: dict[str, Any] = pyjwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        return found | {"kid": kid, "alg": "RS256", "use": "sig"}

    handler = type("Handler", (_KeySet,), {"keys": [jwk(*item) for item in keys.items()], "requests": 0})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/jwks.json", handler
        finally:
            server.shutdown()
            thread.join()


async def test_a_key_set_is_fetched_once() -> None:
    """Tokens are checked against the key that they name; unknown names cause no flood of requests."""
    with issuer(one=RSA, two=OTHER_RSA) as (url, handler):
        hook = jwt(pyjwt.PyJWKClient(url), algorithms=["RS256"])
        for kid, key in (("one", RSA), ("two", OTHER_RSA)):
            token = signed(soon(), key=key, algorithm="RS256", kid=kid)
            assert (await who(hook, token)).user_id == "ann"
        for kid in ("two", "three", "four"):
            with pytest.raises(Unauthenticated, match=r"^not authenticated$"):
                await who(hook, signed(soon(), key=RSA, algorithm="RS256", kid=kid))
        with pytest.raises(Unauthenticated):
            await who(hook, signed(soon(), key=RSA, algorithm="RS256"))
        public = pem(RSA).encode()
        with pytest.raises(Unauthenticated):
            await who(hook, forged({"alg": "HS256", "kid": "one"}, soon(), public))
        assert handler.requests == 1


async def test_an_issuer_that_is_away_is_no_fault_of_the_token(caplog: pytest.LogCaptureFixture) -> None:
    """It is answered INTERNAL, so that clients try again, and the log has why, without the token."""
    with issuer() as (url, _):
        pass
    with issuer() as (empty, _):
        for address in (url, empty):
            hook = jwt(pyjwt.PyJWKClient(address, timeout=5), algorithms=["RS256"])
            dialogue = Dialogue(rooms())
            dialogue.authenticate(hook)
            token = signed(soon(), key=RSA, algorithm="RS256", kid="one")
            async with serve(dialogue) as server, wire(server, None) as client:
                with pytest.raises(Refused, match="INTERNAL"):
                    await client.ask("connect", auth={"token": token})
            assert "authenticate failed" in caplog.text
            assert token not in caplog.text
            assert token.rpartition(".")[0] not in caplog.text
            caplog.clear()


# -- over a real socket --------------------------------------------------------------------------------------------


@pytest.fixture
def guarded() -> Dialogue:
    """A server whose users have tokens."""
    dialogue = Dialogue(rooms())
    dialogue.authenticate(jwt(SECRET, algorithms=["HS256"], audience="chat", cookie="session"))
    return dialogue


def good(**more: Any) -> str:
    """Return a token that `guarded` takes."""
    return signed(soon(aud="chat") | more)


async def test_a_token_lets_its_user_in(guarded: Dialogue) -> None:
    """By `auth`, by header and by cookie; hooks see claims and end; a second connect brings newer ones."""
    seen: list[Client] = []

    @guarded.on_connected
    def keep(client: Client) -> None:
        seen.append(client)

    async with serve(guarded) as address:
        async with wire(address, None) as client:
            answer = await client.ask("connect", auth={"token": good(exp=int(time.time()) + 100)})
            assert answer["user_id"] == "ann"
            first = seen[0].identity
            assert first.claims["note"] == CLAIM
            await client.ask("connect", auth={"token": good()})
            assert (seen[0].identity.expires_at or 0) > (first.expires_at or 0)
            with pytest.raises(Refused, match="PERMISSION_DENIED"):
                await client.ask("connect", auth={"token": good(sub="bob")})
            await client.ask("join", room="general")
            await client.ask("trigger", room="general", event="message", data={"from": "root"})
            (event,) = await client.until_events(1)
            assert event["from"] == "ann"
        for headers in ({"Authorization": f"Bearer {good()}"}, {"Cookie": f"session={good()}"}):
            async with wire(address, None, additional_headers=headers) as client:
                assert (await client.ask("connect"))["user_id"] == "ann"


async def test_a_client_of_ours_is_let_in_and_kept_out(guarded: Dialogue) -> None:
    """The Python client brings the token as `auth`, and gives up when it is refused."""
    async with serve(guarded) as address:
        async with DialogueClient(f"http://{address}", auth=lambda: {"token": good()}) as client:
            assert client.user_id == "ann"
        with pytest.raises(Unauthenticated, match="expired"):
            async with DialogueClient(f"http://{address}", auth={"token": good(exp=1)}):
                raise AssertionError("it was let in")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("expired", "the token has expired"),
        ("wrong signature", "not authenticated"),
        ("alg none", "not authenticated"),
        ("wrong audience", "not authenticated"),
        ("missing exp", "not authenticated"),
        ("forged", "not authenticated"),
        ("no token", "not authenticated"),
    ],
)
async def test_a_bad_token_keeps_its_bearer_out(
    guarded: Dialogue, caplog: pytest.LogCaptureFixture, case: str, said: str
) -> None:
    """Refused with UNAUTHENTICATED, nothing works afterwards, and no log above debug has the token."""
    caplog.set_level(logging.DEBUG)
    claims = soon(aud="chat")
    auth = {
        "expired": lambda: {"token": good(exp=1)},
        "wrong signature": lambda: {"token": signed(claims, key=SECRET[::-1])},
        "alg none": lambda: {"token": forged({"alg": "none"}, claims)},
        "wrong audience": lambda: {"token": good(aud="elsewhere")},
        "missing exp": lambda: {"token": signed({"sub": "ann", "aud": "chat"})},
        "forged": lambda: {"token": forged({"alg": "HS256"}, claims | {"sub": "root"}, b"a guess")},
        "no token": lambda: {"user_id": "root"},
    }[case]()
    async with serve(guarded) as address, wire(address, None) as client:
        with pytest.raises(Refused) as refused:
            await client.ask("connect", auth=auth)
        assert refused.value.code == "UNAUTHENTICATED"
        assert refused.value.message["message"] == said
        assert "details" not in refused.value.message
    for record in caplog.records:
        if record.levelno > logging.DEBUG:
            line = logging.Formatter().format(record)
            assert auth.get("token", CLAIM) not in line
            assert CLAIM not in line
