"""Who is logged in: a signed cookie, bound to an API key or a person that is live, and tokens that tie forms to it.

``DIR/session-secret`` (32 bytes, mode 600) signs them; taking it away ends every session. A cookie says which key
or person, since when, and when it was last used; its signature takes in the key's hash, or the provider's name for the
person, so that it is of that very one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

from negindex.disk import Disk, check_private, writer_lock
from negindex.errors import Damaged, NotAllowed
from negindex.service.access import Door
from negindex.service.grants import Caller, Holder, caller_for

SECRET = "session-secret"
IDLE = 30 * 60  # seconds after which a session that is not used ends
LONGEST = 10 * 60 * 60  # seconds after which one ends in any case
RENEW = 60  # seconds of use after which the cookie is made anew
_BYTES = 32
_TEXT = re.compile(r"(p?[0-9a-f]{12})\.(\d{1,12})\.(\d{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")


@dataclass(frozen=True)
class Session:
    """One log-in. Times in seconds since 1970."""

    holder: Holder  # a key, or a person
    began: int
    seen: int
    nonce: str

    @property
    def caller(self) -> Caller:
        """Who it is, as the API knows them."""
        return caller_for(self.holder)


class Sessions:
    """Makes and reads cookies and tokens. Usable from several threads and processes."""

    def __init__(self, root: Path, door: Door, of_people: float = LONGEST) -> None:
        """of_people: seconds after which the session of a person, rather than of a key, ends in any case."""
        self._root, self._door, self._of_people = root, door, of_people

    def begin(self, holder: Holder, now: float | None = None) -> Session:
        """A new session of a live key, or of a person."""
        at = int(time.time() if now is None else now)
        return Session(holder, at, at, secrets.token_hex(16))

    def cookie(self, session: Session) -> str:
        """What the browser keeps."""
        said = f"{session.holder.id}.{session.began}.{session.seen}.{session.nonce}"
        return f"{said}.{self.mac('session', said, session.holder.mark)}"

    def read(self, cookie: str, now: float | None = None) -> Session | None:
        """The session that a cookie stands for; None where it is over, forged, or its key is not live any more."""
        found, at = _TEXT.fullmatch(cookie), time.time() if now is None else now
        holder = None if found is None else self._door.live(found[1])
        if found is None or holder is None:
            return None
        said, mac = cookie.rsplit(".", 1)
        if not hmac.compare_digest(self.mac("session", said, holder.mark), mac):
            return None
        session = Session(holder, int(found[2]), int(found[3]), found[4])
        longest = self._of_people if holder.kind == "person" else LONGEST
        over = at - session.seen > IDLE or at - session.began > longest
        return None if over else session

    def renewed(self, session: Session, now: float | None = None) -> Session | None:
        """The session as used now; None where its cookie is fresh enough."""
        at = int(time.time() if now is None else now)
        return replace(session, seen=at) if at - session.seen > RENEW else None

    def token(self, nonce: str) -> str:
        """What a form of the session with this nonce holds."""
        return self.mac("form", nonce)

    def check_token(self, nonce: str, token: str) -> None:
        """Raise NotAllowed for a form that was not of this session."""
        if not hmac.compare_digest(self.token(nonce).encode(), token.encode("utf-8", "replace")):
            raise NotAllowed("the form is not one of this session; load the page again, then send it")

    def mac(self, *words: str) -> str:
        """Hex digits that nobody makes without the directory's secret; the first word says what they are for."""
        return hmac.new(secret_of(self._root), "\n".join(("negindex", *words)).encode(), hashlib.sha256).hexdigest()


def secret_of(root: Path) -> bytes:
    """The directory's secret, made where there is none. Raises NotAllowed where others can reach it, Damaged."""
    path = root / SECRET
    found = _read(path)
    if found is None:
        with writer_lock(root):
            found = _read(path) or _make(path)
    return found


def _read(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            check_private(file, path)
            found = file.read(_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(found) != _BYTES:
        raise Damaged(f"{path} has not {_BYTES} bytes; remove it, which ends all sessions")
    return found


def _make(path: Path) -> bytes:
    made = secrets.token_bytes(_BYTES)
    Disk().put_private(path, made)
    return made
