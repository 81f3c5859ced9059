"""Dagster's launcher, which also tells whether the workers of runs live.

What belongs here: the health of a worker. The code server that started a worker notices its end, but not when it is
killed with it; then the run would be called running for ever. Dagster's daemon asks this launcher every
`worker_check_seconds` of the settings, whatever became of the code server, and has what it ends taken up by a new run.
"""

from functools import cached_property

from dagster import DagsterRun, DefaultRunLauncher
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._grpc.types import ListRepositoriesResponse
from dagster._serdes import deserialize_value

from uho_pipelines.runtime.abandoned import GONE, is_gone


class WatchedRunLauncher(DefaultRunLauncher):
    """Launches runs by the code server, and looks after their workers by process id."""

    @cached_property
    def _missed(self) -> set[str]:
        """The runs whose worker was not there when it was looked at last."""
        return set()

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: have the daemon ask."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return whether the run's worker lives. It is gone when it was not there twice: its last words may be on their
        way.
        """
        if not is_gone(self._instance, run) or not self._can_begin_again(run):
            self._missed.discard(run.run_id)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if run.run_id not in self._missed:
            self._missed.add(run.run_id)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        self._missed.discard(run.run_id)
        return CheckRunHealthResult(WorkerStatus.FAILED, GONE)

    def _can_begin_again(self, run: DagsterRun) -> bool:
        """Return whether the code server has loaded the project.

        Dagster tries once to begin a failed run again, and gives it up where the code server is being started itself.
        """
        client = self._get_grpc_client_for_termination(run.run_id)
        if client is None:
            return True
        try:
            return isinstance(deserialize_value(client.list_repositories()), ListRepositoriesResponse)
        except DagsterUserCodeUnreachableError:
            return False
