"""Reports: nothing of persons is in them, a statement says what the law asks, a summary counts each thing once."""

import csv
import io
import json
import random
import re
import shlex
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from statistics import median
from zoneinfo import ZoneInfo

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from small_sets import SHAPE, rows

from negindex import Collection
from negindex.errors import InvalidInput, NegindexError, NotAllowed, NotThere, UnknownClaim
from negindex.regimes import LIVE, regime, regimes
from negindex.reports import REASONS, Counts, Late, Period, RowCounts, statement_of_reasons, summary
from negindex.states import Provenance
from negindex.tools.cli import main

CANARY = "canary7391"
START = datetime(2025, 10, 5, 9, tzinfo=UTC)
LATER = datetime(2026, 6, 1, tzinfo=UTC)
NOVEMBER = Period.month("2025-11")


class FakeTime:
    """The time that changes are recorded at."""

    def __init__(self):
        self.at = START

    def __call__(self):
        return self.at.isoformat(timespec="milliseconds")

    def goes_on(self, **span):
        self.at += timedelta(**span)


@pytest.fixture
def clock(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr("negindex.change.now", fake)
    return fake


@pytest.fixture
def col(clock, tmp_path):
    """Rows a, b and c in force at version 1, since early October."""
    made = Collection.create(tmp_path / "set", SHAPE, "pixels")
    made.add(rows(3), ["a", "b", "c"])
    return made


def told(name, *documents, canary=""):
    """A good value for each field of a regime's documents (all when none is named), personal ones with a canary."""
    good = {"affirmed": "yes", "date": "2025-10-01", "email": f"{canary}@a.example", "sha256": "ab" * 32}
    return {
        field.name: field.choices[0]
        if field.choices
        else good.get(field.check, f"told as {field.name} {canary}".strip())
        if field.personal
        else good.get(field.check, f"the {field.name}")
        for field in regime(name).fields
        if not documents or field.document in documents
    }


def opened(col, name="dsa", key="z", seed=9, **changes):
    """A claim with all of its fields told, on a new row."""
    return col.claims.open(name, told(name) | changes, rows=rows(1, seed), source_keys=[key]).number


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


# -- no personal data --------------------------------------------------------------------------


def test_nothing_that_names_somebody_is_in_any_report(col, clock):
    """A canary in every personal field of every regime, in names, reasons, source keys, labels and thumbnails."""
    steps = {"by": f"by {CANARY}", "reason": f"because {CANARY}"}
    for seed, name in enumerate(regimes()):
        fields = told(name, canary=CANARY)
        kept = {"hashes": [f"sha256:{'cd' * 32}"]}
        if regime(name).storage == "rows":
            source = Provenance(thumbnail=CANARY.encode())
            kept = {"rows": rows(1, seed + 50), "source_keys": [f"{CANARY}/{seed}.png"], "sources": [source]}
            kept["label"] = CANARY
        claim = col.claims.open(name, fields, **kept, **steps).number
        clock.goes_on(hours=60)
        col.claims.accept(claim, fields=fields, **steps)
        if regime(name).allows("in_force", "disputed"):
            col.claims.dispute(claim, fields=fields, **steps)
        if any(field.personal for field in regime(name).fields):
            assert CANARY in str(col.claims.claimant(claim))
    dsa = next(claim.claim for claim in col.claims.every(regime="dsa"))
    october = ("report", "summary", col.path, "--month", "2025-10")
    said = [run("report", "statement", col.path, dsa), *(run(*october, *how) for how in ([], ["--json"], ["--csv"]))]
    assert [one.exit_code for one in said] == [0] * 4, said[0].output
    assert summary(col, Period.month("2025-10")).missed
    for one in said:
        assert "canary" not in one.output.casefold()
        assert not any(digest in one.output for digest in col.digests().values())


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("facts", "Seen by Jane Roe herself"),
        ("ground_explanation", "as jane\n  ROE says"),
        ("redress", "write to ＪＡＮＥ＠roe.example"),
        ("territory", ["France", "where Jane Roe lives"]),
    ],
)
def test_a_statement_that_repeats_a_claimants_detail_is_refused_and_the_detail_not_told(col, field, text):
    claim = opened(col, notifier="Jane Roe", notifier_email="jane@roe.example", **{field: text})
    col.claims.accept(claim)
    with pytest.raises(InvalidInput, match=f"{field} repeats what the claimant told as notifier") as refused:
        statement_of_reasons(col, claim)
    assert "roe" not in str(refused.value).casefold()
    col.claims.amend(claim, {field: "in the claimant's own words"})
    assert statement_of_reasons(col, claim)["reasons"][field] == "in the claimant's own words"


def test_a_claimants_short_word_or_one_of_the_regimes_own_hinders_no_statement(col):
    claim = opened(col, notifier="Li", explanation="illegal content", facts="publicly listed")
    col.claims.accept(claim)
    assert statement_of_reasons(col, claim)["reasons"]["ground"] == "illegal content"


# -- the statement -----------------------------------------------------------------------------


def test_a_statement_says_what_article_17_asks_and_when(col, clock):
    claim = opened(col)
    clock.goes_on(hours=5)
    col.claims.accept(claim)
    said = statement_of_reasons(col, claim)
    assert said["reasons"] == {name: told("dsa")[name] for name in REASONS}
    assert json.loads(run("report", "statement", col.path, claim).stdout) == said
    assert {name: value for name, value in said.items() if name not in ("reasons", "set_id", "law")} == {
        "schema": "negindex.statement-of-reasons",
        "schema_version": 1,
        "id": f"{col.set_id}-{claim}",
        "claim": claim,
        "state": "in_force",
        "received_at": "2025-10-05T09:00:00.000+00:00",
        "decided_at": "2025-10-05T14:00:00.000+00:00",
        "in_force_from": {"version": 3, "at": "2025-10-05T14:00:00.000+00:00"},
        "in_force_until": None,
    }
    clock.goes_on(days=1)
    col.claims.withdraw(claim)
    ended = {"version": 4, "ended_at": "2025-10-06T14:00:00.000+00:00"}
    assert statement_of_reasons(col, claim)["in_force_until"] == ended
    assert "z" not in col.source_keys()


def test_every_reason_that_the_law_asks_for_is_a_public_field_that_puts_a_claim_in_force():
    assert set(REASONS) == {field.name for field in regime("dsa").fields if "in_force" in field.required_for}


def test_a_claim_that_waits_for_content_restricts_nothing_until_it_comes(col):
    digest = "ab" * 32
    claim = col.claims.open("dsa", told("dsa"), hashes=[f"sha256:{digest}"]).number
    col.claims.accept(claim)
    with pytest.raises(NotAllowed, match=f"claim {claim} is accepted and never restricted anything"):
        statement_of_reasons(col, claim)
    col.add(rows(1, 70), ["late"], sources=[Provenance(image_sha256=digest)])
    said = statement_of_reasons(col, claim)
    assert said["in_force_from"]["version"] == col.newest().version
    assert said["in_force_from"]["version"] not in range(col.claims.show(claim).first_in_force + 1)


def test_there_is_no_statement_without_a_decision_on_a_restriction(col):
    waiting, refused, erased = (opened(col, key=key, seed=seed) for seed, key in enumerate("xyz", 20))
    other = opened(col, "dmca", key="w", seed=30)
    col.claims.withdraw(refused, reason="unfounded")
    col.claims.accept(erased)
    col.claims.withdraw(erased)
    col.claims.erase(erased)
    for claim, why in (
        (waiting, "is received and never restricted"),
        (refused, "is withdrawn and never restricted"),
        (erased, "was erased, and its reasons with it"),
        (other, "is under dmca"),
    ):
        with pytest.raises(NotAllowed, match=f"claim {claim} {why}"):
            statement_of_reasons(col, claim)
    with pytest.raises(UnknownClaim, match="claim 99"):
        statement_of_reasons(col, 99)


def test_reasons_that_are_blank_or_amiss_are_named(col):
    claim = opened(col)
    col.claims.accept(claim)
    col.claims.amend(claim, {"facts": " ", "restriction": "a stern look"})
    with pytest.raises(InvalidInput, match=r"restriction is none of removal.*; facts is blank; `negindex claim amend`"):
        statement_of_reasons(col, claim)


def test_a_set_whose_own_rules_hide_a_reason_has_no_statements(col):
    claim = opened(col)
    col.claims.accept(claim)
    own = col.path / "regimes"
    own.mkdir()
    shipped = (files("negindex") / "laws" / "dsa.toml").read_text(encoding="utf-8")
    head, _, tail = shipped.partition('name = "facts"')
    (own / "dsa.toml").write_text(
        head + 'name = "facts"' + tail.replace("personal = false", "personal = true", 1), encoding="utf-8"
    )
    with pytest.raises(InvalidInput, match="facts is no public field of the set's own regime dsa"):
        statement_of_reasons(col, claim)


# -- periods -----------------------------------------------------------------------------------

ZONES = ["UTC", "Europe/Brussels", "America/New_York", "America/Havana", "Asia/Kathmandu", "Pacific/Apia"]


@given(st.datetimes(datetime(1995, 1, 1), datetime(2045, 1, 1), timezones=st.just(UTC)), st.sampled_from(ZONES))
@example(datetime(2009, 11, 1, 4, 0, tzinfo=UTC), "America/Havana")  # midnight came twice: the first of them
@example(datetime(2001, 4, 1, 5, 0, tzinfo=UTC), "America/Havana")  # there was no midnight: one o'clock
def test_every_moment_lies_in_the_month_of_its_zone_and_in_no_other(at, zone):
    local = at.astimezone(ZoneInfo(zone))
    months = [
        Period.month(f"{local.year + m // 12}-{m % 12 + 1:02}", zone) for m in range(local.month - 2, local.month + 1)
    ]
    assert [at in month for month in months] == [False, True, False]
    assert all(one.end == other.first for one, other in pairwise(months))


def test_a_months_border_is_the_zones_midnight():
    brussels = Period.month("2025-10", "Europe/Brussels")  # from summer time to winter time
    assert brussels.first == datetime(2025, 9, 30, 22, tzinfo=UTC)
    assert brussels.end == datetime(2025, 10, 31, 23, tzinfo=UTC)
    assert brussels.told(brussels.end) == "2025-11-01T00:00:00+01:00"
    assert Period.days(date(2025, 10, 1), date(2025, 10, 31), "Europe/Brussels") == brussels


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Period.month("November"), "'November' is no month; give one like 2026-11"),
        (lambda: Period.month("2025-13"), "'2025-13' is no month"),
        (lambda: Period.month("2025-11", "Brussels"), "'Brussels' is no time zone; give one like Europe/Brussels"),
        (lambda: Period.month("2025-11", "../etc"), "is no time zone"),
        (lambda: Period.days(date(2025, 11, 2), date(2025, 11, 1)), "give the earlier time first|2025-11-02"),
        (lambda: Period.month("9999-12"), "give days between the years 2 and 9998"),
        (lambda: Period(datetime(2025, 1, 1), datetime(2025, 2, 1), "UTC"), "no time zone"),
    ],
)
def test_periods_that_are_none_are_refused(make, said):
    with pytest.raises(InvalidInput, match=said):
        make()


# -- the summary -------------------------------------------------------------------------------


def test_what_lies_at_a_months_border_is_counted_once(col, clock):
    clock.at = datetime(2025, 11, 30, 22, 59, 59, 999000, tzinfo=UTC)
    claim = opened(col, "dmca")
    clock.goes_on(milliseconds=1)  # midnight in Brussels, eleven o'clock in the evening in UTC
    col.claims.accept(claim)
    there = [summary(col, Period.month(f"2025-{m}", "Europe/Brussels"), LATER).total for m in (11, 12)]
    assert [(counts.received, counts.in_force, counts.accepted) for counts in there] == [(1, 0, 0), (0, 1, 1)]
    assert [counts.waiting_at_end for counts in there] == [1, 0]
    assert [counts.live_at_end for counts in there] == [0, 1]
    assert summary(col, Period.month("2025-12", "Europe/Brussels"), LATER).rows == RowCounts(3, 1, 0, 4, 0)
    utc = [summary(col, Period.month(f"2025-{m}"), LATER).total for m in (11, 12)]
    assert [(counts.received, counts.in_force, counts.accepted) for counts in utc] == [(1, 1, 1), (0, 0, 0)]


def test_a_missed_clock_is_named_in_the_month_that_it_was_due_in(col, clock):
    clock.at = datetime(2025, 11, 29, 12, tzinfo=UTC)
    claim = opened(col, "take-it-down")  # within 48 hours: by the first of December
    clock.goes_on(hours=50, minutes=30)
    col.claims.accept(claim)
    november, december = (summary(col, Period.month(f"2025-{m}"), LATER) for m in (11, 12))
    assert (november.missed, november.overdue) == ([], [])
    due, ended = "2025-12-01T12:00:00+00:00", "2025-12-01T14:30:00+00:00"
    assert december.missed == [Late(claim, "take-it-down", "remove", due, ended, 2.5)]
    assert december.overdue == []
    assert (december.total.worst_hours, december.total.clocks_missed) == (50.5, 1)


def test_a_clock_that_runs_past_due_is_told_in_every_month_until_it_ends(col, clock):
    clock.at = datetime(2025, 11, 20, 12, tzinfo=UTC)
    claim = opened(col, "take-it-down")
    due = "2025-11-22T12:00:00+00:00"
    november = summary(col, NOVEMBER, now=datetime(2025, 11, 22, 18, tzinfo=UTC))
    assert november.until == "2025-11-22T18:00:00+00:00"
    assert november.missed == november.overdue == [Late(claim, "take-it-down", "remove", due, None, 6.0)]
    clock.at = datetime(2026, 1, 2, tzinfo=UTC)
    col.claims.withdraw(claim, reason="withdrawn by the person")
    told = {m: summary(col, Period.month(m), LATER) for m in ("2025-11", "2025-12", "2026-01")}
    assert [len(one.missed) for one in told.values()] == [1, 0, 0]
    assert [len(one.overdue) for one in told.values()] == [1, 1, 0]
    assert told["2025-12"].overdue[0].hours == 24 * 39 + 12  # up to the end of December
    assert [one.total.refused for one in told.values()] == [0, 0, 1]


def test_a_clock_that_no_state_stopped_is_late_up_to_the_end_of_its_claim(col, clock):
    own = col.path / "regimes"
    own.mkdir()
    shipped = (files("negindex") / "laws" / "take-it-down.toml").read_text(encoding="utf-8")
    changed = shipped.replace('ends = ["incomplete", "in_force", "withdrawn"]', 'ends = ["in_force"]')
    (own / "take-it-down.toml").write_text(changed, encoding="utf-8")
    clock.at = datetime(2025, 11, 3, tzinfo=UTC)
    claim = opened(col, "take-it-down")
    clock.goes_on(hours=50)
    col.claims.withdraw(claim, reason="unfounded")
    clock.goes_on(hours=50)
    col.claims.erase(claim)
    found = summary(col, NOVEMBER, LATER)
    assert [(one.hours, one.ended) for one in found.missed] == [(2.0, "2025-11-05T02:00:00+00:00")]
    assert found.overdue == []
    assert found.rules["take-it-down"] != regime("take-it-down").digest


def test_erased_claims_still_count_however_they_were_erased(col, clock):
    clock.at = datetime(2025, 11, 3, tzinfo=UTC)
    by_claim, by_key = opened(col, "gdpr-erasure"), opened(col, "dmca", key="y", seed=8)
    col.claims.accept(by_claim)
    col.claims.erase(by_claim, fields=told("gdpr-erasure", "decision"))
    clock.goes_on(hours=1)
    col.erase(["a"], "asked for")
    assert summary(col, NOVEMBER, LATER).in_house == Counts(live_at_end=1)  # b and c are left
    col.erase(["y", "b", "c"], "all of it")  # no claim is named in this record
    found = summary(col, NOVEMBER, LATER)
    assert {claim.claim: claim.state for claim in col.claims.every()} == {
        1: "erased",
        by_claim: "erased",
        by_key: "erased",
    }
    assert found.regimes["gdpr-erasure"] == Counts(
        received=1, accepted=1, in_force=1, erased=1, median_hours=0.0, worst_hours=0.0
    )
    assert found.regimes["dmca"] == Counts(received=1, erased=1)
    assert found.in_house == Counts(erased=1)
    assert (found.missed, found.overdue) == ([], [])  # a claim that is over has no deadline
    assert found.rows == RowCounts(at_start=3, entered=1, left=4, at_end=0, erased=5)


def test_a_withdrawal_that_closes_several_in_house_claims_counts_each(col, clock):
    col.add(rows(1, 40), ["d"])
    clock.at = datetime(2025, 11, 3, tzinfo=UTC)
    col.withdraw(["a", "d"], "no longer")  # closes the claim on d, not that on a, b and c
    assert summary(col, NOVEMBER, LATER).in_house == Counts(withdrawn=1, live_at_end=1)
    col.withdraw(["b", "c"], "no longer")
    assert summary(col, NOVEMBER, LATER).in_house == Counts(withdrawn=2)
    assert summary(col, NOVEMBER, LATER).total == Counts()


def test_a_month_that_is_over_is_told_the_same_way_ever_after(col, clock):
    clock.at = datetime(2025, 11, 3, tzinfo=UTC)
    claim = opened(col, "dmca")
    clock.goes_on(days=9)
    col.claims.accept(claim)
    before = summary(col, NOVEMBER, datetime(2025, 12, 1, tzinfo=UTC)).to_json()
    clock.at = datetime(2025, 12, 1, tzinfo=UTC)
    col.claims.withdraw(claim)
    col.claims.erase(claim)
    opened(col, "dsa", key="y", seed=3)
    assert summary(Collection.open(col.path), NOVEMBER, LATER).to_json() == before


def test_an_empty_set_has_an_empty_summary(clock, tmp_path):
    empty = Collection.create(tmp_path / "empty", SHAPE, "pixels")
    found = summary(empty, NOVEMBER, LATER)
    assert (found.regimes, found.total, found.in_house) == ({}, Counts(), Counts())
    assert (found.version, found.root) == (0, empty.checkpoint().root)
    before = summary(empty, Period.month("2025-09"), LATER)
    assert (before.version, before.root, before.rows) == (None, "", RowCounts(0, 0, 0, 0, 0))
    assert "no version yet" in run("report", "summary", empty.path, "--month", "2020-09").stdout
    with pytest.raises(InvalidInput, match="which is to come"):
        summary(empty, NOVEMBER, START)


def test_an_erasure_that_a_reader_holds_up_is_told(col, clock):
    clock.at = datetime(2025, 11, 3, tzinfo=UTC)
    reader = Collection.open(col.path).snapshot()
    col.erase(["a"], "asked for")
    version = col.newest().version
    assert set(summary(col, NOVEMBER, LATER).outstanding) == {(version, "file")}
    assert summary(col, Period.month("2025-10"), LATER).outstanding == []
    del reader
    col.settle()
    assert summary(col, NOVEMBER, LATER).outstanding == []


# -- against a plain recomputation -------------------------------------------------------------


class Journal:
    """What a bystander notes after every step: who is in which state, and how many rows are in force."""

    def __init__(self, col, clock):
        self.col, self.clock, self.steps, self.rows, self.regime = col, clock, {}, [], {}

    def note(self, accepted=None):
        at = self.clock.at
        for claim in self.col.claims.every():
            steps = self.steps.setdefault(claim.claim, [])
            self.regime[claim.claim] = claim.regime
            if not steps or steps[-1][0] != claim.state:
                if claim.claim == accepted and claim.state == "in_force":
                    steps.append(("accepted", at))
                steps.append((claim.state, at))
        self.rows.append((at, set(self.col.in_force())))

    def counts(self, period, chosen):
        steps = {
            n: [s for s in steps if s[1] < period.end] for n, steps in self.steps.items() if chosen(self.regime[n])
        }
        steps = {n: kept for n, kept in steps.items() if kept}
        came = Counter()
        for kept in steps.values():
            for (before, _), (state, at) in pairwise([(None, None), *kept]):
                if period.first <= at < period.end:
                    came["received"] += before is None
                    came["refused" if state == "withdrawn" and before not in LIVE else state] += state != "received"
        forced = [(kept[0][1], next((at for s, at in kept if s == "in_force"), None)) for kept in steps.values()]
        hours = [(at - opened) / timedelta(hours=1) for opened, at in forced if at and at in period]
        late = [one for n, kept in steps.items() for one in self.late(n, kept, period)]
        last = Counter(kept[-1][0] for kept in steps.values())
        return Counts(
            **{
                k: came[k]
                for k in ("received", "incomplete", "accepted", "disputed", "stayed", "refused", "withdrawn", "erased")
            },
            in_force=len(hours),
            waiting_at_end=last["received"] + last["incomplete"],
            live_at_end=sum(last[state] for state in LIVE),
            median_hours=round(median(hours), 2) if hours else None,
            worst_hours=round(max(hours), 2) if hours else None,
            clocks_missed=sum(missed for missed, _ in late),
            clocks_overdue=sum(runs for _, runs in late),
        )

    def late(self, number, steps, period):
        over = steps[-1][0] in ("withdrawn", "erased")
        for one in regime(self.regime[number]).clocks(steps):
            ended = one.ended or (next(at for s, at in steps if s in ("withdrawn", "erased")) if over else None)
            if (ended or period.end) > one.due:
                yield one.due in period, ended is None


def live(col, seed):
    """A random step of a random claim; what the rules forbid changes nothing."""
    draw = random.Random(seed)
    claims = col.claims.every()
    way = draw.choice(["open", "open", "add", "withdraw", "erase", *["step"] * 9])
    if way == "open":
        name = draw.choice(["dmca", "dsa", "take-it-down", "gdpr-erasure"])
        fields, there = told(name), col.source_keys() if draw.random() < 0.3 else []
        if draw.random() < 0.4:
            fields.pop(next(f.name for f in regime(name).fields if "accepted" in f.required_for))
        new = {"source_keys": [draw.choice(there)]} if there else {"source_keys": [f"k{seed}"], "rows": rows(1, seed)}
        col.claims.open(name, fields, **new)
    elif way == "add":
        col.add(rows(2, seed), [f"h{seed}a", f"h{seed}b"])
    elif way in ("withdraw", "erase"):
        keys = draw.sample(col.source_keys(), min(2, len(col)))
        getattr(col, way)(keys, "for some reason")
    elif claims:
        claim = draw.choice(claims)
        steps = [*regime(claim.regime).transitions.get(claim.state, ()), "amend", "hold"]
        step = draw.choice([STEPS[state] for state in steps])
        more = {"early": True} if step == "withdraw" else {"by": f"p{seed}"} if step == "hold" else {}
        more |= {"fields": told(claim.regime)} if step in ("amend", "dispute", "stay", "erase") else {}
        getattr(col.claims, step)(claim.claim, **more)
        return claim.claim if step == "accept" else None
    return None


STEPS = {  # what brings a claim into a state
    "received": "amend",
    "incomplete": "amend",
    "accepted": "accept",
    "in_force": "uphold",
    "disputed": "dispute",
    "stayed": "stay",
    "withdrawn": "withdraw",
    "erased": "erase",
    "amend": "amend",
    "hold": "hold",
}


@pytest.mark.parametrize("seed", range(4))
def test_a_summary_is_what_a_bystander_counts(clock, tmp_path, seed):
    col = Collection.create(tmp_path / "set", SHAPE, "pixels")
    journal, draw, done = Journal(col, clock), random.Random(seed), 0
    for i in range(45):
        clock.goes_on(minutes=draw.choice([0, 7, 60, 600, 3000]))
        try:
            accepted = live(col, 1000 * seed + i)
        except (NegindexError, ValueError):
            continue
        journal.note(accepted)
        done += 1
    assert done > 20
    parts = [Period.month(month, "America/New_York") for month in ("2025-10", "2025-11", "2025-12")]
    whole = Period(parts[0].first, parts[-1].end, "America/New_York")
    for period in (*parts, whole):
        found = summary(col, period, LATER)
        names = {n for k, n in journal.regime.items() if journal.steps[k][0][1] < period.end}
        assert set(found.regimes) == names - {"in-house"}
        for name, counts in found.regimes.items():
            assert counts == journal.counts(period, lambda one, name=name: one == name), name
        assert found.total == journal.counts(period, lambda one: one != "in-house")
        assert found.in_house == journal.counts(period, lambda one: one == "in-house")
        assert found.total.clocks_missed == len(found.missed)
        assert found.total.clocks_overdue == len(found.overdue)
        rows_then = [len(there) for at, there in journal.rows if at < period.end]
        assert found.rows.at_end == (rows_then[-1] if rows_then else 0)
        assert found.rows.at_start + found.rows.entered - found.rows.left == found.rows.at_end
    sums = [summary(col, period, LATER).total for period in parts]
    for name in ("received", "in_force", "accepted", "disputed", "refused", "withdrawn", "erased", "clocks_missed"):
        assert sum(getattr(one, name) for one in sums) == getattr(summary(col, whole, LATER).total, name)


# -- the command -------------------------------------------------------------------------------


def test_a_statement_is_written_to_a_new_file_and_none_is_overwritten(col, tmp_path):
    claim = opened(col)
    col.claims.accept(claim)
    words = ("report", "statement", col.path, claim, "--out")
    done = run(*words, tmp_path / "s.json")
    assert (done.exit_code, done.stdout) == (0, "")
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == statement_of_reasons(col, claim)
    again = run(*words, tmp_path / "s.json")
    assert again.exit_code == NotAllowed.exit_code
    assert "no statement is overwritten" in again.stderr
    assert run(*words, tmp_path / "none" / "s.json").exit_code == NotThere.exit_code
    assert run("report", "statement", col.path, 1).exit_code == NotAllowed.exit_code


def test_a_summary_is_printed_for_people_for_machines_and_for_spreadsheets(col, clock):
    clock.at = datetime(2024, 11, 3, tzinfo=UTC)  # a clock set back does not disorder the log
    opened(col, "take-it-down")
    october = ("report", "summary", col.path, "--month", "2025-10", "--zone", "Europe/Brussels")
    said = json.loads(run(*october, "--json").stdout)
    assert said["schema"] == "negindex.claims-summary"
    assert (said["zone"], said["first"]) == ("Europe/Brussels", "2025-10-01T00:00:00+02:00")
    assert said["regimes"]["take-it-down"]["received"] == said["total"]["received"] == said["in_house"]["received"] == 1
    assert said["missed"] == [{**said["missed"][0], "claim": 2, "clock": "remove"}]
    heading, *lines = csv.reader(io.StringIO(run(*october, "--csv").stdout))
    assert heading[:2] == ["regime", "received"]
    assert [line[0] for line in lines] == ["take-it-down", "all but in-house", "in-house"]
    shown = run(*october).stdout
    assert "from 2025-10-01T00:00:00+02:00 up to 2025-11-01T00:00:00+01:00 (Europe/Brussels)" in shown
    assert "claim 2 (take-it-down): remove, due 2025-10-07T11:00:00+02:00, runs still" in shown
    days = ("report", "summary", col.path, "--zone", "Europe/Brussels", "--from", "2025-10-01", "--to", "2025-10-31")
    assert run(*days).stdout == shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give --month, or --from and --to"),
        (["--from", "2025-10-01"], "give --month, or --from and --to"),
        (["--month", "2025-10", "--to", "2025-10-01"], "give --month, or --from and --to"),
        (["--month", "2025-10", "--json", "--csv"], "not both"),
        (["--month", "10/2025"], "is no month"),
        (["--month", "2025-10", "--zone", "Mars"], "is no time zone"),
    ],
)
def test_a_summary_of_no_clear_period_is_a_usage_error(col, words, said):
    done = run("report", "summary", col.path, *words)
    assert done.exit_code == 2
    assert said in done.stderr


# -- the guide ---------------------------------------------------------------------------------

GUIDE = Path(__file__).parents[1] / "docs" / "takedowns.md"
TOLD = {  # file: (regime, document, what is filled in)
    "notice.toml": ("dsa", "notice", {"explanation": "It shows a painting of mine", "location": "image 17"}),
    "decision.toml": ("dsa", "decision", {name: told("dsa")[name] for name in REASONS}),
    "complaint.toml": ("dsa", "counter-notice", {"complaint": "I have a licence"}),
    "request.toml": ("gdpr-erasure", None, dict.fromkeys(("subject", "contact", "material", "identity"), "told")),
}


class Then(datetime):
    """What ``datetime`` is to a module that asks for the time."""

    source: FakeTime

    @classmethod
    def now(cls, tz=None):
        return cls.source.at.astimezone(tz)


def in_console(page):
    """(command, what it shows), in order; blocks may be indented."""
    for indent, block in re.findall(r"^( *)```console\n(.*?)^\1```$", page, re.MULTILINE | re.DOTALL):
        text = re.sub(f"^{indent}", "", block, flags=re.MULTILINE)
        yield from re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)


def as_pattern(shown):
    """Exact, but for … : any text in a line, or any lines where it stands alone."""
    lines = ["(?:.*\n)*?" if line == "…\n" else re.escape(line).replace("…", ".*") for line in shown.splitlines(True)]
    return "".join(lines)


def fill(file):
    """The form that the regime prints, filled in."""
    name, document, values = TOLD[file]
    form = run("claim", "regimes", name, *(["--document", document] if document else [])).stdout
    for field, value in values.items():
        assert f'{field} = ""' in form
        form = form.replace(f'{field} = ""', f"{field} = {json.dumps(value)}")
    Path(file).write_text(form, encoding="utf-8")


def picture(seed, file, size=256):
    blocks = np.random.default_rng(seed).normal(128, 50, (8, 8)).clip(0, 255).astype(np.uint8)
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(blocks).resize((256, 256), Image.Resampling.BICUBIC).resize((size, size)).save(file)


@pytest.fixture
def office(clock, tmp_path, monkeypatch):
    """A folder with three images of the operator's, those of a notice and of a request, and forms filled in."""
    clock.at = datetime(2026, 11, 3, 9, tzinfo=UTC)
    Then.source = clock
    for module in ("reports", "claims", "tools.claim_print", "tools.claim_read"):
        monkeypatch.setattr(f"negindex.{module}.datetime", Then)
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        picture(seed, tmp_path / "ours" / f"{seed}.png")
    picture(1, tmp_path / "notice-17" / "copy.png", 200)
    picture(7, tmp_path / "notice-17" / "other.png")
    picture(9, tmp_path / "request-3" / "me.png")
    for file in TOLD:
        fill(file)


def test_the_guide_runs_from_top_to_bottom_as_printed(office, clock):
    amiss = []
    for command, shown in in_console(GUIDE.read_text(encoding="utf-8")):
        clock.goes_on(hours=1)
        line, _, file = command.partition(" > ")
        words = shlex.split(line)
        assert words[0] == "negindex"
        done = run(*words[1:])
        if file in TOLD:
            assert done.stdout == run("claim", "regimes", *words[3:]).stdout
            assert done.exit_code == 0
        elif file:
            Path(file).write_text(done.stdout, encoding="utf-8")
        else:
            said = done.stdout + (done.stderr if done.exit_code else "")
            if not re.fullmatch(as_pattern(shown), said):
                amiss.append(f"$ {command}\n{said}")
    assert not amiss, "\n".join(amiss)
    assert not summary(Collection.open("claims.set"), Period.month("2026-11"), clock.at).outstanding


def test_commands_that_the_guide_names_in_passing_parse():
    page = re.sub(r"^ *```console\n.*?^ *```$", "", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    named = [" ".join(one.split()) for one in re.findall(r"`(negindex [^`]*)`", page)]
    assert len(named) > 15
    for line in named:
        command, words = main, shlex.split(line.replace("sha256:…", "sha256:" + "ab" * 32))[1:]
        while words and isinstance(command, click.Group):
            command, *words = command.get_command(click.Context(command), words[0]), *words[1:]
            assert command is not None, line
        if words:
            command.make_context(command.name, words)
