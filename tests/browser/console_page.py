"""The console in a browser, driven as a person does: by what is to be read on it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import browser_files
from chromium import Chromium, Page

from control.console.module import BUILT, PAGE

#: Where pictures of the pages go, one folder for each width; nowhere if it is not set.
PICTURES = os.environ.get("GFS_TEST_PICTURES", "")
AXE = """
axe.run(document, {resultTypes: ["violations"]}).then(({violations}) => violations
    .filter(({impact}) => impact === "serious" || impact === "critical")
    .map(({id, nodes}) => `${id}: ${nodes.map((n) => n.html + " " + n.failureSummary).join("; ")}`))
"""
WIDE = """
[document.documentElement, document.querySelector("#content")]
    .filter((each) => each && each.scrollWidth > each.clientWidth + 1)
    .map((each) => `${each.id || "page"}: ${each.scrollWidth} > ${each.clientWidth}`)
"""
WIDTHS = {"phone": (390, 844), "laptop": (1280, 800), "wide": (1920, 1080)}
#: The names in a list of files.
ROWS = "[...document.querySelectorAll('tbody .name')].map((each) => each.innerText.trim())"
KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38}


def missing() -> str:
    """Why there is no console to look at, and what to do; "" if there is one."""
    return "" if (BUILT / PAGE).is_file() else "the console is not built: run  make console"


class Console:
    def __init__(self, page: Page, base: str) -> None:
        self.page = page
        self.base = base

    @classmethod
    async def open(cls, browser: Chromium, base: str, place: str = "") -> Console:
        self = cls(await browser.open(f"{base}/{place}"), base)
        await self.resize(*WIDTHS["laptop"])
        await self.until("document.querySelector('#app > *')")
        return self

    async def login(self, username: str, password: str) -> None:
        await self.fill("Username", username)
        await self.fill("Password", password)
        await self.press("Log in")
        await self.until("document.querySelector('.shell')")

    async def go(self, place: str) -> None:
        await self.page.evaluate(f"location.hash = {json.dumps(place)}")

    async def until(self, condition: str) -> None:
        await self.page.until(condition)

    async def evaluate(self, expression: str) -> Any:
        return await self.page.evaluate(expression)

    async def sees(self, text: str) -> None:
        """Until this text can be read."""
        await self.until(f"document.body.innerText.includes({json.dumps(text)})")

    async def misses(self, text: str) -> None:
        await self.until(f"!document.body.innerText.includes({json.dumps(text)})")

    async def press(self, name: str, within: str = "body") -> None:
        """Click what can be pressed and has this name, when it is there and ready."""
        find = (
            f"[...[...document.querySelectorAll({json.dumps(within)})].at(-1)?.querySelectorAll("
            "'button, a, [role=menuitem], summary, label') ?? []].find((each) =>"
            " (each.getAttribute('aria-label') ?? each.innerText).trim() === "
            f"{json.dumps(name)} && each.checkVisibility() && !each.disabled)"
        )
        await self.until(find)
        await self.page.evaluate(f"({find}).click()")

    async def fill(self, label: str, text: str, within: str = "body") -> None:
        """Type into the field of this label, in the place of what it holds."""
        field = await self._field(label, within)
        await self.page.evaluate(f"(({field}).focus(), ({field}).select?.())")
        await self.page.call("Input.insertText", text=text)

    async def answer(self, press: str, fields: Mapping[str, str]) -> None:
        """Fill in a dialog, and press what ends it."""
        for label, text in fields.items():
            await self.fill(label, text, "dialog")
        if press:
            await self.press(press, "dialog")

    async def act(
        self, name: str, what: str, press: str = "", fields: Mapping[str, str] | None = None
    ) -> None:
        """Choose what to do with the row of this name, and answer its dialog."""
        await self.press(f"Actions: {name}")
        await self.press(what, "[role=menu]")
        await self.answer(press, fields or {})

    async def choose(self, label: str, value: str, within: str = "body") -> None:
        """One of those that the field of this label offers."""
        field = await self._field(label, within)
        await self.until(f"[...({field}).options].some(({{ value }}) => value === {value!r})")
        await self.page.evaluate(
            f"(({field}).value = {value!r}, ({field}).dispatchEvent(new Event('change')), 0)"
        )

    async def _field(self, label: str, within: str) -> str:
        """What finds it, when it is there."""
        label_of = (
            "(each) => each.getAttribute('aria-label') ??"
            " each.closest('label')?.querySelector('span')?.innerText"
        )
        fields = f"{within} :is(input, textarea, select)"
        find = (
            f"[...document.querySelectorAll({json.dumps(fields)})].find((each) =>"
            f" each.checkVisibility() && ({label_of})(each) === {json.dumps(label)})"
        )
        await self.until(find)
        return find

    async def click_beside(self) -> None:
        """Where there is no dialog, but what it is in front of."""
        for kind in ("mousePressed", "mouseReleased"):
            await self.page.call(
                "Input.dispatchMouseEvent", type=kind, x=3, y=3, button="left", clickCount=1
            )

    async def key(self, name: str, *, shift: bool = False) -> None:
        about = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name]}
        about["modifiers"] = 8 if shift else 0
        text = {"text": "\r"} if name == "Enter" else {}
        await self.page.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        await self.page.call("Input.dispatchKeyEvent", type="keyUp", **about)

    async def choose_files(self, paths: Sequence[Path], index: int = 0) -> None:
        """As if they had been chosen after a press of the button for files."""
        document = await self.page.call("DOM.getDocument")
        found = await self.page.call(
            "DOM.querySelectorAll", nodeId=document["root"]["nodeId"], selector="input[type=file]"
        )
        await self.page.call(
            "DOM.setFileInputFiles",
            files=[str(path) for path in paths],
            nodeId=found["nodeIds"][index],
        )

    async def drop(self, paths: Sequence[Path], selector: str = ".files") -> None:
        """Drop files and folders of the desktop."""
        box = await self.page.evaluate(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.page.call(
                "Input.dispatchDragEvent", type=kind, x=box[0], y=box[1], data=data
            )

    async def download_to(self, directory: Path) -> Path:
        """Let downloads go there, and be among what was asked for."""
        note = self.page.note

        def noted(method: str, about: dict[str, Any]) -> None:
            if method == "Page.downloadWillBegin":
                self.page.asked.append(about["url"])
            note(method, about)

        self.page.note = noted  # type: ignore[method-assign]
        await self.page.call(
            "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(directory)
        )
        return directory

    async def accessible(self) -> None:
        """axe-core finds nothing serious, neither in light nor in dark."""
        if await self.evaluate("typeof axe === 'undefined'"):
            axe = (browser_files.directory() / "axe-core/axe.min.js").read_text()
            await self.page.evaluate(axe + "; 0")
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            await self.page.call("Emulation.setEmulatedMedia", features=[feature])
            found = await self.page.evaluate(AXE)
            assert found == [], f"{scheme}: {found}"
        await self.page.call("Emulation.setEmulatedMedia", features=[])

    async def picture(self, name: str) -> None:
        """Look for what people could not read or reach, at each width that has a layout of its own;
        and keep pictures of the page as it is."""
        for width, (across, down) in WIDTHS.items():
            await self.resize(across, down)
            await self.page.evaluate(
                "new Promise((done) => setTimeout(() => requestAnimationFrame(done), 250))"
            )
            # Tables may be scrolled sideways, pages are not.
            wide = await self.page.evaluate(WIDE)
            assert wide == [], f"{width}: {wide}"
            if PICTURES:
                shot = await self.page.call("Page.captureScreenshot", format="png")
                folder = Path(PICTURES) / width
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
            if width != "wide":
                await self.accessible()
        await self.resize(*WIDTHS["laptop"])

    async def resize(self, across: int, down: int) -> None:
        await self.page.call(
            "Emulation.setDeviceMetricsOverride",
            width=across,
            height=down,
            deviceScaleFactor=1,
            mobile=False,
        )

    def check_manners(self) -> None:
        """Its policy lets all of it run, and it has asked nobody else."""
        assert self.page.complaints == [], self.page.complaints
        allowed = (self.base, self.base.replace("http", "ws"), "data:", "blob:")
        assert all(each.startswith(allowed) for each in self.page.asked), self.page.asked
        # Addresses are kept in histories and logs.
        reported = [
            each for each in self.page.asked if "token=" in each and each.startswith("http")
        ]
        assert reported == []
