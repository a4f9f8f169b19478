"""A checkpoint: what the log of a collection was at one version, in one signed line."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from negindex import offline
from negindex.errors import Damaged, NotAllowed, NotThere
from negindex.keys import Key, PublicKey


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
        return offline.signed_bytes(asdict(self), "checkpoint")

    def signed(self, key: Key) -> Checkpoint:
        """The same, signed."""
        return replace(self, signature=key.sign(self.signed_bytes), public_key=key.public.text)

    def is_signed_by(self, public: PublicKey) -> bool:
        """Whether this key signed it."""
        return self.public_key == public.text and public.verifies(self.signature, self.signed_bytes)

    def to_json(self) -> str:
        """A small text for people and programs."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Checkpoint:
        """The checkpoint that ``to_json`` wrote; raises Damaged for anything else. Whose it is, the signature says."""
        try:
            read = offline.read(text, "a checkpoint", offline.CHECKPOINT)
        except offline.CannotRead as error:
            raise Damaged(str(error)) from error
        if read.keys() != {field.name for field in fields(cls)}:
            raise Damaged(f"a checkpoint that says {sorted(read)}; read it with the negindex that wrote it")
        if read["version"] < 0 or not re.fullmatch("[0-9a-f]{64}", read["root"]):
            raise Damaged(
                f"a checkpoint of version {read['version']} whose root is {read['root'][:64]!r}; take another copy"
            )
        return cls(**read)

    def save(self, path: Path | str) -> None:
        """Write the JSON to a new file. NotAllowed if it exists: the older checkpoint is the one that tells more."""
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(self.to_json() + "\n")
        except FileExistsError as error:
            raise NotAllowed(f"{path} exists, and no checkpoint is overwritten; give another name") from error
        except FileNotFoundError as error:
            raise NotThere(f"{Path(path).parent} is no directory; make it first") from error

    @classmethod
    def load(cls, path: Path | str) -> Checkpoint:
        """Read what ``save`` wrote; raises NotThere or Damaged."""
        try:
            return cls.from_json(Path(path).read_bytes())
        except FileNotFoundError as error:
            raise NotThere(f"{path} is not there; `negindex checkpoint SET --out {path}` exports one") from error
