"""Who may ask what: every route by every kind of caller, as the OpenAPI document says; and what keys are kept as."""

import json
import stat
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import torch
from click.testing import CliRunner
from expected_roles import API, PAGES, every_route
from serving import serving
from small_sets import SHAPE, rows

from negindex import Collection
from negindex.errors import Damaged, InvalidInput, NotAllowed, NotThere
from negindex.sampler.for_pages import ForPages
from negindex.service import wire
from negindex.service.access import Door, create_key, load_keys, revoke_key
from negindex.service.app import make_app
from negindex.service.document import document
from negindex.service.grants import NOBODY, ROLES
from negindex.service.settings import Settings
from negindex.service.wire import packed
from negindex.tools.cli import main

OTHERS = ("none", "nonsense", "expired", "revoked", "other set")
ONE = torch.ones(1, dtype=torch.float64)
BODIES = {  # a right question of each kind
    "posterior": ({"x_t": torch.ones(1, *SHAPE), "alpha": ONE, "sigma": ONE}, {}),
    "near": ({"x": torch.ones(1, *SHAPE), "radius": ONE}, {}),
    "moments": ({}, {}),
    "holds": ({"digests": torch.zeros(1, 32, dtype=torch.uint8)}, {}),
    "rows": ({"ids": torch.tensor([1])}, {}),
    "source-keys": ({"ids": torch.tensor([1])}, {}),
}


def routes():
    """(method, path, roles) of everything that the document offers; roles: those that it should be for."""
    offered = document(make_app(Settings()))["paths"]
    asked = [(method.upper(), path) for path, methods in offered.items() for method in methods]
    return [(method, path, API.get(f"{method} {path}", ())) for method, path in asked]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    for name in ("a", "b"):
        with Collection.create(root / name, SHAPE, "pixels") as made:
            made.add(rows(3), ["a", "b", "c"])
    keys = {role: create_key(root, [role])[0] for role in ROLES}
    keys["expired"] = create_key(root, ROLES, days=1e-9)[0]
    keys["other set"] = create_key(root, ROLES, ["b"])[0]
    keys["revoked"], gone = create_key(root, ROLES)
    revoke_key(root, gone.id)
    keys["nonsense"] = keys["admin"][:-1] + ("A" if keys["admin"][-1] != "A" else "B")
    with serving(root, strangers=1e6) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client, keys


def ask(client, method, path, key=None):
    arrays, said = BODIES.get(path.rpartition("/")[2], ({}, {}))
    body = packed(arrays, said) if method == "POST" else None
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    headers |= {} if body is None else {"Content-Type": wire.MEDIA_TYPE}
    return client.request(method, path.format(name="a", version=1), content=body, headers=headers)


@pytest.mark.parametrize("who", [*ROLES, *OTHERS])
@pytest.mark.parametrize(("method", "path", "roles"), routes(), ids=lambda part: str(part).rpartition("/")[2])
def test_a_route_is_open_to_its_roles_and_to_nobody_else(service, method, path, roles, who):
    client, keys = service
    assert roles, f"{method} {path} is not among the expected roles; say who it is for"
    told = ask(client, method, path, keys.get(who))
    if roles == ("anybody",):
        expected = 200
    elif who in ROLES:
        expected = 200 if who in roles else 403
    elif who == "other set":
        expected = 403 if "{name}" in path else 200
    else:
        expected = 401
    assert told.status_code == expected, told.text
    if expected != 200:
        assert told.headers["content-type"] == "application/problem+json"
        assert told.json()["status"] == expected
        assert told.json()["code"] == "NotAllowed"


def test_the_document_says_of_every_route_who_it_is_for():
    offered = document(make_app(Settings()))["paths"]
    said = {f"{m.upper()} {path}": tuple(one["x-roles"]) for path, ms in offered.items() for m, one in ms.items()}
    assert said == API


def test_every_route_of_the_application_has_its_expectation():
    """Those too that stand in no document."""
    app = make_app(Settings(), images=ForPages())
    assert {f"{method} {route.path}" for method, route in every_route(app)} == API.keys() | PAGES.keys()


def test_sets_that_a_key_is_not_for_are_not_listed(service):
    client, keys = service
    assert ask(client, "GET", "/v1/sets", keys["other set"]).json() == {"sets": ["b"]}
    assert ask(client, "GET", "/v1/sets", keys["sampler"]).json() == {"sets": ["a", "b"]}


@pytest.mark.parametrize("header", ["", "Bearer", "Basic {}", "Bearer  {}", "{}", "bearer {}", "bearer\t{}"])
def test_only_the_one_way_of_showing_a_key_counts(service, header):
    client, keys = service
    told = client.get("/v1/sets", headers={"Authorization": header.format(keys["admin"])})
    assert told.status_code == (200 if header == "bearer {}" else 401)  # the scheme's case is free


def test_a_revoked_key_stops_working_at_once_and_the_others_go_on(tmp_path):
    text, key = create_key(tmp_path, ["sampler"])
    other, _ = create_key(tmp_path, ["auditor"])
    door = Door(tmp_path, keyless=False)
    assert door.caller(f"Bearer {text}").id == key.id
    revoke_key(tmp_path, key.id)
    assert door.caller(f"Bearer {text}") is None
    assert door.caller(f"Bearer {other}").roles == ("auditor",)


def test_a_key_ends_with_its_last_day(tmp_path):
    text, key = create_key(tmp_path, ["sampler"], days=2)
    door, end = Door(tmp_path, keyless=False), datetime.fromisoformat(key.expires)
    assert door.caller(f"Bearer {text}", end - timedelta(seconds=1)) is not None
    assert door.caller(f"Bearer {text}", end) is None
    assert abs(end - datetime.now(UTC) - timedelta(days=2)) < timedelta(minutes=1)


def test_without_keys_anybody_here_may_be_guarded_until_there_is_a_key(tmp_path):
    door = Door(tmp_path, keyless=True)
    assert door.caller(None) == NOBODY
    assert not NOBODY.may(["curator", "approver", "admin"])
    assert door.caller("Bearer nonsense") is None
    create_key(tmp_path, ["sampler"])
    assert door.caller(None) is None
    (tmp_path / "keys").unlink()
    assert door.caller(None) is None  # somebody who takes the file away opens nothing


def test_without_keys_only_this_machines_own_names_are_answered(tmp_path):
    """A page from elsewhere, whose name was turned to 127.0.0.1 meanwhile, learns nothing from a browser here."""
    with serving(tmp_path) as url, httpx.Client(base_url=url) as client:
        assert client.get("/v1/sets").status_code == 200
        assert client.get("/v1/sets", headers={"Host": "localhost:1"}).status_code == 200
        assert client.get("/v1/sets", headers={"Host": "[::1]:8321"}).status_code == 200
        for other in ("elsewhere.example", "127.0.0.1.elsewhere.example", "[", "[::2]", "192.0.2.1:8321"):
            assert client.get("/v1/sets", headers={"Host": other}).status_code == 403


def test_what_is_kept_is_a_hash_that_the_owner_alone_can_read(tmp_path):
    text, key = create_key(tmp_path, ["sampler"], ["a"], name="ci")
    path = tmp_path / "keys"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert text[17:] not in path.read_text()
    assert load_keys(tmp_path) == [key]
    path.chmod(0o640)
    with pytest.raises(NotAllowed, match="chmod 600"):
        load_keys(tmp_path)
    with pytest.raises(NotAllowed):
        Door(tmp_path, keyless=True).caller(None)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": 2, "keys": []}', '{"format": 1, "keys": [{"id": "x"}]}', "[" * 100_000]
)
def test_a_damaged_file_of_keys_lets_nobody_in(tmp_path, text):
    (tmp_path / "keys").write_text(text)
    (tmp_path / "keys").chmod(0o600)
    with pytest.raises(Damaged, match="cannot be read as keys"):
        Door(tmp_path, keyless=True).caller(None)


def test_keys_that_make_no_sense_are_refused(tmp_path):
    for roles, sets, days in (
        ((), (), None),
        (("boss",), (), None),
        (("admin",), ("../a",), None),
        (("admin",), (), 0),
    ):
        with pytest.raises(InvalidInput):
            create_key(tmp_path, roles, sets, days=days)
    with pytest.raises(NotThere):
        create_key(tmp_path / "none", ["admin"])
    with pytest.raises(NotThere, match="no key 'x'"):
        revoke_key(tmp_path, "x")


def test_the_command_shows_a_key_once_and_lists_no_secret(tmp_path):
    def run(*words):
        done = CliRunner().invoke(main, ["apikey", *map(str, words)])
        assert done.exit_code == 0, done.output
        return done

    text = run("create", tmp_path, "--role", "sampler", "--set", "a", "--days", 3, "--name", "ci").stdout.strip()
    (listed,) = json.loads(run("list", tmp_path, "--json").stdout)
    assert (listed["state"], listed["roles"], listed["sets"], listed["name"]) == ("live", ["sampler"], ["a"], "ci")
    assert "sha256" not in listed
    run("revoke", tmp_path, listed["id"])
    shown = run("list", tmp_path).stdout
    assert "revoked" in shown
    assert text[17:] not in shown
    assert Door(tmp_path, keyless=False).caller(f"Bearer {text}") is None
