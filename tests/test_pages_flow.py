"""What is done on the pages, from a notice to an erasure: by the forms that the pages themselves hold."""

import io
import json
import re
import threading

import httpx
import numpy as np
import pytest
import torch
from browsing import COUNTER, NOTICE, SHAPE, again, browsers, hidden, png
from claim_model import filled
from PIL import Image
from serving import processes

from negindex import Collection
from negindex.receipts import Receipt
from negindex.sampler.png import save_image
from negindex.service.access import create_key, revoke_key
from negindex.service.pages.noted import REVEALS, note_reveal, reveals

ART = "/pages/sets/art"


@pytest.fixture
def office(tmp_path):
    """A set of one picture, and who works on it."""
    kinds = {"ann": "curator", "ben": "approver", "cem": "approver", "dora": "auditor"}
    keys = {name: create_key(tmp_path, [role]) for name, role in kinds.items()}
    with Collection.create(tmp_path / "art", SHAPE, "pixels") as art:
        art.add(torch.zeros(1, *SHAPE).numpy(), ["flat.png"])
    with browsers(tmp_path) as browser:
        people = {name: browser(text) for name, (text, _) in keys.items()}
        yield tmp_path, people, {name: key.id for name, (_, key) in keys.items()}


def art_of(root):
    return Collection.open(root / "art")


def rows_of(root, number):
    return list(art_of(root).claims.show(number).rows)


# -- claims --------------------------------------------------------------------------------


def test_near_duplicates_are_shown_before_anything_is_put_in(office):
    root, people, _ = office
    first = people["ann"].open_claim("art", [("a.png", png(1))])
    before = art_of(root).newest().version
    shown = people["ann"].send(
        f"{ART}/new-claim", {"regime": "dmca", "prefix": "n/", **NOTICE}, [("b.jpg", again(png(1)))]
    )
    (row,) = rows_of(root, first)
    assert re.search(rf"<strong>\d+ bits apart</strong>\s*<p><a href=\"{ART}/rows/{row}\">", shown.text)
    assert shown.text.count("data:image/png;base64,") == 2  # the upload, blurred and clear
    assert art_of(root).newest().version == before


def test_what_is_missing_keeps_a_claim_incomplete_until_it_is_amended(office):
    _, people, _ = office
    number = people["ann"].open_claim("art", [("a.png", png(1))], **{"field.work": ""})
    text = people["ben"].get(f"{ART}/claims/{number}").text
    assert "Missing before it can be accepted" in text
    assert people["ben"].send(f"{ART}/claims/{number}/accept").status_code == 422
    assert people["ann"].send(f"{ART}/claims/{number}/amend", {"field.work": "a painting"}).status_code == 303
    assert people["ben"].send(f"{ART}/claims/{number}/accept").status_code == 303


def test_a_claim_goes_from_notice_to_erasure_and_samplers_follow(office):
    root, people, ids = office
    ann, ben, cem = people["ann"], people["ben"], people["cem"]
    number = ann.open_claim("art", [("a.png", png(1))])
    (row,) = rows_of(root, number)
    follows = art_of(root)
    at = f"{ART}/claims/{number}"
    assert row not in follows.in_force()
    assert ben.send(f"{at}/accept", {"reason": "complete"}).status_code == 303
    assert row in follows.in_force()
    assert ann.send(f"{at}/dispute", COUNTER).status_code == 303
    assert "Clocks" in ben.get(at).text
    assert ben.send(f"{at}/withdraw").status_code == 403  # a clock says: not before
    assert ben.send(f"{at}/withdraw", {"early": "yes", "reason": "taken back"}).status_code == 303
    assert row not in follows.in_force()
    assert ben.send(f"{at}/erase-ask", {"keep_out": "yes"}).status_code == 303
    assert art_of(root).row(row).stored
    same = ben.send(f"{at}/erase-approve")
    assert same.status_code == 403
    assert "another person" in same.text
    assert cem.send(f"{at}/erase-approve").status_code == 303
    record = art_of(root).row(row)
    assert record.state == "erased"
    assert not record.stored
    assert cem.get(at).status_code == 200
    assert [event.by for event in art_of(root).claims.show(number).history][-1:] in ([""], [f"key {ids['cem']}"])
    shown = ann.send(f"{ART}/new-claim", {"regime": "dmca", "prefix": "", **NOTICE}, [("a.png", png(1))])
    assert "cannot become rows" in shown.text  # it is kept out


def test_the_record_names_people_by_their_keys(office):
    root, people, ids = office
    number = people["ann"].open_claim("art", [("a.png", png(1))])
    people["ben"].send(f"{ART}/claims/{number}/accept")
    history = art_of(root).claims.show(number).history
    assert [event.by for event in history][:2] == [f"key {ids['ann']}", f"key {ids['ben']}"]


def test_a_hold_takes_two_keys(office):
    root, people, _ = office
    number = people["ann"].open_claim("art", [("a.png", png(1))])
    at = f"{ART}/claims/{number}"
    assert people["ann"].send(f"{at}/hold").status_code == 303
    assert people["ann"].send(f"{at}/hold").status_code == 403
    assert people["ben"].send(f"{at}/hold").status_code == 303
    assert art_of(root).claims.show(number).hold == "held"


def test_the_queue_shows_whose_time_runs_out_first(office):
    root, people, _ = office
    with art_of(root) as art:
        numbers = []
        for regime in ("in-house", "gdpr-erasure", "dsa", "take-it-down"):
            fields = filled(regime, "accepted")
            rows = torch.full((1, *SHAPE), float(len(numbers) + 1)).numpy()
            numbers.append(art.claims.open(regime, fields, rows=rows, source_keys=[regime]).number)
        due = [one.claim for one in art.claims.due()]
    shown = re.findall(r'<th scope="row"><a href="[^"]*/claims/(\d+)"', people["dora"].get(f"{ART}/claims").text)
    assert len(due) >= 2
    assert [int(one) for one in shown][: len(set(due))] == list(dict.fromkeys(due))
    assert str(numbers[0]) not in shown  # in-house claims are not in the queue
    everything = people["dora"].get(f"{ART}/claims?state=all").text
    assert f'claims/{numbers[0]}"' in everything


def test_more_images_are_attached_after_a_look(office):
    root, people, _ = office
    number = people["ann"].open_claim("art", [("a.png", png(1))])
    people["ben"].send(f"{ART}/claims/{number}/accept")
    shown = people["ann"].send(f"{ART}/claims/{number}/attach", {"prefix": "late/"}, [("b.png", png(2))])
    assert people["ann"].confirm(shown, "attach-now").status_code == 303
    assert list(art_of(root).claims.show(number).rows.values()) == ["a.png", "late/b.png"]
    assert "late/b.png" in art_of(root).source_keys()


def test_rows_that_are_alike_go_under_the_claim_when_they_are_ticked(office):
    root, people, _ = office
    first = people["ann"].open_claim("art", [("a.png", png(1))])
    people["ben"].send(f"{ART}/claims/{first}/accept")
    shown = people["ann"].send(
        f"{ART}/new-claim", {"regime": "dmca", "prefix": "n/", **NOTICE}, [("b.jpg", again(png(1)))]
    )
    assert re.search(r'type="checkbox" name="with" value="a.png"', shown.text)
    told = people["ann"].client.post(
        f"{ART}/open-claim", data=_lists([*hidden(shown.text, "open-claim"), ("with", "a.png")])
    )
    number = int(told.headers["location"].rpartition("/")[2])
    assert sorted(art_of(root).claims.show(number).rows.values()) == ["a.png", "n/b.jpg"]


def _lists(pairs):
    found = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


def test_hash_only_rules_take_no_image(office):
    root, people, _ = office
    digest = "sha256:" + "ab" * 32
    refused = people["ann"].send(f"{ART}/new-claim", {"regime": "hash-only"}, [("a.png", png(1))])
    assert refused.status_code == 403
    shown = people["ann"].send(f"{ART}/new-claim", {"regime": "hash-only", "hashes": digest})
    number = int(people["ann"].confirm(shown, "open-claim").headers["location"].rpartition("/")[2])
    assert art_of(root).claims.show(number).hashes == [("sha256", "ab" * 32)]


def test_many_are_withdrawn_after_a_preview_that_changes_nothing(office):
    root, people, _ = office
    numbers = [people["ann"].open_claim("art", [(f"{i}.png", png(i))]) for i in range(3)]
    for number in numbers[:2]:
        people["ben"].send(f"{ART}/claims/{number}/accept")
    people["ann"].send(f"{ART}/claims/{numbers[1]}/dispute", COUNTER)
    before = art_of(root).newest().version
    shown = people["ben"].send(f"{ART}/withdraw", {"claim": numbers})
    assert art_of(root).newest().version == before
    assert "left as it is: a clock says: not yet" in shown.text
    assert "1 row would answer no sampler" in shown.text
    done = people["ben"].client.post(f"{ART}/withdraw-now", data=_lists(hidden(shown.text, "withdraw-now")))
    assert done.status_code == 200
    assert [art_of(root).claims.show(number).state for number in numbers] == ["withdrawn", "disputed", "withdrawn"]
    assert people["ann"].send(f"{ART}/withdraw-now", {"claim": [numbers[1]]}).status_code == 403


def test_the_command_serves_pages_and_any_worker_takes_a_session(tmp_path):
    text, _ = create_key(tmp_path, ["auditor"])
    Collection.create(tmp_path / "art", SHAPE, "pixels").close()
    with processes(tmp_path, "--workers", 2) as (url, _), httpx.Client(base_url=url, timeout=60) as client:
        token = dict(hidden(client.get("/pages/login").text, "/pages/login"))["token"]
        told = client.post("/pages/login", data={"token": token, "key": text})
        assert told.status_code == 303
        cookies = {"negindex-session": client.cookies["negindex-session"]}
        for _ in range(8):  # each on a connection of its own, to either worker
            assert httpx.get(f"{url}{ART}/claims", cookies=cookies, timeout=60).status_code == 200


# -- erasing by two ------------------------------------------------------------------------


def withdrawn(people, seed=1):
    number = people["ann"].open_claim("art", [("a.png", png(seed))])
    people["ben"].send(f"{ART}/claims/{number}/accept")
    people["ben"].send(f"{ART}/claims/{number}/withdraw")
    return number, f"{ART}/claims/{number}"


def test_nobody_approves_what_nobody_asked_for_or_what_was_taken_back(office):
    root, people, _ = office
    number, at = withdrawn(people)
    assert people["cem"].send(f"{at}/erase-approve").status_code == 404
    people["ben"].send(f"{at}/erase-ask")
    assert people["cem"].send(f"{at}/erase-ask").status_code == 403  # it is asked for already
    people["cem"].send(f"{at}/erase-take-back")
    assert people["cem"].send(f"{at}/erase-approve").status_code == 404
    assert art_of(root).claims.show(number).state == "withdrawn"


def test_what_a_revoked_key_asked_for_is_void(office):
    root, people, ids = office
    number, at = withdrawn(people)
    people["ben"].send(f"{at}/erase-ask")
    revoke_key(root, ids["ben"])
    assert people["cem"].send(f"{at}/erase-approve").status_code == 404
    assert art_of(root).claims.show(number).state == "withdrawn"


def test_a_claim_in_force_under_a_law_without_erasure_is_not_asked_for(office):
    _, people, _ = office
    number = people["ann"].open_claim("art", [("a.png", png(1))])
    told = people["ben"].send(f"{ART}/claims/{number}/erase-ask")
    assert told.status_code == 403
    assert "leads to no erasure" in told.text


def test_a_held_claim_stays_and_the_asking_too(office):
    root, people, _ = office
    number, at = withdrawn(people)
    people["ann"].send(f"{at}/hold")
    people["ben"].send(f"{at}/hold")
    people["ben"].send(f"{at}/erase-ask")
    assert people["cem"].send(f"{at}/erase-approve").status_code == 403
    assert art_of(root).claims.show(number).state == "withdrawn"
    assert "asked for it on" in people["cem"].get(at).text


# -- looking -------------------------------------------------------------------------------


def test_each_reveal_is_written_down_and_nothing_else_is(office):
    root, people, ids = office
    number = people["ann"].open_claim("art", [("jane-roe.png", png(1))])
    (row,) = rows_of(root, number)
    people["ann"].get(f"{ART}/claims/{number}")
    people["ann"].get(f"{ART}/rows/{row}/blurred")
    assert not (root / REVEALS).exists()
    told = people["ann"].send(f"{ART}/rows/{row}/reveal", headers={"accept": "application/json"})
    assert told.json()["picture"].startswith("data:image/png;base64,")
    people["ben"].send(f"{ART}/rows/{row}/reveal")
    people["ben"].send(f"{ART}/claims/{number}/claimant")
    text = (root / REVEALS).read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert [(one["key"], one["what"], one["set"], one["number"]) for one in found] == [
        (ids["ann"], "row", "art", row),
        (ids["ben"], "row", "art", row),
        (ids["ben"], "claimant", "art", number),
    ]
    assert "roe" not in text.lower()
    assert (root / REVEALS).stat().st_mode & 0o077 == 0
    page = people["dora"].get("/pages/reveals").text
    assert page.count(f'<td class="key">{ids["ben"]}</td>') == 2


def test_a_picture_that_cannot_be_written_down_is_not_shown(office):
    root, people, _ = office
    (root / REVEALS).mkdir()
    with pytest.raises(IsADirectoryError):
        people["ann"].send(f"{ART}/rows/1/reveal")


def test_reveals_of_many_at_once_are_whole_lines(tmp_path):
    threads = [
        threading.Thread(target=lambda: [note_reveal(tmp_path, "k", "row", "art", n) for n in range(25)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.number for one in reveals(tmp_path)) == sorted([*range(25)] * 4)


def test_personal_fields_are_on_no_page_until_they_are_asked_for(office):
    _, people, _ = office
    number = people["ann"].open_claim("art", [("a.png", png(1))])
    pages = [f"{ART}/claims/{number}", f"{ART}/claims", f"{ART}/history", f"{ART}/status", "/pages"]
    for person in people.values():
        assert not any("Jane Roe" in person.get(page).text for page in pages)
    assert "Jane Roe" in people["ben"].send(f"{ART}/claims/{number}/claimant").text


def test_a_blurred_picture_is_six_by_six_colours(office):
    root, people, _ = office
    number = people["ann"].open_claim("art", [("a.png", png(1))])
    (row,) = rows_of(root, number)
    answer = people["ann"].get(f"{ART}/rows/{row}/blurred").content
    blurred = np.asarray(Image.open(io.BytesIO(answer)).convert("L"), np.float64)
    clear = 127.5 * art_of(root).stored([row]).rows[0].astype(np.float64)  # (3, H, W), from -1 to 1
    assert np.abs(np.diff(blurred)).max() < 12  # no edge is left
    assert np.abs(np.diff(clear)).max() > 40


def test_search_finds_the_row_of_the_same_picture_first(office):
    root, people, _ = office
    for seed in (1, 2, 3):
        number = people["ann"].open_claim("art", [(f"{seed}.png", png(seed))])
        people["ben"].send(f"{ART}/claims/{number}/accept")
    text = people["ben"].send(f"{ART}/search", None, [("x.jpg", again(png(2)))]).text
    first = re.search(r'Nearest by PDQ.*?<a href="[^"]*/rows/(\d+)">', text, re.S)
    assert art_of(root).row(int(first[1])).source_key == "2.png"


# -- sets ----------------------------------------------------------------------------------


def test_history_tells_what_was_in_force_at_a_version_and_at_a_time(office):
    root, people, _ = office
    withdrawn(people)
    versions = art_of(root).versions()
    accepted = next(one for one in reversed(versions) if one.action == "force")  # may be of one moment with accept
    for at in (str(accepted.version), accepted.at):
        text = people["dora"].get(f"{ART}/history", params={"at": at}).text
        assert f"Version {accepted.version}</h2>" in text
        assert "2 rows in force" in text
        assert "a.png" in text
    assert people["dora"].get(f"{ART}/history?at=999").status_code == 404
    assert people["dora"].get(f"{ART}/history?at=soon").status_code == 422
    assert people["dora"].get(f"{ART}/history?at=1999-01-01").status_code == 404


def test_status_draws_the_calibration(office):
    root, people, _ = office
    assert "<svg" not in people["dora"].get(f"{ART}/status").text
    with art_of(root) as art:
        art.add(
            torch.randn(256, *SHAPE, generator=torch.Generator().manual_seed(0)).numpy(), [f"r{i}" for i in range(256)]
        )
        art.calibrate()
        levels = len(art.calibration().levels)
    text = people["dora"].get(f"{ART}/status").text
    assert text.count("<polyline") == 3
    points = re.findall(r'points="([^"]*)"', text)
    assert all(len(one.split()) == levels for one in points)
    assert all(0 <= float(n) <= 560 for one in points for pair in one.split() for n in pair.split(","))


def test_a_set_that_cannot_be_read_hides_no_other(office):
    root, people, _ = office
    (root / "bad").mkdir()
    (root / "bad" / "catalogue.sqlite").write_bytes(b"no database")
    text = people["dora"].get("/pages").text
    assert "cannot be read" in text
    assert f'href="{ART}/claims"' in text


# -- receipts ------------------------------------------------------------------------------


def test_a_receipt_is_checked_against_the_sets_own_log(office, made_receipt):
    root, people, _ = office
    art = art_of(root)
    good = made_receipt(art)
    text = people["dora"].send("/pages/receipts", {"text": good.to_json()}).text
    assert "Something is false" not in text
    assert re.search(r'class="holds"><strong>holds</strong> set [0-9a-f]+ at version', text)
    lying = good.to_json().replace(f'"rows": {len(art)}', '"rows": 99')
    assert "Something is false" in people["dora"].send("/pages/receipts", {"text": lying}).text


def test_a_png_is_held_to_the_pixels_that_its_receipt_speaks_of(office, made_receipt, tmp_path):
    _, people, _ = office
    image = Image.open(io.BytesIO(png(1))).convert("RGB")
    save_image(image, made_receipt(art_of(tmp_path)), tmp_path / "made.png")
    content = (tmp_path / "made.png").read_bytes()
    text = people["dora"].send("/pages/receipts", None, [("made.png", content)]).text
    assert "<strong>holds</strong> image: has the very pixels" in text
    assert people["dora"].send("/pages/receipts", None, [("none.png", png(2))]).status_code == 404
    assert people["dora"].send("/pages/receipts", {"text": "{}"}).status_code == 422


@pytest.fixture
def made_receipt():
    from negindex.receipts import SetStated

    def make(art):
        stated = SetStated(art.set_id, art.newest().version, len(art), art.checkpoint())
        words = dict.fromkeys(("kernel", "kernel_fingerprint", "gate", "rule", "copies", "window", "scheduler"), "none")
        more = {"steps": (), "degraded_steps": 0, "libraries": {}}
        return Receipt(made=art.newest().at, sets=(stated,), reference=(), **words, **more)

    return make
