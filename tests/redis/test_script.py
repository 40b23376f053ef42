from __future__ import annotations

import asyncio

import pytest

from hubbub.redis import Connection, ReplyError, Script
from hubbub.redis.replies import as_bytes_list, as_int

ADD = Script(
    keys=("sum",),
    args=("number",),
    source="return redis.call('INCRBY', sum, number)",
    reply=as_int,
)

UNION = Script(
    keys=("target",),
    args=("first", "*others"),
    source="""
        redis.call('SADD', target, first)
        for position = 2, #ARGV do
            redis.call('SADD', target, ARGV[position])
        end
        return redis.call('SORT', target, 'ALPHA')
    """,
    reply=as_bytes_list,
)


async def test_script_uses_keys_and_args_by_name(connection: Connection) -> None:
    assert await ADD(connection, keys=["total"], args=[40]) == 40
    assert await ADD(connection, keys=["total"], args=[2]) == 42


async def test_last_name_with_an_asterisk_takes_any_number_of_values(connection: Connection) -> None:
    assert await UNION(connection, keys=["all"], args=["a"]) == [b"a"]
    assert await UNION(connection, keys=["all"], args=["b", "c", "d"]) == [b"a", b"b", b"c", b"d"]


async def test_script_is_sent_again_after_the_server_flushed_it(
    connection: Connection,
) -> None:
    for _ in range(2):
        await asyncio.gather(*(ADD(connection, keys=["total"], args=[1]) for _ in range(50)))
        await connection.execute("SCRIPT", "FLUSH")
    assert await connection.execute("GET", "total") == b"100"


async def test_script_that_is_sent_in_full_has_the_rest_of_the_deadline(
    monkeypatch: pytest.MonkeyPatch, connection: Connection
) -> None:
    await connection.execute("SCRIPT", "FLUSH")
    given: list[object] = []
    execute, clock = connection.execute, iter((100.0, 103.0))

    def noted(*parts: str, **options: object) -> object:
        given.append(options["deadline_seconds"])
        return execute(*parts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(connection, "execute", noted)
    monkeypatch.setattr("hubbub.redis.commands.monotonic", lambda: next(clock))
    assert await ADD(connection, keys=["total"], args=[1], deadline_seconds=60) == 1
    assert given == [60, 57]


async def test_script_with_a_wrong_number_of_values_is_not_sent(connection: Connection) -> None:
    with pytest.raises(TypeError, match="keys"):
        await ADD(connection, args=[1])
    with pytest.raises(TypeError, match="args"):
        await ADD(connection, keys=["total"], args=[1, 2])
    with pytest.raises(TypeError, match="args"):
        await UNION(connection, keys=["all"])
    assert await connection.execute("EXISTS", "total", "all") == 0


async def test_error_in_a_script_raises_reply_error(connection: Connection) -> None:
    broken: Script[int] = Script(source="return redis.call('INCR', 'key', 'too many')", reply=as_int)
    with pytest.raises(ReplyError):
        await broken(connection)


async def test_script_result_of_another_type_raises_type_error(connection: Connection) -> None:
    mistyped: Script[int] = Script(source="return 'not a number'", reply=as_int)
    with pytest.raises(TypeError, match="an integer"):
        await mistyped(connection)
