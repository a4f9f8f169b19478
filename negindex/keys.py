"""Ed25519 keys that sign checkpoints and receipts, and the public halves that check them (RFC 8032).

A signature covers bytes alone: whoever signs puts in front of them what kind of thing they are, so that
a signed checkpoint cannot be shown as a signed receipt.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from negindex.disk import Disk, check_private
from negindex.errors import InvalidInput, NotAllowed, NotThere

if TYPE_CHECKING:  # loads in 0.1 s, so only when a key is used
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_KIND = "ed25519:"


@dataclass(frozen=True)
class PublicKey:
    """The half that may be given to anybody. raw: its 32 bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise InvalidInput(f"a public key of {len(self.raw)} bytes; Ed25519's have 32")

    @property
    def id(self) -> str:
        """The first 16 hex digits of the raw key's sha256: what signed things name their key by."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    @property
    def text(self) -> str:
        """The key as one line that JSON, a log or a shell takes: ``ed25519:`` and base64."""
        return _KIND + base64.b64encode(self.raw).decode()

    @classmethod
    def from_text(cls, text: str) -> PublicKey:
        """The key that ``text`` was; InvalidInput for anything else."""
        kind, raw = text[: len(_KIND)], _decoded(text[len(_KIND) :], 32)
        if kind != _KIND or raw is None:
            raise InvalidInput(f"a text of {len(text)} characters is no public key; give {_KIND!r} and 44 of base64")
        return cls(raw)

    def save(self, path: Path | str) -> None:
        """Write the text to a new file; NotAllowed if it exists."""
        _create(Path(path), self.text.encode() + b"\n", mode=0o644)

    @classmethod
    def load(cls, path: Path | str) -> PublicKey:
        """Read what ``save`` wrote. Raises NotThere, or InvalidInput for another file."""
        try:
            return cls.from_text(_read(Path(path)).decode("ascii").strip())
        except (InvalidInput, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path} holds no public key; give the .pub file that was made with the key") from error

    def verifies(self, signature: str, data: bytes) -> bool:
        """Whether ``signature`` is this key's for exactly these bytes; False for any other text."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        raw = _decoded(signature, 64)
        if raw is None:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(raw, data)
        except InvalidSignature:
            return False
        return True


class Key:
    """A secret key; it is shown, logged and compared by its public half's id."""

    def __init__(self, secret: Ed25519PrivateKey) -> None:
        self._secret = secret
        self.public = PublicKey(secret.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Key({self.public.id})"

    def __reduce__(self) -> str:
        raise NotAllowed(f"key {self.public.id} would be copied or pickled; load it from its file where it is needed")

    @classmethod
    def new(cls) -> Key:
        """A key of the system's randomness."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())

    def sign(self, data: bytes) -> str:
        """The signature of these bytes as base64: the same each time, 88 characters."""
        return base64.b64encode(self._secret.sign(data)).decode()

    def save(self, path: Path | str, passphrase: str | None = None) -> None:
        """Write the key to a new file that its owner alone can read (mode 600), and have it on the disk.

        PEM, PKCS8; encrypted when there is a passphrase. NotAllowed if the file exists: a lost key cannot
        be had back, so none is overwritten.
        """
        from cryptography.hazmat.primitives import serialization as to

        if passphrase == "":
            raise InvalidInput(f"the passphrase for {path} is empty; give one, or None for a file without")
        lock = to.BestAvailableEncryption(passphrase.encode()) if passphrase else to.NoEncryption()
        pem = self._secret.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, lock)
        _create(Path(path), pem, mode=0o600)

    @classmethod
    def load(cls, path: Path | str, passphrase: str | None = None) -> Key:
        """Read what ``save`` wrote, or another program's Ed25519 key as PEM.

        Raises NotThere; NotAllowed when group or others have any right to the file; InvalidInput when it
        holds no such key, or the passphrase is missing or wrong.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        pem = _read(Path(path), secret=True)
        locked = b"ENCRYPTED" in pem
        if locked and not passphrase:
            raise InvalidInput(f"{path} is locked; give its passphrase")
        try:
            secret = load_pem_private_key(pem, passphrase.encode() if locked and passphrase else None)
        except (ValueError, TypeError) as error:
            remedy = "is not opened by this passphrase" if locked else "holds no secret key; give a PEM file"
            raise InvalidInput(f"{path} {remedy}") from error
        if not isinstance(secret, Ed25519PrivateKey):
            raise InvalidInput(f"{path} holds a key of another kind than Ed25519; `negindex key new` makes one")
        return cls(secret)


def is_locked(path: Path | str) -> bool:
    """Whether a key's file asks for a passphrase. Raises as ``Key.load`` does for a file that cannot be read."""
    return b"ENCRYPTED" in _read(Path(path), secret=True)


def _decoded(text: str, size: int) -> bytes | None:
    """The bytes of the one base64 text that stands for them; None for every other text."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == size and base64.b64encode(raw).decode() == text else None


def _create(path: Path, content: bytes, mode: int) -> None:
    """Make a new file with this mode from its first byte on; nothing is left of it on an error."""
    disk = Disk()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise NotAllowed(f"{path} exists, and no key is overwritten; give another name, or move it away") from error
    except FileNotFoundError as error:
        raise NotThere(f"{path.parent} is no directory; make it first") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            disk.sync(file)
        disk.sync_directory(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _read(path: Path, secret: bool = False) -> bytes:
    try:
        with open(path, "rb") as file:
            if secret:
                check_private(file, path)
            return file.read()
    except FileNotFoundError as error:
        raise NotThere(f"{path} is not there; `negindex key new {path}` makes a key") from error
    except (IsADirectoryError, PermissionError) as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}); give a file of yours") from error
