"""Dagster's webserver, which also knows who asks.

What belongs here: the one place that touches what Dagster has no public hook for. The backfills that a person launches
carry the tags of the request's `get_viewer_tags`, asked once for every launch and for nothing else; so it is there that
a start is counted, or refused with a message that the UI shows. tests/test_dagster.py fails when Dagster changes this.
"""

import logging
import os
from typing import Annotated

import typer
from dagster import DagsterInstance
from dagster._cli.workspace.cli_target import workspace_opts_to_load_target
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster_shared.cli import WorkspaceOpts
from dagster_webserver.cli import host_dagster_ui_with_workspace_process_context

from uho_pipelines.people import USER_TAG, claim_start, user_of
from uho_pipelines.settings import Settings, load_settings

log = logging.getLogger(__name__)

STATEMENT_MILLISECONDS = 15_000
POOL_RECYCLE_SECONDS = 3_600
POOL_OVERFLOW = 20


class RequestContext(WorkspaceRequestContext):
    """A request that knows its person."""

    settings: Settings

    def get_viewer_tags(self) -> dict[str, str]:
        """Return the tags of the backfill that is being launched; refuse it when its person's last one is too new.

        Raises:
            StartTooSoonError: the UI shows it.
        """
        user = user_of(self.settings, self.source)
        if user is None:
            return {}
        claim_start(self.settings, user)
        log.info("backfill started by %s", user)
        return {USER_TAG: user}


class ProcessContext(WorkspaceProcessContext):
    """Makes request contexts that know their person."""

    settings: Settings

    def create_request_context(self, source: object | None = None) -> RequestContext:
        """Return the context of one request."""
        context = RequestContext(
            instance=self.instance,
            current_workspace=self.get_current_workspace(),
            process_context=self,
            version=self.version,
            source=source,
            read_only=self._read_only,
        )
        context.settings = self.settings
        return context


def serve(
    workspace: Annotated[str, typer.Option(help="The workspace file.")],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")],
) -> None:
    """Serve the Dagster UI on loopback until interrupted."""
    # uvicorn would put what X-Forwarded-For says in place of the address that the request came from.
    os.environ["FORWARDED_ALLOW_IPS"] = ""
    with DagsterInstance.get() as instance:
        instance.optimize_for_webserver(STATEMENT_MILLISECONDS, POOL_RECYCLE_SECONDS, POOL_OVERFLOW)
        target = workspace_opts_to_load_target(WorkspaceOpts(workspace=(workspace,)))
        with ProcessContext(instance, workspace_load_target=target) as context:
            context.settings = load_settings()
            host_dagster_ui_with_workspace_process_context(
                context, host="127.0.0.1", port=port, path_prefix="", log_level="warning"
            )


if __name__ == "__main__":
    typer.run(serve)
