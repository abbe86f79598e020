"""The console, in a real browser on a real cluster."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator

import pytest
import trio
from checks import wait_for
from chromium import Chromium
from cloud import PASSWORD, Cloud
from console_page import WIDTHS, Console
from signals import send

import gfs

PUBLIC_KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ me@laptop"
)


@pytest.fixture
async def console(browser: Chromium, cloud: Cloud) -> AsyncIterator[Console]:
    """Logged in as a new user."""
    cloud.forget()
    _, user_id = cloud.make_user()
    users = cloud.admin.get("/admin/users").json()
    name = next(each["username"] for each in users if each["user_id"] == user_id)
    made = await Console.open(browser, cloud.url)
    await made.login(name, PASSWORD)
    yield made
    made.check_manners()


async def ended(cloud: Cloud, token: str) -> None:
    """Until this session has ended."""
    with cloud.client(token) as client:

        def look() -> bool:
            return client.get("/api/session").status_code == 401

        await trio.to_thread.run_sync(lambda: wait_for(look, "end of the session"))


async def test_one_logs_in_and_out(browser: Chromium, cloud: Cloud) -> None:
    console = await Console.open(browser, cloud.url)
    await console.picture("login")
    await console.fill("Username", "admin")
    await console.fill("Password", "wrong")
    await console.key("Enter")
    await console.sees("wrong username or password")
    console.page.complaints.clear()  # the browser's own of the 401
    await console.login("admin", PASSWORD)
    await console.sees("default")

    # The menu of a phone.
    await console.resize(*WIDTHS["phone"])
    await console.press("Menu")
    await console.until("document.querySelector('.shell.open')")
    await console.accessible()
    await console.resize(*WIDTHS["laptop"])

    stored = await console.evaluate("JSON.stringify([localStorage, document.cookie])")
    token = await console.evaluate("JSON.parse(sessionStorage['gfs-session']).token")
    assert token not in stored
    # A second tab asks the first one.
    second = await Console.open(browser, cloud.url)
    await second.sees("default")
    assert token in await second.evaluate("sessionStorage['gfs-session']")

    await console.press("Log out")
    await console.until("document.querySelector('.login')")
    assert await console.evaluate("sessionStorage.length") == 0
    await ended(cloud, token)
    # It has ended there, too, and it does not come back here.
    await second.go("#/account")
    await second.sees("Your session has ended")
    assert await console.evaluate("sessionStorage.length") == 0
    console.check_manners()


async def test_a_session_that_was_ended_leads_to_the_login_and_back(
    console: Console, cloud: Cloud
) -> None:
    await console.go("#/files/default")
    await console.until("document.querySelector('.files')")
    token = await console.evaluate("JSON.parse(sessionStorage['gfs-session']).token")
    name = await console.evaluate("JSON.parse(sessionStorage['gfs-session']).username")
    with cloud.client(token) as client:
        client.post("/api/logout").raise_for_status()
    await console.go("#/files")
    await console.sees("Your session has ended")
    await console.login(name, PASSWORD)
    await console.sees("default")

    async def end(place: str) -> None:
        token = await console.evaluate("JSON.parse(sessionStorage['gfs-session']).token")
        with cloud.client(token) as client:
            client.post("/api/logout").raise_for_status()
        await console.go(place)
        await console.sees("Your session has ended")

    # A dialog makes room for the login. What was typed is there again for the same user alone.
    await console.press("New storage namespace")
    await console.fill("Name", "typed-before", "dialog")
    await end("#/account")
    await console.until("!document.querySelector('dialog').checkVisibility()")
    await console.login(name, PASSWORD)
    await console.until("document.querySelector('dialog').open")
    assert await console.evaluate("document.querySelector('dialog input').value") == "typed-before"
    await end("#/files")
    await console.login("admin", PASSWORD)
    await console.until("!document.querySelector('dialog')")
    # What is shown only once is not shown to whoever comes next.
    await console.go("#/access")
    await console.press("New API token")
    await console.answer("Create", {"Name": "secret"})
    await console.sees("This is shown only now")
    await end("#/account")
    await console.until("!document.querySelector('dialog')")
    console.page.complaints.clear()


async def test_storage_namespaces_are_made_opened_to_others_and_deleted(
    console: Console, cloud: Cloud
) -> None:
    name = "space-of-a-test"
    await console.press("New storage namespace")
    await console.fill("Name", name)
    await console.picture("new-namespace")
    await console.press("Create", "dialog")
    await console.sees(name)
    with cloud.client() as anonymous:
        assert anonymous.get("/storage/files", params={"namespace": name}).status_code == 401

        await console.act(name, "Visibility…", "Public\nEveryone sees it and can read it")
        await console.press("Save", "dialog")
        await console.until(
            "[...document.querySelectorAll('.card')].at(-1).innerText.includes('Public')"
        )
        assert anonymous.get("/storage/files", params={"namespace": name}).json() == []

        await console.act(name, "Delete…")
        await console.fill("Its name", name)
        await console.press("Delete", "dialog")
        await console.misses("Public\nYours")
        assert anonymous.get("/storage/files", params={"namespace": name}).status_code == 404


async def test_an_administrator_is_offered_what_is_allowed_and_finds_all_there_is(
    browser: Chromium, cloud: Cloud
) -> None:
    owner, _ = cloud.make_user()
    leaver, leaver_id = cloud.make_user()
    for user, name, visibility in ((owner, "kept", 0), (owner, "shown", 2), (leaver, "left", 0)):
        made = {"name": name, "visibility": visibility}
        user.post("/storage/namespaces", json=made).raise_for_status()
        query = {"namespace": name, "name": "in/a.txt"}
        user.post("/storage/upload", params=query, content=b"x").raise_for_status()
    cloud.admin.delete("/admin/users", params={"id": leaver_id}).raise_for_status()
    console = await Console.open(browser, cloud.url, "#/files")
    await console.login("admin", PASSWORD)
    # What a deleted user has left is the administrators'.
    await console.sees("Has no owner")
    await console.until("document.querySelector('[aria-label=\"Actions: left\"]')")
    # Others' may be read if they are public, and that is all.
    assert (
        await console.evaluate("document.querySelector('[aria-label=\"Actions: shown\"]')") is None
    )
    console.page.asked.clear()
    await console.go("#/files/shown")
    await console.until("document.querySelector('tbody .name')?.innerText.trim() === 'in'")
    assert await console.evaluate("document.querySelectorAll('main .button, .tabs').length") == 0
    lists = [each for each in console.page.asked if each.endswith("/admin/namespaces")]
    assert len(lists) == 1
    await console.press("in")
    await console.press("Actions: a.txt")
    items = "[...document.querySelectorAll('[role=menuitem]')].map((each) => each.innerText)"
    assert await console.evaluate(items) == ["Open", "Download", "Where it is stored"]

    # Of private ones one sees where they are.
    await console.go("#/files")
    await console.press("kept")
    await console.sees("in/a.txt")
    await console.fill("The path begins with", "z")
    await console.sees("No path begins like this")
    await console.fill("The path begins with", "in/")
    await console.picture("closed-namespace")
    async with gfs.connect(state=cloud.cluster.state) as fs:
        spaces = [each.path async for each in fs.scan("/storage")]
        (home,) = [each for each in spaces if each.startswith("/storage/kept.")]
        await fs.put_many([(f"{home}/many/{number:03}", b"") for number in range(501)])
    await console.fill("The path begins with", "many/")
    await console.sees("many/499")
    await console.misses("many/500")
    await console.press("Show more")
    await console.sees("many/500")
    await console.misses("Show more")
    await console.fill("The path begins with", "in/")
    await console.press("Where it is stored: in/a.txt")
    await console.press("Check now", "dialog")
    await console.sees("Every replica is whole: 1")
    await console.press("Close", "dialog")
    await console.go("#/files")
    await console.sees("Private ones of other users")
    await console.picture("files-administrator")
    console.check_manners()


async def test_policy_stops_what_a_page_might_be_tricked_into(console: Console) -> None:
    """Text that becomes HTML, a script of the same origin that has no nonce, a style."""
    assert (
        await console.evaluate(
            "(() => { try { document.body.innerHTML = '<b>'; return 'taken'; }"
            " catch (error) { return error.name; } })()"
        )
        == "TypeError"
    )
    assert (
        await console.evaluate(
            "(() => { try { const s = document.createElement('script'); s.src = '/docs/page.js';"
            " document.body.append(s); return 'taken'; } catch (error) { return error.name; } })()"
        )
        == "TypeError"
    )
    assert (
        await console.evaluate(
            "(() => { const s = document.createElement('style'); s.textContent = 'body{color:red}';"
            " document.head.append(s); return s.sheet?.cssRules.length ?? 0; })()"
        )
        == 0
    )
    console.page.complaints.clear()


async def test_tokens_and_keys_are_made_shown_once_and_revoked(
    console: Console, cloud: Cloud
) -> None:
    await console.go("#/access")
    await console.press("New API token")
    await console.answer("Create", {"Name": "a <script>"})
    await console.sees("This is shown only now")
    token = await console.evaluate("document.querySelector('dialog pre').innerText")
    with cloud.client(token) as client:
        assert client.get("/storage/files").status_code == 200
        assert client.post("/storage/namespaces", json={"name": "x"}).status_code == 403
        await console.picture("new-token")
        await console.click_beside()
        # Over plain http from another host there is no clipboard, and an older way to copy.
        await console.evaluate(
            "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
            " document.addEventListener('copy', () => { window.taken = String(getSelection()); });"
            " document.querySelector('dialog .copyable button').focus()"
        )
        await console.key("Enter")
        await console.sees("Copied")
        assert await console.evaluate("window.taken") == token
        await console.evaluate("document.execCommand = () => false; 0")
        await console.misses("Copied")
        await console.press("Copy", "dialog")
        await console.sees("The text is selected")
        assert await console.evaluate("String(getSelection())") == token
        await console.press("Close", "dialog")
        await console.press("Revoke: a <script>")
        await console.press("Revoke", "dialog")
        await console.sees("No API token yet")
        assert client.get("/api/session").status_code == 401

    # Rights within one storage namespace change no other.
    mine = cloud.client(await console.evaluate("JSON.parse(sessionStorage['gfs-session']).token"))
    for name in ("photos", "my.letters"):
        mine.post("/storage/namespaces", json={"name": name}).raise_for_status()
    await console.press("New API token")
    await console.press("Create, change and delete storage namespaces", "dialog")
    await console.choose("Storage namespace", "photos", "dialog")
    await console.answer("Create", {"Name": "of photos"})
    await console.sees("This is shown only now")
    token = await console.evaluate("document.querySelector('dialog pre').innerText")
    with cloud.client(token) as client:
        for name, answer in (("photos", 200), ("my.letters", 403)):
            path, change = f"/storage/namespaces/{name}", {"visibility": 0}
            assert client.put(path, json=change).status_code == answer
            assert client.get("/storage/files", params={"namespace": name}).status_code == answer
        assert client.post("/storage/namespaces", json={"name": "x"}).status_code == 403
        assert client.delete("/storage/namespaces/my.letters").status_code == 403
        assert client.delete("/storage/namespaces/photos").status_code == 200
    await console.press("Close", "dialog")

    await console.press("New S3 key")
    await console.choose("Storage namespace", "my.letters", "dialog")
    await console.answer("Create", {"Name": "backup"})
    for tool, text in (
        ("rclone", "rclone ls gfs:my.letters"),
        ("restic", "/my.letters"),
        ("fsspec", "s3://my.letters/"),
        ("awscli", "aws s3 ls s3://my.letters"),
    ):
        await console.press(tool, "dialog")
        shown = "document.querySelector('dialog .block')?.innerText"
        await console.until(f"{shown}.includes('GFS') && {shown}.includes({text!r})")
    (key,) = mine.get("/api/s3-keys").json()
    assert [scope for scope in key["scopes"] if not scope.endswith(".my.letters")] == []
    await console.picture("new-s3-key")
    await console.press("Close", "dialog")
    await console.sees("backup")
    await console.sees("storage files my.letters: ")
    await console.press("Revoke: backup")
    await console.press("Revoke", "dialog")
    await console.sees("No S3 key yet")

    await console.press("Add an SSH key")
    await console.answer("Save", {"Public key": "nonsense"})
    await console.until("document.querySelector('dialog [role=alert]')")
    console.page.complaints.clear()  # the browser's own of the 400
    await console.fill("Public key", PUBLIC_KEY, "dialog")
    await console.answer("Save", {"Name": "laptop"})
    await console.sees("SHA256:")
    await console.picture("access")


async def test_the_first_container_asks_for_a_key_and_goes_on(console: Console) -> None:
    await console.go("#/containers")
    await console.press("New container")
    await console.sees("you have none yet")
    await console.picture("new-container-first-key")
    await console.fill("Public key", PUBLIC_KEY, "dialog")
    await console.press("Save", "dialog")
    await console.fill("Name", "first", "dialog")
    await console.until("document.querySelector('dialog').innerText.includes('me@laptop')")
    await console.press("Cancel", "dialog")
    await console.until("!document.querySelector('dialog')")


async def test_a_container_that_is_being_deleted_is_offered_nothing_more(
    console: Console,
) -> None:
    """Which all of it would refuse."""
    about = {"memory_mb": 512, "storage_gb": 5, "instance_type": "nano", "hostname": "h"}
    row = {"id": "1", "name": "old", "status": "deleting", "ssh_enabled": False, **about}
    row["created_at"] = "2026-12-01T00:00:00Z"
    answer = json.dumps({"containers": [row], **row, "rules": [], "mount_paths": []})
    await console.evaluate(
        f"((fetch) => {{ window.fetch = async (address, options) => /compute/.test(address)"
        f" ? new Response({json.dumps(answer)}) : fetch(address, options); }})(window.fetch)"
    )
    await console.go("#/containers")
    await console.sees("being deleted")
    assert await console.evaluate("document.querySelectorAll('.card button').length") == 0
    await console.go("#/containers/1")
    await console.until("document.querySelector('.crumbs .badge')?.innerText === 'being deleted'")
    assert await console.evaluate("document.querySelectorAll('.head button').length") == 0


async def test_one_sees_the_quota_and_changes_the_password(console: Console, cloud: Cloud) -> None:
    name = await console.evaluate("JSON.parse(sessionStorage['gfs-session']).username")
    await console.go("#/account")
    await console.sees("0 B of 100 GiB")
    await console.fill("Present password", PASSWORD)
    await console.fill("New password", "a new one of mine")
    await console.picture("account")
    await console.press("Change the password")
    await console.sees("The password is changed")
    assert cloud.token(name, "a new one of mine")


async def test_an_administrator_manages_users_quotas_and_sessions(
    browser: Chromium, cloud: Cloud
) -> None:
    console = await Console.open(browser, cloud.url, "#/users")
    await console.login("admin", PASSWORD)
    await console.press("New user")
    await console.fill("Username", "grace", "dialog")
    await console.fill("Password", PASSWORD, "dialog")
    await console.press("Create", "dialog")
    await console.sees("grace")
    await console.picture("users")

    await console.act("grace", "Quota…", "", {"Files": "many"})
    await console.sees("This is not a whole number")
    await console.fill("Files", "500", "dialog")
    await console.fill("Stored bytes", "1.5 TiB", "dialog")
    await console.sees("The limit becomes 1536 GiB")
    await console.fill("Memory of containers", "512", "dialog")
    await console.sees("The limit becomes 512 MiB")
    await console.picture("quota")
    await console.press("Save", "dialog")
    await console.sees("The quota is changed")
    with cloud.login("grace") as grace:
        quota = grace.get("/api/quota").json()
        limits = [quota[name]["limit"] for name in ("files", "bytes", "memory_mb")]
        assert limits == [500, 1536 << 30, 512]

        await console.go("#/sessions")
        await console.sees("grace")
        await console.picture("sessions")
        await console.press("End: grace")
        await console.sees("End this session of grace?")
        assert grace.get("/api/session").status_code == 200
        await console.press("End", "dialog")
        await console.sees("The session has ended")
        assert grace.get("/api/session").status_code == 401

    # In a tab of the background it is read once, and again as soon as one looks.
    await console.evaluate(
        """(() => {
            const { setTimeout } = window;
            window.setTimeout = (f, ms) => setTimeout(f, ms >= 5000 ? 1e9 : ms);
            window.usual = () => { window.setTimeout = setTimeout; };
            window.isHidden = true;
            Object.defineProperty(document, "hidden", { get: () => window.isHidden });
        })()"""
    )
    await console.go("#/users")
    shown = "document.querySelector('[aria-label=Users] tbody')?.innerText.includes({!r})"
    await console.until(shown.format("grace"))
    cloud.make_user("ada")
    await console.evaluate(
        "(window.isHidden = false, document.dispatchEvent(new Event('visibilitychange')))"
    )
    await console.until(shown.format("ada"))
    await console.evaluate("window.usual()")
    await console.act("grace", "Change…", "", {"New password": "given to her by phone"})
    await console.picture("change-user")
    await console.press("Save", "dialog")
    await console.sees("grace is changed")
    assert cloud.token("grace", "given to her by phone")
    await console.act("grace", "Delete…", "Delete")
    await console.sees("grace is deleted")
    console.check_manners()


async def test_a_disk_is_removed_only_by_who_means_it(browser: Chromium, cloud: Cloud) -> None:
    console = await Console.open(browser, cloud.url, "#/servers")
    await console.login("admin", PASSWORD)
    (server,) = cloud.admin.get("/admin/cluster/servers").json()["servers"]
    await console.act(server["disks"][0]["path"], "Remove…")
    await console.sees("Only for a disk that is drained")
    await console.picture("remove-disk")
    await console.press("Cancel", "dialog")
    await console.until("!document.querySelector('dialog')")
    (server,) = cloud.admin.get("/admin/cluster/servers").json()["servers"]
    assert [disk["state"] for disk in server["disks"]] == ["ok"]
    console.check_manners()


async def test_a_part_that_could_not_be_loaded_is_said_and_can_be_asked_for_again(
    browser: Chromium, cloud: Cloud
) -> None:
    console = await Console.open(browser, cloud.url)
    await console.page.call("Network.setBlockedURLs", urls=["*/plot-*"])
    await console.login("admin", PASSWORD)
    await console.go("#/cluster")
    await console.sees("A part of the page could not be loaded.")
    await console.misses("No measurement yet.")
    await console.page.call("Network.setBlockedURLs", urls=[])
    await console.press("Try again")
    await console.misses("A part of the page could not be loaded.")
    await console.until("document.querySelectorAll('.plots canvas').length === 4")
    console.page.complaints.clear()  # the browser's own of what was blocked


async def test_the_first_load_is_small_and_soon_there(browser: Chromium, cloud: Cloud) -> None:
    """Under 200 KiB, compressed; what is rarely needed is loaded when it is."""
    console = await Console.open(browser, cloud.url)
    sizes = await console.evaluate(
        "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
        ".map((each) => [each.name, each.transferSize])"
    )
    assert sum(size for _, size in sizes) < 200 * 1024, sizes
    assert not [name for name, _ in sizes if "terminal" in name or "plot" in name]
    # The page names each of them: none is known only when another has been read.
    named = "[...document.querySelectorAll('script, [rel=modulepreload]')]"
    named = await console.evaluate(f"{named}.map((each) => each.src ?? each.href)")
    assert sorted(named) == sorted(name for name, _ in sizes if name.endswith(".js"))


async def test_all_of_it_works_with_the_keyboard_alone(console: Console) -> None:
    async def tab_to(name: str) -> None:
        """To what has this name; and the focus is to be seen."""
        for _ in range(40):
            await console.key("Tab")
            now = await console.evaluate(
                "[document.activeElement.getAttribute('aria-label') ??"
                " document.activeElement.innerText.trim(),"
                " getComputedStyle(document.activeElement).outlineStyle]"
            )
            assert now[1] == "solid" or now[0] is None or "\n" in now[0], now
            if now[0] == name:
                return
        raise AssertionError(f"no way to {name!r}")

    await tab_to("Skip to the content")
    await tab_to("New storage namespace")
    await console.key("Enter")
    await console.until("document.activeElement.name === 'name'")
    await console.page.type("by-keyboard")
    await console.key("Enter")
    await console.sees("by-keyboard")
    await console.until("!document.querySelector('dialog')")
    # The focus is where it was; the menu opens, moves and closes.
    assert await console.evaluate("document.activeElement.innerText.trim()") == (
        "New storage namespace"
    )
    await tab_to("Actions: by-keyboard")
    await console.key("Enter")
    await console.until("document.activeElement.innerText === 'Visibility…'")
    await console.key("ArrowDown")
    await console.until("document.activeElement.innerText === 'Delete…'")
    await console.key("Escape")
    await console.until("!document.querySelector('[role=menu]')")
    focus = "document.activeElement.getAttribute('aria-label')"
    assert await console.evaluate(focus) == "Actions: by-keyboard"


async def test_one_leaves_and_is_told_so_while_the_server_hangs(
    console: Console, cloud: Cloud
) -> None:
    session = "JSON.parse(sessionStorage['gfs-session'])"
    token = await console.evaluate(f"{session}.token")
    name = await console.evaluate(f"{session}.username")
    await console.evaluate(
        "((timeout) => { AbortSignal.timeout = (ms) =>"
        " timeout.call(AbortSignal, ms === 15000 ? 500 : ms);"
        " window.usual = () => { AbortSignal.timeout = timeout; }; })(AbortSignal.timeout)"
    )
    pid = cloud.cluster.pid("control")
    send(pid, signal.SIGSTOP)
    try:
        await console.press("Log out")
        await console.until("document.querySelector('.login')")
        await console.sees("The server did not say that your session has ended.")
        await console.fill("Username", name)
        await console.fill("Password", PASSWORD)
        await console.press("Log in")
        await console.sees("The server does not answer. Try again in a moment.")
    finally:
        send(pid, signal.SIGCONT)
    await console.evaluate("window.usual()")
    await console.login(name, PASSWORD)
    await console.sees("default")
    assert await console.evaluate(f"{session}.token") != token
    console.page.complaints.clear()  # the browser's own of what was not answered


async def test_a_server_that_does_not_answer_is_said_and_waited_for(
    console: Console, cloud: Cloud
) -> None:
    options = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}

    async def set_offline(offline: bool) -> None:
        await console.page.call("Network.emulateNetworkConditions", offline=offline, **options)

    await set_offline(True)
    await console.go("#/account")
    await console.sees("The server does not answer")
    await console.picture("away")
    await set_offline(False)
    await console.misses("The server does not answer")
    await console.sees("0 B of 100 GiB")

    # What looks goes on by itself; what changes does not.
    await console.go("#/files")
    await console.press("New storage namespace")
    await console.fill("Name", "made-later", "dialog")
    await set_offline(True)
    await console.press("Create", "dialog")
    problem = "document.querySelector('dialog .problem').innerText"
    await console.until("document.querySelector('dialog .problem')")
    assert "Perhaps nothing was changed" in await console.evaluate(problem)
    await set_offline(False)
    await console.press("Create", "dialog")
    await console.sees("made-later")
    await console.press("Log out")
    await console.until("document.querySelector('.login')")
    await set_offline(True)
    await console.fill("Username", "admin")
    await console.fill("Password", PASSWORD)
    await console.press("Log in")
    await console.sees("The server does not answer. Try again in a moment.")
    console.page.complaints.clear()  # the browser's own of what could not be sent
