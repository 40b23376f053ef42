"""A handful of people who make accounts with passwords, and log in."""

from __future__ import annotations

from typing import Final
from uuid import uuid4

from hubbub.cli._demo.figures import Claim, Scene, Stopwatch
from hubbub.cli._demo.stage import Stage

PEOPLE: Final = 5


async def log_in(stage: Stage, watch: Stopwatch) -> Scene:
    """One after the other, so that the time is that of a login and not of a queue."""
    claim = Claim("the right password lets in, no other")
    for number in range(1, PEOPLE + 1):
        await _join(stage, watch, claim, number)
    nobody = await stage.hub.authenticate(f"nobody-{uuid4().hex}", "whatever it is")
    claim.holds(nobody is None, "somebody logged in who has no account")
    return Scene((claim.check(),))


async def _join(stage: Stage, watch: Stopwatch, claim: Claim, number: int) -> None:
    name, password = f"guest-{uuid4().hex}", f"the password of guest {number}"
    email = f"{name}@example.com"
    with watch.time("make an account with a password"):
        user = await stage.hub.register(email, name, password)
    stage.people.made_an_account(name, user.id)
    # By either name, in any case.
    login = email if number % 2 else name.upper()
    with watch.time("log in"):
        known = await stage.hub.authenticate(login, password)
    claim.holds(known == user, f"guest {number} was not let in")
    if number % 2:
        stranger = await stage.hub.authenticate(login, f"the password of guest {number + 1}")
        claim.holds(stranger is None, f"guest {number} was let in with a wrong password")
