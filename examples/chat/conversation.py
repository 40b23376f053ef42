"""The messages in the chat of `make chat` from before its start."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Final

from hubbub import Hub

PEOPLE: Final = {
    "ada": "Ada Byron",
    "bob": "Bob Kahn",
    "grace": "Grace Murray",
    "linus": "Linus Berg",
    "noor": "نور الحسن",
    "zoë": "Zoë Lindqvist",
}
PASSWORD: Final = "correct horse"  # noqa: S105 - for the people of this page, on servers of a temporary folder

ROOMS: Final = {
    "general": "Everything that concerns all of us",
    "launch": "Getting 1.0 out of the door",
    "engine-room": "Databases, queues, and what they do at night",
    "kitchen": "Coffee, biscuits, lunch",
    "عربي": "غرفة باللغة العربية",
}

# Minutes ago, author, text. One line per message.
TALK: Final = {
    "general": """
3000 grace Welcome, everybody! This room is for all of us. Introduce yourselves.
2990 linus Linus. I keep the servers warm.
2985 zoë Zoë, design. I draw things and then ask you to move them by two pixels 🎨
2970 noor مرحبا! أنا نور، أعمل على الترجمة.
2969 noor (That says: hello, I am Noor, I do the translations.)
1500 ada The notes of yesterday's meeting are on the wiki. Corrections are welcome.
1492 bob Thanks! One question: who orders the projector for Thursday?
1490 grace I do. It comes on Wednesday.
""",
    "launch": """
1700 ada Good morning. Three things are open: the upgrade guide, the load test, and the screenshot.
1698 bob I take the load test.
1697 zoë The screenshot is mine. Dark or light?
1695 ada Both, if it is not too much work.
1690 zoë Deal.
290 bob Load test is done: 2,000 connections, nothing lost, nothing twice. I killed a server in the middle of it.
288 grace On purpose?
287 bob The second time, yes.
284 linus 😂
270 ada That is exactly what I wanted to read today. Could you put the figures into the guide?
268 bob Already there. Have a look at the section on reconnecting, I am not sure about the wording.
""",
    "engine-room": """
900 linus Vacuum finished on the big table. Bloat is down from 31 % to 4 %.
895 ada How long did it take?
894 linus Eleven minutes. Nobody noticed, which is the point.
40 bob p99 of sends is 4.1 ms since the new pool. It was 11.
38 linus Lovely.
""",
    "kitchen": """
200 zoë There is a new box of biscuits in the second drawer 🍪
199 linus Zoë, you are my hero.
""",
    "عربي": """
120 noor صباح الخير جميعا
118 grace صباح النور! كيف حالك؟
115 noor بخير، الحمد لله. سأرسل ترجمة الإصدار 1.0 اليوم.
""",
}


def lines(now: datetime) -> bytes:
    """The log as lines for `hubbub import`."""
    happened: list[dict[str, str]] = []
    for room, talk in TALK.items():
        entries = [line.split(" ", 2) for line in talk.strip().splitlines()]
        begin = now - timedelta(minutes=int(entries[0][0]) + 5)
        happened += [{"kind": "join", "room": room, "user": user, "at": begin.isoformat()} for user in PEOPLE]
        for minutes, user, content in entries:
            at = (now - timedelta(minutes=int(minutes))).isoformat()
            happened.append({"kind": "message", "room": room, "user": user, "at": at, "content": content})
    return b"".join(json.dumps(line).encode() + b"\n" for line in happened)


async def fill(hub: Hub) -> tuple[str, str]:
    """Create people and rooms. Returns the usernames of the users of the two windows."""
    people = []
    for number, (username, display_name) in enumerate(PEOPLE.items()):
        user = await hub.register(f"{number}@example.org", username, PASSWORD)
        people.append(await hub.users.update_profile(user.id, display_name=display_name))
    ada, bob, grace, linus, noor, zoe = people
    await hub.history.load(io.BytesIO(lines(datetime.now(UTC))))
    rooms = {}
    for name, description in ROOMS.items():
        rooms[name] = await hub.rooms.update(await hub.history.find(name), description=description, by=ada.id)
    for user in (ada, bob):  # they have read the earlier messages
        for room in rooms.values():
            await hub.receipts.mark_read(room.id, user.id, up_to=room.last_seq)
    for partner, words in ((grace, "Lunch at one?"), (bob, "Hi Ada! Do you see this in the other window?")):
        direct = await hub.rooms.direct(ada.id, partner.id)
        await hub.messages.send(direct.id, partner.id, words)
    await hub.messages.send(rooms["kitchen"].id, grace.id, "Who has taken the last biscuit?")
    await hub.messages.send(rooms["kitchen"].id, zoe.id, 'Define "last".')
    launch = rooms["launch"].id
    await hub.messages.send(launch, zoe.id, "First version of the screenshot: https://example.org/screens/chat-1")
    calm = await hub.messages.send(launch, grace.id, "I like it! The spacing is so much calmer now.")
    await hub.messages.send(launch, noor.id, "الشاشة جميلة جدا، والنص العربي يظهر بشكل صحيح")
    guide = await hub.messages.send(
        launch, ada.id, "The guide reads well. Two typos, which I have fixed.", reply_to=calm.id
    )
    await hub.messages.edit(guide.id, "The guide reads well, too. Two typos, which I have fixed.", by=ada.id)
    await hub.messages.send(
        launch, linus.id, "Release candidate is built and signed. It waits for a word from Ada."
    )
    return "ada", "bob"
