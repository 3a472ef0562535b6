"""Workers as Ray actors, on this machine or on a cluster: started, given tasks, and replaced when they die."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from diptych.features.errors import UserError
from diptych.features.ray_sockets import check_room_for_sockets

ACTOR_START_SECONDS = 300

Task = TypeVar("Task")
Worker = Callable[[Task], Any]


@dataclass(frozen=True)
class Cluster:
    """Where actors run. address: of a cluster ("auto", "host:6379"), or null for an instance on this machine that ends with
    this process. key: of params.yaml that says so, and `instead`, what to do without Ray: both for messages."""

    address: str | None
    key: str
    instead: str

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]


@dataclass(frozen=True)
class Death:
    """The worker died before it had finished the task."""

    reason: str


def connect(cluster: Cluster, cpus: int | None = None) -> dict[str, float]:
    """Connect this process to a cluster, or start Ray here with so many `cpus`. Returns what it has, such as CPU and GPU.

    A connection that is there already stays. A cluster's workers look for modules where PYTHONPATH says here, not there. Raises
    UserError where Ray does not start or nobody answers.
    """
    import logging

    if cluster.address is None:
        check_room_for_sockets()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a warning without a GPU
    import ray

    how: dict[str, Any]
    if cluster.address is None:
        how = {"num_cpus": cpus, "object_store_memory": 256 * 2**20, "include_dashboard": False}
    else:
        how = {"runtime_env": {"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}}}
    try:
        # "local" and not null, or RAY_ADDRESS in the environment would decide.
        ray.init(
            address=cluster.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            ignore_reinit_error=True,
            **how,
        )
    except Exception as error:  # Ray raises all kinds, where the machine is too busy a plain one
        where, mend = "on this machine", "Run it again when the machine is less busy"
        if cluster.address:
            where = f"{cluster.key} = {cluster.address}"
            mend = "Start the cluster or mend the address, run it on a node of the cluster"
        raise UserError(
            f"{cluster.section}: Ray does not start ({where}): {' '.join(str(error).split()).rstrip('.')}. {mend}, or {cluster.instead} to work without Ray"
        ) from error
    return dict(ray.cluster_resources())


class RayActor(Generic[Task]):
    """A worker as a Ray actor."""

    def __init__(self, load: Callable[[], Worker[Task]]) -> None:
        self.load = load

    def start(self) -> int:
        """Load the worker (a method of its own, so that its errors come back as they are). Returns the process id."""
        self.worker = self.load()
        return os.getpid()

    def work(self, task: Task) -> Any:
        return self.worker(task)


class RayPool(Generic[Task]):
    """Takes tasks while it has room, and hands back their outcomes in any order. An actor that dies, or its node, is replaced; what
    it was working on is handed back as a `Death`.

    load: makes a worker, in its actor. workers: so many actors, of a core each and, with `gpu`, a GPU that Ray deals out. at_once:
    tasks that an actor works on in threads of its own; it has no others, or one that only waits would be taken for what killed it.
    alone: whether a task is to have an actor for itself, as one does that may kill it.
    """

    def __init__(
        self,
        load: Callable[[], Worker[Task]],
        workers: int,
        gpu: bool,
        cluster: Cluster,
        at_once: int = 1,
        alone: Callable[[Task], bool] = lambda task: False,
    ) -> None:
        room = connect(cluster, workers)
        import ray

        if workers > room.get("CPU", 0) or workers * gpu > room.get("GPU", 0):
            ray.shutdown()
            # The actors that do not fit would wait forever, and their tasks with them.
            raise UserError(
                f"{cluster.section}: {workers} workers need {workers} CPUs and {workers * gpu} GPUs, Ray has "
                f"{room.get('CPU', 0):g} and {room.get('GPU', 0):g}; lower machine.workers"
            )
        self.load, self.cluster, self.at_once, self.alone = load, cluster, at_once, alone
        self.actor_class = ray.remote(num_cpus=1, num_gpus=int(gpu), max_concurrency=at_once)(RayActor)
        self.starting: dict[Any, Any] = {}  # reference to its start -> actor
        self.running: dict[Any, tuple[Task, Any]] = {}  # reference to the outcome -> task, actor
        self.lonely: deque[Task] = deque()  # tasks that wait for an actor without others
        self.loads: dict[Any, int] = {}  # actor -> tasks in flight
        self.refusal = "none has said why"  # the last actor's that did not start
        for _ in range(workers):
            self._start_actor()
        self.last_sign_of_life = time.monotonic()

    @property
    def has_room(self) -> bool:
        return not self.lonely and any(load < self.at_once for load in self.loads.values())

    def submit(self, task: Task) -> None:
        if self.alone(task):
            self.lonely.append(task)
            self._begin_lonely()
        else:
            self._begin(task, min(self.loads, key=self.loads.__getitem__))

    def _begin_lonely(self) -> None:
        for actor in [actor for actor, load in self.loads.items() if not load][: len(self.lonely)]:
            self._begin(self.lonely.popleft(), actor)

    def _begin(self, task: Task, actor: Any) -> None:
        self.loads[actor] += self._places(task)
        self.running[actor.work.remote(task)] = (task, actor)

    def _places(self, task: Task) -> int:
        return self.at_once if self.alone(task) else 1

    def collect(self, seconds: float) -> list[tuple[Task, Any]]:
        """What has finished; waits at most about so long for something to finish."""
        import ray

        waited_for = [*self.starting, *self.running]
        if not waited_for:
            time.sleep(seconds)
            return []
        # As many as there are, once there is one: a wait for each would cost a round trip each.
        ready, _ = ray.wait(waited_for, num_returns=1, timeout=seconds)
        more, _ = ray.wait(waited_for, num_returns=len(waited_for), timeout=0)
        outcomes: list[tuple[Task, Any]] = []
        for reference in dict.fromkeys([*ready, *more]):
            if reference in self.starting:
                self._started(reference)
            elif reference in self.running:  # its actor may have been given up a moment ago
                task, actor = self.running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except (ray.exceptions.RayError, MemoryError) as error:
                    outcomes.append((task, Death(_reason(error))))
                    outcomes += self._give_up(actor, _reason(error))
                else:
                    self.loads[actor] -= self._places(task)
                    outcomes.append((task, outcome))
        self._begin_lonely()
        if outcomes:
            self.last_sign_of_life = time.monotonic()
        elif not self.loads and time.monotonic() - self.last_sign_of_life > ACTOR_START_SECONDS:
            raise UserError(
                f"{self.cluster.section}: no Ray worker started within {ACTOR_START_SECONDS} seconds ({self.refusal}); look at `ray status`, free "
                f"memory and CPUs, or {self.cluster.instead}. What was made is kept; run again to go on"
            )
        return outcomes

    def close(self) -> None:
        import ray

        ray.shutdown()

    def _start_actor(self) -> None:
        actor = self.actor_class.remote(self.load)
        self.starting[actor.start.remote()] = actor

    def _started(self, reference: Any) -> None:
        import ray

        actor = self.starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError) and self.cluster.address is not None:
                raise UserError(
                    f"{cause}. (On a Ray cluster, all nodes need the project's folder under the same path.)"
                ) from error
            raise cause from error
        except ray.exceptions.RayError as error:
            self.refusal = _reason(error)
            if getattr(error, "actor_init_failed", False):  # what fails there fails in every actor: an import
                raise UserError(
                    f"{self.cluster.section}: a Ray worker does not start ({str(error).strip().splitlines()[-1].strip()}); all nodes need "
                    "the project's folder under the same path, and the same .venv"
                ) from error
            self._start_actor()
        else:
            self.loads[actor] = 0

    def _give_up(self, actor: Any, reason: str) -> list[tuple[Task, Death]]:
        """Replace an actor. Returns its other task, which died with it."""
        import ray

        if actor not in self.loads:
            return []
        del self.loads[actor]
        ray.kill(actor)  # one that only ran out of memory is still there and holds it
        lost = [reference for reference, (_, owner) in self.running.items() if owner == actor]
        self._start_actor()
        return [(self.running.pop(reference)[0], Death(reason)) for reference in lost]


def actor_cores() -> int:
    """Cores for the actor that asks: the one that it has, or where it has a GPU, its share of its node's."""
    import ray

    context = ray.get_runtime_context()
    if not context.get_accelerator_ids()["GPU"]:
        return 1
    node = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return max(1, int(node.get("CPU", 1) / node["GPU"]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, of the processor or of a GPU."""
    text = str(error).lower()
    # torch's allocator, CUDA's, C++'s, and what oneDNN says when it cannot allocate
    signs = ("can't allocate memory", "out of memory", "bad_alloc", "could not create a primitive")
    return isinstance(error, MemoryError) or any(sign in text for sign in signs)


def _reason(error: BaseException) -> str:
    """What killed a worker, in one line; an error that is none of memory, process or node is raised as it is."""
    import ray

    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        if not is_out_of_memory(cause):
            raise cause from error
        return "out of memory"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
