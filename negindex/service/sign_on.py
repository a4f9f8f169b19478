"""How people log in through an OpenID provider, as the settings say: which one, and what its groups may do here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from negindex.disk import check_private
from negindex.errors import InvalidInput, NotThere
from negindex.service.grants import ROLES, Grant
from negindex.service.held import NAME
from negindex.service.people import Person
from negindex.service.settings import Settings, is_local

BACK = "/pages/oidc/back"  # where the provider sends people
_NEEDED = ("oidc_issuer", "oidc_client", "oidc_address", "oidc_grants")
_FIELDS = (*_NEEDED, "oidc_secret", "oidc_secret_file")
_PERSONS = tuple(role for role in ROLES if role != "sampler")


@dataclass(frozen=True)
class SignOn:
    """A provider, and what it is trusted with."""

    issuer: str
    client: str
    secret: str | None  # None for a public client
    address: str  # of this service, as browsers see it
    scope: str
    claim: str  # of the ID token, that names groups; dots lead into objects
    grants: Mapping[str, tuple[Grant, ...]]  # by group
    seconds: float  # after which the provider is asked again

    @property
    def back(self) -> str:
        """Where the provider sends people: what has to be registered with it."""
        return self.address + BACK

    @property
    def host(self) -> str:
        """The provider, in a word."""
        return urlsplit(self.issuer).netloc

    def grants_of(self, person: Person) -> tuple[Grant, ...]:
        """What somebody may do: what is granted to each of their groups; nothing to who is revoked, or elsewhere's."""
        if person.revoked is not None or person.issuer != self.issuer:
            return ()
        return tuple(grant for group in person.groups for grant in self.grants.get(group, ()))


class Words(NamedTuple):
    """What one log-in is tied to: random, and known to the browser that began it alone."""

    state: str
    nonce: str
    verifier: str


@dataclass(frozen=True)
class Member:
    """Somebody with what they may do: what stands behind a session, as a key does."""

    person: Person
    grants: tuple[Grant, ...]
    kind = "person"

    @property
    def id(self) -> str:
        """The person's number."""
        return self.person.id

    @property
    def mark(self) -> str:
        """What a session is signed over."""
        return f"{self.person.issuer} {self.person.subject}"


def sign_on_of(settings: Settings) -> SignOn | None:
    """What the settings say; None where they say nothing of it.

    Raises InvalidInput, naming the setting, NotThere and NotAllowed for a file of the secret that cannot be used.
    """
    given = [name for name in _FIELDS if getattr(settings, name)]
    if not given:
        return None
    if lacking := [name for name in _NEEDED if name not in given]:
        raise InvalidInput(f"{given[0]} without {', '.join(lacking)}; a log-in through a provider needs them all")
    issuer, address = _url(settings, "oidc_issuer"), _url(settings, "oidc_address").rstrip("/")
    if urlsplit(address).path:
        raise InvalidInput(f"oidc_address {address!r} has a path; give scheme, host and port, as browsers see them")
    return SignOn(
        issuer, settings.oidc_client or "", _secret(settings), address, _scope(settings.oidc_scope),
        settings.oidc_claim, granted(settings.oidc_grants), 60 * settings.oidc_minutes,
    )  # fmt: skip


def granted(said: Sequence[str]) -> dict[str, tuple[Grant, ...]]:
    """What each group may do, of lines GROUP=ROLE[,ROLE][@SET[,SET]]. Raises InvalidInput.

    >>> granted(["art-team=curator,approver@art.set", "watch=auditor"])["art-team"]
    (Grant(roles=('curator', 'approver'), sets=('art.set',)),)
    """
    found: dict[str, tuple[Grant, ...]] = {}
    for line in said:
        group, _, rest = line.rpartition("=")
        roles, at, sets = rest.partition("@")
        grant = Grant(tuple(roles.split(",")), tuple(sets.split(",")) if at else ())
        if not group or set(grant.roles) - set(_PERSONS) or any(not NAME.fullmatch(one) for one in grant.sets):
            raise InvalidInput(
                f"oidc_grants: {line!r} is not GROUP=ROLE[,ROLE][@SET[,SET]] with roles of {', '.join(_PERSONS)}"
            )
        found[group] = (*found.get(group, ()), grant)
    return found


def _url(settings: Settings, name: str) -> str:
    url = str(getattr(settings, name))
    try:
        parts = urlsplit(url)
        plain = parts.scheme == "http" and is_local(parts.hostname or "")
        strange = parts.query or parts.fragment or parts.username or not parts.hostname or parts.port == 0
    except ValueError:
        plain, strange, parts = False, True, urlsplit("")
    if strange or not (parts.scheme == "https" or plain):
        raise InvalidInput(f"{name} {url!r}; give an https:// address, without a query (http:// on this machine alone)")
    return url


def _scope(scope: str) -> str:
    if "openid" not in scope.split():
        raise InvalidInput(f"oidc_scope {scope!r} lacks openid, without which no ID token comes")
    return scope


def _secret(settings: Settings) -> str | None:
    if settings.oidc_secret_file is None:
        return None if settings.oidc_secret is None else settings.oidc_secret.get_secret_value()
    path: Path = settings.oidc_secret_file
    if settings.oidc_secret is not None:
        raise InvalidInput("oidc_secret and oidc_secret_file are both given; give one")
    try:
        with open(path, "rb") as file:
            check_private(file, path)
            found = file.read(1 << 12).decode().strip()
    except OSError as error:
        raise NotThere(f"{path} cannot be read ({error.strerror}); name the file of the client's secret") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is no text; write the client's secret into it, and nothing else") from error
    if not found:
        raise InvalidInput(f"{path} is empty; write the client's secret into it")
    return found
