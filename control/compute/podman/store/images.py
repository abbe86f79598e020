"""The image that containers start from: built or pulled the first time it is needed.

The default one is in no registry: it is built here, from :data:`RECIPE`, so that whoever
has just installed Podman can create a container without having heard of images. Any other
is pulled, unless its name says that it is this machine's own (``localhost/…``). Either may
take minutes and needs the network, so nobody is held up by it: a container that waits for
its image says so, and what went wrong.

Podman must not be stopped in the middle of a build: it would leave the containers that it
builds in, and what runs in them. So it is nobody's child and ends by itself, and whoever
is there by then has the image. Its output goes to a file, which is locked for as long as
it has it open: that shows that it is under way, also to a process that was started since.
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
from control.compute.podman.engine.http import Refused
from control.compute.podman.engine.service import environment
from gfs.io.filelock import try_flock

__all__ = ["Images"]

#: What we build ourselves, with any tag.
OWN = "localhost/gfs-compute"
RECIPE = Path(__file__).parents[2] / "image"
LOG = "podman-image.log"
#: After this it is called a failure, whatever becomes of it.
GET_SECONDS = 1800.0
LOOK_SECONDS = 0.2
#: A start waits so long, then it is refused and asks again later.
WAIT_SECONDS = 5.0
#: A failure is answered to all who ask within this, and tried again after it.
AGAIN_SECONDS = 30.0
#: Characters of a reason that a container shows, and of Podman's own words in any case.
STORY_LENGTH = 300
SAID_LENGTH_MIN = 80


class Images:
    """Builds and pulls them in the background.

    Args:
        directory: Where the log is.
        podman, runtime: The command, and the OCI runtime it is to use.
        base: What the default image is built on; "": what its recipe says.
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
        #: When it failed last, by trio's clock, and why.
        self._failed: dict[str, tuple[float, str]] = {}

    async def need(self, image: str) -> None:
        """Return if it is there. Raises BackendUnavailable while it is built or pulled, and
        after that failed."""
        if await self._exists(image):
            self._failed.pop(image, None)
            return
        self.check_missing(image)
        verb = "built" if _is_own(image) else "pulled"
        busy = f"Its image {image} is being {verb}, which takes some minutes, once."
        await self._background.do(f"image {image}", partial(self._get, image), WAIT_SECONDS, busy)

    def check_missing(self, image: str) -> None:
        """Raise BackendUnavailable, saying what to do, if an image that is not there cannot
        be built or pulled, as far as is known."""
        if image.startswith("localhost/") and not _is_own(image):
            raise BackendUnavailable(f"There is no image {image}: podman build -t {image} {RECIPE}")
        failed_at, why = self._failed.get(image, (-float("inf"), ""))
        if trio.current_time() - failed_at < AGAIN_SECONDS:
            raise BackendUnavailable(why)

    async def _get(self, image: str) -> None:
        try:
            with trio.fail_after(GET_SECONDS):
                # One at a time, and what another process began may be this very one.
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
        """The error, which is kept for those who ask for the image soon."""
        story = _cannot(image, said)
        self._failed[image] = (trio.current_time(), story)
        return BackendUnavailable(story)

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
            # Podman asks for more than a root of few capabilities may have.
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
    story = f"Its image {image} cannot be pulled (see compute.image). Podman says: "
    if _is_own(image):
        story = (
            f"Its image cannot be built (see compute.image and compute.image_base; by hand: "
            f"podman build -t {image} {RECIPE}). Podman says: "
        )
    room = max(STORY_LENGTH - len(story), SAID_LENGTH_MIN)
    # The last words of Podman's error have the cause.
    return story + (said if len(said) <= room else f"…{said[1 - room :]}")
