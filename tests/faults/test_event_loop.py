"""One process sends and follows as fast as it can. No turn of its event loop has a long delay."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import busy
from faults.chat import Chat
from faults.figures import SCALE, Figures, in_time
from faults.history import Stalled, read
from faults.worker import Worker


@pytest.mark.guarantee("G9", "50 senders and 50 followers in one process")
async def test_no_turn_of_the_event_loop_is_delayed(chat: Chat, tmp_path: Path, figures: Figures) -> None:
    """Time in which the process waited for a processor is not counted: the machine may be busy."""
    plan = busy.Plan(
        tmp_path / "busy", chat.user_ids, chat.room_ids, senders=50, followers=50, seconds=4 * SCALE.fault_seconds
    )
    worker = await Worker.start("faults.busy", plan, plan.history, chat.settings)
    try:
        await worker.succeeds()
    finally:
        await worker.kill()
    turns = [record for record in read(plan.history) if isinstance(record, Stalled)]
    own = sorted(turn.late_seconds - turn.waited_for_processor_seconds for turn in turns)
    wall = max(turn.late_seconds for turn in turns)
    p99 = own[len(own) * 99 // 100]
    figures.found(
        f"longest of {len(turns):,} turns {own[-1] * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms "
        f"({wall * 1000:.0f} ms on the wall clock)"
    )
    assert in_time(own[-1], 0.05)
