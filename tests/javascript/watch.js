/** A client in Node.js that watches one room after the other, and prints whether a user is online. */

import { Client } from "../../src/hubbub/web/client/hubbub.js";

const { url, token, roomIds, userId, total, streams } = JSON.parse(process.argv[2]);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const client = new Client({ url, getToken: () => token, ...(streams ? { WebSocket: null } : {}) });
const entries = [];
const presence = [];
client.on("entry", (entry) => entry.room_id === roomIds.at(-1) && entries.push(entry));
client.start();
while (client.rooms.length < roomIds.length) await pause(5);
const room = client.room(roomIds.at(-1));
await room.load();
for (const one of client.rooms) await one.loadMembers();
console.log("ready");

// On a slow network most changes happen while the previous stream is still being opened.
for (let at = 0; at < 10; at++) {
  client.watch([roomIds[at % roomIds.length]]);
  await pause(60 * Math.random());
}
client.watch([room.id]);
while (entries.length < total || client.state !== "live") await pause(5);
for (const isOnline of [false, true, false]) {
  while (client.isOnline(userId) !== isOnline) await pause(5);
  presence.push(isOnline);
  if (presence.length < 3) console.log(isOnline ? "sees bob online" : "sees bob offline");
}
client.stop();
const result = JSON.stringify({ entries, messages: room.messages, presence });
process.stdout.write(`${result}\n`, () => process.exit());
