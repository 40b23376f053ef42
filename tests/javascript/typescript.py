"""The types of hubbub.js: `hubbub/web/client/frames.d.ts`, written from the types of the gateway's frames.

`make types` prints them into that file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import msgspec

from hubbub.events import LogEvent
from hubbub.web.commands import COMMANDS, Command
from hubbub.web.documents import FROM_SERVER, REFERENCE, asyncapi, result_of


def typescript(commands: Mapping[str, Command]) -> str:
    """The frames, values and results as TypeScript types."""
    document = asyncapi(commands)
    from_client = {"Hello", "Positions", *(command.frame.__name__ for command in commands.values())}
    parts = ["/** The types of docs/protocol.md. Generated from those of the server by `make types`. */"]
    for name, schema in document["components"]["schemas"].items():
        comment = _comment(schema.get("description", "").replace("None", "null"))
        if "properties" not in schema:
            parts.append(f"{comment}export type {_identifier(name)} = {_type(schema)};")
            continue
        # The server writes all fields, also those with a default.
        optional = schema["properties"].keys() - schema["required"] if name in from_client else ()
        fields = [
            f"  readonly {field}{'?' if field in optional else ''}: {_type(kind)};"
            for field, kind in schema["properties"].items()
        ]
        body = "\n".join(["{", *fields, "}"]) if fields else "{}"
        parts.append(f"{comment}export interface {_identifier(name)} {body}")
    entries = [kind.__name__ for kind in get_args(LogEvent)]
    parts.append(_union("Entry", entries, "An entry of the log of a room."))
    parts.append(_union("ServerFrame", [kind.__name__ for kind in FROM_SERVER], "A frame of the server."))
    lines = [
        f"  readonly {name}: {{ readonly frame: {one.frame.__name__}; readonly result: {_result_of(one)} }};"
        for name, one in commands.items()
    ]
    commands_of = "\n".join(["export interface Commands {", *lines, "}"])
    parts.append("/** The commands by type: the frame without its `ref`, and the result. */\n" + commands_of)
    return "\n\n".join(parts) + "\n"


def _union(name: str, members: Iterable[str], comment: str) -> str:
    lines = "\n  | ".join(members)
    return f"/** {comment} Later releases may add others. */\nexport type {name} =\n  | {lines};"


def _comment(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) < 2:
        return f"/** {lines[0]} */\n" if lines else ""
    return "\n".join(["/**", *(f" * {line}".rstrip() for line in lines), " */", ""])


def _identifier(name: str) -> str:
    return name.strip("_").replace("_", "Of")


def _type(schema: Mapping[str, Any]) -> str:
    """The type of a schema."""
    match schema:
        case {"$ref": ref}:
            found = _identifier(ref.rpartition("/")[2])
        case {"anyOf": kinds}:
            found = " | ".join(sorted(dict.fromkeys(map(_type, kinds)), key=lambda kind: kind == "null"))
        case {"enum": values}:
            found = " | ".join(f'"{value}"' for value in values)
        case {"type": "object"}:
            values = schema.get("additionalProperties")
            found = f"Readonly<Record<string, {_type(values) if isinstance(values, dict) else 'unknown'}>>"
        case {"type": "array", "items": items}:
            found = f"readonly {_type(items)}[]"
        case _:
            found = {"integer": "number"}.get(schema.get("type", ""), schema.get("type", "unknown"))
    return found


def _result_of(command: Command) -> str:
    (schema,), _ = msgspec.json.schema_components([result_of(command)], ref_template=REFERENCE)
    return _type(schema)


if __name__ == "__main__":
    sys.stdout.write(typescript(COMMANDS))
