"""The embedding program's functions: asked in order, in time, and none of their faults is ours."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from imserver import hooks_batch, hooks_log
from imserver.errors import ImError
from imserver.hooks import Hooks, Publication
from imserver.model import Message
from imserver.model_session import NO_RIGHTS, Login, Session, Terms

ANN = Session(1, "ann", Terms("default", NO_RIGHTS, 1))
LOGIN = Login("ann", "default", {}, "127.0.0.1:5000", "test/1")


@pytest.fixture
def hooks() -> Hooks:
    return Hooks(hook_timeout_ms=50, call_timeout_ms=50)


class Finished:
    """What came out of the batches: (id, error code or 0), in order."""

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self.seen: list[tuple[int, int]] = []
        hooks.batches.finish = self.finish

    def finish(self, publication: Publication) -> None:
        error = publication.error
        self.seen.append((publication.message.id, error.code if error else 0))

    def publish(self, *ids: int, topic: str = "room:a") -> None:
        for id in ids:
            self.hooks.batches.accept(Publication(Message(topic, "", "ann", b"", id=id), ANN))

    async def wait(self) -> list[tuple[int, int]]:
        async with asyncio.timeout(5):
            while self.hooks.batches:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        return self.seen


@pytest.fixture
def finished(hooks: Hooks) -> Finished:
    return Finished(hooks)


async def refusal(work: Awaitable[object]) -> ImError:
    with pytest.raises(ImError) as caught:
        await work
    return caught.value


# on_connect, on_subscribe, on_close


async def test_all_hooks_of_an_event_run_in_order(hooks: Hooks) -> None:
    ran: list[str] = []

    @hooks.on_connect
    async def first(login: Login) -> None:
        ran.append(f"first {login.user}")

    @hooks.on_connect
    async def second(login: Login) -> None:
        ran.append(f"second {login.peer}")

    assert hooks.judges_logins
    await hooks.connect(LOGIN)
    assert ran == ["first ann", "second 127.0.0.1:5000"]


async def test_the_first_no_counts(hooks: Hooks) -> None:
    ran: list[str] = []

    @hooks.on_connect
    async def no(login: Login) -> None:
        raise ImError(1234, "members only", retry_after_ms=7)

    @hooks.on_connect
    async def never(login: Login) -> None:
        ran.append("never")

    error = await refusal(hooks.connect(LOGIN))
    assert (error.code, error.message, error.retry_after_ms) == (1234, "members only", 7)
    assert ran == []


async def test_subscriptions_are_judged_where_the_pattern_fits(hooks: Hooks) -> None:
    asked: list[tuple[str, str]] = []

    @hooks.on_subscribe("room:vip-*")
    @hooks.on_subscribe("room:attic")
    async def judge(session: Session, topic: str, tags: str) -> None:
        asked.append((topic, tags))

    assert hooks.judges_subscriptions("room:vip-1")
    assert hooks.judges_subscriptions("room:attic")
    assert not hooks.judges_subscriptions("room:attic2")
    await hooks.subscribe(ANN, "room:vip-1", "*")
    await hooks.subscribe(ANN, "room:lobby", "*")
    assert asked == [("room:vip-1", "*")]


async def test_a_slow_hook_is_a_no(hooks: Hooks, caplog: pytest.LogCaptureFixture) -> None:
    @hooks.on_connect
    async def slow(login: Login) -> None:
        await asyncio.sleep(10)

    assert (await refusal(hooks.connect(LOGIN))).code == 503
    assert "longer than 0.05 s" in caplog.text


async def test_a_time_out_of_its_own_is_a_failure(hooks: Hooks) -> None:
    @hooks.on_connect
    async def upstream(login: Login) -> None:
        raise TimeoutError("the database")

    assert (await refusal(hooks.connect(LOGIN))).code == 500


async def test_a_cancelled_task_of_a_hook_is_a_failure_and_not_our_end(hooks: Hooks) -> None:
    @hooks.on_connect
    async def confused(login: Login) -> None:
        task = asyncio.create_task(asyncio.sleep(10))
        task.cancel()
        await task

    assert (await refusal(hooks.connect(LOGIN))).code == 500


async def test_our_own_cancellation_passes_through(hooks: Hooks) -> None:
    @hooks.on_connect
    async def slow(login: Login) -> None:
        await asyncio.sleep(10)

    task = asyncio.create_task(hooks.connect(LOGIN))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_every_close_hook_runs_though_one_fails(hooks: Hooks) -> None:
    told: list[int] = []

    @hooks.on_close
    async def broken(session: Session, code: int) -> None:
        raise OSError("disk full")

    @hooks.on_close
    async def tell(session: Session, code: int) -> None:
        told.append(code)

    assert hooks.sees_closes
    await hooks.close(ANN, 4108)
    assert told == [4108]


# on_call


async def test_a_call_is_answered_by_its_method(hooks: Hooks) -> None:
    @hooks.on_call("add")
    async def add(session: Session, params: dict[str, int]) -> int:
        return params["a"] + params["b"]

    assert hooks.answers("add")
    assert not hooks.answers("sub")
    assert await hooks.call("add", ANN, {"a": 1, "b": 2}) == 3
    assert (await refusal(hooks.call("add", ANN, {}))).code == 500
    assert (await refusal(hooks.call("sub", ANN, {}))).code == 404


async def test_a_slow_call_times_out(hooks: Hooks) -> None:
    @hooks.on_call("slow")
    async def slow(session: Session, params: object) -> None:
        await asyncio.sleep(10)

    assert (await refusal(hooks.call("slow", ANN, None))).code == 408


def test_a_method_has_one_owner(hooks: Hooks) -> None:
    async def one(session: Session, params: object) -> None: ...

    hooks.on_call("one")(one)
    with pytest.raises(ValueError, match="registered already"):
        hooks.on_call("one")(one)


@pytest.mark.parametrize("pattern", ["", "a*b", "**"])
def test_a_pattern_that_would_surprise_is_refused(hooks: Hooks, pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        hooks.on_publish(pattern)
    with pytest.raises(ValueError, match="pattern"):
        hooks.on_subscribe(pattern)


def test_a_decorator_without_its_pattern_is_refused(hooks: Hooks) -> None:
    async def see(batch: list[Publication]) -> None: ...

    with pytest.raises((TypeError, ValueError, AttributeError)):
        hooks.on_publish(see)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="async function"):
        hooks.on_publish("room:*")("room:*")  # type: ignore[arg-type]


# on_publish


async def test_messages_come_in_batches_and_in_order(hooks: Hooks, finished: Finished) -> None:
    batches: list[list[int]] = []

    @hooks.on_publish("room:*")
    async def see(batch: list[Publication]) -> None:
        batches.append([publication.message.id for publication in batch])
        await asyncio.sleep(0.01)

    finished.publish(1)
    await asyncio.sleep(0.005)
    finished.publish(*range(2, 600))
    assert await finished.wait() == [(id, 0) for id in range(1, 600)]
    assert batches[0] == [1]
    assert [len(batch) for batch in batches] == [1, 256, 256, 86]


async def test_a_hook_refuses_single_messages(hooks: Hooks, finished: Finished) -> None:
    @hooks.on_publish("room:*")
    async def even_only(batch: list[Publication]) -> None:
        for publication in batch:
            if publication.message.id % 2:
                publication.refuse(1001, "odd")
                publication.refuse(1002, "the first refusal counts")

    finished.publish(1, 2, 3)
    assert await finished.wait() == [(1, 1001), (2, 0), (3, 1001)]


async def test_a_failing_hook_refuses_its_batch_and_is_logged_once(
    hooks: Hooks,
    finished: Finished,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @hooks.on_publish("room:*")
    async def broken(batch: list[Publication]) -> None:
        batch[0].refuse(1001)
        batch.clear()
        raise KeyError("x")

    for id in (1, 3, 5):
        finished.publish(id, id + 1)
        await finished.wait()
    assert finished.seen == [(1, 1001), (2, 500), (3, 1001), (4, 500), (5, 1001), (6, 500)]
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.records[0].exc_info

    now_s = time.monotonic() + hooks_log.QUIET_S
    # Only this module's clock: the loop needs its own.
    monkeypatch.setattr(hooks_log, "time", SimpleNamespace(monotonic=lambda: now_s))
    finished.publish(7)
    await finished.wait()
    assert "2 times before" in caplog.records[1].getMessage()


async def test_an_error_with_a_code_refuses_the_batch_with_it(
    hooks: Hooks, finished: Finished, caplog: pytest.LogCaptureFixture
) -> None:
    @hooks.on_publish("room:*")
    async def closed(batch: list[Publication]) -> None:
        raise ImError(1003, "closed for today")

    finished.publish(1, 2)
    assert await finished.wait() == [(1, 1003), (2, 1003)]
    assert not caplog.records


async def test_a_slow_hook_refuses_its_batch_and_the_next_has_its_chance(
    hooks: Hooks, finished: Finished
) -> None:
    waits = [10.0, 0.0]

    @hooks.on_publish("room:*")
    async def slow(batch: list[Publication]) -> None:
        await asyncio.sleep(waits.pop(0))

    finished.publish(1)
    await asyncio.sleep(0.01)
    finished.publish(2)
    assert await finished.wait() == [(1, 503), (2, 0)]


async def test_a_cancelled_hook_does_not_end_the_worker(hooks: Hooks, finished: Finished) -> None:
    @hooks.on_publish("room:*")
    async def confused(batch: list[Publication]) -> None:
        if batch[0].message.id == 1:
            raise asyncio.CancelledError

    finished.publish(1)
    await asyncio.sleep(0.01)
    finished.publish(2)
    assert await finished.wait() == [(1, 500), (2, 0)]


async def test_all_patterns_that_fit_are_asked_one_after_the_other(
    hooks: Hooks, finished: Finished
) -> None:
    asked: list[tuple[str, int]] = []

    def note(name: str, refused: int) -> Callable[[list[Publication]], Awaitable[None]]:
        async def hook(batch: list[Publication]) -> None:
            for publication in batch:
                asked.append((name, publication.message.id))
                if publication.message.id == refused:
                    publication.refuse(1000)

        return hook

    hooks.on_publish("room:*")(note("rooms", 2))
    hooks.on_publish("room:a")(note("a", 3))
    hooks.on_publish("room:a")(note("a again", 0))
    hooks.on_publish("room:b")(note("b", 0))
    finished.publish(1, 2, 3)
    assert await finished.wait() == [(2, 1000), (1, 0), (3, 1000)]
    assert asked == [("rooms", 1), ("rooms", 2), ("rooms", 3), ("a", 1), ("a", 3), ("a again", 1)]


async def test_patterns_do_not_wait_for_each_other(hooks: Hooks, finished: Finished) -> None:
    @hooks.on_publish("room:slow")
    async def slow(batch: list[Publication]) -> None:
        await asyncio.sleep(0.03)

    @hooks.on_publish("room:fast")
    async def fast(batch: list[Publication]) -> None: ...

    finished.publish(1, topic="room:slow")
    finished.publish(2, topic="room:fast")
    assert await finished.wait() == [(2, 0), (1, 0)]


async def test_the_queue_is_bounded(
    hooks: Hooks, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks_batch, "QUEUE_MAX", 2)

    @hooks.on_publish("room:*")
    async def see(batch: list[Publication]) -> None: ...

    finished.publish(1, 2)
    with pytest.raises(ImError) as caught:
        finished.publish(3)
    assert caught.value.code == 503
    assert await finished.wait() == [(1, 0), (2, 0)]
    finished.publish(4)
    assert await finished.wait() == [(1, 0), (2, 0), (4, 0)]


async def test_a_late_hook_is_announced(hooks: Hooks) -> None:
    changes: list[bool] = []
    hooks.on_change = lambda: changes.append(hooks.judges_messages("room:a"))

    @hooks.on_publish("room:*")
    async def see(batch: list[Publication]) -> None: ...

    assert changes == [True]


async def test_stopping_cancels_what_is_judged(hooks: Hooks, finished: Finished) -> None:
    cancelled: list[bool] = []

    @hooks.on_publish("room:*")
    async def see(batch: list[Publication]) -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    finished.publish(1)
    await asyncio.sleep(0)
    await hooks.stop()
    assert cancelled == [True]
    with pytest.raises(ImError):
        finished.publish(2)
