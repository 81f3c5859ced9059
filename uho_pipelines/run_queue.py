"""Dagster's queue, made fair between people, and what a run that waits is told.

What belongs here: the place of a run in the queue. Dagster starts waiting runs by priority, then in the order in which
they came, and passes over those whose person has as many running as is allowed. So a person's four thousand runs, come
first, would take every place that one of their own leaves, and a second person would get none until the end. Here each
person's runs are numbered, from the place that is being served when they come, and of equal priority the lowest place
goes first: people take turns, however much they ask for. Places become part of the priority that Dagster sorts by.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, QueuedRunCoordinator, RunsFilter
from dagster._core.events import EngineEventData
from dagster._core.run_coordinator.base import SubmitRunContext
from dagster._core.storage.tags import PRIORITY_TAG

from uho_pipelines.people import USER_TAG, user_of
from uho_pipelines.settings import Settings, load_settings

CLASS_TAG = "uho/priority"
"""The tag with the priority that a run was given, by a person or by settings: higher goes first, whatever the place."""

PLACE_TAG = "uho/place"
"""The tag with a run's place among all people's turns: lower goes first."""

PLACES = 1_000_000
"""Between two priorities lie so many places; later ones are all the last."""

HIGHEST_CLASS = 1_000
"""Priorities are cut at this, and at its negative: Dagster keeps them in 32 bits."""

UNDER_WAY = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


class FairRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue; people take turns in it, and a run that is started in the UI is tagged with who started it.

    Runs of a backfill are submitted by the daemon, without headers: they have the tags of their backfill.
    """

    @cached_property
    def settings(self) -> Settings:
        """The settings of this process."""
        return load_settings()

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Tag the run with the person behind the request, if there is one, give it its place, and queue it."""
        run = context.dagster_run
        if run.status is DagsterRunStatus.NOT_STARTED:
            source = getattr(context.workspace, "source", None)
            user = user_of(self.settings, source) if source is not None else None
            tags = {USER_TAG: user} if user is not None else {}
            under_way = self._instance.get_runs(filters=RunsFilter(statuses=UNDER_WAY))
            tags |= queue_tags(self._instance, self.settings, run, {**run.tags, **tags}, under_way)
            self._instance.add_run_tags(run.run_id, tags)
            told = waits_for(self._instance, run, {**run.tags, **tags}, under_way)
            self._instance.report_engine_event(told, run, EngineEventData({}))
        return super().submit_run(context)


def queue_tags(
    instance: DagsterInstance,
    settings: Settings,
    run: DagsterRun,
    tags: Mapping[str, str],
    under_way: Sequence[DagsterRun],
) -> dict[str, str]:
    """Return the tags that put a run in its place."""
    given = tags.get(CLASS_TAG) or tags.get(PRIORITY_TAG)
    priority = _integer(given) if given is not None else asked_priority(settings, run, tags)
    priority = max(-HIGHEST_CLASS, min(HIGHEST_CLASS, priority))
    place = next_place(instance, tags.get(USER_TAG), under_way)
    order = priority * PLACES - min(place, PLACES - 1)
    return {CLASS_TAG: str(priority), PLACE_TAG: str(place), PRIORITY_TAG: str(order)}


def asked_priority(settings: Settings, run: DagsterRun, tags: Mapping[str, str]) -> int:
    """Return the priority by the settings: that of the person and of the program, added."""
    programs = {"/".join((*key.path[:2], key.path[-1].rpartition("_")[0])) for key in run.asset_selection or ()}
    programs.add(tags.get("uho/program", ""))
    of_programs = [settings.program_priorities[program] for program in programs & settings.program_priorities.keys()]
    return max(of_programs, default=0) + settings.user_priorities.get(tags.get(USER_TAG, ""), 0)


def next_place(instance: DagsterInstance, user: str | None, under_way: Sequence[DagsterRun]) -> int:
    """Return the place of a person's next run: behind their own that wait, and not before the one that is served.

    Nobody's run (`user` is None) has the place that is served: it waits for nobody's turn.
    """
    served = max((_integer(run.tags.get(PLACE_TAG)) for run in under_way), default=None)
    if served is None:
        # Nothing runs, so that the oldest that waits is about to be served.
        oldest = instance.get_runs(filters=RunsFilter(statuses=[DagsterRunStatus.QUEUED]), limit=1, ascending=True)
        served = _integer(oldest[0].tags.get(PLACE_TAG)) if oldest else 0
    if user is None:
        return served
    waiting = RunsFilter(statuses=[DagsterRunStatus.QUEUED], tags={USER_TAG: user})
    last = instance.get_runs(filters=waiting, limit=1)
    # Also behind those that are under way: who has four running has had four turns.
    own = [*last, *(run for run in under_way if run.tags.get(USER_TAG) == user)]
    return max([served, *(_integer(run.tags.get(PLACE_TAG)) + 1 for run in own)])


def waits_for(
    instance: DagsterInstance, run: DagsterRun, tags: Mapping[str, str], under_way: Sequence[DagsterRun]
) -> str:
    """Return what a run that is queued now waits for, in a sentence."""
    queue = instance.get_concurrency_config().run_queue_config
    most = queue.max_concurrent_runs if queue is not None else -1
    reasons: list[str] = []
    if 0 <= most <= len(under_way):
        reasons.append(f"one of the {most} runs under way to end")
    user = tags.get(USER_TAG)
    for limit in (queue.tag_concurrency_limits or []) if queue is not None else []:
        if limit["key"] == USER_TAG and user is not None:
            own = sum(other.tags.get(USER_TAG) == user for other in under_way)
            if own >= limit["limit"]:
                reasons.append(f"one of {user}'s {own} to end (a person has at most {limit['limit']} at once)")
    for pool in run.run_op_concurrency.root_key_counts if run.run_op_concurrency is not None else ():
        info = instance.event_log_storage.get_concurrency_info(pool)
        if info.slot_count and info.active_slot_count >= info.slot_count:
            reasons.append(f"one of the {info.slot_count} slots of pool {pool}")
    told = f"It waits for {', and '.join(reasons)}." if reasons else "Nothing holds it up but the runs before it."
    return f"Queued with priority {tags[CLASS_TAG]}, place {tags[PLACE_TAG]} in people's turns. {told}"


def _integer(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return 0
