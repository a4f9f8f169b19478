"""What is asked of an OpenID provider, and what is believed of its answers. Needs authlib and httpx2."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.httpx_client import AsyncOAuth2Client
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet, import_key

from negindex.errors import NotAllowed, Unreachable
from negindex.service.settings import is_local
from negindex.service.sign_on import SignOn, Words

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
LEEWAY = 60  # seconds that clocks may differ
TIMEOUT = 10.0  # seconds for each part of an answer
ANSWER_BYTES = 1 << 20
DESCRIBED_FOR = 3600.0  # seconds for which what the provider says of itself is believed
KEYS_EVERY = 30.0  # seconds at least between looks at its keys, however many tokens name others
GROUPS = 1000  # of a person that are looked at
_SAYS_ISSUER = "authorization_response_iss_parameter_supported"
_NEEDED = ("authorization_endpoint", "token_endpoint", "jwks_uri")
_SUBJECT = re.compile(r"[\x20-\x7e]{1,255}")


class Account(NamedTuple):
    """Whom the provider names."""

    subject: str
    groups: tuple[str, ...]


class Provider:
    """One provider. It lives in one event loop."""

    def __init__(self, sign_on: SignOn) -> None:
        self._on, self.host = sign_on, sign_on.host
        self._said: tuple[float, Mapping[str, Any]] | None = None
        self._keys: tuple[float, KeySet] | None = None

    async def address(self, words: Words) -> str:
        """Where the browser goes to log in. Raises Unreachable."""
        said = await self._described()
        async with self._client(said) as client:
            url, _ = client.create_authorization_url(
                said["authorization_endpoint"], state=words.state, nonce=words.nonce, code_verifier=words.verifier
            )
        return str(url)

    async def account(self, code: str, issuer: str | None, words: Words) -> Account:
        """Who logged in, of the code that the provider sent them back with.

        issuer: what the answer itself says of where it is from (RFC 9207). Raises NotAllowed where anything does not
        hold, and Unreachable.
        """
        said = await self._described()
        if issuer != self._on.issuer and (issuer is not None or said.get(_SAYS_ISSUER) is True):
            raise NotAllowed("the answer is not of the provider that was asked; log in again")
        async with self._client(said) as client, _asking("token"):
            try:
                told = await client.fetch_token(
                    said["token_endpoint"], grant_type="authorization_code", code=code, code_verifier=words.verifier,
                    redirect_uri=self._on.back,
                )  # fmt: skip
            except AuthlibBaseError as error:
                raise NotAllowed(f"the provider does not take the code ({_word(error.error)}); log in again") from error
        return self._account(await self._claims(told, words))

    async def farewell(self) -> str | None:
        """Where the browser goes to log out at the provider too; None where it has no such place."""
        end = (await self._described()).get("end_session_endpoint")
        if not isinstance(end, str) or not _is_safe(end):
            return None
        after = {"client_id": self._on.client, "post_logout_redirect_uri": f"{self._on.address}/pages/login"}
        return f"{end}{'&' if '?' in end else '?'}{urlencode(after)}"

    def _account(self, claims: Mapping[str, Any]) -> Account:
        subject = claims["sub"]
        groups: Any = claims
        if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
            raise NotAllowed("the provider names the account by what is no name; see to the provider")
        path = [self._on.claim] if self._on.claim in claims else self._on.claim.split(".")  # some names have dots
        for part in path:
            groups = groups.get(part, ()) if isinstance(groups, Mapping) else ()
        listed = [groups] if isinstance(groups, str) else groups if isinstance(groups, list) else []
        named = [group for group in listed[:GROUPS] if isinstance(group, str) and group in self._on.grants]
        return Account(subject, tuple(dict.fromkeys(named)))

    async def _claims(self, told: Mapping[str, Any], words: Words) -> Mapping[str, Any]:
        """What the ID token says, if it is the provider's, for this client, of now, and of this very log-in."""
        text = told.get("id_token")
        if not isinstance(text, str):
            raise NotAllowed("the provider sent no ID token; see that the scope openid is granted to this client")
        expected = {"iss": self._on.issuer, "aud": self._on.client}
        try:
            try:
                found = jwt.decode(text, await self._key_set(), algorithms=ALGORITHMS)
            except InvalidKeyIdError:  # keys change
                found = jwt.decode(text, await self._key_set(anew=True), algorithms=ALGORITHMS)
            claims = CodeIDToken(
                found.claims,
                found.header,
                {name: {"essential": True, "value": value} for name, value in expected.items()},
                {"nonce": words.nonce, "client_id": self._on.client, "access_token": told.get("access_token")},
            )
            claims.validate(int(time.time()), LEEWAY)
        except (JoseError, ValueError, TypeError, KeyError, AttributeError) as error:
            kind = type(error).__name__
            raise NotAllowed(f"the provider's ID token is not to be believed ({kind}); log in again") from error
        return dict(claims)

    async def _key_set(self, *, anew: bool = False) -> KeySet:
        now = time.monotonic()
        if self._keys is None or now - self._keys[0] > (KEYS_EVERY if anew else DESCRIBED_FOR):
            said = await self._get((await self._described())["jwks_uri"])
            listed = said.get("keys")
            keys = [key for one in (listed if isinstance(listed, list) else []) if (key := _key(one)) is not None]
            if not keys:
                raise Unreachable(f"{self._on.host} shows no key that it signs with; see to the provider")
            self._keys = now, KeySet(keys)
        return self._keys[1]

    async def _described(self) -> Mapping[str, Any]:
        """What the provider says of itself. Raises Unreachable where it is another, or lacks what is needed."""
        now = time.monotonic()
        if self._said is None or now - self._said[0] > DESCRIBED_FOR:
            said = await self._get(f"{self._on.issuer.rstrip('/')}/.well-known/openid-configuration")
            if said.get("issuer") != self._on.issuer:
                raise Unreachable(
                    f"the provider calls itself {str(said.get('issuer'))[:200]!r}, and oidc_issuer is "
                    f"{self._on.issuer!r}; set it to just that"
                )
            if wrong := [name for name in _NEEDED if not _is_safe(said.get(name))]:
                raise Unreachable(f"the provider says no https address of its {', '.join(wrong)}; see to the provider")
            self._said = now, said
        return self._said[1]

    async def _get(self, url: str) -> Mapping[str, Any]:
        async with _asking("description"), httpx2.AsyncClient(transport=Bounded(), timeout=TIMEOUT) as client:
            told = await client.get(url)
            told.raise_for_status()
            said = told.json()
        if not isinstance(said, Mapping):
            raise Unreachable(f"{url} answers what is no description; see to the provider")
        return said

    def _client(self, said: Mapping[str, Any]) -> AsyncOAuth2Client:
        known = said.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        method = "client_secret_post" if "client_secret_basic" not in known else "client_secret_basic"
        return AsyncOAuth2Client(
            self._on.client, self._on.secret, token_endpoint_auth_method="none" if self._on.secret is None else method,
            scope=self._on.scope, redirect_uri=self._on.back, code_challenge_method="S256", transport=Bounded(),
            timeout=TIMEOUT,
        )  # fmt: skip


class Bounded(httpx2.AsyncHTTPTransport):
    """Takes no more of an answer than a description, keys or a token have."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """As it is, until it is too large."""
        request.headers["Accept-Encoding"] = "identity"
        told = await super().handle_async_request(request)
        if told.headers.get("content-encoding", "identity") != "identity":
            raise httpx2.RemoteProtocolError("a packed answer")
        assert isinstance(told.stream, httpx2.AsyncByteStream)
        told.stream = _Counted(told.stream)
        return told


class _Counted(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        count = 0
        async for piece in self._stream:
            count += len(piece)
            if count > ANSWER_BYTES:
                raise httpx2.RemoteProtocolError(f"an answer of more than {ANSWER_BYTES} bytes")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def _asking(what: str) -> AsyncIterator[None]:
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, TypeError, RecursionError) as error:
        kind = type(error).__name__
        raise Unreachable(f"the provider's {what} cannot be had ({kind}); try again, or see to the provider") from error


def _is_safe(url: object) -> bool:
    """Whether codes and tokens may travel there: https, or this very machine."""
    if not isinstance(url, str):
        return False
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_local(parts.hostname or ""))


def _key(said: object) -> Any:
    """A key for signatures; None for what is none, or is of a kind that is not known."""
    try:
        return import_key(said) if isinstance(said, dict) and said.get("kty") != "oct" else None
    except (JoseError, ValueError, TypeError, KeyError):
        return None


def _word(error: object) -> str:
    """An error's code, if it is one."""
    return error if isinstance(error, str) and re.fullmatch(r"[a-z_]{1,60}", error) else "no reason"
