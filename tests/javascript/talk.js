/** A client in Node.js that sends to one room. At the end it prints as JSON the entries that it received and shows. */

import { Client } from "../../src/hubbub/web/client/hubbub.js";

const { url, token, roomId, name, number, total, streams } = JSON.parse(process.argv[2]);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

const client = new Client({ url, name, getToken: () => token, ...(streams ? { WebSocket: null } : {}) });
const entries = [];
const states = new Set();
client.on("entry", (entry) => entries.push(entry));
client.on("state", (state) => states.add(state));
client.start();
while (!client.room(roomId)?.role) await pause(5);
const room = client.room(roomId);
await room.load();
console.log("ready");

for (let at = 0; at < number; at++) {
  room.send(`${name} ${at}`);
  await pause(40 * Math.random());
}
// An acknowledgement may arrive before the event.
const hasAll = () => room.messages.filter((message) => message.status === "sent").length === total;
const isDone = () => client.state === "live" && hasAll() && entries.at(-1)?.seq === room.messages.at(-1).seq;
while (!isDone()) await pause(20);
client.stop();
const result = JSON.stringify({ entries, messages: room.messages, states: [...states] });
process.stdout.write(`${result}\n`, () => process.exit());
