"""One process sends and follows as fast as it can. Its event loop is never held up for long."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults import busy
from faults.chat import Chat
from faults.figures import Figures
from faults.history import Stalled, read
from faults.scale import SCALE
from faults.worker import Worker


@pytest.mark.guarantee("G9", "50 senders and 50 followers in one process")
async def test_nothing_stalls_the_event_loop(chat: Chat, tmp_path: Path, figures: Figures) -> None:
    """The machine may be busy: what this process waited for a processor is not its own doing."""
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
    assert own[-1] < 0.05 * SCALE.patience
