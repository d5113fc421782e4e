"""Calendar events: the schedules of backup, replication and sync jobs, and when they come round next.

Source: the vendor's manual, "Calendar Events"; `[days] [date] [time]` with lists,
ranges and steps.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass

from .schema import format_check

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WORDS = {
    "minutely": "*:0/1",
    "hourly": "*:00",
    "daily": "00:00",
    "weekly": "mon 00:00",
    "monthly": "*-*-1 00:00",
    "quarterly": "*-1,4,7,10-1 00:00",
    "semiannually": "*-1,7-1 00:00",
    "semi-annually": "*-1,7-1 00:00",
    "yearly": "*-1-1 00:00",
    "annually": "*-1-1 00:00",
}
LOOK_AHEAD_DAYS = 366 * 5
_PERIOD_SECONDS = 146_097 * 86_400
"""Four hundred years, after which dates and days of the week are the same again."""


@dataclass(frozen=True)
class Event:
    """The minutes a schedule names: days of the week, months, days of the month, hours, minutes."""

    weekdays: frozenset[int]
    months: frozenset[int]
    days: frozenset[int]
    hours: tuple[int, ...]
    minutes: tuple[int, ...]

    def after(self, moment: float) -> Iterator[int]:
        """The times (epoch, UTC) the event comes round after `moment`, in order."""
        if moment > _PERIOD_SECONDS * 5:  # the calendar repeats, Python's ends
            whole = int(moment // _PERIOD_SECONDS - 4) * _PERIOD_SECONDS
            yield from (whole + found for found in self.after(moment - whole))
            return
        start = dt.datetime.fromtimestamp(moment, dt.UTC)
        for offset in range(LOOK_AHEAD_DAYS):
            day = start.date() + dt.timedelta(days=offset)
            if day.weekday() not in self.weekdays or day.month not in self.months or day.day not in self.days:
                continue
            for hour in self.hours:
                for minute in self.minutes:
                    when = dt.datetime(day.year, day.month, day.day, hour, minute, tzinfo=dt.UTC)
                    if when.timestamp() > moment:
                        yield int(when.timestamp())


def parse_event(text: str) -> Event:
    """The event a schedule names; raises ValueError with the real parser's complaint."""
    words = WORDS.get(text.strip().lower(), text.strip().lower()).split()
    weekdays, date, time = frozenset(range(7)), "", ""
    for word in words:
        if re.match(r"(mon|tue|wed|thu|fri|sat|sun)", word):
            weekdays = frozenset(_weekdays(word, text))
        elif "-" in word and ":" not in word:
            date = word
        elif re.fullmatch(r"[\d*/.,:]+", word):
            time = word
        else:
            raise _complaint(text, word)
    if not words:
        raise _complaint(text, "")
    months, days = _date(date, text)
    hour, _, minute = time.rpartition(":") if ":" in time else ("*", "", time)
    if not time:
        hour, minute = "0", "0"
    if hour.count(":"):  # seconds count for nothing here
        hour, minute = hour.split(":", 1)
    return Event(weekdays, months, days, _numbers(hour, 0, 23, text), _numbers(minute or "0", 0, 59, text))


def _complaint(text: str, where: str) -> ValueError:
    reason = f"unable to parse calendar event at '{where}' - trailing data"
    return ValueError(f"invalid calendar event '{text}' - {reason}\n\n")


def _weekdays(word: str, text: str) -> Iterator[int]:
    for part in word.split(","):
        first, _, last = part.partition("..") if ".." in part else part.partition("-")
        if first[:3] not in DAYS or (last and last[:3] not in DAYS):
            raise _complaint(text, part)
        begin = DAYS.index(first[:3])
        end = DAYS.index(last[:3]) if last else begin
        yield from range(begin, end + 1)


def _date(date: str, text: str) -> tuple[frozenset[int], frozenset[int]]:
    if not date:
        return frozenset(range(1, 13)), frozenset(range(1, 32))
    parts = date.split("-")
    if len(parts) == 2:
        parts = ["*", *parts]
    if len(parts) != 3:
        raise _complaint(text, date)
    return frozenset(_numbers(parts[1], 1, 12, text)), frozenset(_numbers(parts[2], 1, 31, text))


def _numbers(spec: str, low: int, high: int, text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in spec.split(","):
        match = re.fullmatch(r"(\*|\d+)(?:\.\.(\d+))?(?:/(\d+))?", part)
        if match is None:
            raise _complaint(text, part)
        first, last, step = match.groups()
        begin = low if first == "*" else int(first)
        end = int(last) if last else (high if step or first == "*" else begin)
        if begin < low or end > high or (step and int(step) == 0):
            raise ValueError(f"invalid calendar event '{text}' - value '{part}' out of range\n\n")
        found.update(range(begin, end + 1, int(step or 1)))
    return tuple(sorted(found))


@format_check("pve-calendar-event")
def check_event(value: str) -> None:
    """Nothing, or a ValueError with the server's complaint about a schedule."""
    parse_event(value)


def written(moment: int) -> str:
    """A moment as the server writes it: day, date, time, UTC; of any year."""
    periods = moment // _PERIOD_SECONDS
    found = dt.datetime.fromtimestamp(moment - periods * _PERIOD_SECONDS, dt.UTC)
    return f"{found:%a} {found.year + 400 * periods}-{found:%m-%d %H:%M:%S} UTC"


def next_run(schedule: str, moment: float) -> int | None:
    """When a schedule comes round next; None for one that never does."""
    return next(parse_event(schedule).after(moment), None)
