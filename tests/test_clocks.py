"""Deadlines: hours, days, months and business days; what starts a claim's clocks, and what ends them."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negindex.clocks import Clock, Span, holidays_of
from negindex.errors import InvalidInput
from negindex.regimes import regime, regimes

EARLY, LATE = datetime(2026, 1, 5, 15, tzinfo=UTC), datetime(2026, 3, 9, 15, tzinfo=UTC)
NEW_YORK = ZoneInfo("America/New_York")


def utc(*parts):
    return datetime(*parts, tzinfo=UTC)


def ended(history, name=None, of="dmca"):
    """The runs of one clock."""
    return [clock for clock in regime(of).clocks(history) if name in (None, clock.name)]


# -- spans of time -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "start", "end", "zone", "country"),
    [
        # hours are absolute, also while clocks are put on (8 March 2026) and back (1 November 2026)
        ("48 hours", utc(2026, 3, 7, 12), utc(2026, 3, 9, 12), "America/New_York", None),
        ("48 hours", utc(2026, 10, 31, 12), utc(2026, 11, 2, 12), "America/New_York", None),
        # days end with the day of the zone, whatever its offset is by then
        ("1 day", utc(2026, 3, 7, 12), utc(2026, 3, 9, 3, 59, 59), "America/New_York", None),
        ("1 day", utc(2026, 3, 6, 12), utc(2026, 3, 8, 4, 59, 59), "America/New_York", None),
        ("7 days", utc(2026, 10, 30, 12), utc(2026, 11, 7, 4, 59, 59), "America/New_York", None),
        ("1 day", utc(2026, 5, 1, 3, 59), utc(2026, 5, 2, 3, 59, 59), "America/New_York", None),  # 30 April there
        ("1 day", utc(2026, 5, 1, 4, 0), utc(2026, 5, 3, 3, 59, 59), "America/New_York", None),
        # the last second of a day that has two of them is the later one
        ("1 day", utc(2018, 2, 16, 12), utc(2018, 2, 18, 2, 59, 59), "America/Sao_Paulo", None),
        # months keep the day, or take the month's last
        ("1 month", utc(2026, 1, 31, 12), utc(2026, 2, 28, 22, 59, 59), "Europe/Brussels", None),
        ("1 month", utc(2028, 1, 31, 12), utc(2028, 2, 29, 22, 59, 59), "Europe/Brussels", None),
        ("1 month", utc(2028, 2, 29, 12), utc(2028, 3, 29, 21, 59, 59), "Europe/Brussels", None),
        ("12 months", utc(2028, 2, 29, 12), utc(2029, 2, 28, 22, 59, 59), "Europe/Brussels", None),
        ("1 month", utc(2026, 12, 31, 23, 30), utc(2027, 2, 1, 22, 59, 59), "Europe/Brussels", None),
        ("1 month", utc(2026, 12, 15, 12), utc(2027, 1, 15, 22, 59, 59), "Europe/Brussels", None),
        # business days: weekends and holidays are passed over, the day of the start is not counted
        ("1 business day", utc(2026, 1, 9, 15), utc(2026, 1, 13, 4, 59, 59), "America/New_York", "US"),  # Friday
        ("1 business day", utc(2026, 1, 10, 15), utc(2026, 1, 13, 4, 59, 59), "America/New_York", "US"),  # Saturday
        ("1 business day", utc(2026, 1, 16, 15), utc(2026, 1, 21, 4, 59, 59), "America/New_York", "US"),  # King's day
        (
            "1 business day",
            utc(2026, 7, 2, 15),
            utc(2026, 7, 7, 3, 59, 59),
            "America/New_York",
            "US",
        ),  # 3 July, observed
        ("10 business days", utc(2026, 12, 18, 20), utc(2027, 1, 6, 4, 59, 59), "America/New_York", "US"),
        ("14 business days", utc(2026, 12, 18, 20), utc(2027, 1, 12, 4, 59, 59), "America/New_York", "US"),
        ("1 business day", utc(2021, 12, 30, 20), utc(2022, 1, 4, 4, 59, 59), "America/New_York", "US"),  # of next year
        ("1 business day", utc(2028, 2, 28, 15), utc(2028, 3, 1, 4, 59, 59), "America/New_York", "US"),
        ("10 business days", utc(2026, 2, 27, 15), utc(2026, 3, 14, 3, 59, 59), "America/New_York", "US"),
        ("1 business day", utc(2026, 5, 13, 12), utc(2026, 5, 15, 21, 59, 59), "Europe/Brussels", "BE"),  # Ascension
        ("1 business day", utc(2026, 3, 26, 12), utc(2026, 3, 29, 20, 59, 59), "Asia/Jerusalem", "IL"),  # Sunday works
        ("1 business day", utc(2024, 2, 3, 12), utc(2024, 2, 4, 15, 59, 59), "Asia/Shanghai", "CN"),  # a Sunday worked
        ("1 business day", utc(2026, 6, 3, 12), utc(2026, 6, 5, 21, 59, 59), "Europe/Berlin", "DE-BY"),
        ("1 business day", utc(2026, 6, 3, 12), utc(2026, 6, 4, 21, 59, 59), "Europe/Berlin", "DE-BE"),
    ],
)
def test_spans_end_when_a_calendar_says(span, start, end, zone, country):
    assert Span.parse(span).end(start, ZoneInfo(zone), country) == end


@given(st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)), st.integers(1, 40))
def test_business_days_are_counted_as_one_counts_them_by_hand(start, count):
    start = start.replace(tzinfo=UTC)
    end = Span(count, "business day").end(start, NEW_YORK, "US").astimezone(NEW_YORK)
    first, known = start.astimezone(NEW_YORK).date(), holidays_of("US")
    days = [first + timedelta(days=i) for i in range(1, (end.date() - first).days + 1)]
    worked = [day for day in days if day.weekday() < 5 and day not in known]
    assert (len(worked), worked[-1]) == (count, end.date())
    assert (end.hour, end.minute, end.second) == (23, 59, 59)


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)),
    st.sampled_from(["hour", "day", "month"]),
    st.integers(1, 50),
)
def test_a_later_start_never_ends_earlier_and_a_longer_span_ends_later(start, unit, count):
    start = start.replace(tzinfo=UTC)
    end = Span(count, unit).end(start, NEW_YORK)
    assert start < end < Span(count + 1, unit).end(start, NEW_YORK)
    assert end <= Span(count, unit).end(start + timedelta(minutes=90), NEW_YORK)


def test_any_zone_goes_in_and_utc_comes_out():
    start = utc(2026, 3, 7, 12)
    for unit, country in (("hour", None), ("day", None), ("month", None), ("business day", "US")):
        there = Span(3, unit).end(start.astimezone(ZoneInfo("Asia/Tokyo")), NEW_YORK, country)
        assert there == Span(3, unit).end(start, NEW_YORK, country)
        assert there.tzinfo is UTC
    with pytest.raises(InvalidInput, match="no time zone"):
        Span(1, "hour").end(datetime(2026, 1, 1), NEW_YORK)
    with pytest.raises(InvalidInput, match="name the calendar"):
        Span(1, "business day").end(start, NEW_YORK)


@pytest.mark.parametrize(
    "text", ["", "48", "48h", "0 hours", "-1 days", "1.5 days", "two days", "3 weeks", "99999 days"]
)
def test_other_spans_are_refused(text):
    with pytest.raises(InvalidInput, match="no span of time"):
        Span.parse(text)


def test_a_span_is_written_as_it_is_read():
    for text in ("1 hour", "48 hours", "1 business day", "14 business days"):
        assert str(Span.parse(text)) == text


# -- clocks of a claim -------------------------------------------------------------------------


def test_the_48_hours_of_the_take_it_down_act_run_from_receipt():
    (clock,) = regime("take-it-down").clocks([("received", EARLY), ("accepted", EARLY + timedelta(hours=9))])
    assert (clock.started, clock.due, clock.ended) == (EARLY, EARLY + timedelta(hours=48), None)
    assert not clock.near(EARLY + timedelta(hours=23))
    assert clock.near(EARLY + timedelta(hours=24))
    assert not clock.missed(clock.due)
    assert clock.missed(clock.due + timedelta(seconds=1))


def test_a_request_that_lacks_something_is_timed_from_its_completion():
    history = [("received", EARLY), ("incomplete", EARLY + timedelta(hours=1))]
    (stopped,) = regime("take-it-down").clocks(history)
    assert stopped.ended == EARLY + timedelta(hours=1)
    for completed in ("received", "accepted"):
        _, again = regime("take-it-down").clocks([*history, (completed, LATE)])
        assert (again.started, again.due, again.ended) == (LATE, LATE + timedelta(hours=48), None)


@pytest.mark.parametrize(("late", "missed"), [(timedelta(0), False), (timedelta(seconds=1), True)])
def test_an_ended_clock_stays_met_or_missed_for_ever(late, missed):
    end = EARLY + timedelta(hours=48) + late
    (clock,) = regime("take-it-down").clocks([("received", EARLY), ("accepted", EARLY), ("in_force", end)])
    assert clock.ended == end
    assert clock.missed(EARLY) is clock.missed(LATE) is missed
    assert not clock.near(LATE), "nobody is called for what is done"


def test_images_are_put_back_between_10_and_14_business_days_after_a_counter_notice():
    counter = utc(2026, 12, 18, 20)
    history = [("received", EARLY), ("accepted", EARLY), ("in_force", EARLY), ("disputed", counter)]
    (clock,) = ended(history, "put back")
    assert (clock.not_before, clock.due) == (utc(2027, 1, 6, 4, 59, 59), utc(2027, 1, 12, 4, 59, 59))
    assert clock.too_early(utc(2027, 1, 6, 4, 59, 58))
    assert not clock.too_early(clock.not_before)
    for state in ("withdrawn", "stayed", "in_force"):
        (stopped,) = ended([*history, (state, utc(2027, 1, 7))], "put back")
        assert (stopped.ended, stopped.missed(utc(2030, 1, 1))) == (utc(2027, 1, 7), False)


def test_a_second_counter_notice_starts_a_second_clock():
    history = [("received", EARLY), ("accepted", EARLY), ("in_force", EARLY), ("disputed", EARLY)]
    history += [("in_force", EARLY + timedelta(days=1)), ("disputed", LATE)]
    first, second = ended(history, "put back")
    assert (first.started, first.ended) == (EARLY, EARLY + timedelta(days=1))
    assert (second.started, second.ended) == (LATE, None)


def test_a_person_is_answered_within_a_month_also_while_something_is_missing():
    asked = utc(2026, 1, 31, 12)
    history = [("received", asked), ("incomplete", asked + timedelta(days=2)), ("received", asked + timedelta(days=9))]
    (clock,) = regime("gdpr-erasure").clocks(history)
    assert (clock.started, clock.due, clock.ended) == (asked, utc(2026, 2, 28, 22, 59, 59), None)
    (done,) = regime("gdpr-erasure").clocks([*history, ("accepted", asked), ("erased", asked + timedelta(days=20))])
    assert done.ended == asked + timedelta(days=20)


def test_clocks_come_in_the_order_they_started_and_none_without_a_history():
    history = [("received", EARLY), ("accepted", EARLY), ("in_force", EARLY), ("disputed", LATE)]
    assert [clock.name for clock in regime("dsa").clocks(history)] == ["decide", "answer complaint"]
    assert all(regime(name).clocks([]) == [] for name in regimes())
    assert regime("in-house").clocks(history) == []


def test_times_without_a_zone_are_refused_everywhere():
    naive = datetime(2026, 1, 1)
    clock = Clock("act", EARLY, LATE, LATE, LATE)
    asks = [lambda: regime("dmca").clocks([("received", naive)])]
    asks += [lambda ask=ask: ask(naive) for ask in (clock.missed, clock.near, clock.too_early)]
    for ask in asks:
        with pytest.raises(InvalidInput, match="no time zone"):
            ask()


def test_holidays_load_only_when_business_days_are_counted():
    code = "import sys; from negindex.regimes import regime; regime('dsa'); sys.exit('holidays' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
