import assert from "node:assert/strict";
import { test } from "node:test";

import { HubbubError, newId } from "../../src/hubbub/web/client/hubbub.js";
import { connect, contents, live, open } from "./clients.js";
import { ADA, BOB, Gateway, OTHER, ROOM, until } from "./gateway.js";

test("ids are UUIDs of version 7, unique and in order", () => {
  const ids = Array.from({ length: 10_000 }, newId);
  assert.match(ids[0], /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.deepEqual([...ids].sort(), ids);
  assert.equal(new Set(ids).size, ids.length);
});

test("rooms are listed with names, unread counts and the newest message", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  gateway.write(ROOM, BOB, "hello");
  const client = await live(gateway);
  assert.deepEqual(client.rooms.map((room) => [room.id, room.unread]), [[ROOM, 1], [OTHER, 0]]);
  assert.equal(client.rooms[0].lastMessage.content, "hello");
  assert.equal(client.user(BOB).username, "bob");
  assert.deepEqual(gateway.hellos[0].positions, undefined);
});

test("an event comes once, also if a page has it", async () => {
  const gateway = new Gateway(ROOM);
  gateway.write(ROOM, BOB, "one");
  const client = await live(gateway);
  const room = client.room(ROOM);
  const loading = room.load();
  gateway.write(ROOM, BOB, "two");
  await loading;
  await until(() => client.entries.length === 1);
  gateway.write(ROOM, BOB, "three");
  await until(() => client.entries.length === 2);
  assert.deepEqual(contents(room), ["one", "two", "three"]);
  assert.equal(room.unread, 3);
});

test("older pages come before, in order, until the first message", async () => {
  const gateway = new Gateway(ROOM);
  for (let at = 0; at < 120; at++) gateway.write(ROOM, BOB, `${at}`);
  const { room } = await open(gateway);
  assert.equal(room.messages.length, 50);
  assert.equal(await room.loadOlder(), true);
  assert.equal(await room.loadOlder(), false);
  assert.deepEqual(contents(room), Array.from({ length: 120 }, (_, at) => `${at}`));
});

test("a message is sending, then sent, in its place", async () => {
  const gateway = new Gateway(ROOM);
  const { client, room } = await open(gateway);
  const shown = [];
  client.on("messages", () => shown.push(room.messages.map((message) => message.status)));
  room.send("hi");
  assert.deepEqual(contents(room), ["hi"]);
  await until(() => room.messages[0].seq === 1);
  assert.deepEqual(shown[0], ["sending"]);
  assert.deepEqual(room.messages.map((message) => message.status), ["sent"]);
  assert.equal(room.unread, 0);
});

test("an event before the acknowledgement confirms a message as well", async () => {
  const gateway = new Gateway(ROOM);
  const { room } = await open(gateway);
  gateway.answers.send = (command) => {
    gateway.write(ROOM, ADA, command.content, command.id);
    gateway.silent.add("send");
    return { error: "too-late", retry: true, retry_after_seconds: 60 };
  };
  room.send("hi");
  await until(() => room.messages[0].status === "sent");
  assert.deepEqual(contents(room), ["hi"]);
});

test("messages typed without a connection are sent once and in order", async () => {
  const gateway = new Gateway(ROOM);
  const { client, room } = await open(gateway);
  gateway.isUp = false;
  gateway.cut();
  for (const word of ["one", "two", "three"]) room.send(word);
  gateway.write(ROOM, BOB, "meanwhile");
  await until(() => client.state === "waiting");
  assert.deepEqual(room.messages.map((message) => message.status), ["sending", "sending", "sending"]);
  gateway.isUp = true;
  await until(() => room.messages.filter((message) => message.seq).length === 4);
  assert.deepEqual(contents(room), ["meanwhile", "one", "two", "three"]);
  assert.deepEqual(gateway.messages(ROOM).map((message) => message.content), contents(room));
});

test("a send whose answer is lost is not sent twice", async () => {
  const gateway = new Gateway(ROOM);
  const { client, room } = await open(gateway);
  gateway.isEchoing = false;
  gateway.silent.add("send");
  room.send("hi");
  await until(() => gateway.commands.some((command) => command.type === "send"));
  gateway.send(gateway.commands.find((command) => command.type === "send"));
  gateway.silent.clear();
  gateway.cut();
  await until(() => client.state === "live" && room.messages[0].status === "sent");
  assert.deepEqual(gateway.messages(ROOM).length, 1);
  assert.deepEqual(contents(room), ["hi"]);
  assert.equal(client.entries.length, 1);
});

test("a refused message is failed, can be sent again, and lets later ones pass", async () => {
  const gateway = new Gateway(ROOM);
  const { room } = await open(gateway);
  gateway.answers.send = ({ content }) => (content === "bad" ? { error: "forbidden", detail: "no such word" } : null);
  const { id } = room.send("bad");
  room.send("good");
  await until(() => room.message(id).status === "failed" && room.messages.some((one) => one.seq));
  assert.equal(room.message(id).error, "forbidden");
  assert.equal(room.message(id).detail, "no such word");
  assert.deepEqual(contents(room), ["good", "bad"]);
  gateway.answers = {};
  room.retry(id);
  await until(() => room.message(id).status === "sent");
  const { id: other } = room.send("x".repeat(70_000));
  await until(() => room.message(other).status === "failed");
  room.discard(other);
  assert.deepEqual(contents(room), ["good", "bad"]);
});

test("a room whose first load failed is loaded after a while, and by the next connection", async (context) => {
  for (const again of [(gateway) => gateway.cut(), () => context.mock.timers.tick(1_000)]) {
    context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
    const gateway = new Gateway(ROOM);
    gateway.write(ROOM, BOB, "one");
    const client = await live(gateway);
    gateway.silent.add("page");
    const loading = client.room(ROOM).load();
    context.mock.timers.tick(30_000);
    await assert.rejects(loading, { error: "timeout" });
    gateway.silent.clear();
    again(gateway);
    context.mock.timers.tick(1);
    await until(() => client.room(ROOM).isLoaded);
    assert.deepEqual(contents(client.room(ROOM)), ["one"]);
    client.stop();
    context.mock.timers.reset();
  }
});

test("a deletion takes one from the unread count, in whatever state the events before it show the message", async () => {
  const gateway = new Gateway(ROOM);
  const [counted] = [gateway.write(ROOM, BOB, "one"), gateway.write(ROOM, BOB, "two")];
  const client = await live(gateway);
  const room = client.room(ROOM);
  assert.equal(room.unread, 2);
  const deletion = { content: "", deleted_at: "2026-11-29T03:00:00Z" };
  const third = gateway.write(ROOM, BOB, "three");
  gateway.revise(third, deletion); // It was edited before it was deleted.
  gateway.revise(third, deletion, "message_deleted");
  await until(() => client.entries.length === 3);
  assert.equal(room.unread, 2);
  const fourth = { ...third, id: crypto.randomUUID(), ...deletion };
  gateway.append(ROOM, { type: "message_sent", message: fourth });
  gateway.revise(fourth, deletion, "message_deleted");
  gateway.revise(counted, deletion, "message_deleted");
  await until(() => client.entries.length === 6);
  assert.equal(room.unread, 1);
});

test("edits and deletions reach pages, events and unread counts", async () => {
  const gateway = new Gateway(ROOM);
  const first = gateway.write(ROOM, BOB, "frist");
  const second = gateway.write(ROOM, BOB, "second");
  const { client, room } = await open(gateway);
  gateway.revise(first, { content: "first", is_edited: true });
  await until(() => room.messages[0].content === "first");
  assert.equal(room.unread, 2);
  gateway.revise(second, { content: "", deleted_at: "2026-11-29T01:00:00Z" }, "message_deleted");
  await until(() => room.messages[1].deleted_at);
  assert.equal(room.unread, 1);
  gateway.revise(second, { content: "late" });
  await until(() => client.entries.length === 3);
  assert.equal(room.messages[1].content, "");
});

test("an edit during the load of a page is kept", async () => {
  const gateway = new Gateway(ROOM);
  const first = gateway.write(ROOM, BOB, "frist");
  const client = await live(gateway);
  const room = client.room(ROOM);
  const page = gateway.page({ room_id: ROOM, limit: 50 });
  gateway.silent.add("page");
  const loading = room.load();
  await until(() => gateway.commands.some((command) => command.type === "page"));
  gateway.revise(first, { content: "first", is_edited: true });
  await until(() => client.entries.length === 1);
  gateway.silent.clear();
  gateway.answers.page = () => page; // Read before the edit.
  gateway.cut();
  await loading;
  assert.deepEqual(contents(room), ["first"]);
});

test("a client that comes back continues without a gap or a repeat", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  gateway.write(ROOM, BOB, "one");
  const { client, room } = await open(gateway);
  for (let round = 0; round < 20; round++) {
    gateway.write(ROOM, BOB, `in ${round}`);
    if (round % 3 === 0) gateway.cut(round % 2 ? 4501 : 1006);
    gateway.write(ROOM, BOB, `away ${round}`);
    gateway.write(OTHER, BOB, `other ${round}`);
    await new Promise((resolve) => setTimeout(resolve, round % 4));
  }
  await until(() => client.entries.length === 60 && client.state === "live");
  const ofRoom = client.entries.filter((entry) => entry.room_id === ROOM);
  assert.deepEqual(ofRoom.map((entry) => entry.seq), Array.from({ length: 40 }, (_, at) => at + 2));
  assert.deepEqual(contents(room), gateway.messages(ROOM).map((message) => message.content));
  assert.equal(client.room(OTHER).unread, 20);
  assert.equal(room.unread, 41);
  assert.deepEqual(Object.keys(gateway.hellos.at(-1).positions).sort(), [ROOM, OTHER].sort());
});

test("a room that is resynchronised is reloaded, and keeps unsent messages", async () => {
  const gateway = new Gateway(ROOM);
  for (const word of ["one", "two", "three"]) gateway.write(ROOM, BOB, word);
  const { client, room } = await open(gateway);
  gateway.silent.add("send");
  room.send("mine");
  gateway.rooms.get(ROOM).log.splice(1);
  gateway.tell({ type: "resync", room_id: ROOM, cursor: gateway.cursor(ROOM), reason: "rewound" });
  await until(() => room.isLoaded && room.messages.length === 2);
  assert.deepEqual(contents(room), ["one", "mine"]);
  gateway.silent.clear();
  gateway.write(ROOM, BOB, "after");
  await until(() => client.entries.length === 1);
  assert.deepEqual(contents(room), ["one", "after", "mine"]);
});

test("read marks are merged, and sent once", async () => {
  const gateway = new Gateway(ROOM);
  for (let at = 0; at < 5; at++) gateway.write(ROOM, BOB, `${at}`);
  const { client, room } = await open(gateway);
  for (const seq of [2, 3, 1, 4]) room.markRead(seq);
  assert.equal(room.unread, 1);
  await until(() => gateway.commands.some((command) => command.type === "read"));
  assert.deepEqual(gateway.commands.filter((command) => command.type === "read").map((one) => one.up_to), [4]);
  await until(() => gateway.rooms.get(ROOM).read === 4);
  gateway.tell({ type: "read_mark_changed", room_id: ROOM, user_id: BOB, last_read_seq: 3 });
  gateway.tell({ type: "read_mark_changed", room_id: ROOM, user_id: ADA, last_read_seq: 5 });
  await until(() => room.unread === 0);
  assert.equal(room.readMarks.get(BOB), 3);
  assert.equal(client.room(ROOM).lastReadSeq, 5);
});

test("a read mark that the server refuses for a while is sent again on the same connection", async () => {
  const gateway = new Gateway(ROOM);
  for (let at = 0; at < 3; at++) gateway.write(ROOM, BOB, `${at}`);
  const { room } = await open(gateway);
  let refusals = 1;
  gateway.answers.read = () => (refusals-- > 0 ? { error: "temporarily-unavailable", retry: true } : null);
  room.markRead(2);
  await until(() => gateway.rooms.get(ROOM).read === 2);
  assert.equal(gateway.commands.filter((command) => command.type === "read").length, 2);
  assert.equal(gateway.hellos.length, 1);
});

test("a refused read mark waits longer each time, or for the next connection, and a newer one replaces it", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  for (let at = 0; at < 5; at++) gateway.write(ROOM, BOB, `${at}`);
  const { client, room } = await open(gateway);
  const sent = () => gateway.commands.filter((command) => command.type === "read").map((command) => command.up_to);
  const after = async (milliseconds) => {
    context.mock.timers.tick(milliseconds);
    for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate);
    return sent();
  };
  gateway.answers.read = () => ({ error: "temporarily-unavailable", retry: true });
  room.markRead(1);
  assert.deepEqual(await after(300), [1]);
  assert.deepEqual(await after(250), [1, 1]);
  room.markRead(2);
  assert.deepEqual(await after(499), [1, 1]);
  assert.deepEqual(await after(1), [1, 1, 2]);
  gateway.cut();
  gateway.answers = {};
  gateway.silent.add("read");
  assert.deepEqual(await after(1), [1, 1, 2, 2]);
  room.markRead(3);
  assert.deepEqual(await after(10_000), [1, 1, 2, 2]); // One is in flight.
  gateway.silent.clear();
  gateway.cut();
  assert.deepEqual(await after(1), [1, 1, 2, 2, 2, 3]);
  assert.equal(gateway.rooms.get(ROOM).read, 3);
  gateway.answers.read = () => ({ error: "temporarily-unavailable", retry: true });
  room.markRead(4);
  assert.equal((await after(300)).length, 7);
  client.stop();
  assert.equal((await after(60_000)).length, 7);
  gateway.answers = {};
  client.start();
  await until(() => gateway.rooms.get(ROOM).read === 4);
  await after(0);
  assert.equal((await after(60_000)).length, 8);
  client.stop();
});

test("rooms appear when the user joins them, and disappear when the user leaves", async () => {
  const gateway = new Gateway(ROOM);
  const client = await live(gateway);
  gateway.rooms.set(OTHER, { log: [], read: 0 });
  gateway.append(OTHER, { type: "member_joined", user_id: ADA, role: "member" });
  await until(() => client.rooms.length === 2);
  gateway.append(OTHER, { type: "member_left", user_id: ADA });
  await until(() => client.rooms.length === 1);
  gateway.rooms.delete(OTHER);
  gateway.tell({ type: "room_gone", room_id: ROOM });
  await until(() => client.rooms.length === 0);
  assert.equal(client.token, "{}");
});

test("typing ends with the message, presence is that of the watched rooms", async () => {
  const gateway = new Gateway(ROOM);
  const { client, room } = await open(gateway);
  gateway.tell({ type: "typing_changed", room_id: ROOM, user_id: BOB, is_typing: true });
  await until(() => room.typing.length);
  gateway.write(ROOM, BOB, "done");
  await until(() => !room.typing.length);
  client.watch([ROOM]);
  await until(() => client.isOnline(BOB));
  gateway.tell({ type: "presence_changed", user_id: BOB, is_online: false });
  await until(() => client.isOnline(BOB) === false);
  const stranger = BOB.replace(/.$/, "c");
  assert.equal(client.isOnline(stranger), undefined);
  gateway.append(ROOM, { type: "member_joined", user_id: stranger, role: "member" });
  gateway.answers.members = () => ({ items: [{ user_id: stranger, role: "member", last_read_seq: 0 }], next: null });
  await room.loadMembers();
  assert.equal(client.isOnline(stranger), false);
  gateway.answers.watch = () => ({ online: [] });
  client.watch([]);
  await until(() => client.isOnline(BOB) === undefined);
  assert.equal(client.isOnline(stranger), undefined);
  room.startTyping();
  room.startTyping();
  room.stopTyping();
  await until(() => gateway.commands.filter((command) => command.type === "typing").length === 2);
});

test("codes from 4400 to 4499 stop the client, others do not", async () => {
  for (const [code, state] of [[4401, "stopped"], [4499, "stopped"], [4500, "live"], [1012, "live"], [4999, "live"]]) {
    const gateway = new Gateway(ROOM);
    const client = await live(gateway);
    const before = gateway.hellos.length;
    gateway.cut(code);
    await until(() => client.state === "stopped" || gateway.hellos.length > before);
    await until(() => client.state === state);
    if (state === "stopped") {
      assert.equal(client.reason.code, code);
      await assert.rejects(client.request({ type: "me" }), HubbubError);
    }
  }
});

test("start after the end of the session reconnects, and continues from the client's positions", async () => {
  const gateway = new Gateway(ROOM);
  const { client, room } = await open(gateway);
  gateway.cut(4401);
  await until(() => client.state === "stopped");
  gateway.write(ROOM, BOB, "meanwhile");
  client.start();
  assert.equal(client.reason, null);
  await until(() => client.state === "live" && room.messages.length);
  assert.deepEqual(contents(room), ["meanwhile"]);
  client.start(); // Nothing: it runs.
  assert.equal(gateway.hellos.length, 2);
});

test("an edit or a deletion bridges a break, and is not kept for longer", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const mine = gateway.write(ROOM, ADA, "one");
  gateway.answers.edit = ({ message_id, content }) => gateway.revise({ ...mine, id: message_id }, { content, is_edited: true }).message;
  const { client, room } = await open(gateway);
  gateway.isUp = false;
  gateway.cut();
  const bridged = room.edit(mine.id, "two");
  assert.deepEqual(contents(room), ["one"]);
  gateway.isUp = true;
  context.mock.timers.tick(1);
  await bridged;
  assert.deepEqual(contents(room), ["two"]);
  await until(() => client.state === "live");
  gateway.isUp = false;
  gateway.cut();
  const given = [room.edit(mine.id, "three"), room.delete(mine.id)];
  context.mock.timers.tick(30_000);
  for (const { reason } of await Promise.allSettled(given)) assert.equal(reason.error, "timeout");
  gateway.isUp = true;
  for (let second = 0; second < 40 && client.state !== "live"; second++) {
    context.mock.timers.tick(1_000);
    for (let turn = 0; turn < 10; turn++) await new Promise(setImmediate);
  }
  assert.equal(client.state, "live");
  assert.deepEqual(contents(room), ["two"]);
  assert.equal(gateway.commands.filter(({ type }) => type === "edit" || type === "delete").length, 1);
});

test("after 4503 the client starts fresh", async () => {
  const gateway = new Gateway(ROOM);
  gateway.write(ROOM, BOB, "one");
  const { client, room } = await open(gateway);
  gateway.cut(4503);
  await until(() => gateway.hellos.length === 2 && client.state === "live" && room.isLoaded);
  assert.equal(gateway.hellos[1].positions, undefined);
  assert.deepEqual(contents(room), ["one"]);
});

test("the field reconnect of bye overrides its code", async () => {
  const gateway = new Gateway(ROOM);
  const client = await live(gateway);
  gateway.tell({ type: "bye", code: 1012, reconnect: false, within_seconds: 0, reason: "closed for good" });
  await new Promise((resolve) => setTimeout(resolve, 5));
  gateway.cut(1012);
  await until(() => client.state === "stopped");
  assert.deepEqual(client.reason, { code: 1012, detail: "closed for good" });
});

test("the wait doubles with jitter, up to thirty seconds", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  gateway.isUp = false;
  const attempts = [];
  const WebSocket = class {
    constructor() {
      attempts.push(null);
      queueMicrotask(() => this.onclose({ code: 1006 }));
    }

    close() {}
  };
  const client = connect(gateway, { WebSocket, random: () => 0.999 });
  const waits = [];
  for (let attempt = 1; attempt <= 9; attempt++) {
    while (client.state !== "waiting") await Promise.resolve();
    let waited = 0;
    while (attempts.length === attempt) {
      context.mock.timers.tick(100);
      waited += 0.1;
      for (let turn = 0; turn < 10; turn++) await Promise.resolve();
    }
    waits.push(Math.round(waited * 2) / 2);
  }
  assert.deepEqual(waits, [0.5, 1, 2, 4, 8, 16, 30, 30, 30]);
  client.stop();
});

test("a connection without a byte is given up", async (context) => {
  const gateway = new Gateway(ROOM);
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const client = await live(gateway, { random: () => 0.9 });
  context.mock.timers.tick(34_000);
  assert.equal(client.state, "live");
  gateway.tell({ type: "ping" });
  await new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
  context.mock.timers.tick(34_000);
  assert.equal(client.state, "live");
  context.mock.timers.tick(2_000);
  assert.equal(client.state, "waiting");
  client.stop();
});

test("requests over the rate are sent again, others reject with the server's error", async () => {
  const gateway = new Gateway(ROOM);
  const client = await live(gateway);
  let refusals = 2;
  gateway.answers.me = () => (refusals-- > 0 ? { error: "too-many-attempts", retry: true, retry_after_seconds: 0.01 } : { id: ADA });
  assert.deepEqual(await client.request({ type: "me" }), { id: ADA });
  gateway.answers.invite = () => ({ error: "forbidden", detail: "only an admin" });
  await assert.rejects(client.room(ROOM).invite(BOB), { error: "forbidden", message: "only an admin", retry: false });
});

test("a request in flight is sent again after a break", async () => {
  const gateway = new Gateway(ROOM);
  const client = await live(gateway);
  gateway.silent.add("me");
  const answer = client.request({ type: "me" });
  await until(() => gateway.commands.some((command) => command.type === "me"));
  gateway.silent.clear();
  gateway.answers.me = () => ({ id: ADA });
  gateway.cut();
  assert.deepEqual(await answer, { id: ADA });
});

test("unknown frames and bad JSON are skipped", async () => {
  const gateway = new Gateway(ROOM);
  const client = await live(gateway);
  for (const socket of gateway.sockets) socket.onmessage({ data: 'nonsense\n{"type":"from_the_future"}\n{"type":"constructor"}' });
  gateway.append(ROOM, { type: "entry_of_the_future" });
  gateway.write(ROOM, BOB, "still here");
  await until(() => client.entries.length === 2);
  assert.deepEqual(client.entries.map((entry) => entry.seq), [1, 2]);
});

test("a client with its own store resumes from an earlier token", async () => {
  const gateway = new Gateway(ROOM);
  gateway.write(ROOM, BOB, "one");
  const first = await live(gateway);
  const { token } = first;
  first.stop();
  gateway.write(ROOM, BOB, "two");
  const second = await live(gateway, { resume: token });
  await until(() => second.entries.length === 1);
  assert.equal(second.entries[0].message.content, "two");
  assert.equal(second.room(ROOM).unread, 2);
});

test("a client in many rooms sends fingerprints, and the positions of the pages that the server asks for", async () => {
  const ids = Array.from({ length: 200 }, (_, n) => `01970000-0000-7000-8000-${n.toString(16).padStart(12, "0")}`);
  const resume = JSON.stringify(Object.fromEntries(ids.map((id, n) => [id, `cursor-${n}`])));
  const gateway = new Gateway(ROOM);
  const frames = [];
  const hello = gateway.hello.bind(gateway);
  gateway.hello = (socket, frame) => {
    frames.push(frame);
    gateway.say(socket, { type: "ask", pages: [3, 7] });
  };
  gateway.received = new Proxy(gateway.received, {
    apply: (received, self, [socket, frame]) => {
      if (frame.type !== "positions") return received.call(self, socket, frame);
      frames.push(frame);
      return hello(socket, { type: "hello", positions: frame.positions });
    },
  });
  const client = connect(gateway, { resume });
  await until(() => frames.length === 2);
  const [{ pages, positions }, answer] = frames;
  assert.equal(positions, undefined);
  assert.equal(pages.length, 32 * 12);
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(pages));
  assert.equal(Buffer.from(digest).toString("hex").slice(0, 16), "c59362c8fe97399f"); // As in tests/test_positions.py.
  const asked = ids.filter((_, n) => [3, 7].includes(n % 32));
  assert.deepEqual(Object.keys(answer.positions).sort(), asked);
  assert.equal(answer.more, false);
  await until(() => client.state !== "connecting");
});

test("a token is asked for before each connection", async () => {
  const gateway = new Gateway(ROOM);
  let asked = 0;
  const client = await live(gateway, { getToken: async () => `token ${++asked}` });
  gateway.cut();
  await until(() => gateway.hellos.length === 2 && client.state === "live");
  assert.deepEqual(gateway.hellos.map((hello) => hello.token), ["token 1", "token 2"]);
});

test("a token that has expired is replaced, a session that has ended is not", async () => {
  const gateway = new Gateway(ROOM);
  gateway.expiresInSeconds = 900;
  let asked = 0;
  const client = await live(gateway, { getToken: () => `token ${++asked}` });
  gateway.cut(4401);
  await until(() => gateway.hellos.length === 2 && client.state === "live");
  assert.deepEqual(gateway.hellos.map((hello) => hello.token), ["token 1", "token 2"]);
  gateway.hello = () => gateway.cut(4401);
  gateway.cut(4401);
  await until(() => client.state === "stopped");
  assert.equal(client.reason.code, 4401);
  assert.equal(asked, 3);
});

test("a new token is given before the old one expires, also if the first try fails", async (context) => {
  const gateway = new Gateway(ROOM);
  gateway.expiresInSeconds = 20;
  gateway.answers.auth = () => ({ expires_in_seconds: 900 });
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const tokens = ["first", null, "second"];
  const getToken = async () => tokens.shift() ?? Promise.reject(new Error("no network"));
  const client = await live(gateway, { getToken });
  context.mock.timers.tick(16_000);
  await until(() => tokens.length === 1);
  await new Promise(setImmediate);
  context.mock.timers.tick(3_200);
  await until(() => gateway.commands.some((command) => command.type === "auth"));
  assert.equal(gateway.commands.find((command) => command.type === "auth").token, "second");
  assert.equal(gateway.hellos.length, 1);
  client.stop();
});

test("a stream begins again with a new token before the old one expires", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const streams = [];
  const states = new Set();
  const fetch = async (url, { headers, signal, body }) => {
    if (!url.pathname.endsWith("/events")) return Response.json({ items: [], next: null, users: [] });
    const { positions } = JSON.parse(body);
    streams.push({ token: headers.Authorization, isResumed: Boolean(positions), signal });
    const ready = { type: "ready", user_id: ADA, resumed: Boolean(positions), positions: {}, expires_in_seconds: 20 };
    const start = (controller) => {
      controller.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(ready)}\n\n`));
      signal.addEventListener("abort", () => controller.error(signal.reason));
    };
    return new Response(new ReadableStream({ start }));
  };
  let asked = 0;
  const client = connect(new Gateway(), { WebSocket: null, fetch, getToken: () => `token ${++asked}` });
  client.on("state", (state) => states.add(state));
  await until(() => client.state === "live");
  context.mock.timers.tick(16_000);
  await until(() => streams.length === 2 && client.state === "live");
  assert.deepEqual(streams.map((stream) => stream.token), ["Bearer token 1", "Bearer token 2"]);
  assert.deepEqual(streams.map((stream) => stream.isResumed), [false, true]);
  assert.deepEqual(streams.map((stream) => stream.signal.aborted), [true, false]);
  assert.ok(!states.has("stopped") && !states.has("waiting"));
  client.stop();
});

test("messages marked as unread are unread again, and no read mark in flight undoes that", async () => {
  const gateway = new Gateway(ROOM);
  for (let at = 0; at < 5; at++) gateway.write(ROOM, BOB, `${at}`);
  const { room } = await open(gateway);
  gateway.answers.unread = ({ from_seq }) => ({ last_read_seq: (gateway.rooms.get(ROOM).read = from_seq - 1) });
  room.markRead();
  await room.markUnread(3);
  await until(() => room.unread === 3);
  assert.equal(room.lastReadSeq, 2);
  await new Promise((resolve) => setTimeout(resolve, 350));
  const types = gateway.commands.map((command) => command.type).filter((type) => ["read", "unread"].includes(type));
  assert.deepEqual(types, ["read", "unread"]);
  room.markRead();
  assert.equal(room.unread, 0);
});

test("messages marked as unread without a connection are unread once it is back", async () => {
  const gateway = new Gateway(ROOM);
  for (let at = 0; at < 3; at++) gateway.write(ROOM, BOB, `${at}`);
  const { client, room } = await open(gateway);
  gateway.answers.unread = ({ from_seq }) => ({ last_read_seq: (gateway.rooms.get(ROOM).read = from_seq - 1) });
  gateway.isUp = false;
  gateway.cut();
  await until(() => client.state === "waiting");
  room.markRead();
  const marking = room.markUnread(2);
  gateway.isUp = true;
  await marking;
  await until(() => room.unread === 2);
  assert.equal(gateway.rooms.get(ROOM).read, 1);
});

test("readers come from all pages, with their users", async () => {
  const gateway = new Gateway(ROOM);
  const { id } = gateway.write(ROOM, ADA, "hi");
  const { client, room } = await open(gateway);
  const carol = { id: OTHER, username: "carol", display_name: null, avatar_url: null };
  gateway.answers.readers = ({ message_id, after }) =>
    after
      ? { items: [{ message_id, user_id: OTHER, read_at: null }], next: null, users: [carol] }
      : { items: [{ message_id, user_id: BOB, read_at: "2026-11-29T02:00:00Z" }], next: "2", users: [] };
  assert.deepEqual(await room.readers(id), [
    { userId: BOB, readAt: "2026-11-29T02:00:00Z" },
    { userId: OTHER, readAt: null },
  ]);
  assert.equal(client.user(OTHER).username, "carol");
});

test("changes of rooms, members and the own profile send only the given properties", async () => {
  const gateway = new Gateway(ROOM);
  const { client, room } = await open(gateway);
  const sent = async (change) => {
    await change;
    return gateway.commands.at(-1);
  };
  assert.deepEqual(await sent(room.update({ name: "new" })), { type: "update_room", room_id: ROOM, name: "new" });
  const cleared = { type: "update_room", room_id: ROOM, description: "", is_private: false };
  assert.deepEqual(await sent(room.update({ description: null, isPrivate: false })), cleared);
  assert.deepEqual(await sent(room.setRole(BOB, "admin")), { type: "set_role", room_id: ROOM, user_id: BOB, role: "admin" });
  assert.deepEqual(await sent(room.remove(BOB)), { type: "remove", room_id: ROOM, user_id: BOB });
  const ada = { id: ADA, username: "ada", display_name: "Ada", avatar_url: null };
  gateway.answers.update_profile = () => ada;
  const profile = { type: "update_profile", display_name: "Ada", avatar_url: null };
  assert.deepEqual(await sent(client.updateProfile({ displayName: "Ada", avatarUrl: null })), profile);
  assert.equal(client.user(ADA).display_name, "Ada");
  gateway.answers.delete_room = () => ({ error: "forbidden", detail: "only an admin" });
  await assert.rejects(room.deleteRoom(), { error: "forbidden", message: "only an admin" });
  assert.equal(client.rooms.length, 1);
  gateway.answers = {};
  await room.deleteRoom();
  assert.equal(client.rooms.length, 0);
});

test("profiles and memberships that change are those of the event", async () => {
  const gateway = new Gateway(ROOM);
  const { client, room } = await open(gateway);
  const member = { user_id: BOB, role: "member", last_read_seq: 0, metadata: { nickname: "bobby" } };
  gateway.answers.members = () => ({ items: [member], next: null, users: [] });
  await room.loadMembers();
  assert.deepEqual(room.memberMetadata.get(BOB), { nickname: "bobby" });
  gateway.append(ROOM, { type: "member_changed", user_id: BOB, metadata: { nickname: "rob" } });
  await until(() => room.memberMetadata.get(BOB).nickname === "rob");
  gateway.append(ROOM, { type: "member_changed", user_id: BOB, metadata: null });
  await until(() => !room.memberMetadata.has(BOB));
  const profile = { user_id: BOB, username: "bob", display_name: "Bob", avatar_url: null, metadata: null };
  gateway.tell({ type: "profile_changed", ...profile });
  await until(() => client.user(BOB).display_name === "Bob");
});

test("members who leave, join or change while their pages are read are those of the event", async () => {
  const carol = OTHER;
  const member = (user_id, metadata) => ({ user_id, role: "member", last_read_seq: 0, metadata });
  const roles = { [ADA]: "member", [BOB]: "member", [carol]: "member" };
  const { [BOB]: _, ...withoutBob } = roles;
  for (const [event, expected, nickname] of [
    [{ type: "member_left", user_id: BOB }, withoutBob, undefined],
    [{ type: "role_changed", user_id: BOB, role: "admin" }, { ...roles, [BOB]: "admin" }, "bobby"],
    [{ type: "member_joined", user_id: ROOM, role: "member" }, { ...roles, [ROOM]: "member" }, "bobby"],
    [{ type: "member_changed", user_id: BOB, metadata: { nickname: "rob" } }, roles, "rob"],
    [{ type: "member_changed", user_id: BOB, metadata: null }, roles, undefined],
  ]) {
    const gateway = new Gateway(ROOM);
    const { client, room } = await open(gateway);
    gateway.answers.members = ({ after }) => {
      if (!after) return { items: [member(ADA), member(BOB, { nickname: "bobby" })], next: "2" };
      gateway.append(ROOM, event); // It arrives before this page.
      return { items: [member(carol)], next: null };
    };
    await room.loadMembers();
    assert.equal(client.entries.length, 1);
    assert.deepEqual(Object.fromEntries(room.members), expected);
    assert.equal(room.memberMetadata.get(BOB)?.nickname, nickname);
  }
});

test("members are those of the events after two loads at once, one that fails, and one of a room that ends", async () => {
  const gateway = new Gateway(ROOM);
  const { client, room } = await open(gateway);
  const items = [ADA, BOB].map((user_id) => ({ user_id, role: "member", last_read_seq: 0 }));
  const ids = () => [...room.members.keys()];
  /** Append an event before the last page, which is this answer. */
  const load = async (event, last = { items: [], next: null }) => {
    gateway.answers.members = ({ after }) => {
      if (!after) return { items, next: "2" };
      gateway.append(ROOM, event);
      return last;
    };
    await room.loadMembers();
  };
  const left = { type: "member_left", user_id: BOB };
  await Promise.all([load(left), load(left)]);
  assert.deepEqual(ids(), [ADA]);
  const joined = { type: "member_joined", user_id: OTHER, role: "member" };
  await assert.rejects(load(joined, { error: "forbidden" }), { error: "forbidden" });
  assert.deepEqual(ids(), [ADA, OTHER]);
  gateway.answers.members = () => ({ items, next: null });
  await room.loadMembers();
  assert.deepEqual(ids(), [ADA, BOB]); // The events of earlier loads are over.
  await load({ type: "member_left", user_id: ADA });
  assert.ok(room.isGone);
  assert.deepEqual(ids(), [BOB]);
  assert.equal(client.rooms.length, 0);
});
