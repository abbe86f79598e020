"""A control plane of a test's own, which may be killed."""

from __future__ import annotations

import re
import signal
from typing import Self

from checks import wait_for
from cloud import Cloud
from forks import Command
from limits import HANG_SECONDS


class Alone(Cloud):
    """The control plane without a cluster, and without anybody who starts it again (and
    waits longer each time)."""

    process: Command | None = None
    modules = "auth,compute"

    def start(self) -> Self:
        self.output = self.cluster.directory / "control.out"
        with open(self.output, "wb") as output:
            self.process = Command(
                [
                    *("control", "--state", self.cluster.state),
                    *("--modules", self.modules, "--bind", "127.0.0.1:0"),
                ],
                stdout=output.fileno(),
                stderr=output.fileno(),
                env=self.cluster.environment,
            )
        wait_for(self._is_up, "server")
        return self

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.output.read_text()
        return "Stop it with" in self.output.read_text()

    @property
    def url(self) -> str:
        found = re.search(r"REST API: (\S+) ", self.output.read_text())
        assert found is not None
        return found[1]

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        self.forget()
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(HANG_SECONDS)
            finally:
                process.kill()
                process.wait()
