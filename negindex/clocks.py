"""Deadlines of a claim: hours, days, months and business days from the moment that starts them.

Hours are absolute. Days, months and business days are counted on the calendar of the regime's time zone,
begin with the day after the start, and end at 23:59:59 of their last day. Months keep the day of the month,
or take the month's last day where it has no such day. A business day is no weekend and no public holiday
of the country's calendar (the `holidays` package). Days and months never roll over a holiday: the earlier
day is the safe one. Times go in and come out as aware UTC datetimes.

>>> from datetime import datetime
>>> friday = datetime(2026, 12, 18, 20, 0, tzinfo=UTC)
>>> Span.parse("10 business days").end(friday, ZoneInfo("America/New_York"), "US").isoformat()
'2027-01-06T04:59:59+00:00'
"""

from __future__ import annotations

import calendar as months
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from negindex.errors import InvalidInput

if TYPE_CHECKING:  # loads in 0.1 s, so only when business days are counted
    from holidays import HolidayBase

_SPAN = re.compile(r"([1-9]\d{0,3}) (hour|day|month|business day)s?")


@dataclass(frozen=True)
class Span:
    """A length of time as laws state it. unit: hour, day, month or business day."""

    count: int
    unit: str

    def __str__(self) -> str:
        return f"{self.count} {self.unit}{'s' if self.count > 1 else ''}"

    @classmethod
    def parse(cls, text: str) -> Span:
        """ "48 hours", "7 days", "1 month", "14 business days"; InvalidInput for anything else."""
        found = _SPAN.fullmatch(text)
        if not found:
            raise InvalidInput(
                f'{text!r} is no span of time; give a whole number like "48 hours" or "14 business days"'
            )
        return cls(int(found[1]), found[2])

    def end(self, start: datetime, zone: ZoneInfo, country: str | None = None) -> datetime:
        """When the span that starts then is over, UTC. country: for business days, see ``holidays_of``."""
        if self.unit == "hour":
            return in_utc(start) + timedelta(hours=self.count)
        day = in_utc(start).astimezone(zone).date()
        if self.unit == "day":
            return _end_of(day + timedelta(days=self.count), zone)
        if self.unit == "month":
            return _end_of(_months_later(day, self.count), zone)
        if country is None:
            raise InvalidInput(f"{self} without a country; name the calendar that they are counted on")
        return _end_of(_business_days_later(day, self.count, country), zone)


@dataclass(frozen=True)
class Clock:
    """One run of a deadline. All times UTC; the due time itself is still in time."""

    name: str
    started: datetime
    due: datetime
    alarm: datetime  # from here on the deadline is near
    not_before: datetime | None = None  # what ends the clock must not happen earlier
    ended: datetime | None = None  # None while it runs

    def missed(self, now: datetime) -> bool:
        """Whether the clock ended too late, or runs and is over."""
        return (self.ended or in_utc(now)) > self.due

    def near(self, now: datetime) -> bool:
        """Whether somebody must be called: the clock runs, and its alarm time has come."""
        return self.ended is None and in_utc(now) >= self.alarm

    def too_early(self, now: datetime) -> bool:
        """Whether the time before which nothing may end the clock lasts still."""
        return self.not_before is not None and in_utc(now) < self.not_before


@dataclass(frozen=True)
class ClockRule:
    """A deadline as a regime states it: it runs from the entry into a state until the entry into another."""

    name: str
    basis: str  # where the number comes from: a law, or the house
    starts: tuple[str, ...]
    ends: tuple[str, ...]
    due: Span
    alarm: Span  # how long before the due time
    not_before: Span | None = None
    calendar: str | None = None

    def runs(self, history: Sequence[tuple[str, datetime]], zone: ZoneInfo) -> Iterator[Clock]:
        """Every run within a claim's history, (state entered, when), in the order it happened.

        A state that starts a clock that runs already changes nothing.
        """
        started: datetime | None = None
        for state, at in history:
            if started is None and state in self.starts:
                started = at
            elif started is not None and state in self.ends:
                yield self.run(started, zone, at)
                started = at if state in self.starts else None
        if started is not None:
            yield self.run(started, zone)

    def run(self, started: datetime, zone: ZoneInfo, ended: datetime | None = None) -> Clock:
        """The clock that starts then."""
        due = self.due.end(started, zone, self.calendar)
        not_before = self.not_before.end(started, zone, self.calendar) if self.not_before else None
        lead = timedelta(hours=self.alarm.count)
        return Clock(self.name, in_utc(started), due, due - lead, not_before, in_utc(ended) if ended else None)


def zone_named(name: str) -> ZoneInfo:
    """The time zone of this name, such as Europe/Brussels; raises InvalidInput."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidInput(f"{name!r} is no time zone; give one like Europe/Brussels") from error


def in_utc(at: datetime) -> datetime:
    """The same moment in UTC; InvalidInput for a datetime without a time zone."""
    if at.utcoffset() is None:
        raise InvalidInput(f"{at.isoformat()} has no time zone; give an aware datetime such as datetime.now(UTC)")
    return at.astimezone(UTC)


@lru_cache(maxsize=64)
def holidays_of(country: str) -> HolidayBase:
    """The public holidays and weekends of "US" or, of a part of it, "US-CA"; InvalidInput for an unknown one."""
    import holidays

    code, _, part = country.partition("-")
    try:
        return holidays.country_holidays(code, subdiv=part or None)
    except NotImplementedError as error:
        raise InvalidInput(
            f"calendar {country!r} is not known; give a country's code, with or without a part's"
        ) from error


def _end_of(day: date, zone: ZoneInfo) -> datetime:
    """The day's last second; the later one where the clock is put back over midnight."""
    return datetime.combine(day, time(23, 59, 59, fold=1), zone).astimezone(UTC)


def _months_later(day: date, count: int) -> date:
    year, month = divmod(day.year * 12 + day.month - 1 + count, 12)
    return date(year, month + 1, min(day.day, months.monthrange(year, month + 1)[1]))


def _business_days_later(day: date, count: int, country: str) -> date:
    known = holidays_of(country)
    while count:
        day += timedelta(days=1)
        count -= known.is_working_day(day)
    return day


def span(length: timedelta) -> str:
    """Its two largest units, rounded down.

    >>> from datetime import timedelta
    >>> span(timedelta(days=13, hours=4, minutes=9)), span(timedelta(minutes=61)), span(timedelta(seconds=5))
    ('13 d 4 h', '1 h 1 min', '0 min')
    """
    minutes = int(length.total_seconds()) // 60
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def length(text: str) -> timedelta:
    """A length of time in one unit, as people write it; raises InvalidInput.

    >>> length("48h"), length("2d"), length("30min")
    (datetime.timedelta(days=2), datetime.timedelta(days=2), datetime.timedelta(seconds=1800))
    """
    found = re.fullmatch(r"(\d{1,5})\s*(min|h|d)", text.strip())
    if not found:
        raise InvalidInput(f"{text!r} is no length of time; give minutes, hours or days, such as 30min, 48h or 2d")
    return timedelta(**{{"min": "minutes", "h": "hours", "d": "days"}[found[2]]: int(found[1])})
