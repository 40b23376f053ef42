/** Faults of networks, proxies, servers and disks that a client has to handle. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { connect, contents, live, open } from "./clients.js";
import { database } from "./disk.js";
import { ADA, BOB, Gateway, OTHER, ROOM, until } from "./gateway.js";

/** Run everything that is due. */
async function settle() {
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
}

const typesOf = (gateway) => gateway.commands.map((command) => command.type);

/** The events of a page to which the client listens. */
class Page extends EventTarget {
  document = Object.assign(new EventTarget(), { visibilityState: "visible" });
}

test("a hello that comes late, of a connection that the client gave up, does not stop it", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const late = [];
  const hello = gateway.hello.bind(gateway);
  const devices = new Map();
  gateway.hello = (socket, frame) => {
    if (late.length === 0) return late.push(() => gateway.hello(socket, frame));
    devices.get(frame.device)?.onclose?.({ code: 4409 });
    devices.set(frame.device, socket);
    return hello(socket, frame);
  };
  const client = connect(gateway);
  await until(() => late.length);
  context.mock.timers.tick(60_000); // Without a byte the connection is given up.
  context.mock.timers.tick(1);
  await until(() => client.state === "live");
  late[0]();
  assert.equal(client.state, "waiting");
  context.mock.timers.tick(1);
  await until(() => client.state === "live");
  client.stop();
});

test("a login that takes longer than a connection is waited for", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  gateway.isAnswering = false;
  let give;
  const client = connect(gateway, { getToken: () => new Promise((resolve) => (give = resolve)) });
  await until(() => give);
  context.mock.timers.tick(20_000);
  give("token");
  await until(() => gateway.hellos.length);
  context.mock.timers.tick(30_000);
  gateway.isAnswering = true;
  gateway.hello(gateway.sockets[0], gateway.hellos[0]);
  await until(() => client.state === "live");
  assert.equal(gateway.sockets.length, 1);
  client.stop();
});

test("a socket that does not open is given up after five seconds", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  gateway.accept = () => {};
  const client = connect(gateway, { random: () => 0.9 });
  await settle();
  context.mock.timers.tick(5_000);
  assert.equal(client.state, "waiting");
  client.stop();
});

test("clients of a server that ends without a bye reconnect within the spread of ready", async (context) => {
  for (const [code, seconds] of [[1012, 12], [1013, 12], [1006, 0.4]]) {
    context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
    const gateway = new Gateway(ROOM);
    gateway.spreadSeconds = 15;
    const client = await live(gateway, { random: () => 0.8 });
    gateway.cut(code);
    context.mock.timers.tick(seconds * 1000 - 1);
    assert.equal(client.state, "waiting", `${code}`);
    context.mock.timers.tick(1);
    assert.equal(client.state, "connecting", `${code}`);
    client.stop();
    context.mock.timers.reset();
  }
});

test("clients of a repeatedly overloaded server reconnect after growing waits", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const client = connect(gateway, { random: () => 0.999 });
  gateway.hello = (socket) => {
    socket.onmessage({ data: JSON.stringify({ type: "bye", code: 1013, reconnect: true, within_seconds: 2, reason: "" }) });
    gateway.cut(1013);
  };
  const waits = [];
  for (let attempt = 0; attempt < 7; attempt++) {
    await until(() => client.state === "waiting");
    let waited = 0;
    for (; client.state === "waiting"; waited++) context.mock.timers.tick(1_000);
    waits.push(waited);
  }
  assert.deepEqual(waits, [2, 2, 2, 4, 8, 16, 30]);
  client.stop();
});

test("a client over its rate waits as long as the server asks, even if the page becomes visible", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const page = new Page();
  const client = await live(gateway, { page, random: () => 0 });
  gateway.tell({ type: "bye", code: 4429, reconnect: true, within_seconds: 15, reason: "" });
  await settle();
  gateway.cut(4429);
  page.dispatchEvent(new Event("online"));
  assert.equal(client.state, "waiting");
  context.mock.timers.tick(15_000);
  await until(() => client.state === "live");
  gateway.cut(1006);
  page.dispatchEvent(new Event("online"));
  assert.equal(client.state, "connecting");
  client.stop();
});

test("a connection that died in sleep is found when the page wakes", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const page = new Page();
  const client = await live(gateway, { page });
  const wake = () => page.document.dispatchEvent(new Event("visibilitychange"));
  wake();
  await until(() => typesOf(gateway).includes("probe"));
  await settle();
  context.mock.timers.tick(20_000);
  assert.equal(client.state, "live"); // The answer has come.
  gateway.silent.add("probe");
  wake();
  context.mock.timers.tick(4_000);
  assert.equal(client.state, "live");
  context.mock.timers.tick(1_001);
  await until(() => gateway.hellos.length === 2 && client.state === "live");
  const { now } = Date;
  context.mock.method(Date, "now", () => now() + 36_000); // The timers did not run in the meantime.
  wake();
  context.mock.timers.tick(1);
  await until(() => gateway.hellos.length === 3);
  client.stop();
});

test("an attempt whose network is gone is given up five seconds after the page wakes", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  gateway.isAnswering = false;
  const page = new Page();
  const client = connect(gateway, { page, random: () => 0.9 });
  await until(() => gateway.hellos.length);
  page.dispatchEvent(new Event("online"));
  context.mock.timers.tick(4_999);
  assert.equal(client.state, "connecting");
  context.mock.timers.tick(1);
  assert.equal(client.state, "waiting");
  client.stop();
});

test("several missed notices lead to one reload", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  gateway.spreadSeconds = 10;
  gateway.answers.members = () => ({ items: [{ user_id: BOB, role: "member", last_read_seq: 0 }], next: null });
  const { client, room } = await open(gateway, { random: () => 0.5 });
  await room.loadMembers();
  for (let round = 0; round < 2; round++) {
    const { length } = gateway.commands;
    gateway.tell({ type: "missed" }, { type: "missed" }, { type: "missed" });
    await settle();
    context.mock.timers.tick(5_000);
    await settle();
    assert.deepEqual(typesOf(gateway).slice(length).sort(), ["members", "rooms", "users"]);
  }
  client.stop();
});

test("missed notices are followed by one list of rooms of all tabs, after a random time", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  gateway.spreadSeconds = 10;
  const client = await live(gateway, { random: () => 0.5 });
  const lists = () => typesOf(gateway).filter((type) => type === "rooms").length;
  const before = lists();
  gateway.rooms.get(ROOM).read = 1;
  gateway.tell({ type: "missed" });
  await settle();
  context.mock.timers.tick(4_900);
  await settle();
  assert.equal(lists(), before);
  context.mock.timers.tick(200);
  await until(() => lists() === before + 1);
  await until(() => client.room(ROOM).lastReadSeq === 1);
  client.stop();
});

test("a break during the first list of rooms leaves none out", async () => {
  const ids = Array.from({ length: 25 }, (_, n) => `01970000-0000-7000-8000-${n.toString(16).padStart(12, "0")}`);
  for (const interrupt of [(gateway) => gateway.cut(), (gateway) => gateway.tell({ type: "missed" })]) {
    const gateway = new Gateway(...ids);
    gateway.roomsPerPage = 10;
    gateway.answers.rooms = ({ after }) => {
      if (after !== "10") return null;
      gateway.answers = {};
      interrupt(gateway);
      return null;
    };
    const client = connect(gateway);
    await until(() => client.rooms.length === 25);
    client.stop();
  }
});

test("a room that is resynchronised while the client comes back does not keep it from being live", async () => {
  const gateway = new Gateway(ROOM);
  for (const word of ["one", "two", "three"]) gateway.write(ROOM, BOB, word);
  const { client, room } = await open(gateway);
  gateway.silent.add("rooms");
  gateway.cut();
  await until(() => gateway.hellos.length === 2 && client.state === "catching_up");
  gateway.rooms.get(ROOM).log.splice(2);
  gateway.tell({ type: "resync", room_id: ROOM, cursor: gateway.cursor(ROOM), reason: "rewound" });
  gateway.silent.add("room");
  await until(() => typesOf(gateway).includes("room"));
  gateway.silent.clear();
  const [socket] = gateway.sockets;
  const list = gateway.listRooms({});
  const refs = socket.refs.filter(({ type }) => type === "rooms");
  gateway.say(socket, { type: "ack", ref: refs.at(-1).ref, result: list });
  await until(() => client.state === "live");
  await until(() => contents(room).length === 2);
});

test("messages are sent where IndexedDB never answers, and kept once it does", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const disk = database();
  disk.isSilent = true;
  disk.rows.set("old", { id: "old", number: 7, room_id: ROOM, user_id: ADA, content: "of yesterday", status: "sending" });
  const { client, room } = await open(gateway, { indexedDB: disk });
  room.send("hi");
  await settle();
  assert.deepEqual(gateway.messages(ROOM), []);
  context.mock.timers.tick(3_000);
  await until(() => gateway.messages(ROOM).length === 1);
  assert.equal(client.isDurable, false);
  gateway.isUp = false;
  gateway.cut();
  room.send("in the tunnel");
  await settle();
  disk.answer();
  await until(() => client.isDurable && [...disk.rows.values()].some((row) => row.content === "in the tunnel"));
  gateway.isUp = true;
  context.mock.timers.tick(60_000);
  await until(() => gateway.messages(ROOM).length === 3);
  assert.deepEqual(gateway.messages(ROOM).map((message) => message.content), ["hi", "of yesterday", "in the tunnel"]);
  await until(() => !disk.rows.size);
  client.stop();
});

test("a disk that is slow to open is opened once, and keeps messages", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const disk = database();
  disk.isSilent = true;
  let opened = 0;
  const { open: openDisk } = disk;
  disk.open = () => {
    opened++;
    setTimeout(() => disk.waiting.shift().onsuccess(), 4_000);
    return openDisk();
  };
  const { client, room } = await open(gateway, { indexedDB: disk });
  context.mock.timers.tick(3_000);
  await settle();
  assert.equal(client.isDurable, false);
  context.mock.timers.tick(1_000);
  await settle();
  assert.equal(client.isDurable, true);
  room.send("hi");
  await until(() => gateway.messages(ROOM).length === 1 && !disk.rows.size);
  assert.equal(opened, 1);
  client.stop();
});

test("a message discarded while the disk writes an earlier one is not sent", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const disk = database();
  disk.isSilent = true;
  const { client, room } = await open(gateway, { indexedDB: disk });
  context.mock.timers.tick(3_000);
  gateway.isUp = false;
  gateway.cut();
  room.send("this one");
  const { id } = room.send("better not");
  await settle();
  const { set } = disk.rows;
  disk.rows.set = (...row) => {
    disk.rows.set = set;
    room.discard(id);
    return disk.rows.set(...row);
  };
  disk.answer();
  await until(() => client.isDurable && disk.rows.size);
  gateway.isUp = true;
  context.mock.timers.tick(60_000);
  await until(() => client.state === "live" && !disk.rows.size);
  assert.deepEqual(gateway.messages(ROOM).map((message) => message.content), ["this one"]);
  assert.deepEqual(contents(room), ["this one"]);
  client.stop();
});

test("a message discarded or cleared after the disk failed is not sent by the next page", async () => {
  const gateway = new Gateway(ROOM);
  const disk = database();
  const { client, room } = await open(gateway, { indexedDB: disk });
  gateway.isUp = false;
  gateway.cut();
  const kept = room.send("better not");
  await until(() => room.message(kept.id).isStored);
  room.send("nor this");
  await until(() => disk.rows.size === 2);
  disk.failing = 2;
  room.send("the disk is full");
  await until(() => !client.isDurable);
  room.discard(kept.id);
  await until(() => disk.rows.size === 1);
  await client.clear();
  assert.equal(disk.rows.size, 0);
});

test("a message discarded before the disk has answered is not sent", async () => {
  const gateway = new Gateway(ROOM);
  const disk = database();
  disk.isSilent = true;
  const client = connect(gateway, { indexedDB: disk, userId: ADA });
  await until(() => client.rooms.length);
  const room = client.room(ROOM);
  const { id } = room.send("better not");
  room.discard(id);
  room.send("this one");
  disk.answer();
  await until(() => gateway.messages(ROOM).length);
  assert.deepEqual(gateway.messages(ROOM).map((message) => message.content), ["this one"]);
  assert.equal(room.message(id), undefined);
});

test("messages on the disk are gone when the client is cleared at once", async () => {
  const disk = database();
  disk.rows.set("old", { id: "old", number: 1, room_id: ROOM, user_id: ADA, content: "of yesterday", status: "sending" });
  const gateway = new Gateway(ROOM);
  gateway.hello = () => gateway.cut(4410);
  const client = connect(gateway, { indexedDB: disk });
  await until(() => client.state === "stopped");
  await until(() => !disk.rows.size);
});

test("a command that is too large is refused before it would end the connection", async () => {
  const gateway = new Gateway(ROOM);
  const mine = gateway.write(ROOM, ADA, "short");
  const { client, room } = await open(gateway);
  await assert.rejects(room.edit(mine.id, "😀".repeat(17_000)), { error: "too-large", retry: false });
  await assert.rejects(client.request({ type: "vote", text: "x".repeat(70_000) }), { error: "too-large" });
  assert.ok(!typesOf(gateway).includes("edit"));
  assert.deepEqual(await client.request({ type: "typing" }), null);
  assert.equal(client.state, "live");
});

test("a token of sixty days is not renewed without a pause", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  gateway.expiresInSeconds = 60 * 24 * 3600;
  const delays = [];
  const { setTimeout } = globalThis;
  globalThis.setTimeout = (call, delay, ...rest) => setTimeout(call, delays.push(delay) && delay, ...rest);
  let asked = 0;
  const client = await live(gateway, { getToken: () => `token ${++asked}` });
  globalThis.setTimeout = setTimeout;
  assert.ok(Math.max(...delays.filter(Number.isFinite)) < 2 ** 31);
  assert.equal(asked, 1);
  client.stop();
});

test("profiles requested while others are in flight are loaded as well", async () => {
  const gateway = new Gateway(ROOM);
  const strangers = ["01970000-0000-7000-8000-0000000000c1", "01970000-0000-7000-8000-0000000000c2"];
  gateway.answers.users = ({ user_ids }) => ({ items: user_ids.map((id) => ({ id, username: id, avatar_url: null })) });
  const client = await live(gateway);
  client.user(strangers[0]);
  await until(() => typesOf(gateway).includes("users"));
  client.user(strangers[1]);
  await until(() => client.users.has(strangers[0]) && client.users.has(strangers[1]));
});

test("a room that was left does not return with an answer in flight", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  const { client, room } = await open(gateway);
  const gone = [];
  const messages = [];
  client.on("gone", (one) => gone.push(one.id));
  client.on("message", (one, message) => messages.push(message.content));
  gateway.isEchoing = false;
  const entries = [];
  gateway.answers.leave = () => {
    gateway.write(ROOM, BOB, "too late");
    gateway.append(ROOM, { type: "member_left", user_id: ADA });
    entries.push(...gateway.rooms.get(ROOM).log);
    return null;
  };
  await room.leave();
  assert.deepEqual(gone, [ROOM]);
  gateway.tell(...entries);
  gateway.isEchoing = true;
  gateway.write(OTHER, BOB, "elsewhere");
  await until(() => messages.length);
  assert.deepEqual(messages, ["elsewhere"]);
  assert.deepEqual(gone, [ROOM]);
  assert.deepEqual(client.rooms.map((one) => one.id), [OTHER]);
  gateway.append(ROOM, { type: "member_joined", user_id: ADA, role: "member" });
  await until(() => client.rooms.length === 2);
});

test("an error reports whether the command may have been done", async () => {
  const gateway = new Gateway(ROOM);
  const client = await live(gateway);
  gateway.answers.vote = () => ({ error: "temporarily-unavailable", retry: true, outcome_unknown: true });
  await assert.rejects(client.request({ type: "vote" }), { outcomeUnknown: true });
  gateway.answers.vote = () => ({ error: "forbidden" });
  await assert.rejects(client.request({ type: "vote" }), { outcomeUnknown: false });
  gateway.silent.add("vote");
  await assert.rejects(client.request({ type: "vote" }, { seconds: 0.01 }), { error: "timeout", outcomeUnknown: true });
  const voting = client.request({ type: "vote" }, { once: true });
  gateway.isUp = false;
  gateway.cut();
  await assert.rejects(voting, { error: "disconnected", outcomeUnknown: true });
  const waiting = client.request({ type: "vote" }, { seconds: 0.01 });
  await assert.rejects(waiting, { error: "timeout", outcomeUnknown: false });
});

test("an interrupted command may have been done, even if it exceeds its rate afterwards", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const client = await live(gateway);
  const refusal = { error: "too-many-attempts", retry: true, retry_after_seconds: 60 };
  gateway.silent.add("vote");
  const cut = client.request({ type: "vote" });
  await until(() => typesOf(gateway).includes("vote"));
  gateway.silent.clear();
  gateway.answers.vote = gateway.answers.poll = () => refusal;
  gateway.cut();
  context.mock.timers.tick(1);
  const refused = client.request({ type: "poll" });
  await until(() => typesOf(gateway).filter((type) => type === "vote").length === 2 && typesOf(gateway).includes("poll"));
  await settle();
  context.mock.timers.tick(30_000);
  await assert.rejects(cut, { error: "timeout", outcomeUnknown: true });
  await assert.rejects(refused, { error: "timeout", outcomeUnknown: false });
  client.stop();
});

test("a request that times out while it waits for its rate is not sent", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const client = await live(gateway);
  gateway.answers.vote = () => ({ error: "too-many-attempts", retry: true, retry_after_seconds: 60 });
  const voting = client.request({ type: "vote" });
  await until(() => typesOf(gateway).includes("vote"));
  await settle();
  context.mock.timers.tick(30_000);
  await assert.rejects(voting, { error: "timeout" });
  gateway.answers = {};
  context.mock.timers.tick(60_000);
  await settle();
  assert.equal(typesOf(gateway).filter((type) => type === "vote").length, 1);
  client.stop();
});

test("a client whose options name a user stops where the gateway knows another one", async () => {
  const gateway = new Gateway(ROOM);
  const client = connect(gateway, { userId: BOB });
  await until(() => client.state === "stopped");
  assert.deepEqual(client.reason, { code: 4401, detail: "another user is logged in" });
  assert.equal(client.rooms.length, 0);
});

test("read marks and names that changed while the client was away are read again", async () => {
  const gateway = new Gateway(ROOM);
  gateway.write(ROOM, ADA, "hi");
  const { client, room } = await open(gateway);
  const member = { user_id: BOB, role: "member", last_read_seq: 0 };
  gateway.answers.members = () => ({ items: [member], next: null, users: [] });
  await room.loadMembers();
  for (const interrupt of [() => gateway.cut(), () => gateway.tell({ type: "missed" })]) {
    member.last_read_seq++;
    gateway.answers.users = ({ user_ids }) => ({ items: user_ids.map((id) => ({ id, username: `now ${member.last_read_seq}` })) });
    interrupt();
    await until(() => room.readMarks.get(BOB) === member.last_read_seq);
    assert.equal(client.user(BOB).username, `now ${member.last_read_seq}`);
  }
});

test("presence is undefined where it is not known", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  gateway.limits.watched_rooms = 1;
  const { client, room } = await open(gateway);
  gateway.answers.members = () => ({ items: [{ user_id: BOB, role: "member", last_read_seq: 0 }], next: null });
  gateway.answers.watch = ({ room_ids }) => (room_ids.length > 1 ? { error: "invalid-value" } : { online: [] });
  await room.loadMembers();
  client.watch([OTHER, ROOM]);
  await until(() => typesOf(gateway).includes("watch"));
  await settle();
  assert.equal(client.isOnline(BOB), undefined);
  const crowd = Array.from({ length: 201 }, (_, n) => ({ user_id: `member ${n}`, role: "member", last_read_seq: 0 }));
  gateway.answers.members = () => ({ items: crowd, next: null });
  await room.loadMembers();
  client.watch([ROOM]);
  await settle();
  assert.equal(client.isOnline("member 7"), undefined);
});

test("presence is asked for again after an answer that may be another one later", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM, OTHER);
  gateway.answers.watch = () => ({ online: [] });
  const { client } = await open(gateway, { random: () => 0.5 });
  const asked = () => gateway.commands.filter(({ type }) => type === "watch").map(({ room_ids }) => room_ids.join());
  const first = asked().length;
  gateway.answers.watch = () => ({ error: "temporarily-unavailable", retry: true });
  client.watch([OTHER]);
  await settle();
  client.watch([ROOM]);
  await settle();
  assert.equal(client.isOnline(BOB), undefined);
  gateway.answers = {};
  context.mock.timers.tick(2_000);
  await settle();
  assert.equal(client.isOnline(BOB), true);
  context.mock.timers.tick(60_000);
  await settle();
  assert.deepEqual(asked().slice(first), [OTHER, ROOM, ROOM]); // The earlier call is not repeated.
  client.stop();
});

test("presence that changes while the answer of watch is on its way is kept", async () => {
  const gateway = new Gateway(ROOM);
  const { client } = await open(gateway);
  gateway.answers.watch = () => {
    for (const socket of gateway.sockets) socket.onmessage({ data: JSON.stringify({ type: "presence_changed", user_id: BOB, is_online: true }) });
    return { online: [] };
  };
  client.watch([ROOM]);
  await until(() => typesOf(gateway).includes("watch"));
  await settle();
  assert.equal(client.isOnline(BOB), true);
});

test("a failed message of a room that is gone does not stay on the disk", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  const disk = database();
  const { room } = await open(gateway, { indexedDB: disk });
  gateway.answers.send = () => ({ error: "forbidden" });
  const { id } = room.send("refused");
  await until(() => room.message(id).status === "failed" && disk.rows.get(id)?.status === "failed");
  gateway.tell({ type: "room_gone", room_id: ROOM });
  await until(() => !disk.rows.size);
});

test("older messages can be forgotten, and loaded again", async () => {
  const gateway = new Gateway(ROOM);
  for (let at = 0; at < 120; at++) gateway.write(ROOM, BOB, `${at}`);
  const { room } = await open(gateway);
  await room.loadOlder(200);
  assert.equal(room.hasOlder, false);
  room.forgetOlder(10);
  assert.deepEqual(contents(room), Array.from({ length: 10 }, (_, at) => `${at + 110}`));
  assert.equal(room.hasOlder, true);
  await room.loadOlder(200);
  assert.equal(room.messages.length, 120);
});

/** A gateway without WebSockets: streams that the test opens, cuts and refuses. */
function streams() {
  const made = { opened: 0, cut: null, refuse: null };
  made.fetch = async (url, { signal }) => {
    if (made.refuse) return made.refuse();
    if (!url.pathname.endsWith("/events")) return Response.json({ items: [], next: null, users: [] });
    made.opened++;
    const ready = { type: "ready", user_id: ADA, resumed: false, positions: {}, expires_in_seconds: null };
    const start = (controller) => {
      const [first, second] = [`data: ${JSON.stringify({ ...ready, name: "ü" })}\n\n`].map((text) => new TextEncoder().encode(text)).flatMap((bytes) => [bytes.slice(0, bytes.lastIndexOf(0xc3) + 1), bytes.slice(bytes.lastIndexOf(0xc3) + 1)]);
      controller.enqueue(first); // A split between the bytes of a character.
      controller.enqueue(second);
      made.cut = () => controller.error(new TypeError("network error"));
      signal.addEventListener("abort", () => controller.error(signal.reason));
    };
    return new Response(new ReadableStream({ start }));
  };
  return made;
}

test("a client whose network lets only streams through begins with a stream after a break", async () => {
  const server = streams();
  let sockets = 0;
  const WebSocket = class {
    constructor() {
      sockets++;
      queueMicrotask(() => this.onclose?.({ code: 1006 }));
    }

    close() {}
  };
  const client = connect(new Gateway(), { WebSocket, fetch: server.fetch });
  await until(() => client.state === "live");
  assert.equal(sockets, 2);
  for (let round = 0; round < 8; round++) {
    const { opened } = server;
    server.cut();
    await until(() => server.opened > opened && client.state === "live");
  }
  assert.equal(sockets, 4); // One attempt in four, because the network may have changed.
});

test("a request with a token has no cookie of another origin, which some rules of CORS refuse", async () => {
  for (const [getToken, credentials] of [[() => "token", "same-origin"], [undefined, "include"]]) {
    const server = streams();
    const sent = new Set();
    const fetch = (url, options) => sent.add(options.credentials) && server.fetch(url, options);
    const client = connect(new Gateway(), { WebSocket: null, fetch, getToken });
    await until(() => client.state === "live");
    await client.request({ type: "me" });
    assert.deepEqual([...sent], [credentials]);
  }
});

test("an answer of a proxy or a captive portal does not stop the client", async () => {
  const problem = (status) => () =>
    new Response("{}", { status, headers: { "Content-Type": "application/problem+json" } });
  const portal = (status) => () => new Response("<p>Welcome</p>", { status, headers: { "Content-Type": "text/html" } });
  for (const status of [401, 403]) {
    const server = streams();
    server.refuse = portal(status);
    const client = connect(new Gateway(), { WebSocket: null, fetch: server.fetch });
    await until(() => client.state === "waiting");
    server.refuse = null;
    await until(() => client.state === "live");
    server.refuse = portal(status);
    await assert.rejects(client.request({ type: "me" }), { error: "temporarily-unavailable", outcomeUnknown: true });
    server.refuse = problem(status);
    server.cut();
    await until(() => client.state === "stopped");
    assert.equal(client.reason.code, 4000 + status);
  }
});
