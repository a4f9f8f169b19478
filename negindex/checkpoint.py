"""A checkpoint: what the log of a collection was at one version, in one signed line."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from negindex.keys import Key, PublicKey
from negindex.log import canonical


@dataclass(frozen=True)
class Checkpoint:
    """The log's Merkle root at a version. Keep signed ones elsewhere: only they show a roll-back of the whole set."""

    set_id: str
    version: int
    root: str  # hex, RFC 6962, over the records of versions 0 to ``version``
    at: str  # ISO 8601, UTC
    signature: str = ""  # Ed25519 over ``signed_bytes``; "" where nobody signed
    public_key: str = ""

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        said = {name: value for name, value in asdict(self).items() if name not in ("signature", "public_key")}
        return b"negindex checkpoint 1\n" + canonical(said).encode()

    def signed(self, key: Key) -> Checkpoint:
        """The same, signed."""
        return replace(self, signature=key.sign(self.signed_bytes), public_key=key.public.text)

    def is_signed_by(self, public: PublicKey) -> bool:
        """Whether this key signed it."""
        return bool(self.signature) and public.verifies(self.signature, self.signed_bytes)
