"""Logging in through a provider: one that runs here and signs real tokens, and everything that it may do wrong."""

import base64
import hmac
import json
import subprocess
import sys
import time
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from browsing import HERE, SHAPE, browsers, png
from click.testing import CliRunner
from identity_provider import CLIENT, SECRET, identity_provider, jws
from joserfc.jwk import ECKey
from pydantic import SecretStr

from negindex import Collection
from negindex.errors import InvalidInput, NotAllowed, NotThere
from negindex.service.access import create_key
from negindex.service.people import load_people
from negindex.service.run import check
from negindex.service.settings import Settings, read_settings
from negindex.service.sign_on import sign_on_of
from negindex.tools.cli import main

GRANTS = (
    "art-team=curator@art",
    "deciders=approver",
    "watch=auditor",
    "cn=odd,ou=a@b=auditor@other",  # what a directory calls a group
)
CLAIMS = "/pages/sets/art/claims"


@pytest.fixture(scope="module")
def provider():
    with identity_provider() as made:
        yield made


@pytest.fixture(autouse=True)
def _honest(provider):
    provider.described, provider.answer, provider.made, provider.extra = {}, None, None, {}
    provider.user, provider.key = {"sub": "u-1", "groups": ["art-team"]}, provider.first


@pytest.fixture(scope="module")
def site(tmp_path_factory, provider):
    """A directory with two sets, and what makes browsers."""
    root = tmp_path_factory.mktemp("served")
    create_key(root, ["admin"])
    for name in ("art", "other"):
        Collection.create(root / name, SHAPE, "pixels").close()
    with browsers(root, **told(provider)) as browser:
        yield root, browser


def told(provider, **more):
    said = {"oidc_issuer": provider.issuer, "oidc_client": CLIENT, "oidc_secret": SecretStr(SECRET)}
    return {**said, "oidc_address": HERE, "oidc_grants": GRANTS, **more}


def begin(browser, after="/pages"):
    """The address that the provider sends the browser back to."""
    sent = browser.get(f"/pages/oidc/start?next={after}")
    assert sent.status_code == 303, sent.text
    return requests.get(sent.headers["location"], allow_redirects=False, timeout=10).headers["location"]


def come_back(browser, address):
    parts = urlsplit(address)
    return browser.get(f"{parts.path}?{parts.query}")


def logged_in(browser, after="/pages"):
    done = come_back(browser, begin(browser, after))
    assert done.status_code == 200, done.text
    return done


def roles_of(browser):
    """What the page says that the visitor may do."""
    shown = browser.get("/pages/receipts")
    return shown.text.partition("person p")[2].partition(")")[0].partition("(")[2] if shown.status_code == 200 else None


def test_somebody_logs_in_and_comes_to_the_page_that_they_wanted(site, provider):
    root, browser = site
    one = browser()
    assert f"Log in with {urlsplit(provider.issuer).netloc}" in one.get("/pages/login").text
    done = logged_in(one, CLAIMS)
    assert f'content="0; url={CLAIMS}"' in done.text
    kept = [cookie for cookie in done.headers.get_list("set-cookie") if "negindex-session" in cookie]
    assert all("HttpOnly" in cookie and "SameSite=strict" in cookie for cookie in kept)
    assert one.get(CLAIMS).status_code == 200
    (known,) = [person for person in load_people(root) if person.subject == "u-1"]
    assert (known.issuer, known.groups) == (provider.issuer, ("art-team",))
    assert f"person {known.id}" in one.get(CLAIMS).text


def test_what_goes_to_the_provider_is_new_each_time_and_the_way_back_takes_the_cookie_along(site):
    _, browser = site
    seen = []
    for _ in range(2):
        sent = browser().get("/pages/oidc/start")
        seen.append({name: value[0] for name, value in parse_qs(urlsplit(sent.headers["location"]).query).items()})
        (cookie,) = sent.headers.get_list("set-cookie")
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
    for name in ("state", "nonce", "code_challenge"):
        assert seen[0][name] != seen[1][name]
        assert len(seen[0][name]) >= 43
    assert SECRET not in str(seen)


@pytest.mark.parametrize("after", ["https://evil.example/", "//evil.example", "/v1/sets"])
def test_logging_in_leads_to_no_other_place(site, after):
    _, browser = site
    assert 'content="0; url=/pages"' in logged_in(browser(), after).text


# -- what groups may do --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "roles"),
    [
        (["art-team"], "curator"),
        (["art-team", "watch", "unknown", 7, None], "curator, auditor"),
        ("deciders", "approver"),
        (["cn=odd,ou=a@b"], "auditor"),
    ],
)
def test_groups_become_roles(site, provider, groups, roles):
    _, browser = site
    provider.user["groups"] = groups
    one = browser()
    logged_in(one)
    assert roles_of(one) == roles


@pytest.mark.parametrize("groups", [[], ["unknown"], None, {"art-team": True}, [["art-team"]], "art-teams"])
def test_who_is_in_none_of_the_groups_gets_no_session(site, provider, groups):
    _, browser = site
    provider.user["groups"] = groups
    one = browser()
    done = come_back(one, begin(one))
    assert done.status_code == 403
    assert "in none of the groups" in done.text
    assert one.get("/pages").status_code == 303


def test_what_is_granted_for_one_set_holds_for_no_other(site, provider):
    """Curator of art, auditor of all: an auditor alone elsewhere."""
    _, browser = site
    provider.user["groups"] = ["art-team", "watch"]
    one = browser()
    logged_in(one)
    assert one.get("/pages/sets/art/new-claim").status_code == 200
    assert one.get("/pages/sets/other/new-claim").status_code == 403
    assert one.get("/pages/sets/other/search").status_code == 403
    assert "Open a claim" not in one.get("/pages/sets/other/claims").text
    assert "Open a claim" in one.get(CLAIMS).text
    assert one.get("/pages/reveals").status_code == 200
    provider.user["groups"] = ["art-team"]
    other = browser()
    logged_in(other)
    assert other.get("/pages/sets/other/claims").status_code == 403
    assert "/pages/sets/other" not in other.get("/pages").text


def test_a_group_that_is_gone_is_gone_in_every_session(site, provider):
    _, browser = site
    provider.user = {"sub": "u-2", "groups": ["art-team", "deciders"]}
    first, second = browser(), browser()
    logged_in(first)
    assert roles_of(first) == "curator, approver"
    provider.user["groups"] = ["art-team"]
    logged_in(second)
    assert roles_of(first) == roles_of(second) == "curator"
    provider.user["groups"] = []
    third = browser()
    assert come_back(third, begin(third)).status_code == 403
    assert first.get("/pages").status_code == second.get("/pages").status_code == 303


@pytest.mark.parametrize(
    ("claim", "claims"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["watch"]}}),
        ("https://example.org/groups", {"https://example.org/groups": ["watch"]}),
    ],
)
def test_a_claim_of_another_name_or_place_is_found(tmp_path, provider, claim, claims):
    provider.user = {"sub": "u-3", "groups": ["deciders"], **claims}
    with browsers(tmp_path, **told(provider, oidc_claim=claim)) as browser:
        one = browser()
        logged_in(one)
        assert roles_of(one) == "auditor"


def test_the_record_names_the_person_by_number(site, provider):
    root, browser = site
    provider.user = {"sub": "jane.roe@example.org", "groups": ["art-team", "deciders"]}
    one = browser()
    logged_in(one)
    number = one.open_claim("art", [("a.png", png(1))])
    assert one.send(f"{CLAIMS}/{number}/accept").status_code == 303
    (known,) = [person for person in load_people(root) if person.subject == "jane.roe@example.org"]
    with Collection.open(root / "art") as art:
        assert {event.by for event in art.claims.show(number).history} == {f"person {known.id}"}


# -- tokens that are not to be believed ----------------------------------------------------


def changed(**said):
    def made(header, claims, key):
        told = {name: value(claims[name]) if callable(value) else value for name, value in said.items()}
        return jws(header, {k: v for k, v in {**claims, **told}.items() if v is not None}, key)

    return made


def by_hand(header, claims, sign=lambda _: b""):
    """A token as anybody can write one."""
    parts = [json.dumps(part).encode() for part in (header, claims)]
    words = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    return f"{words}.{base64.urlsafe_b64encode(sign(words.encode())).decode().rstrip('=')}"


def by_nobody(header, claims, key):
    return by_hand({**header, "alg": "none"}, claims)


def by_the_public_key(header, claims, key):
    """As if it were a shared secret, which everybody has."""
    public = key.as_pem(private=False)
    return by_hand({**header, "alg": "HS256"}, claims, lambda words: hmac.digest(public, words, "sha256"))


def by_another(header, claims, key):
    return jws(header, claims, ECKey.generate_key("P-256", {"kid": key.kid}, auto_kid=False))


def by_an_unknown_key(header, claims, key):
    return jws({**header, "kid": "unknown"}, claims, key)


def with_other_words(header, claims, key):
    head, _, sign = jws(header, claims, key).split(".")
    return f"{head}.{jws(header, {**claims, 'groups': ['deciders']}, key).split('.')[1]}.{sign}"


HOSTILE = {
    "of another issuer": changed(iss="https://evil.example"),
    "of no issuer": changed(iss=None),
    "for another client": changed(aud="another"),
    "for several, and another in charge": changed(aud=["negindex", "another"], azp="another"),
    "for several, and nobody in charge": changed(aud=["negindex", "another"]),
    "for nobody": changed(aud=None),
    "expired": changed(exp=lambda at: at - 1000),
    "without an end": changed(exp=None),
    "with an end that is no time": changed(exp="never"),
    "of tomorrow": changed(iat=lambda at: at + 86400),
    "of another log-in": changed(nonce="another"),
    "of no log-in": changed(nonce=None),
    "of an access token that was swapped": changed(at_hash="AAAAAAAAAAAAAAAAAAAAAA"),
    "about nobody": changed(sub=None),
    "about a name that is none": changed(sub="a\nb"),
    "about a number": changed(sub=7),
    "signed by nobody": by_nobody,
    "signed with the public key": by_the_public_key,
    "signed by another": by_another,
    "signed by an unknown key": by_an_unknown_key,
    "signed, then changed": with_other_words,
    "no token": lambda *_: "no token",
    "a number": lambda *_: 7,
    "nothing": lambda *_: None,
}


@pytest.mark.parametrize("made", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_token_that_is_not_right_in_all_lets_nobody_in(site, provider, made):
    _, browser = site
    provider.made = made
    one = browser()
    done = come_back(one, begin(one))
    assert done.status_code == 403, done.text
    assert "log in again" in done.text or "see " in done.text
    assert "negindex-session" not in one.client.cookies
    assert one.get("/pages").status_code == 303
    provider.made = None
    logged_in(one)


def test_keys_that_the_provider_changes_are_taken_and_other_kinds_too(tmp_path, provider, monkeypatch):
    monkeypatch.setattr("negindex.service.provider.KEYS_EVERY", 0.0)
    with browsers(tmp_path, **told(provider)) as browser:
        for kind in ("EC", "RSA", "EC"):
            provider.turn_key(kind)
            logged_in(browser())


def test_unknown_keys_do_not_make_the_service_ask_for_keys_each_time(tmp_path, provider):
    provider.made = by_an_unknown_key
    with browsers(tmp_path, **told(provider)) as browser:
        provider.asked.clear()
        for _ in range(4):
            one = browser()
            assert come_back(one, begin(one)).status_code == 403
    assert provider.asked.count("/keys") == 1


# -- ways back that are not to be believed -------------------------------------------------


def test_the_way_back_is_good_once(site):
    _, browser = site
    one = browser()
    address = begin(one)
    flow = dict(one.client.cookies)
    assert come_back(one, address).status_code == 200
    again = come_back(one, address)
    assert again.status_code == 403
    assert "no log-in was begun in this browser" in again.text
    for name, value in flow.items():  # and with the cookie put back, the provider does not take the code
        one.client.cookies.set(name, value)
    assert "invalid_grant" in come_back(one, address).text


def test_the_way_back_is_good_in_the_browser_that_began_it_alone(site):
    _, browser = site
    mine, theirs, third = browser(), browser(), browser()
    address = begin(theirs)
    begin(mine)
    for one in (mine, third):
        assert come_back(one, address).status_code == 403
        assert one.get("/pages").status_code == 303


def test_a_code_of_another_log_in_is_not_taken(site):
    """Somebody else's code with one's own state: the provider has it proved who began."""
    _, browser = site
    mine, theirs = browser(), browser()
    code = parse_qs(urlsplit(begin(theirs)).query)["code"][0]
    state = parse_qs(urlsplit(begin(mine)).query)["state"][0]
    told = mine.get(f"/pages/oidc/back?code={code}&state={state}")
    assert told.status_code == 403
    assert "invalid_grant" in told.text


def test_a_log_in_has_to_be_done_in_time(site, monkeypatch):
    _, browser = site
    one = browser()
    address, now = begin(one), time.time()
    flow = dict(one.client.cookies)
    monkeypatch.setattr("time.time", lambda: now + 601)
    for name, value in flow.items():  # whatever the browser makes of its age
        one.client.cookies.set(name, value)
    assert "more than 10 minutes" in come_back(one, address).text


@pytest.mark.parametrize(
    "query", ["", "code=a", "state=a", "error=access_denied", "code=a&state=a&state=b", "code=a&state=ü"]
)
def test_a_way_back_without_all_its_parts_lets_nobody_in(site, query):
    _, browser = site
    one = browser()
    begin(one)
    assert one.get(f"/pages/oidc/back?{query}").status_code == 403


def test_what_the_provider_refuses_is_no_log_in(site):
    _, browser = site
    one = browser()
    state = parse_qs(urlsplit(begin(one)).query)["state"][0]
    told = one.get(f"/pages/oidc/back?state={state}&error=access_denied&error_description=<script>")
    assert told.status_code == 403
    assert "<script>" not in told.text.replace('<script src="/pages/static/pages.js" defer>', "")


def test_an_answer_that_says_it_is_of_another_provider_is_refused(site, provider):
    _, browser = site
    for extra, status in (({"iss": "https://evil.example"}, 403), ({"iss": provider.issuer}, 200)):
        provider.extra, one = extra, browser()
        assert come_back(one, begin(one)).status_code == status


def test_wrong_ways_back_are_counted(tmp_path, provider):
    with browsers(tmp_path, **told(provider, strangers=0.5)) as browser:
        seen = [browser().get("/pages/oidc/back?code=a&state=b").status_code for _ in range(4)]
    assert seen == [403, 403, 429, 429]


# -- sessions ------------------------------------------------------------------------------


def test_a_persons_session_ends_when_the_provider_is_to_be_asked_again(tmp_path, provider, monkeypatch):
    with browsers(tmp_path, **told(provider, oidc_minutes=5)) as browser:
        one = browser()
        logged_in(one)
        now = time.time()
        for later, status in ((290, 200), (301, 303)):
            monkeypatch.setattr("time.time", lambda later=later: now + later)
            assert one.get("/pages").status_code == status


def test_who_is_revoked_is_out_at_once_and_stays_out(tmp_path, provider):
    with browsers(tmp_path, **told(provider)) as browser:
        one = browser()
        logged_in(one)
        (known,) = load_people(tmp_path)
        listed = CliRunner().invoke(main, ["apikey", "list", str(tmp_path)]).stdout
        assert f"{known.id}  live     art-team  {provider.issuer}  u-1" in listed
        assert CliRunner().invoke(main, ["apikey", "revoke", str(tmp_path), known.id]).exit_code == 0
        assert one.get("/pages").status_code == 303
        assert "is let in no more" in come_back(one, begin(one)).text
        assert (
            json.loads(CliRunner().invoke(main, ["apikey", "list", str(tmp_path), "--json"]).stdout)[0]["state"]
            == "revoked"
        )


def test_logging_out_ends_it_here_and_shows_the_way_out_there(site, provider):
    _, browser = site
    one = browser()
    logged_in(one)
    shown = one.send("/pages/logout")
    assert shown.status_code == 200
    assert f"{provider.issuer}/logout?client_id={CLIENT}" in shown.text
    assert one.get("/pages").status_code == 303


def test_a_grant_that_the_settings_no_longer_make_is_none(tmp_path, provider):
    with browsers(tmp_path, **told(provider)) as browser:
        one = browser()
        logged_in(one)
        cookie = one.client.cookies["negindex-session"]
    for more in ({"oidc_grants": ("watch=auditor",)}, {"oidc_issuer": "https://other.example"}):
        with browsers(tmp_path, **told(provider, **more)) as browser:
            one = browser()
            one.client.cookies.set("negindex-session", cookie)
            assert one.get("/pages").status_code == 303


def test_a_number_of_a_person_is_no_key(site, provider):
    root, browser = site
    logged_in(browser())
    known = load_people(root)[0]
    one = browser()
    told = one.get("/v1/sets", headers={"Authorization": f"Bearer nxk_{known.id[1:]}_{'a' * 43}"})
    assert told.status_code == 401
    assert one.get("/v1/sets", headers={"Authorization": f"Bearer {known.id}"}).status_code == 401


# -- what is set up wrong ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"oidc_issuer": None}, "oidc_issuer"),
        ({"oidc_client": None}, "oidc_client"),
        ({"oidc_address": None}, "oidc_address"),
        ({"oidc_grants": ()}, "oidc_grants"),
        ({"oidc_issuer": "http://idp.example"}, "https"),
        ({"oidc_issuer": "https://idp.example?x=1"}, "without a query"),
        ({"oidc_issuer": "idp.example"}, "oidc_issuer"),
        ({"oidc_issuer": "https://[idp"}, "oidc_issuer"),
        ({"oidc_address": "http://sets.example"}, "https"),
        ({"oidc_address": "https://sets.example/negindex"}, "has a path"),
        ({"oidc_grants": ("a=boss",)}, "a=boss"),
        ({"oidc_grants": ("a=sampler",)}, "a=sampler"),
        ({"oidc_grants": ("a",)}, "GROUP=ROLE"),
        ({"oidc_grants": ("=auditor",)}, "GROUP=ROLE"),
        ({"oidc_grants": ("a=auditor@",)}, "GROUP=ROLE"),
        ({"oidc_grants": ("a=auditor@../b",)}, "GROUP=ROLE"),
        ({"oidc_scope": "profile"}, "openid"),
        ({"oidc_secret_file": "both"}, "both"),
    ],
)
def test_settings_that_do_not_go_together_are_named(tmp_path, provider, changed, named):
    with pytest.raises(InvalidInput, match=named):
        check(Settings(root=tmp_path, **told(provider, **changed)))
    assert sign_on_of(Settings()) is None


def test_the_secret_comes_from_its_owners_file(tmp_path, provider):
    path = tmp_path / "secret"
    settings = Settings(**told(provider, oidc_secret=None, oidc_secret_file=path))
    with pytest.raises(NotThere):
        sign_on_of(settings)
    path.write_text(f"{SECRET}\n")
    path.chmod(0o640)
    with pytest.raises(NotAllowed, match="chmod 600"):
        sign_on_of(settings)
    path.chmod(0o600)
    assert sign_on_of(settings).secret == SECRET
    path.write_text("")
    with pytest.raises(InvalidInput, match="empty"):
        sign_on_of(settings)


def test_the_secret_is_shown_nowhere(tmp_path, provider, monkeypatch):
    monkeypatch.setenv("NEGINDEX_OIDC_SECRET", SECRET)
    monkeypatch.setenv("NEGINDEX_OIDC_GRANTS", json.dumps(GRANTS))
    words = ["serve", str(tmp_path), "--oidc-issuer", provider.issuer, "--oidc-client", CLIENT, "--print-config"]
    shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 0, shown.output
    assert SECRET not in shown.output
    said = json.loads(shown.stdout)
    assert said["oidc_secret"]["from"] == "environment NEGINDEX_OIDC_SECRET"
    assert said["oidc_grants"]["value"] == list(GRANTS)
    assert "--oidc-secret " not in CliRunner().invoke(main, ["serve", "--help"]).output
    settings, _ = read_settings({"oidc_grants": ("a=auditor", "b=admin")})
    assert settings.oidc_grants == ("a=auditor", "b=admin")
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    ("described", "named"),
    [
        ({"issuer": "https://idp.example"}, "set it to just that"),
        ({"token_endpoint": None}, "token_endpoint"),
        ({"authorization_endpoint": "http://idp.example/authorize"}, "authorization_endpoint"),
        ({"jwks_uri": "file:///etc/passwd"}, "jwks_uri"),
        ({"filling": "x" * (1 << 20)}, "cannot be had"),
    ],
)
def test_a_provider_that_is_not_what_was_set_is_named(tmp_path, provider, described, named):
    provider.described = described
    with browsers(tmp_path, **told(provider)) as browser:
        shown = browser().get("/pages/oidc/start")
    assert shown.status_code == 503
    assert named in shown.text


def test_a_provider_that_is_gone_is_named_and_keys_go_on(tmp_path, provider):
    text, _ = create_key(tmp_path, ["auditor"])
    with browsers(tmp_path, **told(provider, oidc_issuer="http://127.0.0.1:9")) as browser:
        assert "cannot be had" in browser().get("/pages/oidc/start").text
        assert browser(text).get("/pages").status_code == 200


@pytest.mark.parametrize(
    "answer", [(200, {}, b"no JSON"), (200, {}, []), (500, {}, {}), (302, {"Location": "/keys"}, {})]
)
def test_a_token_endpoint_that_answers_nonsense_lets_nobody_in(site, provider, answer):
    _, browser = site
    provider.answer, one = answer, browser()
    assert come_back(one, begin(one)).status_code in (403, 503)
    assert one.get("/pages").status_code == 303


def test_a_wrong_secret_lets_nobody_in(tmp_path, provider):
    with browsers(tmp_path, **told(provider, oidc_secret=SecretStr("wrong"))) as browser:
        one = browser()
        assert "invalid_client" in come_back(one, begin(one)).text


def test_without_a_provider_nothing_of_it_is_there(tmp_path):
    create_key(tmp_path, ["auditor"])
    with browsers(tmp_path) as browser:
        for path in ("/pages/oidc/start", "/pages/oidc/back?code=a&state=b"):
            assert browser().get(path).status_code == 404
        assert "/pages/oidc" not in browser().get("/pages/login").text
    code = "import sys; from negindex.service.app import make_app; from negindex.service.settings import Settings; "
    code += "make_app(Settings()); sys.exit(bool({'authlib', 'joserfc', 'httpx2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
