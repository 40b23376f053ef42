"""The chat in Chromium: two users, and failures of the network and of the server."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from browser.chat import EXAMPLE, Browsers, Server, errors_of, everything_sent
from browser.conftest import Login
from browser.network import Network
from hubbub import Hub, NewMessage, Room, Settings, User

IMAGE = Path(__file__).parents[2] / "docs" / "images" / "chat.png"


async def test_two_windows_talk(
    log_in: Login, hub: Hub, settings: Settings, ada: User, bob: User, shared_room: Room
) -> None:
    other = await hub.rooms.create("kitchen", created_by=ada.id)
    await hub.room_users.add(other.id, bob.id)
    hers, his = await log_in(ada), await log_in(bob)
    await hers.open("engine-room")
    await his.open("engine-room")
    await hers.field.press_sequentially("Hel")
    await his.page.locator(".typing.shown", has_text="ada is typing").wait_for()
    await hers.write("Hello, Bob")
    await his.sees("Hello, Bob")
    await his.page.locator(".typing.shown").wait_for(state="hidden")
    await his.write("Hello, Ada")
    await hers.sees("Hello, Ada")
    await hub.messages.send(other.id, bob.id, "Tea?")
    await hers.page.locator(".rooms .badge", has_text="1").wait_for()
    await hers.page.locator(".title", has_text="2 members, 2 online").wait_for()
    await everything_sent(settings, shared_room.id, [hers, his])
    assert await errors_of(settings, shared_room.id, [hers, his]) == []


async def test_message_is_answered_changed_and_deleted_by_keyboard(
    log_in: Login, settings: Settings, ada: User, bob: User, shared_room: Room
) -> None:
    hers, his = await log_in(ada), await log_in(bob)
    await hers.open("engine-room")
    await his.open("engine-room")
    await hers.write("Wich valve?")
    await hers.sees("Wich valve?")
    await hers.until("(id) => chat.room(id).messages.every((one) => one.status === 'sent')", str(shared_room.id))
    await hers.field.press("ArrowUp")
    await hers.write("Which valve?")
    message = await his.sees("Which valve?")
    await message.get_by_text("edited").wait_for()
    await message.focus()
    await his.page.keyboard.press("r")
    await his.write("The left one")
    answer = await hers.sees("The left one")
    await answer.locator(".quote", has_text="Which valve?").wait_for()
    await hers.field.press("Shift+Tab")
    await (await hers.sees("Which valve?")).focus()
    await hers.page.keyboard.press("Delete")
    await hers.page.get_by_role("button", name="Delete", exact=True).last.click()
    await his.sees("This message was deleted")
    await answer.locator(".quote", has_text="A deleted message").wait_for()
    await everything_sent(settings, shared_room.id, [hers, his])


async def test_text_typed_offline_is_sent_once_and_in_order(
    log_in: Login, hub: Hub, network: Network, settings: Settings, ada: User, bob: User, shared_room: Room
) -> None:
    hers = await log_in(ada)
    await hers.open("engine-room")
    await hers.write("before")
    await everything_sent(settings, shared_room.id, [hers])
    network.cut()
    await hers.page.locator(".status.shown", has_text="No connection").wait_for()
    for number in range(5):
        await hers.write(f"typed in the tunnel {number}")
    await hub.messages.send(shared_room.id, bob.id, "meanwhile")
    await hers.page.locator(".message.sending").nth(4).wait_for()
    await network.restore()
    await everything_sent(settings, shared_room.id, [hers])
    await hers.page.locator(".status.shown").wait_for(state="hidden")
    contents = [message["content"] for message in await hers.shown(shared_room.id)]
    assert contents == ["before", "meanwhile", *(f"typed in the tunnel {number}" for number in range(5))]
    assert await errors_of(settings, shared_room.id, [hers]) == []


async def test_text_typed_before_the_window_closed_is_sent_by_the_next_window(
    log_in: Login, browsers: Browsers, network: Network, settings: Settings, ada: User, shared_room: Room
) -> None:
    first = await log_in(ada)
    await first.open("engine-room")
    network.cut()
    await first.until("chat.state === 'waiting' || chat.state === 'connecting'")
    await first.write("still here")
    await first.until("(id) => chat.room(id).messages[0]?.isStored", str(shared_room.id))
    context = first.page.context
    await first.page.close()
    await network.restore()
    second = await browsers.window(context, first.address)
    await second.open("engine-room")
    await second.sees("still here")
    await everything_sent(settings, shared_room.id, [second])
    assert await errors_of(settings, shared_room.id, [second]) == []


async def test_two_windows_miss_nothing_when_the_server_is_killed(
    log_in: Login, server: Server, settings: Settings, ada: User, bob: User, shared_room: Room
) -> None:
    windows = [await log_in(ada), await log_in(bob)]
    for window in windows:
        await window.open("engine-room")
    send = "([room, words]) => { chat.room(room).send(words); }"

    async def talk(name: str, number: int) -> None:
        for at in range(number):
            await windows[name == "bob"].page.evaluate(send, [str(shared_room.id), f"{name} {at}"])
            await asyncio.sleep(0.01)

    for _ in range(3):
        talking = asyncio.gather(talk("ada", 20), talk("bob", 20))
        await asyncio.sleep(0.1)
        await server.end(signal.SIGKILL)
        await talking
        await server.start()
        for window in windows:
            await window.is_live()
    await everything_sent(settings, shared_room.id, windows)
    assert len(await windows[0].shown(shared_room.id)) == 120
    assert await errors_of(settings, shared_room.id, windows) == []


async def test_connections_that_are_cut_and_slow_lose_nothing(
    log_in: Login, hub: Hub, network: Network, settings: Settings, ada: User, bob: User, shared_room: Room
) -> None:
    window = await log_in(ada)
    await window.open("engine-room")
    network.delay_seconds = 0.02
    network.hang_up()
    for round_ in range(12):
        await window.page.evaluate(
            "([room, words]) => { chat.room(room).send(words); }", [str(shared_room.id), f"mine {round_}"]
        )
        await hub.messages.send(shared_room.id, bob.id, f"his {round_}")
        await asyncio.sleep(0.05)
        if round_ % 3 == 2:
            network.hang_up()
    await everything_sent(settings, shared_room.id, [window])
    assert len(await window.shown(shared_room.id)) == 24
    assert await errors_of(settings, shared_room.id, [window]) == []


async def test_tabs_of_one_browser_share_a_connection(
    log_in: Login, browsers: Browsers, settings: Settings, ada: User, shared_room: Room
) -> None:
    first = await log_in(ada)
    await first.open("engine-room")
    second = await browsers.window(first.page.context, first.address)
    await second.is_live()
    await second.open("engine-room")
    assert not await second.page.evaluate("chat.isLeader")
    await second.write("from the second")
    await first.sees("from the second")
    await first.page.close()
    await second.until("chat.isLeader && chat.state === 'live'")
    await second.write("alone")
    await everything_sent(settings, shared_room.id, [second])
    assert await errors_of(settings, shared_room.id, [second]) == []


async def test_session_that_is_ended_elsewhere_is_logged_out_at_once(
    log_in: Login, ada: User, shared_room: Room
) -> None:
    here, there = await log_in(ada), await log_in(ada)
    await there.open("engine-room")
    await here.page.get_by_role("button", name="Your sessions").click()
    await here.page.get_by_role("dialog").get_by_role("button", name="End", exact=True).click()
    await there.page.get_by_text("Your session has ended").wait_for()
    assert await there.page.evaluate("chat.state") == "stopped"
    await here.page.get_by_role("dialog").get_by_text("this one").wait_for()
    assert await here.page.evaluate("chat.state") == "live"
    await there.page.reload()
    await there.page.get_by_role("button", name="Log in").first.wait_for()


async def test_logout_without_a_network_warns_that_the_session_continues(
    log_in: Login, hub: Hub, network: Network, ada: User, shared_room: Room
) -> None:
    hers = await log_in(ada)
    network.cut()
    await hers.page.get_by_role("button", name="Log out").click()
    dialog = hers.page.get_by_role("dialog", name="You are still logged in")
    await dialog.wait_for()
    assert await hub.sessions.list(ada.id)
    await network.restore()
    await dialog.get_by_role("button", name="Try again").click()
    await hers.page.get_by_role("button", name="Log in").first.wait_for()
    assert await hub.sessions.list(ada.id) == []
    assert await hers.page.get_by_role("alert").filter(has_text="ended").count() == 0


async def test_refused_change_is_reported_to_the_user(
    log_in: Login, hub: Hub, settings: Settings, ada: User, shared_room: Room
) -> None:
    hers = await log_in(ada)
    await hers.open("engine-room")
    await hers.write("about to go")
    await everything_sent(settings, shared_room.id, [hers])
    await hers.field.press("ArrowUp")
    newest = (await hub.messages.page(shared_room.id)).items[-1]
    await hub.messages.delete(newest.id, by=ada.id)
    await hers.sees("This message was deleted")
    await hers.write("too late")
    await hers.fails("was not changed")


async def test_edit_that_is_too_large_is_refused_and_its_text_is_kept(
    log_in: Login, settings: Settings, ada: User, shared_room: Room
) -> None:
    hers = await log_in(ada)
    await hers.open("engine-room")
    await hers.write("short")
    await everything_sent(settings, shared_room.id, [hers])
    await hers.field.press("ArrowUp")
    long = "\N{GRINNING FACE}" * 17_000  # fewer characters than a message may have, and more bytes than a frame
    await hers.write(long)
    await hers.fails("it is too long")
    assert await hers.field.input_value() == long
    await hers.page.keyboard.press("Escape")
    await hers.write("still here")
    await everything_sent(settings, shared_room.id, [hers])
    assert await errors_of(settings, shared_room.id, [hers]) == []


async def test_body_of_a_login_is_bounded(server: Server) -> None:
    async with httpx.AsyncClient() as http:
        login = {"login": "ada", "password": "x" * 20_000}
        answer = await http.post(f"http://127.0.0.1:{server.port}/api/login", json=login)
    assert answer.status_code == 422, answer.text
    assert "16384" in answer.json()["detail"]


HOSTILE = {
    "script": "<script>window.harmed = true</script><img src=x onerror='window.harmed = true'>",
    "link": "javascript:window.harmed=true http://127.0.0.1/'onmouseover='window.harmed=true",
    "override": "\u202egnp.exe\u202d \u2066 the name of a file \u202e",
    "long": "w" * 20_000,
    "letters that are bytes": "\u05d0" * 20_000,
    "combining": "Z" + "\u0351" * 500,
    "lines": "\n" * 19_000 + "end",
}


async def test_hostile_message_does_no_harm(
    log_in: Login, hub: Hub, settings: Settings, ada: User, bob: User, shared_room: Room
) -> None:
    hers = await log_in(ada)
    await hers.open("engine-room")
    await hub.users.update_profile(bob.id, display_name="<b>bob</b>")
    for content in HOSTILE.values():
        await hub.messages.send(shared_room.id, bob.id, content)
    await hers.write("Is everything in order?")
    await hers.sees("Is everything in order?")
    await everything_sent(settings, shared_room.id, [hers])
    assert await errors_of(settings, shared_room.id, [hers]) == []
    page = hers.page
    assert not await page.evaluate("window.harmed")
    assert await page.locator(".message script, .message img, .message b, .sidebar b").count() == 0
    assert await page.locator('a[href^="javascript"]').count() == 0
    assert await page.locator(".message p").count() < 1_000
    # No message is wider than its column or widens the page. Text after a message keeps its own direction.
    scroller = page.locator(".scroller")
    assert await scroller.evaluate("(node) => node.scrollWidth <= node.clientWidth")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await page.locator(".title h1").wait_for()
    assert await hers.field.is_visible()


async def test_ten_thousand_messages_scroll_with_few_elements(
    log_in: Login, hub: Hub, ada: User, bob: User, shared_room: Room
) -> None:
    words = [NewMessage(f"message {number} " + "and more " * (number % 17)) for number in range(10_000)]
    for begin in range(0, 10_000, 1_000):
        author = (ada, bob)[begin // 1_000 % 2]
        await hub.messages.send_many(shared_room.id, author.id, words[begin : begin + 1_000])
    window = await log_in(ada)
    await window.open("engine-room")
    await window.sees("message 9999")
    scroller, most = window.page.locator(".scroller"), 0
    loaded = 0
    while True:
        # The message at the upper edge stays in place while earlier messages are loaded.
        state: dict[str, Any] = await scroller.evaluate(WHEEL_UP)
        most = max(most, state["elements"])
        assert abs(state["moved"]) < 2, state
        if not state["hasOlder"] and state["top"] == 0:
            break
        loaded = state["loaded"]
    assert loaded == 10_000
    assert most < 150
    shown = await window.shown(shared_room.id)
    assert [message["content"] for message in shown] == [message.content for message in words]
    await window.page.get_by_role("button", name="Go to the newest message").click()
    await window.sees("message 9999")
    assert len(await window.on_screen()) < 150


WHEEL_UP = """
    async (scroller) => {
        const room = chat.rooms[0];
        const frame = () => new Promise(requestAnimationFrame);
        scroller.scrollTop = Math.max(0, scroller.scrollTop - 3000);
        await frame();
        await frame();
        const edge = () => {
            const upper = scroller.getBoundingClientRect().top;
            for (const node of scroller.querySelectorAll(".message")) {
                const { top, bottom } = node.getBoundingClientRect();
                if (bottom > upper) return { id: node.dataset.id, top };
            }
        };
        const before = edge();
        // The next page makes room above.
        while (room.hasOlder && scroller.scrollTop < 1200) await frame();
        await frame();
        const after = scroller.querySelector(`[data-id="${before.id}"]`)?.getBoundingClientRect().top ?? Infinity;
        return {
            moved: after - before.top,
            top: scroller.scrollTop,
            hasOlder: room.hasOlder,
            loaded: room.messages.length,
            elements: scroller.querySelectorAll("li").length,
        };
    }
"""


async def test_newcomer_signs_up_makes_a_room_and_invites(
    browsers: Browsers, network: Network, hub: Hub, bob: User, log_in: Login
) -> None:
    his = await log_in(bob)
    address = f"http://127.0.0.1:{network.port}/"
    hers = await browsers.window(await browsers.context(address), address)
    page = hers.page
    await page.get_by_role("button", name="Sign up").click()
    await page.get_by_label("Username").fill("carol")
    await page.get_by_label("Email").fill("carol@example.org")
    await page.get_by_label("Password").fill("a phrase for the browser")
    await page.get_by_role("button", name="Sign up").click()
    await hers.is_live()
    await page.get_by_role("button", name="New room").click()
    await page.get_by_label("Name").fill("greenhouse")
    await page.get_by_role("button", name="Make the room").click()
    await page.locator(".title h1", has_text="greenhouse").wait_for()
    await page.get_by_role("button", name="Members and invitations").click()
    await page.get_by_placeholder("Find people to invite").fill("bo")
    await page.get_by_role("button", name="Invite").click()
    await his.page.locator(".sidebar .rooms", has_text="greenhouse").wait_for()
    await page.get_by_role("dialog").get_by_role("button", name="Close").click()
    await hers.write("Come in")
    await his.open("greenhouse")
    await his.sees("Come in")
    await page.get_by_role("button", name="Log out").click()
    await page.get_by_label("Username or email").fill("carol")
    await page.get_by_label("Password").fill("wrong")
    await page.get_by_role("button", name="Log in").click()
    await page.get_by_role("alert").filter(has_text="wrong").wait_for()
    await page.get_by_label("Password").fill("a phrase for the browser")
    await page.get_by_role("button", name="Log in").click()
    await hers.is_live()
    await page.get_by_label("Search rooms and people").fill("bob")
    await page.locator(".found button", has_text="bob").click()
    await page.locator(".title h1", has_text="bob").wait_for()
    await hers.write("Only for you")
    await his.open("carol")
    await his.sees("Only for you")
    found = await hub.users.find_by_username("carol")
    assert found is not None


async def test_own_profile_is_changed_and_seen_by_others_at_once(
    log_in: Login, hub: Hub, ada: User, bob: User, shared_room: Room
) -> None:
    await hub.messages.send(shared_room.id, ada.id, "Good morning")
    hers, his = await log_in(ada), await log_in(bob)
    await his.open("engine-room")
    page = hers.page
    await page.get_by_role("button", name="Your profile").click()
    await page.get_by_label("Display name").fill("Ada Lovelace")
    await page.get_by_label("Address of your picture").fill("javascript:alert(1)")
    await page.get_by_label("Display name").press("Enter")
    await hers.fails("Your profile was not changed")
    await page.get_by_label("Address of your picture").fill("/icon.svg")
    await page.get_by_role("button", name="Save").click()
    await page.get_by_role("dialog").wait_for(state="detached")
    await page.locator(".me", has_text="Ada Lovelace").wait_for()
    message = await his.sees("Good morning")
    await message.locator(".author", has_text="Ada Lovelace").wait_for()
    await message.locator(".avatar img").wait_for()
    profile = await hub.users.get(ada.id)
    assert (profile.display_name, profile.avatar_url) == ("Ada Lovelace", "/icon.svg")


async def test_admin_changes_and_deletes_a_room(
    log_in: Login, hub: Hub, ada: User, bob: User, shared_room: Room
) -> None:
    hers, his = await log_in(ada), await log_in(bob)
    await hers.open("engine-room")
    await his.open("engine-room")
    assert await his.page.get_by_role("button", name="Edit the room").count() == 0
    page = hers.page
    await page.get_by_role("button", name="Edit the room").click()
    await page.get_by_label("Name").fill("boiler-room")
    await page.get_by_label("What is it about?").fill("Steam, <b>hot</b>")
    await page.get_by_label("find it and join").check()
    await page.get_by_role("button", name="Save").click()
    await his.page.locator(".title h1", has_text="boiler-room").wait_for()
    await his.page.locator(".beginning", has_text="Steam, <b>hot</b>").wait_for()
    assert not (await hub.rooms.get(shared_room.id)).is_private
    await page.get_by_role("button", name="Edit the room").click()
    await hub.room_users.set_role(shared_room.id, bob.id, "admin")
    await hub.room_users.set_role(shared_room.id, ada.id, "member")
    await page.get_by_label("Name").fill("mine")
    await page.get_by_label("Name").press("Enter")
    await hers.fails("The room was not changed")
    await page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    await his.page.get_by_role("button", name="Edit the room").click()
    await his.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    await his.page.get_by_role("button", name="Delete the room").click()
    for window in (hers, his):
        await window.until("chat.rooms.length === 0")
        await window.page.locator(".nothing").wait_for()
    await his.page.get_by_role("dialog").wait_for(state="detached")


async def test_only_permitted_users_change_roles_and_remove_members(
    log_in: Login, hub: Hub, ada: User, bob: User, shared_room: Room
) -> None:
    await hub.room_users.update(shared_room.id, bob.id, metadata={"nickname": "bobby"})
    hers, his = await log_in(ada), await log_in(bob)
    for window in (hers, his):
        await window.open("engine-room")
        await window.page.get_by_role("button", name="Members and invitations").click()
    people = hers.page.locator(".members li")
    await people.filter(has_text="bobby").wait_for()
    await hub.room_users.update(shared_room.id, bob.id, metadata={"nickname": "Robert"})
    await people.filter(has_text="Robert").wait_for()
    assert await his.page.locator(".members select, .members button").count() == 0
    role = hers.page.get_by_label("Role of bob")
    await role.focus()
    await role.select_option("moderator")
    await his.page.locator(".members li", has_text="bob").locator(".role", has_text="moderator").wait_for()
    assert await hers.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Role of bob"
    await hers.page.get_by_label("Role of ada").select_option("member")
    await hers.fails("The role of ada was not changed")
    assert await hers.page.get_by_label("Role of ada").input_value() == "admin"
    await hers.page.get_by_role("button", name="Remove bob").click()
    await hers.page.get_by_role("button", name="Remove", exact=True).click()
    await his.page.locator(".nothing").wait_for()
    await his.page.get_by_role("dialog").wait_for(state="detached")
    await people.filter(has_text="bob").wait_for(state="detached")


async def test_author_sees_who_has_read_a_message(
    log_in: Login, hub: Hub, ada: User, bob: User, shared_room: Room
) -> None:
    message = await hub.messages.send(shared_room.id, ada.id, "Have you seen this?")
    hers = await log_in(ada)
    await hers.open("engine-room")
    await (await hers.sees("Have you seen this?")).focus()
    await hers.page.keyboard.press("w")
    dialog = hers.page.get_by_role("dialog", name="Read by")
    await dialog.get_by_text("Not read yet").wait_for()
    await hub.receipts.mark_read(shared_room.id, bob.id, up_to=message.seq)
    await dialog.locator("li", has_text="bob").wait_for()
    await hers.page.keyboard.press("Escape")
    await dialog.wait_for(state="detached")


async def test_message_that_is_marked_as_unread_stays_so_until_the_room_is_opened_again(
    log_in: Login, hub: Hub, ada: User, bob: User, shared_room: Room
) -> None:
    other = await hub.rooms.create("kitchen", created_by=ada.id)
    for words in ("one", "two", "three"):
        await hub.messages.send(shared_room.id, bob.id, words)
    hers = await log_in(ada)
    await hers.open("engine-room")
    await hers.until("(id) => chat.room(id).unread === 0", str(shared_room.id))
    await (await hers.sees("two")).focus()
    await hers.page.keyboard.press("u")
    await hers.page.locator(".rooms .badge", has_text="2").wait_for()
    await hers.page.locator(".unread-line").wait_for()
    await hub.messages.send(shared_room.id, bob.id, "four")
    await hers.page.locator(".rooms .badge", has_text="3").wait_for()
    assert await hub.receipts.unread_count(shared_room.id, ada.id) == 3
    await hers.open("kitchen")
    await hers.open("engine-room")
    await hers.until("(id) => chat.room(id).unread === 0", str(shared_room.id))
    assert other.name == "kitchen"


async def test_phone_shows_the_rooms_or_one_room(
    log_in: Login, hub: Hub, ada: User, bob: User, shared_room: Room
) -> None:
    phone = await log_in(ada, viewport={"width": 360, "height": 640}, is_mobile=True, has_touch=True)
    rooms, conversation = phone.page.locator(".sidebar"), phone.page.locator(".conversation")
    assert await rooms.is_visible()
    await phone.open("engine-room")
    await rooms.wait_for(state="hidden")
    await phone.write("from the bus " + "w" * 300)
    await phone.sees("from the bus")
    assert await phone.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    await phone.page.get_by_role("button", name="Back to the rooms").click()
    await conversation.wait_for(state="hidden")
    assert await rooms.is_visible()
    # The list shows the presence of the partners of direct rooms, whichever room is open.
    await hub.rooms.direct(ada.id, bob.id)
    async with hub.presence.online(bob.id):
        await rooms.locator("button", has_text="bob").locator(".dot.online").wait_for()


async def test_screenshot_of_the_chat_with_two_people_in_it(
    log_in: Login, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture of the README. `SCREENSHOTS=1 make test ARGS="tests/browser -k screenshot"` makes a new one."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    conversation = importlib.import_module("conversation")
    ada, bob = [await hub.users.find_by_username(name) for name in await conversation.fill(hub)]
    assert ada is not None
    assert bob is not None
    hers, his = await log_in(ada), await log_in(bob, color_scheme="dark")
    await hers.open("launch")
    await his.open("launch")
    await his.write("Then let us not keep Linus waiting any longer.")
    await hers.sees("Then let us not keep")
    await hers.write("Ship it!")
    await hers.write("🎉")
    await his.sees("Ship it!")
    await his.field.press_sequentially("So wh")
    await hers.page.locator(".typing.shown").wait_for()
    await hers.page.get_by_role("img", name="Read by Bob Kahn").wait_for()
    await hers.until("chat.rooms.every((room) => room.messages.every((one) => one.status === 'sent'))")
    path = IMAGE if "SCREENSHOTS" in os.environ else tmp_path / "chat.png"
    path.parent.mkdir(exist_ok=True)
    await hers.page.screenshot(path=path)
    assert path.stat().st_size < 150_000
