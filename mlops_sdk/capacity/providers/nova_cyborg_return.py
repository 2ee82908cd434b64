"""After a server is gone: whether Cyborg still ties a card to it, and what is done then.

Whose it was, its claim on the fence says (an accelerator request has room for no marker): the claim carries the
server's id, was made before the server was deleted, and stays until nothing is left. So the reaper comes back to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from mlops_sdk.capacity.providers.nova_api import ComputeApi
from mlops_sdk.capacity.providers.nova_cyborg import left_over
from mlops_sdk.capacity.providers.nova_view import Server
from mlops_sdk.errors import AccessDenied

_TRIES = 3


class CyborgReturn:
    """What was tied to the servers of one return. Asks once for each that is gone; then again while something is left.

    Args:
        api: The cloud.
        may_act: Whether the fence of a server is ours.
    """

    def __init__(self, api: ComputeApi, may_act: Callable[[str], bool]) -> None:
        self._api = api
        self._may_act = may_act
        self._tries: dict[str, int] = {}
        self._done: dict[str, str] = {}
        self.stuck = ""  # why it does not go on, in words

    @property
    def steps(self) -> list[str]:
        """What was found and done, in words."""
        return [words for words in self._done.values() if words]

    def under_way(self, ids: Iterable[str], seen: Mapping[str, Server]) -> str:
        """What is still tied to servers that are gone, in words; "" when nothing is. Frees what may be freed.

        Args:
            ids: Of the servers.
            seen: Those of them that were seen before they went.
        """
        left: list[str] = []
        for server_id in sorted(set(ids) - set(self._done)):
            words = self._look(server_id, seen.get(server_id))
            if words:
                left.append(words)
        return "; ".join(left)

    def _look(self, server_id: str, server: Server | None) -> str:
        found = self._api.accelerator_requests(server_id)
        if not found:
            self._done[server_id] = self._last_words(server_id, server, shown=found is not None)
            return ""
        words = f"{left_over(found)} still bound to server {server_id}, which is gone"
        if self._api.get_server(server_id) is not None or not self._may_act(server_id):
            return words
        self._tries[server_id] = self._tries.get(server_id, 0) + 1
        try:
            self._api.free_accelerators(server_id)
        except AccessDenied as error:
            self.stuck = f"{words}: {error.next_step}" if self._tries[server_id] >= _TRIES else ""
        else:
            self.stuck = f"{words}, though it was asked for" if self._tries[server_id] > _TRIES else ""
        return words

    def _last_words(self, server_id: str, server: Server | None, *, shown: bool) -> str:
        if server_id in self._tries:
            return f"accelerator requests of server {server_id} deleted, which Nova had left bound to it"
        if server is None or not server.device_profile:
            return ""
        if not shown:
            return f"whether Cyborg let go of {server.device_profile} of server {server_id} it does not show this login"
        return f"Cyborg has nothing bound to server {server_id} any more ({server.device_profile})"
