import asyncio
import contextlib
import selectors
import time
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd.errors import PauseError
from kd.rationales.gate import Gate, read_duration

NOTHING = {}


class Skipping(selectors.DefaultSelector):
    """Instead of sleeping, the clock of the loop is put forward."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.calls = 0

    def select(self, timeout=None):
        assert timeout is not None, "deadlock: everybody waits for somebody"
        self.calls += 1
        self.now += max(0.0, timeout)
        return super().select(0)


def run(main):
    """Run a coroutine on a clock that skips all waiting; return its result and the loop's turns."""
    selector = Skipping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now
    try:
        return loop.run_until_complete(main()), selector.calls
    finally:
        loop.close()


def now():
    return asyncio.get_running_loop().time()


async def request(gate, seconds=1.0, accept=None, reject=None):
    """Send one request through the gate and return when it started."""
    async with gate:
        started = now()
        await asyncio.sleep(seconds)
        if accept is not None:
            gate.accept(accept)
        if reject is not None:
            gate.reject(reject)
    return started


async def starts(gate, count, **options):
    """Send requests at once and return after how many seconds each started."""
    began = now()
    started = await asyncio.gather(*(request(gate, **options) for _ in range(count)))
    return [instant - began for instant in started]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 2),
        ("1.5", 1.5),
        (" 30 ", 30),
        ("0", 0),
        (".5", 0.5),
        ("172ms", 0.172),
        ("7.66s", 7.66),
        ("2m59.56s", 179.56),
        ("1h2m", 3720),
        ("1h2m3s4ms5us6ns", 3723.004005006),
        ("1µs", 1e-6),
        ("1μs", 1e-6),
        ("0s", 0),
    ],
)
def test_duration_is_read(text, seconds):
    assert read_duration(text) == pytest.approx(seconds, rel=1e-12)


NONSENSE = [None, "", " ", "soon", "-1", "-1s", "s", "1x", "1.2.3", "nan", "inf", "1e3", "1 s"]
NONSENSE += ["9" * 400, "9" * 400 + "h", "1s!", "Mon, 99 Foo 2030 00:00:00 GMT", "٣"]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_no_duration(text):
    assert read_duration(text) is None


@pytest.mark.parametrize(
    "write",
    [
        lambda date: format_datetime(date, usegmt=True),
        lambda date: date.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
        lambda date: date.strftime("%a %b %d %H:%M:%S %Y"),
        lambda date: format_datetime(date.astimezone(timezone(timedelta(hours=5)))),
    ],
)
def test_date_is_read_as_the_time_until_then(write, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        soon = datetime.now(UTC) + timedelta(seconds=100)
        assert 97 < read_duration(write(soon)) <= 100
        assert read_duration(write(soon - timedelta(days=1))) == 0
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.text() | st.text("0123456789.hmsµun :,-GMTonJa"))
def test_reading_a_duration_never_fails(text):
    seconds = read_duration(text)
    assert seconds is None or 0 <= seconds < float("inf")


def test_no_more_are_under_way_than_allowed():
    async def main():
        return await starts(Gate(3, 60), 8)

    assert run(main)[0] == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1m1s"}, 61),
        ({"retry-after": "7", "x-ratelimit-remaining-tokens": "0"}
         | {"x-ratelimit-reset-tokens": "20s"}, 7),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20s"}, 20),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "172ms"}, 0.172),
        ({"x-ratelimit-reset-tokens": "20s"}, 20),
        ({"x-ratelimit-remaining-requests": "99", "x-ratelimit-reset-requests": "20h"}
         | {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9s"}, 9),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "30s"}
         | {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9s"}, 30),
    ],
)  # fmt: skip
def test_rejection_closes_for_as_long_as_the_provider_says(headers, seconds):
    async def main():
        gate = Gate(2, 100)
        await request(gate, reject=headers)
        assert gate.waiting == pytest.approx(seconds)
        return (await starts(gate, 1))[0], gate.waiting

    assert run(main)[0] == (pytest.approx(seconds), 0)


@pytest.mark.parametrize(
    "headers",
    [
        NOTHING,
        {"retry-after": "0"},
        {"retry-after": "soon"},
        {"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"},
        {"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "20s"},
    ],
)
def test_without_a_time_each_rejection_waits_longer_until_a_success(headers):
    async def main():
        gate = Gate(1, 40)
        waits = []
        for _ in range(12):
            await request(gate, reject=headers)
            waits.append(gate.waiting)
        await request(gate, accept=NOTHING)
        await request(gate, reject=headers)
        return [*waits, gate.waiting]

    for wait, longest in zip(run(main)[0], [0.5, 1, 2, 4, 8, 16, 32, *[40] * 5, 0.5], strict=True):
        assert longest / 2 <= wait <= longest


def test_jitter_differs():
    async def main():
        gate = Gate(1, 40)
        await request(gate, reject=NOTHING)
        return gate.waiting

    assert len({run(main)[0] for _ in range(9)}) > 1


def test_requests_rejected_together_halve_once():
    async def main():
        gate = Gate(16, 60)
        burst = [
            request(gate, seconds=1 + number / 10, reject={"retry-after": "0.05"})
            for number in range(15)  # the last come back long after the gate has opened
        ]
        await asyncio.gather(*burst, request(gate, accept=NOTHING))
        await asyncio.sleep(1)
        return (await starts(gate, 20)).count(0)

    assert run(main)[0] == 8


def test_success_of_a_request_from_before_the_rejection_does_not_open_up_again():
    async def main():
        gate = Gate(16, 60)
        late = [request(gate, seconds=2, accept=NOTHING) for _ in range(15)]
        await asyncio.gather(request(gate, reject={"retry-after": "0.05"}), *late)
        return (await starts(gate, 20)).count(0)

    assert run(main)[0] == 8


def test_who_came_first_goes_first():
    async def main():
        gate = Gate(1, 60)
        order = []

        async def worker(name):
            for _ in range(3):
                async with gate:
                    order.append(name)
                    await asyncio.sleep(1)

        await asyncio.gather(*(worker(name) for name in "abc"))
        return "".join(order)

    assert run(main)[0] == "abcabcabc"


def test_each_burst_halves_down_to_one_and_successes_open_up_again():
    async def main():
        gate = Gate(8, 60)
        widths = []
        for _ in range(5):
            await asyncio.gather(*(request(gate, reject={"retry-after": "1"}) for _ in range(8)))
            await asyncio.sleep(2)
            widths.append((await starts(gate, 10)).count(0))
        for _ in range(50):
            await request(gate, accept=NOTHING)
        return [*widths, (await starts(gate, 10)).count(0)]

    *falling, last = run(main)[0]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == 4
    assert falling[-1] == 1
    assert last == 8


def test_opening_lets_no_more_through_than_the_limit():
    async def main():
        gate = Gate(8, 60)
        await request(gate, reject={"retry-after": "5"})
        return await starts(gate, 10)

    assert run(main)[0] == [5, 5, 5, 5, 6, 6, 6, 6, 7, 7]


@pytest.mark.parametrize("what", ["tokens", "requests"])
def test_success_that_uses_up_the_rest_closes_until_the_reset(what):
    async def main():
        gate = Gate(4, 60)
        headers = {f"x-ratelimit-reset-{what}": "7.66s"}
        await request(gate, accept={**headers, f"x-ratelimit-remaining-{what}": "1"})
        await request(gate, accept={**headers})
        assert gate.waiting == 0
        await request(gate, accept={f"x-ratelimit-remaining-{what}": "0"})
        assert gate.waiting == 0, "no reset is told"
        await request(gate, accept={**headers, f"x-ratelimit-remaining-{what}": "0"})
        return await starts(gate, 4)

    assert run(main)[0] == pytest.approx([7.66] * 4)


def test_a_wait_that_is_too_long_is_a_pause():
    async def main():
        gate = Gate(4, 900)
        with pytest.raises(PauseError) as told:
            await request(gate, reject={"retry-after": "2h13m"})
        with pytest.raises(PauseError, match="2 h 13 min"):
            await request(gate)
        return str(told.value)

    assert run(main)[0] == (
        "The provider wants us to wait for 2 h 13 min, longer than max_wait_seconds (15 "
        "min); the same command continues."
    )


def test_a_far_reset_after_a_success_is_left_to_the_next_rejection():
    async def main():
        gate = Gate(4, 10)
        daily = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "45s"}
        await request(gate, accept=daily)
        waited = gate.waiting
        with pytest.raises(
            PauseError, match=r"wait for 45 s, longer than max_wait_seconds \(10 s\)"
        ):
            await request(gate, reject=daily)
        return waited

    assert run(main)[0] == 0.0


def test_a_pause_reaches_all_who_wait():
    async def main():
        gate = Gate(1, 10)
        rejected = request(gate, reject={"retry-after": "99"})
        return await asyncio.gather(
            rejected, *(request(gate) for _ in range(5)), return_exceptions=True
        )

    assert [type(result) for result in run(main)[0]] == [PauseError] * 6


def test_a_later_and_shorter_wait_does_not_open_earlier():
    async def main():
        gate = Gate(2, 60)
        await request(gate, reject={"retry-after": "30"})
        gate.reject({"retry-after": "1"})
        gate.accept(NOTHING)
        return gate.waiting

    assert run(main)[0] == pytest.approx(30)


def test_waiting_takes_no_turns_of_the_loop():
    async def main():
        gate = Gate(50, 5000)
        await request(gate, reject={"retry-after": "4000"})
        await starts(gate, 50)

    assert run(main)[1] < 150


def test_waiting_can_be_read_when_all_is_over():
    async def main():
        gate = Gate(2, 60)
        await request(gate, seconds=0, reject={"retry-after": "30"})
        return gate

    gate = asyncio.run(main())
    assert 25 < gate.waiting <= 30


def test_real_time_is_kept_too():
    async def main():
        gate = Gate(4, 60)
        await request(gate, seconds=0, reject={"retry-after": "50ms"})
        opens = now() + gate.waiting
        return opens, await asyncio.gather(*(request(gate, 0.01) for _ in range(6)))

    opens, started = asyncio.run(main())
    assert all(instant >= opens for instant in started)
    assert max(started) < opens + 5


SECONDS = st.sampled_from([0.0, 0.3, 1.0, 2.5])
HEADERS = st.sampled_from(
    [
        NOTHING,
        {"retry-after": "1"},
        {"retry-after": "7.5s"},
        {"retry-after": "70"},
        {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "3s"},
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "80s"},
    ]
)
WORK = st.fixed_dictionaries(
    {
        "comes": SECONDS,
        "takes": SECONDS,
        "ends": st.sampled_from(["accept", "reject", "nothing", "error"]),
        "headers": HEADERS,
        "cancelled": st.none() | SECONDS.map(lambda seconds: seconds + 0.15),
        "inside": st.booleans(),
    }
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.lists(WORK, max_size=14), st.sampled_from([5.0, 60.0, 100.0]))
def test_whatever_happens_the_limits_hold_and_nobody_is_forgotten(most, works, max_wait):
    under_way, opens, passed = 0, 0.0, 0

    async def one(gate, work):
        nonlocal under_way, opens, passed

        def tell():
            nonlocal opens
            before = now()
            try:
                if work["ends"] in ("accept", "reject"):
                    getattr(gate, work["ends"])(work["headers"])
            finally:
                told = work["headers"].get("retry-after") if work["ends"] == "reject" else None
                opens = max(opens, before + gate.waiting, before + (read_duration(told) or 0))

        await asyncio.sleep(work["comes"])
        async with gate:
            under_way += 1
            passed += 1
            try:
                assert under_way <= most
                assert now() >= opens
                await asyncio.sleep(work["takes"])
                if work["ends"] == "error":
                    raise ConnectionError
                if work["inside"]:
                    tell()
            finally:
                under_way -= 1
        if not work["inside"]:
            tell()

    async def main():
        gate = Gate(most, max_wait)
        tasks = [asyncio.ensure_future(one(gate, work)) for work in works]
        for task, work in zip(tasks, works, strict=True):
            if work["cancelled"] is not None:
                asyncio.get_running_loop().call_later(work["cancelled"], task.cancel)
        for task in tasks:
            with contextlib.suppress(PauseError, ConnectionError, asyncio.CancelledError):
                await task
        patient = [work for work in works if work["cancelled"] is None]
        if not any(work["ends"] in ("accept", "reject") for work in works):
            assert passed >= len(patient)
        await asyncio.sleep(200)
        return (await starts(gate, 1))[0]

    assert run(main)[0] == 0, "once all is over, the gate is open"
