"""The pages: every one by every kind of caller, sessions and their cookies, forms of others, hostile words, limits."""

import doctest
import re
import stat
import time

import pytest
from browsing import NOTICE, SHAPE, Browser, again, browsers, hidden, png
from expected_roles import ALL, ANYBODY, PAGES, every_route

from negindex import Collection
from negindex.errors import Damaged, NotAllowed
from negindex.service.access import Door, create_key, revoke_key
from negindex.service.grants import ROLES
from negindex.service.pages import forms, words
from negindex.service.pages.rendering import POLICY
from negindex.service.pages.sessions import IDLE, LONGEST, SECRET, Sessions
from negindex.service.pages.site import router
from negindex.service.pages.visits import Visits

OTHERS = ("nobody", "forged", "expired", "revoked", "other set")
QUEUE = "/pages/sets/art/claims"


def routes():
    """(method, path, roles) of every page; roles: those that it should be for."""
    return [(method, route.path, PAGES.get(f"{method} {route.path}", ())) for method, route in every_route(router)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two sets, a claim that waits on each, and a browser of each kind of caller."""
    root = tmp_path_factory.mktemp("served")
    keys = {role: create_key(root, [role])[0] for role in ROLES}
    keys["expired"], late = create_key(root, ROLES, days=1)
    keys["revoked"], gone = create_key(root, ROLES)
    keys["other set"] = create_key(root, ROLES, ["other"])[0]
    for name in ("art", "other"):
        Collection.create(root / name, SHAPE, "pixels").close()
    with browsers(root) as browser:
        admin = browser(keys["admin"])
        for name in ("art", "other"):
            admin.open_claim(name, [("a.png", png(1))])
        known = {who: browser(keys[who]) for who in (*ROLES, "expired", "revoked", "other set")}
        revoke_key(root, gone.id)
        revoke_key(root, late.id)
        known["nobody"] = browser()
        forged = known["forged"] = browser()
        good = known["admin"].client.cookies["negindex-session"]
        forged.client.cookies.set("negindex-session", good[:-1] + ("0" if good[-1] != "0" else "1"))
        yield root, known


@pytest.mark.parametrize("who", [*ROLES, *OTHERS])
@pytest.mark.parametrize(
    ("method", "path", "roles"), [one for one in routes() if one[2] not in (ALL, ANYBODY)], ids=str
)
def test_a_page_is_open_to_its_roles_and_to_nobody_else(site, method, path, roles, who):
    _, known = site
    assert roles, f"{method} {path} is not among the expected roles; say who it is for"
    at = path.format(name="art", number=1, row=1, file="pages.css")
    told = known[who].client.request(method, at, data={"token": "none"} if method == "POST" else None)
    if who in ("nobody", "forged", "expired", "revoked"):
        assert told.status_code == 303
        assert told.headers["location"].startswith("/pages/login")
    elif who == "other set":
        assert told.status_code == (403 if "{name}" in path or method == "POST" else 200), told.text
    elif who not in roles:
        assert told.status_code == 403
        assert "this is for" in told.text
    elif method == "POST":  # let in as far as the form, which is not of this session
        assert told.status_code == 403
        assert "the form is not one of this session" in told.text
    else:
        assert told.status_code == 200, told.text
    for name, value in POLICY.items():
        assert told.headers[name] == value


def test_every_page_is_for_whom_it_should_be():
    found = {}
    for method, route in every_route(router):
        wanted = [one.dependency.roles for one in route.dependencies if isinstance(one.dependency, Visits)]
        found[f"{method} {route.path}"] = wanted[0] if wanted else ANYBODY
    assert found == PAGES


def test_auditors_change_nothing_and_see_no_picture():
    offered = {(method, path.rpartition("/")[2]) for method, path, roles in routes() if "auditor" in roles}
    assert {path for method, path in offered if method == "POST"} == {"receipts", "logout"}
    assert not {"blurred", "reveal", "claimant", "search"} & {path for _, path in offered}


def test_pages_load_nothing_from_elsewhere_and_hold_no_script_or_style(site):
    _, known = site
    for method, path, roles in routes():
        if method == "GET" and roles != ANYBODY and "blurred" not in path:
            text = known["admin"].get(path.format(name="art", number=1, row=1)).text
            assert not re.search(r"<style|style=|\son\w+=|javascript:|<script(?! src=\"/pages/static/)", text), path
            assert all(
                link.startswith(("/pages", "?", "#", "data:"))
                for link in re.findall(r'(?:href|src|action)="([^"]*)"', text)
            )


@pytest.mark.parametrize("module", [forms, words], ids=lambda module: module.__name__)
def test_examples_in_docstrings_hold(module):
    told = doctest.testmod(module)
    assert told.attempted
    assert not told.failed


# -- sessions ------------------------------------------------------------------------------


def test_the_cookie_is_kept_from_scripts_and_other_sites(site):
    root, _ = site
    key, _ = create_key(root, ["auditor"])
    with browsers(root, "https://sets.example") as browser:
        told = browser().login(key)
        cookie = next(one for one in told.headers.get_list("set-cookie") if "session" in one)
    assert cookie.startswith("__Host-negindex-session=")
    assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Secure", "Path=/"))
    assert "Domain" not in cookie
    assert key not in cookie


def test_a_wrong_key_opens_nothing_and_is_counted(tmp_path):
    create_key(tmp_path, ["admin"])
    with browsers(tmp_path, strangers=0.5) as browser:
        one = browser()
        seen = [one.login("nxk_000000000000_" + "a" * 43) for _ in range(4)]
    assert [told.status_code for told in seen] == [401, 401, 429, 429]
    assert "negindex-session" not in one.client.cookies


def test_a_session_ends_with_its_key_at_once(tmp_path):
    text, key = create_key(tmp_path, ["auditor"])
    with browsers(tmp_path) as browser:
        one = browser(text)
        assert one.get("/pages").status_code == 200
        revoke_key(tmp_path, key.id)
        assert one.get("/pages").headers["location"] == "/pages/login?next=/pages"


def test_a_session_that_is_not_used_ends_and_so_does_a_long_one(tmp_path):
    _, key = create_key(tmp_path, ["auditor"])
    sessions = Sessions(tmp_path, Door(tmp_path, keyless=False))
    at = 1_000_000
    session = sessions.begin(key, at)
    cookie = sessions.cookie(session)
    assert sessions.read(cookie, at + IDLE) == session
    assert sessions.read(cookie, at + IDLE + 1) is None
    used = session
    for later in range(at, at + LONGEST, IDLE // 2):
        used = sessions.renewed(used, later) or used
        assert sessions.read(sessions.cookie(used), later) == used
    assert sessions.read(sessions.cookie(used), at + LONGEST + 1) is None


@pytest.mark.parametrize("place", [0, 13, 24, 40, 80])
def test_a_cookie_with_one_letter_changed_is_none(tmp_path, place):
    _, key = create_key(tmp_path, ["auditor"])
    sessions = Sessions(tmp_path, Door(tmp_path, keyless=False))
    cookie = sessions.cookie(sessions.begin(key))
    other = "1" if cookie[place] != "1" else "2"
    assert sessions.read(cookie[:place] + other + cookie[place + 1 :]) is None


def test_the_secret_is_its_owners_alone_and_taking_it_away_ends_sessions(tmp_path):
    _, key = create_key(tmp_path, ["auditor"])
    sessions = Sessions(tmp_path, Door(tmp_path, keyless=False))
    cookie = sessions.cookie(sessions.begin(key))
    path = tmp_path / SECRET
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(NotAllowed, match="mode 644"):
        sessions.read(cookie)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(Damaged):
        sessions.read(cookie)
    path.unlink()
    assert sessions.read(cookie) is None


def test_a_used_session_gets_a_new_cookie_and_logging_out_drops_it(tmp_path, monkeypatch):
    text, _ = create_key(tmp_path, ["auditor"])
    with browsers(tmp_path) as browser:
        one = browser(text)
        assert "set-cookie" not in one.get("/pages").headers
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 120)
        assert "negindex-session" in one.get("/pages").headers["set-cookie"]
        assert one.send("/pages/logout").headers["location"] == "/pages/login"
        assert one.get("/pages").status_code == 303


@pytest.mark.parametrize(
    "after", ["https://evil.example/", "//evil.example", "/v1/sets", "/pages/../v1/sets", "/pages\\evil"]
)
def test_logging_in_leads_to_no_other_place(tmp_path, after):
    text, _ = create_key(tmp_path, ["auditor"])
    with browsers(tmp_path) as browser:
        assert browser().login(text, after).headers["location"] == "/pages"
        assert browser().login(text, QUEUE).headers["location"] == QUEUE


# -- forms of others -----------------------------------------------------------------------


def test_a_form_without_this_sessions_token_changes_nothing(site):
    root, known = site
    before = Collection.open(root / "art").newest().version
    theirs = known["approver"].token
    for token in ("", theirs, "ünlike"):
        told = known["admin"].client.post(f"{QUEUE}/1/accept", data={"token": token})
        assert told.status_code == 403
    assert Collection.open(root / "art").newest().version == before


def test_a_form_from_another_sites_page_is_refused(site):
    _, known = site
    token = known["admin"].token
    for place, expected in (("cross-site", 403), ("same-site", 403), ("same-origin", 422)):
        told = known["admin"].client.post("/pages/receipts", data={"token": token}, headers={"sec-fetch-site": place})
        assert told.status_code == expected


def test_the_log_in_form_is_tied_to_the_browser(tmp_path):
    text, _ = create_key(tmp_path, ["auditor"])
    with browsers(tmp_path) as browser:
        mine, theirs = browser(), browser()
        token = dict(hidden(theirs.get("/pages/login").text, "login"))["token"]
        mine.get("/pages/login")
        assert mine.client.post("/pages/login", data={"token": token, "key": text}).status_code == 403


# -- what others wrote ---------------------------------------------------------------------

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'


def test_hostile_words_are_shown_as_words(site):
    root, known = site
    admin: Browser = known["admin"]
    fields = {"field.work": HOSTILE, "field.contact": HOSTILE, "reason": HOSTILE, "label": HOSTILE}
    data = {"regime": "dmca", "prefix": HOSTILE, **NOTICE, **fields}
    shown = admin.send("/pages/sets/other/new-claim", data, [(f"{HOSTILE}.png", again(png(1)))])
    number = int(admin.confirm(shown, "open-claim").headers["location"].rpartition("/")[2])
    row = next(iter(Collection.open(root / "other").claims.show(number).rows))
    pages = [shown.text, admin.get(f"/pages/sets/other/claims/{number}").text]
    pages += [admin.get(f"/pages/sets/other/rows/{row}").text, admin.get("/pages/sets/other/history").text]
    pages.append(admin.send(f"/pages/sets/other/claims/{number}/claimant").text)
    pages.append(admin.get(f"/pages/sets/other/history?at={HOSTILE}").text)
    pages.append(admin.get(f"{QUEUE}?state={HOSTILE}").text)
    pages.append(admin.send("/pages/receipts", {"text": HOSTILE}).text)
    for text in pages:
        assert "<script>alert" not in text
        assert "<img src=x" not in text
    assert sum("&lt;script&gt;" in text for text in pages) >= 7


# -- limits --------------------------------------------------------------------------------


def test_uploads_are_limited_in_size_number_and_pixels(tmp_path):
    text, _ = create_key(tmp_path, ["admin"])
    Collection.create(tmp_path / "art", SHAPE, "pixels").close()
    with browsers(tmp_path, body_bytes=1 << 16) as browser:
        one = browser(text)
        data = {"regime": "dmca", "prefix": ""}
        large = one.send("/pages/sets/art/new-claim", data, [("a.png", b"x" * (1 << 16))])
        many = one.send("/pages/sets/art/new-claim", data, [(f"{i}.png", b"x") for i in range(33)])
        head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60_000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
        bomb = one.send("/pages/sets/art/new-claim", data, [("bomb.png", head + b"\0" * 64)])
        unknown = one.client.post("/pages/receipts", content=b"{}", headers={"content-type": "application/json"})
        chunked = one.client.post(
            "/pages/receipts", content=iter([b"token=a"]), headers={"content-type": "application/x-www-form-urlencoded"}
        )
    assert (large.status_code, many.status_code, unknown.status_code, chunked.status_code) == (413, 422, 415, 411)
    assert "bomb.png" in bomb.text
    assert "cannot become rows" in bomb.text


def test_whoever_is_not_logged_in_sends_little(tmp_path):
    create_key(tmp_path, ["admin"])
    with browsers(tmp_path) as browser:
        assert browser().client.post("/pages/login", data={"key": "x" * 9000}).status_code == 413


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_put_in(site):
    root, known = site
    data = {"regime": "dmca", "prefix": "", **NOTICE}
    shown = known["admin"].send("/pages/sets/art/new-claim", data, [("good.png", png(5)), ("bad.png", b"no image")])
    before = Collection.open(root / "art").newest().version
    assert "bad.png is no image that can be read" in shown.text
    assert known["admin"].confirm(shown, "open-claim").status_code == 422
    assert Collection.open(root / "art").newest().version == before


def test_an_upload_touches_no_disk(site, monkeypatch):
    _, known = site
    opened = []
    monkeypatch.setattr(
        "tempfile.TemporaryFile", lambda *words, **more: opened.append(words) or (_ for _ in ()).throw(OSError)
    )
    shown = known["admin"].send("/pages/sets/art/search", None, [("large.png", png(3) + bytes(2 << 20))])
    assert shown.status_code in (200, 404)
    assert not opened
