"""A progress bar on stderr, if that is a terminal: bytes, rate, ETA. Without a
terminal, commands that take minutes print a line now and then.

The bar appears only after a moment, so that short transfers do not flicker, and
rich is not even imported for them. It is drawn by a task, not a thread.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

import trio

from gfs.cli.exits import complain
from gfs.cli.output import human_bytes, human_seconds

FIRST_SHOWN_SECONDS = 0.4
DRAWN_SECONDS = 0.1
LINE_SECONDS = 10.0


class Progress:
    """The progress, in bytes or in ``unit``. ``total`` None: the total is not
    known."""

    def __init__(self, total: int | None = None, unit: str = "") -> None:
        self.total = total
        self.unit = unit
        self.done = 0
        self._pending: list[str] = []
        self._is_drawn = False

    def advance(self, count: int) -> None:
        self.done += count

    def say(self, text: str) -> None:
        """Print a line on stderr that does not run into the bar."""
        if self._is_drawn:
            self._pending.append(text)
        else:
            complain(text)

    async def print_lines(self) -> None:
        """Print a line now and then until cancelled."""
        began = trio.current_time()
        while True:
            await trio.sleep(LINE_SECONDS)
            complain(describe(self.done, self.total, trio.current_time() - began, self.unit))

    async def draw(self) -> None:
        """Draw until cancelled; the bar stays as it was last."""
        await trio.sleep(FIRST_SHOWN_SECONDS)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            BarColumn(bar_width=None),
            TextColumn("{task.fields[line]}", style="progress.download"),
            console=Console(stderr=True),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        began = trio.current_time() - FIRST_SHOWN_SECONDS
        task = bar.add_task("", total=self.total, line="")
        self._is_drawn = True
        self._update(bar, task, FIRST_SHOWN_SECONDS)
        bar.start()
        try:
            while True:
                self._update(bar, task, trio.current_time() - began)
                await trio.sleep(DRAWN_SECONDS)
        finally:
            self._is_drawn = False
            self._update(bar, task, trio.current_time() - began)
            bar.stop()

    def _update(self, bar: object, task: object, seconds: float) -> None:
        for text in self._pending:
            bar.console.print(f"gfs: {text}", markup=False, highlight=False)  # type: ignore[attr-defined]
        self._pending.clear()
        line = describe(self.done, self.total, seconds, self.unit)
        bar.update(task, completed=self.done, total=self.total, line=line)  # type: ignore[attr-defined]
        bar.refresh()  # type: ignore[attr-defined]


def describe(done: int, total: int | None, seconds: float, unit: str = "") -> str:
    def amount(count: float) -> str:
        return f"{count:.0f} {unit}" if unit else human_bytes(count)

    rate = done / seconds if seconds > 0 else 0.0
    parts = [amount(done), f"{amount(rate)}/s"]
    if total is not None:
        parts[0] += f" of {amount(total)}"
        if rate > 0 and done < total:
            parts.append(f"{human_seconds((total - done) / rate)} left")
    return "  ".join(parts)


def is_wanted() -> bool:
    return sys.stderr.isatty()


@contextlib.asynccontextmanager
async def shown(progress: Progress, *, lines: bool = False) -> AsyncIterator[Progress]:
    """Draw ``progress`` during the body, if stderr is a terminal; else print it now and
    then, if ``lines`` is set."""
    if not is_wanted() and not lines:
        yield progress
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(progress.draw if is_wanted() else progress.print_lines)
        yield progress
        nursery.cancel_scope.cancel()
