"""What containers must not reach though this machine does: link-local addresses.

There clouds tell a machine its secrets (169.254.169.254), and whoever asks from it is
believed. So a table of nftables' of our own drops what comes from a container's network
for there, but DNS, which some clouds serve at such an address as well. Its rules are the
same for all installations of a machine and say nothing of other interfaces, so it may
stay when everything of ours is gone: ``nft delete table inet gfs_containers``.
"""

from __future__ import annotations

import logging

import trio

from control.compute.backend import BackendUnavailable
from control.compute.podman.service import environment
from control.compute.podman.shapes import INTERFACE_PREFIX

__all__ = ["Fence"]

log = logging.getLogger("control.compute")

#: How soon it is back where somebody has flushed all tables.
AGAIN_SECONDS = 60.0
COMMAND_SECONDS = 20.0
#: In one transaction: it is never away.
_RULES = f"""\
table inet gfs_containers
delete table inet gfs_containers
table inet gfs_containers {{
    chain link_local {{
        meta l4proto {{ tcp, udp }} th dport 53 return
        ip daddr 169.254.0.0/16 drop
        ip6 daddr fe80::/10 meta l4proto {{ tcp, udp }} drop
    }}
    chain forward {{
        type filter hook forward priority -10; policy accept;
        iifname "{INTERFACE_PREFIX}*" jump link_local
    }}
    chain input {{
        type filter hook input priority -10; policy accept;
        iifname "{INTERFACE_PREFIX}*" jump link_local
    }}
}}
"""


class Fence:
    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def ensure(self) -> None:
        """Return when it stands. Raises BackendUnavailable, in words that say what to do."""
        try:
            async with self._lock:
                with trio.fail_after(COMMAND_SECONDS):
                    done = await trio.run_process(
                        ["nft", "-f", "-"],
                        stdin=_RULES.encode(),
                        capture_stderr=True,
                        capture_stdout=True,
                        check=False,
                        env=environment({}),
                    )
        except OSError as error:
            raise _no_fence(f"nft cannot be run ({error.strerror or error})") from None
        except trio.TooSlowError:
            raise _no_fence("nft does not end") from None
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").split("\n")[0]
            raise _no_fence(f"nft says: {said[:300]}")

    async def keep(self) -> None:
        while True:
            try:
                await self.ensure()
            except BackendUnavailable as error:
                log.warning("podman: %s", error)
            await trio.sleep(AGAIN_SECONDS)


def _no_fence(why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"Containers cannot be kept from this machine's link-local addresses, so none is "
        f"started: {why}. Install nftables."
    )
