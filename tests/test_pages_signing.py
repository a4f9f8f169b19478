"""What is changed on pages is signed by the service's key; a receipt's checkpoint by that key holds on the page."""

import re

import httpx
import pytest
import torch
from browsing import COUNTER, SHAPE, Browser, browsers, png
from click.testing import CliRunner
from serving import processes

from negindex import Collection
from negindex.errors import InvalidInput, NotAllowed, NotThere
from negindex.keys import Key
from negindex.receipts import Receipt, SetStated
from negindex.service.access import create_key
from negindex.service.run import check
from negindex.service.settings import Settings
from negindex.tools.cli import main

ART = "/pages/sets/art"


@pytest.fixture
def office(tmp_path):
    """A directory with a signed set, two admins' keys, and the service's and an operator's own signing keys."""
    root = tmp_path / "sets"
    root.mkdir()
    operator, service = Key.new(), Key.new()
    service.save(tmp_path / "service.key")
    with Collection.create(root / "art", SHAPE, "pixels", key=operator) as art:
        art.add(torch.zeros(1, *SHAPE).numpy(), ["flat.png"])
    admins = [create_key(root, ["admin"])[0] for _ in range(2)]
    return root, admins, operator.public, service.public


def every_change(ann, ben):
    """All that the pages can do with claims; gives what each was answered."""
    first = ann.open_claim("art", [("a.png", png(1))])
    at, told = f"{ART}/claims/{first}", []
    told.append(ann.send(f"{at}/amend", {"field.work": "another painting"}))
    told.append(ann.confirm(ann.send(f"{at}/attach", {"prefix": "more/"}, [("b.png", png(2))]), "attach-now"))
    told.append(ann.send(f"{at}/accept"))
    told.append(ann.send(f"{at}/hold"))
    told.append(ben.send(f"{at}/hold"))
    told.append(ann.send(f"{at}/release"))
    told.append(ben.send(f"{at}/release"))
    told.append(ann.send(f"{at}/dispute", COUNTER))
    told.append(ann.send(f"{at}/stay", {"field.suit": "12-345"}))
    told.append(ann.send(f"{at}/uphold"))
    told.append(ann.send(f"{at}/withdraw"))
    told.append(ann.send(f"{at}/erase-ask"))
    told.append(ben.send(f"{at}/erase-approve"))
    second = ann.open_claim("art", [("c.png", png(3))])
    told.append(ann.send(f"{ART}/withdraw-now", {"claim": str(second), "reason": "by mistake"}))
    return told


def versions_of(root):
    with Collection.open(root / "art") as art:
        return [(one.action, art.checkpoint(one.version)) for one in art.versions()]


def test_every_change_on_pages_is_signed_by_the_services_key(tmp_path, office):
    root, admins, operator, service = office
    with browsers(root, key=tmp_path / "service.key") as browser:
        told = every_change(*map(browser, admins))
    assert [one.status_code for one in told[:-1]] == [303] * (len(told) - 1), [one.text for one in told[:-1]]
    assert told[-1].status_code == 200
    before, after = versions_of(root)[:2], versions_of(root)[2:]
    assert all(point.is_signed_by(operator) for _, point in before)
    assert all(point.is_signed_by(service) for _, point in after)
    assert {action for action, _ in after} >= {"open", "accept", "amend", "attach", "hold", "withdraw", "erase"}
    with Collection.open(root / "art") as art:
        assert art.verify([point for _, point in after]) == []


def test_without_a_key_nothing_is_signed_and_the_page_says_so(office):
    root, admins, operator, _ = office
    with browsers(root) as browser:
        ann = browser(admins[0])
        said = f"Newest version signed by</dt><dd>key {operator.id}</dd><dt>Changes made here are signed by</dt>"
        assert f"{said}<dd>nobody</dd>" in ann.get(f"{ART}/status").text
        ann.open_claim("art", [("a.png", png(1))])
        assert "Newest version signed by</dt><dd>nobody</dd>" in ann.get(f"{ART}/status").text
    assert [point.signature for _, point in versions_of(root)[2:]] == [""] * len(versions_of(root)[2:])


def receipt_of(root):
    with Collection.open(root / "art") as art:
        stated = SetStated(art.set_id, art.newest().version, len(art), art.checkpoint())
        words = dict.fromkeys(("kernel", "kernel_fingerprint", "gate", "rule", "copies", "window", "scheduler"), "none")
        more = {"steps": (), "degraded_steps": 0, "libraries": {}}
        return Receipt(made=art.newest().at, sets=(stated,), reference=(), **words, **more)


def test_a_receipt_says_on_the_page_which_key_signed_its_checkpoint(tmp_path, office):
    root, admins, operator, service = office
    early = receipt_of(root)
    with browsers(root, key=tmp_path / "service.key") as browser:
        ann = browser(admins[0])
        ann.open_claim("art", [("a.png", png(1))])
        late = receipt_of(root)
        shown = [ann.send("/pages/receipts", {"text": one.to_json()}).text for one in (early, late)]
        assert service.text in ann.get("/pages/receipts").text.replace("&#43;", "+")
    signed = rf"<strong>holds</strong> [^<]*checkpoint in the receipt: signed by {service.id} \(key {service.id}\)"
    assert re.search(signed, shown[1])
    assert not re.search(signed, shown[0])
    assert re.search(rf"<strong>cannot tell</strong> [^<]*unchanged since key {operator.id} did", shown[0])
    forged = late.to_json().replace(service.text, Key.new().public.text)
    with browsers(root, key=tmp_path / "service.key") as browser:
        said = browser(admins[0]).send("/pages/receipts", {"text": forged}).text
    assert "Something is false" in said


def test_the_command_signs_with_a_locked_key_in_every_worker(tmp_path, office):
    root, admins, _, _ = office
    locked = Key.new()
    locked.save(tmp_path / "locked.key", "open sesame")
    words = ("--workers", 2, "--key", tmp_path / "locked.key")
    with processes(root, *words, NEGINDEX_KEY_PASSPHRASE="open sesame") as (url, service):
        for _ in range(6):  # each on a connection of its own, to either worker
            with httpx.Client(base_url=url, timeout=60) as client:
                ann = Browser(client)
                assert ann.login(admins[0]).status_code == 303
                told = ann.send(f"{ART}/new-claim", {"regime": "hash-only", "hashes": "sha256:" + "ab" * 32})
                assert ann.confirm(told, "open-claim").status_code == 303, told.text
    assert all(point.is_signed_by(locked.public) for _, point in versions_of(root)[2:])
    assert not any("sesame" in line for line in service.lines)


def test_a_key_that_cannot_be_used_is_refused_before_anything_listens(tmp_path, office):
    root, _, _, _ = office
    Key.new().save(tmp_path / "locked.key", "open sesame")
    with pytest.raises(NotThere):
        check(Settings(root=root, key=tmp_path / "none"))
    with pytest.raises(InvalidInput, match="is not opened by this passphrase"):
        check(Settings(root=root, key=tmp_path / "locked.key"), "wrong")
    with pytest.raises(InvalidInput, match="give its passphrase"):
        check(Settings(root=root, key=tmp_path / "locked.key"))
    (tmp_path / "service.key").chmod(0o644)
    with pytest.raises(NotAllowed, match="others than its owner"):
        check(Settings(root=root, key=tmp_path / "service.key"))


def test_the_key_of_other_commands_signs_here_too(tmp_path, office, monkeypatch):
    root, _, _, _ = office
    monkeypatch.setenv("NEGINDEX_KEY", str(tmp_path / "service.key"))
    done = CliRunner().invoke(main, ["serve", str(root), "--print-config"])
    assert f'"value": "{tmp_path / "service.key"}",\n    "from": "environment NEGINDEX_KEY"' in done.stdout
