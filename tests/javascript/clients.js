/** Clients of a test, on the gateway of gateway.js. They are stopped at the end of the test. */

import { afterEach } from "node:test";

import { Client } from "../../src/hubbub/web/client/hubbub.js";
import { ROOM, until } from "./gateway.js";

const clients = [];

afterEach(() => {
  for (const client of clients.splice(0)) client.stop();
});

export function connect(gateway, options = {}) {
  const node = { WebSocket: gateway.WebSocket, fetch: null, locks: null, page: null, random: () => 0 };
  const client = new Client({ url: "http://127.0.0.1/chat", ...node, ...options });
  client.entries = [];
  client.on("entry", (entry) => client.entries.push(entry));
  clients.push(client);
  client.start();
  return client;
}

export async function live(gateway, options) {
  const client = connect(gateway, options);
  await until(() => client.state === "live" && client.rooms.length);
  return client;
}

export async function open(gateway, options) {
  const client = await live(gateway, options);
  const room = client.room(ROOM);
  await room.load();
  return { client, room };
}

export const contents = (room) => room.messages.map((message) => message.content);
