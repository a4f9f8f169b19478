"""Keys: who signed, for exactly these bytes; a secret that nobody else can read and nothing overwrites."""

import json
import os
import pickle
import stat
import subprocess
import sys
from base64 import b64decode, b64encode

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization as to
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from negindex.errors import InvalidInput, NotAllowed, NotThere
from negindex.keys import Key, PublicKey, is_locked
from negindex.tools.cli import main

RFC_8032 = [  # section 7.1, tests 1 and 2: secret, public, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
]
KEY, OTHER = Key.new(), Key.new()


@pytest.fixture
def saved(tmp_path):
    KEY.save(tmp_path / "operator.key")
    return tmp_path / "operator.key"


def pem_of(secret):
    return secret.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, to.NoEncryption())


def private(path, content):
    path.touch(0o600)
    path.write_bytes(content)
    return path


# -- signatures --------------------------------------------------------------------------------


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_another_programs_key_signs_as_the_rfc_prints_it(tmp_path, secret, public, message, signature):
    foreign = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    key = Key.load(private(tmp_path / "foreign.pem", pem_of(foreign)))
    assert key.public.raw.hex() == public
    assert Key(foreign).sign(bytes.fromhex(message)) == key.sign(bytes.fromhex(message))
    signed = key.sign(bytes.fromhex(message))
    assert signed == b64encode(bytes.fromhex(signature)).decode()
    assert key.public.verifies(signed, bytes.fromhex(message))


@given(st.binary(max_size=64), st.integers(0, 511))
def test_a_signature_holds_for_its_key_and_bytes_alone(data, bit):
    signature = KEY.sign(data)
    assert KEY.public.verifies(signature, data)
    assert not OTHER.public.verifies(signature, data)
    assert not KEY.public.verifies(signature, data + b"\x00")
    raw = bytearray(b64decode(signature))
    raw[bit // 8] ^= 1 << bit % 8
    assert not KEY.public.verifies(b64encode(raw).decode(), data)


def test_only_the_one_text_of_a_signature_is_accepted():
    signature = KEY.sign(b"data")
    tail = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    same_bytes = signature[:-3] + tail[tail.index(signature[-3]) + 1] + "=="  # its unused bits set
    for other in ("", "é", signature + "\n", signature[:-1], signature[4:], signature * 2, same_bytes, "ed25519:"):
        assert not KEY.public.verifies(other, b"data"), other


# -- public keys -------------------------------------------------------------------------------


def test_a_public_key_comes_back_from_its_text(tmp_path):
    public = KEY.public
    assert PublicKey.from_text(public.text) == public
    assert json.loads(json.dumps(public.text)) == public.text
    assert len(public.id) == 16
    assert public.id != OTHER.public.id
    public.save(tmp_path / "a.pub")
    assert PublicKey.load(tmp_path / "a.pub") == public
    assert (tmp_path / "a.pub").read_text() == public.text + "\n"


@pytest.mark.parametrize(
    "text",
    ["", "ed25519:", KEY.public.text[8:], KEY.public.text[:-1], "rsa2551" + KEY.public.text],
    ids=["empty", "without a key", "without its kind", "cut short", "of another kind"],
)
def test_other_texts_are_no_public_key(text, tmp_path):
    (tmp_path / "a.pub").write_text(text)
    with pytest.raises(InvalidInput, match="no public key"):
        PublicKey.from_text(text)
    with pytest.raises(InvalidInput, match="holds no public key"):
        PublicKey.load(tmp_path / "a.pub")
    with pytest.raises(InvalidInput, match="32"):
        PublicKey(b"short")


def test_a_secret_key_given_for_a_public_one_is_not_repeated_in_the_error(saved):
    with pytest.raises(InvalidInput) as caught:
        PublicKey.load(saved)
    assert not any(line in str(caught.value) for line in saved.read_text().splitlines())


# -- secret keys -------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_saved_key_is_its_owners_alone_and_signs_the_same(tmp_path, umask):
    before = os.umask(umask)
    try:
        KEY.save(tmp_path / "a.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.key").stat().st_mode) == 0o600
    assert (tmp_path / "a.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert Key.load(tmp_path / "a.key").sign(b"data") == KEY.sign(b"data")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o601])
def test_a_key_that_others_can_reach_is_refused(saved, mode):
    saved.chmod(mode)
    for read in (Key.load, is_locked):
        with pytest.raises(NotAllowed, match=f"mode {mode:o}.*chmod 600 {saved}"):
            read(saved)


def test_no_key_is_overwritten(saved):
    held = saved.read_bytes()
    for thing in (OTHER, OTHER.public):
        with pytest.raises(NotAllowed, match="exists"):
            thing.save(saved)
    assert saved.read_bytes() == held


def test_nothing_is_left_of_a_key_that_could_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        KEY.save(tmp_path / "a.key")
    assert list(tmp_path.iterdir()) == []


def test_a_locked_key_opens_with_its_passphrase_alone(tmp_path):
    KEY.save(tmp_path / "a.key", "correct horse ü")
    assert is_locked(tmp_path / "a.key")
    assert Key.load(tmp_path / "a.key", "correct horse ü").public == KEY.public
    for wrong, said in ((None, "give its passphrase"), ("", "give its passphrase"), ("correct horse", "not opened")):
        with pytest.raises(InvalidInput, match=said):
            Key.load(tmp_path / "a.key", wrong)
    with pytest.raises(InvalidInput, match="empty"):
        KEY.save(tmp_path / "b.key", "")


def test_a_passphrase_for_an_open_key_is_not_needed(saved):
    assert not is_locked(saved)
    assert Key.load(saved, "unused").public == KEY.public


def test_what_is_no_key_is_named(tmp_path):
    with pytest.raises(NotThere, match="negindex key new"):
        Key.load(tmp_path / "none")
    with pytest.raises(NotThere, match="no directory"):
        KEY.save(tmp_path / "none" / "a.key")
    with pytest.raises(InvalidInput, match="cannot be read"):
        Key.load(tmp_path)
    with pytest.raises(InvalidInput, match="holds no secret key"):
        Key.load(private(tmp_path / "text", b"not a key"))
    with pytest.raises(InvalidInput, match="another kind than Ed25519"):
        Key.load(private(tmp_path / "ed448", pem_of(Ed448PrivateKey.generate())))


def test_the_secret_shows_in_no_repr_and_no_pickle():
    assert repr(KEY) == f"Key({KEY.public.id})"
    with pytest.raises(NotAllowed, match="load it from its file"):
        pickle.dumps(KEY)


def test_cryptography_loads_only_when_a_key_is_used():
    code = "import sys, negindex.keys, negindex.tools.key; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- the command -------------------------------------------------------------------------------


def run(*words, **options):
    return CliRunner().invoke(main, ["key", *map(str, words)], **options)


def test_key_new_makes_both_halves_and_prints_the_id(tmp_path):
    done = run("new", tmp_path / "a.key")
    key = Key.load(tmp_path / "a.key")
    assert (done.exit_code, done.stdout) == (0, key.public.id + "\n")
    assert PublicKey.load(tmp_path / "a.key.pub") == key.public
    for file in ("a.key", "a.key.pub"):
        assert run("show", tmp_path / file).stdout == f"{key.public.id}\n{key.public.text}\n"
        said = json.loads(run("show", tmp_path / file, "--json").stdout)
        assert said == {"id": key.public.id, "public": key.public.text}


@pytest.mark.parametrize("there", ["a.key", "a.key.pub"])
def test_key_new_overwrites_neither_half(tmp_path, there):
    (tmp_path / there).write_text("held")
    done = run("new", tmp_path / "a.key")
    assert (done.exit_code, done.stdout) == (12, "")
    assert "exists" in done.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["held"]


def test_a_passphrase_is_asked_for_or_comes_from_the_environment(tmp_path):
    assert run("new", tmp_path / "a.key", "--passphrase", input="secret\nsecret\n").exit_code == 0
    given = {"NEGINDEX_KEY_PASSPHRASE": "secret"}
    assert run("new", tmp_path / "b.key", "--passphrase", env=given).exit_code == 0
    for file in ("a.key", "b.key"):
        public = Key.load(tmp_path / file, "secret").public
        assert run("show", tmp_path / file, input="secret\n").stdout.splitlines() == [public.id, public.text]
        assert run("show", tmp_path / file, env=given).stdout.splitlines() == [public.id, public.text]
        assert run("show", tmp_path / file, input="wrong\n").exit_code == 2
