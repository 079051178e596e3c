"""Nothing of the library blocks an event loop; and the tests would find it."""

import asyncio
import threading

import pytest
from django.tasks.exceptions import TaskResultDoesNotExist

from django_tasks_local.options import LocalOptions
from django_tasks_local.state import get_executor_state
from django_tasks_local.stores.memory import MemoryStore

from .awaiting_tasks import ALL_OF_IT, use_everything, use_everything_as_task
from .blocking import noting_blocking_calls
from .blocking_stores import BlockingStore, LyingStore
from .conftest import BACKENDS, Configure
from .gates import LONG_S
from .tasks import add, async_add

ALIASES = list(BACKENDS)


class TestWhatBlocks:
    def test_is_found_where_a_coroutine_calls_it(self, configure: Configure) -> None:
        configure("default", STORE=LyingStore)

        async def main() -> None:
            await add.aenqueue(1, 2)

        with noting_blocking_calls() as noted, pytest.raises(Exception, match="sleep"):
            asyncio.run(main())
        assert len(noted) == 1
        assert "Blocking call to time.sleep" in noted[0]
        assert "in aenqueue" in noted[0]

    def test_is_found_on_the_loop_that_runs_tasks(self, configure: Configure) -> None:
        configure("loop", STORE=LyingStore)
        with noting_blocking_calls() as noted:
            async_add.using(backend="loop").enqueue(1, 2).wait(LONG_S)
        assert noted != []
        assert all("loop_thread.py" in stack for stack in noted)


@pytest.mark.parametrize("store", [MemoryStore, BlockingStore])
class TestNothingBlocks:
    """The fixture `nothing_blocks_a_loop` fails whatever does."""

    @pytest.mark.anyio
    async def test_a_loop_on_which_coroutines_use_tasks(
        self, alias: str, configure: Configure, store: type[MemoryStore]
    ) -> None:
        configure(alias, STORE=store)
        assert await use_everything(alias) == ALL_OF_IT

    def test_the_loop_of_a_coroutine_that_is_a_task(
        self, alias: str, configure: Configure, store: type[MemoryStore]
    ) -> None:
        configure(*ALIASES, STORE=store)
        handle = use_everything_as_task.using(backend=alias).enqueue(ALIASES)
        assert handle.wait(LONG_S) == [*[ALL_OF_IT] * len(ALIASES), []]


@pytest.mark.anyio
async def test_a_store_that_may_block_is_made_on_another_thread(
    configure: Configure,
) -> None:
    """Under trio too, whose loops `nothing_blocks_a_loop` does not see."""
    made_on: list[int] = []

    def make_store(options: LocalOptions, /, *, alias: str) -> MemoryStore:
        made_on.append(threading.get_ident())
        return MemoryStore(options, alias=alias)

    configure("default", STORE=make_store)
    assert await (await add.aenqueue(1, 2)) == 3
    configure("default", STORE=make_store)
    with pytest.raises(TaskResultDoesNotExist):
        await add.aget_result("unknown")
    assert len(made_on) == 2
    assert threading.get_ident() not in made_on
    assert isinstance(get_executor_state("default").store, MemoryStore)
