"""Containers in the console: real ones, in a real browser."""

from __future__ import annotations

from pathlib import Path

import trio
from checks import wait_for
from chromium import Chromium
from cloud import PASSWORD
from compute_cloud import ComputeCloud
from console_page import Console, missing
from needs import need
from podman_here import User

SCREEN = (
    "[...document.querySelectorAll('.xterm-rows > div')]"
    ".map((row) => row.textContent.replaceAll('\\u00a0', ' ').trimEnd())"
)


async def test_a_container_is_made_used_and_deleted(browser: Chromium, user: User) -> None:
    need(missing())
    console = await Console.open(browser, user.here.cloud.url, "#/containers")
    await console.login(user.name, PASSWORD)
    await console.sees("You have no container")
    await console.picture("containers-none")
    await console.press("New container")
    await console.fill("Name", "<img src=x onerror=alert(1)>", "dialog")
    await console.picture("new-container")
    await console.press("Create", "dialog")

    # It is shown as it happens; the name is only a text.
    await console.until("document.querySelector('h1').innerText.startsWith('<img')")
    container = (await console.evaluate("location.hash")).rpartition("/")[2]
    await console.until("document.querySelector('.crumbs .badge')?.innerText === 'running'")
    assert await console.evaluate("document.querySelectorAll('main img').length") == 0

    await console.fill("Port", "8080")
    await console.fill("Port in the container", "9000")
    await console.press("Open")
    await console.sees("8080 → 9000")
    await console.picture("container")
    await console.press("Close port 8080")
    await console.misses("8080 → 9000")

    await console.press("Terminal")
    await console.until(f"{SCREEN}.some((line) => line.endsWith('#'))")
    await console.page.type("echo $((6*7))\r")
    await console.until(f"{SCREEN}.includes('42')")
    across = await console.evaluate("document.querySelector('.xterm-rows').children.length")
    # Its size comes another way than what is typed.
    await console.page.type(f"until stty size | grep '^{across} '; do sleep 0.1; done\r")
    await console.until(f"{SCREEN}.some((line) => line.startsWith('{across} '))")
    await console.picture("terminal")
    # Tab is the shell's; with Shift it leaves the terminal.
    await console.evaluate("document.querySelector('.xterm textarea').focus()")
    inside = "document.activeElement.closest('.shell-box') !== null"
    await console.page.type("echo $((5*5)) /etc/host")
    await console.key("Tab")
    await console.page.type("\r")
    await console.until(f"{SCREEN}.some((line) => /^25 .etc.host/.test(line))")
    assert await console.evaluate(inside)
    await console.key("Tab", shift=True)
    assert not await console.evaluate(inside)
    await console.evaluate("document.querySelector('.xterm textarea').focus()")

    # A line of the log is only a text. The shell ends with its page, whatever it was typed.
    loud = "printf '\\033[32m<b>loud</b>\\033[0m\\n' > /proc/1/fd/1"
    await console.page.type(f"{loud}; echo $((7*7))\r")
    await console.until(f"{SCREEN}.includes('49')")
    await console.press("Logs")
    said = (
        "document.querySelector('.log')?.innerText.split('\\n')"
        ".some((line) => line.endsWith('Z <b>loud</b>'))"
    )
    await console.until(said)
    await console.picture("logs")

    # What it has printed stays to be read when it has stopped, until its next run.
    await console.press("Stop")
    await console.until("document.querySelector('.crumbs .badge')?.innerText === 'stopped'")
    await console.sees("kept until it is started again")
    assert await console.evaluate(said)
    await console.press("Overview")
    await console.press("Logs")
    await console.until(said)
    await console.sees("kept until it is started again")
    await console.picture("logs-stopped")
    await console.press("Start")
    await console.until("document.querySelector('.crumbs .badge')?.innerText === 'running'")
    await console.misses("kept until it is started again")
    await console.until(f"!{said}")

    await console.go("#/containers")
    await console.until("document.querySelector('.card .badge')?.innerText === 'running'")
    await console.picture("containers")
    await console.go(f"#/containers/{container}")
    await console.press("Delete…")
    await console.press("Delete", "dialog")
    await console.sees("You have no container")
    await trio.to_thread.run_sync(user.here.wait_gone, container)
    # The page may have asked for it just then: a 404 is what the browser complains of.
    gone = f"/compute/containers/{container}"
    console.page.complaints = [c for c in console.page.complaints if not c.endswith(gone)]
    console.check_manners()


async def test_ssh_is_switched_and_a_mount_path_keeps_what_it_gets(
    browser: Chromium, user: User
) -> None:
    need(missing())
    container = await trio.to_thread.run_sync(user.run)
    console = await Console.open(browser, user.here.cloud.url, f"#/containers/{container}")
    await console.login(user.name, PASSWORD)
    state = "document.querySelector('.crumbs .badge')?.innerText"

    def lets_in() -> bool:
        return user.try_ssh(container, "true").returncode == 0

    async def shell(command: str) -> str:
        await trio.to_thread.run_sync(wait_for, lets_in, "SSH")
        return await trio.to_thread.run_sync(user.ssh, container, command)

    await console.sees("SSH is off")
    await console.press("Switch SSH on")
    await console.until("document.querySelector('.facts .copyable code')")
    await console.until(f"{state} === 'running'")
    assert await shell("echo in") == "in\n"

    await console.fill("Mount paths", "/root\ndata")
    await console.press("Save")
    await console.sees("mount_paths: ")
    console.page.complaints.clear()  # the browser's own of the 400
    await console.fill("Mount paths", "/root\n/data")
    await console.press("Save")
    await console.sees("The mount paths are changed; the container restarts")
    await console.until(f"{state} !== 'running'")
    await console.until(f"{state} === 'running'")
    await shell("echo kept > /data/a; echo lost > /srv/a")
    await console.press("Stop")
    await console.until(f"{state} === 'stopped'")
    await console.press("Start")
    await console.until(f"{state} === 'running'")
    assert await shell("cat /data/a; ls -A /srv") == "kept\n"
    await console.picture("container-ssh")

    await console.press("Switch SSH off")
    await console.sees("SSH is off")
    assert "ssh_command" not in await trio.to_thread.run_sync(user.get, container)
    console.check_manners()


async def test_an_administrator_stops_and_deletes_containers_of_all_users(
    browser: Chromium, tmp_path: Path
) -> None:
    need(missing())
    many = {"GFS_QUOTA_CONTAINERS": "200"}
    cloud = ComputeCloud(tmp_path / "cloud", environment=many)
    try:
        cloud.start()
        owner, _ = cloud.make_user()
        first = cloud.running(owner, name="<b>first</b>")["id"]
        for number in range(100):
            cloud.container(owner, name=f"number {number}", memory_mb=128, storage_gb=1)
        console = await Console.open(browser, cloud.url)
        await console.login("admin", PASSWORD)
        await console.press("All containers")
        await console.sees("number 99")
        rows = "document.querySelectorAll('tbody tr').length"
        assert await console.evaluate(rows) == 100
        await console.picture("all-containers")
        await console.press("Show more")
        await console.sees("<b>first</b>")
        assert await console.evaluate(rows) == 101
        username = owner.get("/api/session").json()["username"]
        of_first = "[...document.querySelectorAll('tbody tr')].at(-1).innerText"
        assert username in await console.evaluate(of_first)

        await console.act("<b>first</b>", "Stop")
        await console.until(f"{of_first}.includes('stopped')")
        await console.act("<b>first</b>", "Start")
        await console.until(f"{of_first}.includes('running')")
        await console.act("<b>first</b>", "Delete…", "Delete")
        await console.misses("<b>first</b>")
        assert owner.get(f"/compute/containers/{first}").status_code == 404
        console.check_manners()
    finally:
        cloud.stop()
