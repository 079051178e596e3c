"""What an enqueue gives."""

from django.tasks import TaskResultStatus

from .tasks import add


class TestEnqueue:
    def test_enqueue_returns_result(self, alias: str) -> None:
        result = add.using(backend=alias).enqueue(2, 3)

        assert result.status is TaskResultStatus.READY
        assert result.backend == alias
        assert result.wait(10) == 5
