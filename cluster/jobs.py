"""The target `ray`: an existing Ray cluster, through its Jobs API."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cluster import security
from cluster.errors import SubmitError
from cluster.spec import RaySpec
from cluster.submission import Submission
from cluster.target import Check, State

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_STATES = {"PENDING": "queued", "RUNNING": "running", "SUCCEEDED": "finished", "FAILED": "failed", "STOPPED": "stopped"}


class RayJobs:
    """A job is its submission id: the run id, and the attempt after the first."""

    def __init__(self, spec: RaySpec):
        security.check_address(spec.address, insecure=spec.insecure)
        self.spec = spec

    def plan(self, submission: Submission) -> str:
        return json.dumps({"address": self.spec.address, **self._request(submission)}, indent=1)

    def preflight(self) -> list[Check]:
        import ray

        try:
            version = self._asked(lambda client: _told(client, "/api/version"))["ray_version"]
        except SubmitError as error:
            return [Check("cluster", "no answer", str(error))]
        client = Check("ray", f"{ray.__version__} here, {version} there")
        if ray.__version__ != version:
            client = client._replace(remedy=f"install ray=={version} here, or this version there")
        return [Check("cluster", f"{self.spec.address} answers"), client, *self._resources()]

    def submit(self, submission: Submission) -> str:
        return self._asked(lambda client: client.submit_job(**self._request(submission)))

    def state(self, job: str) -> State:
        found = self._asked(lambda client: client.get_job_info(job))
        name = _STATES[str(getattr(found.status, "value", found.status))]
        message = "" if name == "finished" else " ".join((found.message or "").split())
        return State(name, found.driver_exit_code, message)  # pyright: ignore[reportArgumentType]

    def log(self, job: str) -> str:
        return self._asked(lambda client: client.get_job_logs(job))

    def follow(self, job: str) -> Iterator[str]:
        stream = self._asked(lambda client: client.tail_job_logs(job))
        rest = ""
        with asyncio.Runner() as runner:
            while (part := runner.run(_next(stream))) is not None:
                *lines, rest = (rest + part).split("\n")
                yield from lines
        if rest:
            yield rest

    def stop(self, job: str, *, force: bool) -> None:
        # Ray knows no harder way for a job: SIGTERM, and SIGKILL after the time that `_request` gives it.
        if force:
            raise SubmitError(
                f"{job}: a Ray job cannot be forced; one that was stopped is killed after grace_s = {self.spec.grace_s} s"
            )
        self._asked(lambda client: client.stop_job(job))

    def _request(self, submission: Submission) -> dict[str, Any]:
        attempt = submission.attempt
        variables = {**submission.environment, "RAY_JOB_STOP_WAIT_TIME_S": str(self.spec.grace_s)}
        return {
            "submission_id": submission.id if attempt == 1 else f"{submission.id}-{attempt}",
            "entrypoint": shlex.join(["metashard", *submission.command]),
            "runtime_env": {"working_dir": str(self.spec.working_dir.absolute()), "env_vars": variables},
            "metadata": {"run": submission.id, "attempt": str(attempt)},
        }

    def _resources(self) -> list[Check]:
        needs = self.spec.needs
        have = self._asked(_total)
        lines = []
        for name, asked in (("CPU", needs.cpus), ("GPU", needs.gpus)):
            line = Check(f"{name}s", f"{have.get(name, 0):g} there, {asked:g} needed")
            lack = have.get(name, 0) < asked
            lines.append(line._replace(remedy=f"add nodes, or lower needs.{name.lower()}s") if lack else line)
        return lines

    def _client(self) -> JobSubmissionClient:
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        try:
            return JobSubmissionClient(self.spec.address)
        except (RayError, ConnectionError, RuntimeError) as error:
            raise self._fault(error) from error

    def _asked(self, question: Any) -> Any:
        """What the cluster says to a question; its refusals in one line."""
        from ray.exceptions import RayError

        client = self._client()
        try:
            return question(client)
        except (RayError, ConnectionError, RuntimeError, ValueError) as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> SubmitError:
        said = " ".join(str(error).split())
        if "401" in said or "403" in said or "uthentication" in said:
            return SubmitError(
                f"address = {self.spec.address}: the cluster refuses this token; set {security.MODE_ENV}=token and "
                f"{security.TOKEN_PATH_ENV} to a file with the cluster's own"
            )
        return SubmitError(f"address = {self.spec.address}: {said[:300]}")


async def _next(stream: Any) -> str | None:
    return await anext(stream, None)


def _told(client: JobSubmissionClient, path: str) -> Any:
    """What the cluster's dashboard says under this path; its client has no public question for it."""
    said = client._do_request("GET", path)
    if said.status_code != 200:
        raise RuntimeError(f"request failed with status code {said.status_code}: {said.text}")
    return said.json()


def _total(client: JobSubmissionClient) -> dict[str, float]:
    """The cluster's resources in all, of nodes that live."""
    total: dict[str, float] = {}
    for node in _told(client, "/api/v0/nodes?limit=10000&detail=1")["data"]["result"]["result"]:
        for name, amount in (node["resources_total"] if node["state"] == "ALIVE" else {}).items():
            total[name] = total.get(name, 0.0) + amount
    return total
