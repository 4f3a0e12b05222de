"""vLLM's waiting queue in the order the policy has chosen."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request


class StagedRequestQueue(RequestQueue):
    """Requests that wait, and before them those that the policy lets in next.

    vLLM's scheduling loop sees only what is staged: it takes requests from the front until there is nothing more, and
    what it skips or pre-empts meanwhile comes back behind.
    """

    def __init__(self) -> None:
        self._staged: deque[Request] = deque()
        self._rest: dict[str, Request] = {}

    def stage(self, requests: Iterable[Request]) -> None:
        """Put these waiting requests in front, in this order, and nobody else."""
        for request in self._staged:
            self._rest[request.request_id] = request
        self._staged.clear()
        for request in requests:
            self._staged.append(self._rest.pop(request.request_id))

    def add_request(self, request: Request) -> None:
        """It waits until it is staged."""
        self._rest[request.request_id] = request

    def prepend_request(self, request: Request) -> None:
        """As :meth:`add_request`: its place is the policy's to choose."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """As :meth:`prepend_request`, one by one."""
        for request in requests:
            self.add_request(request)

    def pop_request(self) -> Request:
        """The first of those staged."""
        return self._staged.popleft()

    def peek_request(self) -> Request:
        """The first of those staged, left in."""
        return self._staged[0]

    def remove_request(self, request: Request) -> None:
        """Take one out wherever it is."""
        self.remove_requests((request,))

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Take those out that are in."""
        for request in requests:
            if self._rest.pop(request.request_id, None) is None and request in self._staged:
                self._staged.remove(request)

    def __bool__(self) -> bool:
        """Whether anything is staged."""
        return bool(self._staged)

    def __len__(self) -> int:
        return len(self._staged) + len(self._rest)

    def __iter__(self) -> Iterator[Request]:
        yield from self._staged
        yield from self._rest.values()
