"""The image of containers. It is built or pulled the first time it is needed.

The default image is in no registry: it is built here, from :data:`RECIPE`, so that a user who
has just installed Podman can create a container without knowing images. Any other image
is pulled, unless its name is local (``localhost/…``). Either may
take minutes and needs the network, so no call waits for it: a container that waits for
its image shows that, and why it failed.

Podman must not be stopped in the middle of a build: it would leave the containers in which
it builds, and their processes. So a build is not our child and ends by itself, also after
we have ended. Its output goes to a file that it locks as long as it runs: so another
process sees that it is under way.
"""

from __future__ import annotations

import fcntl
import resource
import subprocess
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import trio

from control.compute.backend import BackendUnavailable
from control.compute.podman.background import Background
from control.compute.podman.engine import Refused, environment
from gfs.io import try_flock

#: The image that we build ourselves, with any tag.
OWN = "localhost/gfs-compute"
RECIPE = Path(__file__).parents[2] / "image"
LOG = "podman-image.log"
#: After this time it counts as failed, even if it goes on.
GET_SECONDS = 1800.0
LOOK_SECONDS = 0.2
#: How long a start waits; then it is refused and repeated later.
WAIT_SECONDS = 5.0
#: How long a failure is reported without another attempt.
AGAIN_SECONDS = 30.0
#: How many characters the reason of a failure has that a container shows.
REASON_LENGTH = 300
SAID_LENGTH_MIN = 80


class Images:
    """Builds and pulls images in the background.

    Args:
        directory: The directory of the log.
        podman, runtime: The command, and the OCI runtime that it is to use.
        base: The base of the default image; "": the one in its recipe.
        exists: Whether this machine has an image.
    """

    def __init__(
        self,
        directory: str,
        podman: str,
        runtime: str,
        base: str,
        exists: Callable[[str], Awaitable[bool]],
        background: Background,
    ) -> None:
        self._log = Path(directory) / LOG
        self._command = [podman, *(["--runtime", runtime] if runtime else [])]
        self._base = base
        self._exists = exists
        self._background = background
        #: Image -> the time of its last failure, by trio's clock, and the reason.
        self._failed: dict[str, tuple[float, str]] = {}

    async def need(self, image: str) -> None:
        """Return if the image exists. Raises BackendUnavailable while it is built or pulled, and
        after that has failed."""
        if await self._exists(image):
            self._failed.pop(image, None)
            return
        self.check_missing(image)
        verb = "built" if _is_own(image) else "pulled"
        busy = f"Its image {image} is being {verb}, which takes some minutes, once."
        idle = f"There is no image {image} yet."
        get = partial(self._get, image)
        await self._background.do(f"image {image}", get, WAIT_SECONDS, busy=busy, idle=idle)

    def check_missing(self, image: str) -> None:
        """Raise BackendUnavailable, which says what to do, if an image does not exist and, as far
        as is known, cannot be built or pulled."""
        if image.startswith("localhost/") and not _is_own(image):
            raise BackendUnavailable(f"There is no image {image}: podman build -t {image} {RECIPE}")
        failed_at, why = self._failed.get(image, (-float("inf"), ""))
        if trio.current_time() - failed_at < AGAIN_SECONDS:
            raise BackendUnavailable(why)

    async def _get(self, image: str) -> None:
        try:
            with trio.fail_after(GET_SECONDS):
                # One at a time; and another process may already be getting this image.
                await self._until_idle()
                if not await self._exists(image):
                    await self._begin(self._build(image) if _is_own(image) else ["pull", image])
                    await self._until_idle()
                    if not await self._exists(image):
                        raise BackendUnavailable(self._last_words())
            self._failed.pop(image, None)
        except trio.TooSlowError:
            said = f"nothing for {GET_SECONDS / 60:.0f} minutes, see {self._log}"
            raise self._failure(image, said) from None
        except (BackendUnavailable, Refused, OSError) as error:
            raise self._failure(image, str(error)) from error

    def _failure(self, image: str, said: str) -> BackendUnavailable:
        """The error, which is kept for the next calls."""
        reason = _cannot(image, said)
        self._failed[image] = (trio.current_time(), reason)
        return BackendUnavailable(reason)

    async def _begin(self, arguments: list[str]) -> None:
        with self._log.open("ab") as log:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log.truncate(0)
            await trio.run_process(
                # The shell ends at once.
                ["/bin/sh", "-c", '"$@" &', "sh", *self._command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment({}),
                start_new_session=True,
            )

    async def _until_idle(self) -> None:
        while self._is_busy():  # noqa: ASYNC110
            await trio.sleep(LOOK_SECONDS)

    def _is_busy(self) -> bool:
        with self._log.open("ab") as log:
            return not try_flock(log.fileno())

    def _last_words(self) -> str:
        with self._log.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(0, size - 4096))
            lines = log.read().decode("utf-8", "replace").split("\n")
        said = (line.strip().removeprefix("Error: ") for line in reversed(lines))
        return next((line for line in said if line), "nothing")

    def _build(self, image: str) -> list[str]:
        options = []
        for word, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
            # Podman sets higher limits than a root with few capabilities may.
            hard = resource.getrlimit(number)[1]
            if hard != resource.RLIM_INFINITY:
                options += ["--ulimit", f"{word}={hard}:{hard}"]
        if self._base:
            options += ["--build-arg", f"BASE={self._base}"]
        # Intermediate layers would stay beside the image.
        return ["build", "--layers=false", *options, "-t", image, str(RECIPE)]


def _is_own(image: str) -> bool:
    return image.partition(":")[0] == OWN


def _cannot(image: str, said: str) -> str:
    reason = f"Its image {image} cannot be pulled (see compute.image). Podman says: "
    if _is_own(image):
        reason = (
            f"Its image cannot be built (see compute.image and compute.image_base; by hand: "
            f"podman build -t {image} {RECIPE}). Podman says: "
        )
    room = max(REASON_LENGTH - len(reason), SAID_LENGTH_MIN)
    # The end of Podman's error has the cause.
    return reason + (said if len(said) <= room else f"…{said[1 - room :]}")
