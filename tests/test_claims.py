"""Claims: a row stays in force while one claim on it is live, and what people tell lies apart."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from small_sets import NOTICE, rows

import negindex
from negindex import Collection
from negindex.errors import (
    ClaimLive,
    ContentRefused,
    InvalidInput,
    NotAllowed,
    OnHold,
    UnknownClaim,
    UnknownKey,
)
from negindex.states import Provenance

COUNTER = {
    "counter_signature": "John Doe",
    "counter_material": "row a",
    "counter_perjury": "yes",
    "counter_contact": "2 Side Street",
    "counter_jurisdiction": "yes",
}


@pytest.fixture
def notice(three):
    """Claim 2, received, on a new row z."""
    return three.claims.open("dmca", NOTICE, rows=rows(1, seed=9), source_keys=["z"], by="ann").number


def test_a_claim_puts_its_rows_in_force_when_it_is_accepted(three, notice):
    assert three.source_keys() == ["a", "b", "c"]
    claim = three.claims.accept(notice, by="ben")
    assert claim.state == "in_force"
    assert three.source_keys() == ["a", "b", "c", "z"]
    assert [(event.action, event.state, event.by) for event in claim.history] == [
        ("open", "received", "ann"),
        ("accept", "accepted", "ben"),
        ("force", "in_force", "ben"),
    ]
    assert claim.first_in_force == 3


def test_under_the_dsa_nothing_is_in_force_without_a_statement_of_reasons(three):
    told = {"explanation": "a copy", "location": "row z", "good_faith": "yes"}
    claim = three.claims.open("dsa", told, rows=rows(1, seed=9), source_keys=["z"]).number
    before = three.versions()
    with pytest.raises(InvalidInput, match=r"restriction is absent.*ground is absent.*redress is absent"):
        three.claims.accept(claim)
    assert (three.versions(), three.claims.show(claim).state) == (before, "received")
    decision = dict.fromkeys(("territory", "duration", "facts", "ground_reference", "ground_explanation"), "as told")
    decision |= {"restriction": "removal", "origin": "notice", "automated_detection": "no", "automated_decision": "no"}
    decision |= {"ground": "against the terms", "redress": "complain to us"}
    assert three.claims.accept(claim, fields=decision).state == "in_force"
    assert "z" in three.source_keys()


def test_a_refused_claim_never_puts_its_rows_in_force(three, notice):
    three.claims.withdraw(notice, by="ben", reason="not the owner")
    assert three.source_keys() == ["a", "b", "c"]
    assert all(three.in_force(v.version).keys() <= {1, 2, 3} for v in three.versions())


def test_completeness_is_checked_field_by_field(three):
    told = {name: value for name, value in NOTICE.items() if name != "work"} | {"accuracy": "no"}
    claim = three.claims.open("dmca", told, source_keys=["a"])
    assert claim.state == "incomplete"
    assert claim.missing == {"work": "is absent", "accuracy": 'is not affirmed: true or "yes"'}
    with pytest.raises(InvalidInput, match=r"cannot become accepted: work is absent; accuracy is not"):
        three.claims.accept(claim.number)
    assert three.claims.amend(claim.number, {"work": "a painting", "accuracy": "yes"}).state == "received"
    assert three.claims.accept(claim.number).state == "in_force"


def test_a_row_stays_in_force_while_one_claim_on_it_is_live(three):
    first = three.claims.open("dmca", NOTICE, source_keys=["a"]).number
    three.claims.accept(first)
    with pytest.raises(ClaimLive, match=f"claim {first} keeps the row in force") as live:
        three.withdraw(["a"], "a mistake")
    assert live.value.claims == (first,)
    three.claims.withdraw(first, reason="settled")
    assert "a" in three.source_keys()  # the in-house claim stands
    three.withdraw(["a"], "no longer")
    assert three.source_keys() == ["b", "c"]


def test_a_claim_on_a_row_that_was_withdrawn_meanwhile_brings_it_back_under_a_new_id(three):
    claim = three.claims.open("dmca", NOTICE, source_keys=["a"]).number
    three.withdraw(["a"], "a mistake")
    assert three.source_keys() == ["b", "c"]
    assert three.claims.accept(claim).rows == {4: "a"}
    assert three.digests()[4] == three.snapshot(1).digests()[1]


def test_an_accepted_claim_on_a_hash_gets_the_content_that_another_claim_brings(three):
    told = rows(1, seed=5)
    digest = "sha256:" + sha256(told.tobytes()).hexdigest()
    waiting = three.claims.open("in-house", hashes=[digest]).number
    assert three.claims.accept(waiting).state == "accepted"
    brought = three.claims.open("dmca", NOTICE, rows=told, source_keys=["z"]).number
    assert three.claims.show(brought).state == "received"
    assert three.claims.show(waiting).state == "in_force"
    assert "z" in three.source_keys()
    three.claims.attach(brought, told, ["again"])
    assert list(three.claims.show(waiting).rows.values()) == ["z", "again"]
    three.claims.withdraw(brought)
    assert three.source_keys() == ["a", "again", "b", "c", "z"]
    assert three.verify() == []


def test_a_claim_on_rows_whose_bytes_were_given_up_asks_for_them_again(three):
    claim = three.claims.open("dmca", NOTICE, source_keys=["a", "b"]).number
    three.compact(forget_before=three.withdraw(["a", "b"], "a mistake"))
    before = three.versions()
    with pytest.raises(NotAllowed, match=r"'a', 'b' are in force no longer.*attach the images again"):
        three.claims.accept(claim)
    assert three.versions() == before
    three.claims.attach(claim, rows(3)[:1], ["a"])
    with pytest.raises(NotAllowed, match="'b' is in force no longer"):
        three.claims.accept(claim)
    three.claims.attach(claim, rows(3)[1:2], ["b"])
    assert three.claims.accept(claim).rows == {4: "a", 5: "b"}
    assert three.source_keys() == ["a", "b", "c"]
    assert three.verify() == []


def test_a_dispute_keeps_the_row_and_is_not_put_back_too_early(three, notice):
    three.claims.accept(notice)
    claim = three.claims.dispute(notice, fields=COUNTER)
    assert "z" in three.source_keys()
    (clock,) = [clock for clock in claim.clocks if clock.not_before]
    assert clock.not_before - clock.started >= timedelta(days=12)  # ten business days
    with pytest.raises(NotAllowed, match="must not happen before"):
        three.claims.withdraw(notice)
    assert three.claims.stay(notice, fields={"suit": "docket 7"}).state == "stayed"
    assert "z" in three.source_keys()
    three.claims.withdraw(notice, early=True)
    assert "z" not in three.source_keys()


def test_steps_that_the_regime_does_not_allow_change_nothing(three, notice):
    before = three.versions()
    for step in (three.claims.dispute, three.claims.stay, three.claims.erase):
        with pytest.raises(NotAllowed, match=f"claim {notice} is received, and under dmca that leads to"):
            step(notice)
    with pytest.raises(UnknownClaim, match="claim 99"):
        three.claims.accept(99)
    with pytest.raises(UnknownKey, match="'x' is not in the set"):
        three.claims.open("dmca", NOTICE, source_keys=["x"])
    with pytest.raises(InvalidInput, match="a claim on nothing"):
        three.claims.open("dmca", NOTICE)
    assert three.versions() == before


def test_what_is_told_of_persons_is_in_no_record_and_shown_only_on_request(three, notice):
    claim = three.claims.show(notice)
    said = repr(claim) + repr(three.claims.every()) + "".join(r.to_json() for r in three.log()) + repr(three.versions())
    assert "Jane Roe" not in said
    assert "Main Street" not in said
    assert three.claims.claimant(notice) == {"signature": "Jane Roe", "contact": "1 Main Street"}


def test_clocks_that_run_are_listed_by_urgency(three, notice):
    three.claims.open("take-it-down", source_keys=["a"])
    due = three.claims.due()
    assert [one.clock.due for one in due] == sorted(one.clock.due for one in due)
    assert notice in {one.claim for one in due}
    assert three.claims.due(now=datetime.now(UTC) - timedelta(days=999), within=timedelta(days=1)) == []


def test_a_hold_keeps_from_erasing_and_needs_two_people_both_ways(three):
    claim = three.claims.open("gdpr-erasure", {}, source_keys=["a"]).number
    assert three.claims.hold(claim, by="ann").hold == "asked"
    with pytest.raises(NotAllowed, match="another person has to agree"):
        three.claims.hold(claim, by=" Ann ")
    assert three.claims.hold(claim, by="ben").hold == "held"
    with pytest.raises(OnHold, match=f"claim {claim}"):
        three.erase(["a"], "asked for")
    three.claims.release(claim, by="ben")
    with pytest.raises(OnHold):
        three.erase(["a"], "asked for")
    assert three.claims.release(claim, by="ann").hold is None
    three.erase(["a"], "asked for")
    assert three.source_keys() == ["b", "c"]


def test_content_named_by_hash_is_claimed_when_it_comes(three):
    digest = "ab" * 32
    claim = three.claims.open("dmca", NOTICE, hashes=[f"sha256:{digest}"]).number
    assert three.claims.accept(claim).state == "accepted"
    three.add(rows(1, seed=5), ["late"], sources=[Provenance(image_sha256=digest)])
    assert three.claims.show(claim).rows == {4: "late"}
    assert three.claims.show(claim).state == "in_force"
    with pytest.raises(ClaimLive):
        three.withdraw(["late"], "a mistake")


def test_a_hash_only_claim_holds_no_content_and_refuses_it(three):
    digest = "cd" * 32
    with pytest.raises(NotAllowed, match="allows no copy of the content; give hashes alone"):
        three.claims.open("hash-only", {"source": "a list"}, rows=rows(1), source_keys=["x"])
    three.claims.open("hash-only", {"source": "a list"}, hashes=[f"sha256:{digest}"])
    before = three.versions()
    with pytest.raises(ContentRefused, match="'x' is content that a claim allows no copy of") as refused:
        three.add(rows(2, seed=5), ["x", "y"], sources=[Provenance(image_sha256=digest), None])
    assert refused.value.keys == ("x",)
    assert three.versions() == before
    three.add(rows(1, seed=5), ["y"])


def test_a_regime_of_the_operators_own_is_followed_everywhere(three):
    own = three.path / "regimes"
    own.mkdir()
    shipped = (Path(negindex.__file__).parent / "laws" / "hash-only.toml").read_text()
    (own / "house-list.toml").write_text(shipped.replace('name = "hash-only"', 'name = "house-list"'))
    digest = "ef" * 32
    three.claims.open("house-list", {"source": "a list"}, hashes=[f"sha256:{digest}"])
    with pytest.raises(ContentRefused):
        three.add(rows(1, seed=5), ["x"], sources=[Provenance(image_sha256=digest)])


def test_claims_survive_reopening(three, notice):
    three.claims.accept(notice)
    assert Collection.open(three.path).claims.show(notice) == three.claims.show(notice)
