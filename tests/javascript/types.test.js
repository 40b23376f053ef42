import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as hubbub from "../../src/hubbub/web/client/hubbub.js";

const types = readFileSync(new URL("../../src/hubbub/web/client/hubbub.d.ts", import.meta.url), "utf8");

/** The names that a class declares. */
function declared(name) {
  const [, body] = new RegExp(`^export class ${name} .*?\\{\\n(.*?)^\\}`, "ms").exec(types);
  return new Set([...body.matchAll(/^  (?:readonly )?(\w+)[<(:]/gm)].map(([, name]) => name));
}

/** The names that an instance has, without those for the module itself. */
function present(instance) {
  const names = new Set(Object.getOwnPropertyNames(instance));
  for (let kind = Object.getPrototypeOf(instance); kind !== Object.prototype; kind = Object.getPrototypeOf(kind)) {
    for (const name of Object.getOwnPropertyNames(kind)) names.add(name);
  }
  return new Set([...names].filter((name) => !name.startsWith("_") && name !== "emit"));
}

test("the types declare everything that exists", () => {
  const client = new hubbub.Client({ url: "http://127.0.0.1/chat" });
  assert.deepEqual([...declared("Client")].sort(), [...present(client)].sort());
  const room = new hubbub.Room(client, "id");
  assert.deepEqual([...declared("Room"), "constructor"].sort(), [...present(room)].sort());
  assert.deepEqual(Object.keys(hubbub).sort(), ["Client", "HubbubError", "Room", "newId"]);
});
