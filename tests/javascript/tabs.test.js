import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { Client } from "../../src/hubbub/web/client/hubbub.js";
import { database } from "./disk.js";
import { BOB, Gateway, OTHER, ROOM, until } from "./gateway.js";

/** The locks of a browser: one holder per name, and a queue of the others. */
class Locks {
  #queues = new Map();

  request(name, { signal, steal = false }, hold) {
    const queue = this.#queues.get(name) ?? [];
    this.#queues.set(name, queue);
    return new Promise((resolve, reject) => {
      const request = { hold, resolve, reject, isHeld: false };
      if (steal) {
        if (queue[0]?.isHeld) queue.shift().reject(new DOMException("stolen", "AbortError"));
        queue.unshift(request);
      } else {
        queue.push(request);
      }
      signal?.addEventListener("abort", () => {
        if (request.isHeld) return;
        queue.splice(queue.indexOf(request), 1);
        reject(signal.reason);
      });
      this.#grant(queue);
    });
  }

  #grant(queue) {
    const [first] = queue;
    if (!first || first.isHeld) return;
    first.isHeld = true;
    queueMicrotask(async () => {
      await first.hold();
      if (queue[0] === first) queue.shift();
      first.resolve();
      this.#grant(queue);
    });
  }
}

/** The events of a page to which the client listens. */
class Page extends EventTarget {
  /** Whether the browser runs none of its code, as on phones with hidden tabs. */
  isSuspended = false;
  document = Object.assign(new EventTarget(), { visibilityState: "visible" });

  show(visibilityState) {
    this.document.visibilityState = visibilityState;
    this.document.dispatchEvent(new Event("visibilitychange"));
  }
}

const clients = [];
let browsers = 0;

afterEach(() => {
  for (const client of clients.splice(0)) client.stop();
});

/** The channel of a tab. It neither sends nor receives while the tab is suspended. */
function channelOf(page) {
  return class {
    #channel;

    constructor(name) {
      this.#channel = new BroadcastChannel(name);
    }

    set onmessage(listener) {
      this.#channel.onmessage = listener && ((message) => page.isSuspended || listener(message));
    }

    postMessage(message) {
      if (!page.isSuspended) this.#channel.postMessage(message);
    }

    close() {
      this.#channel.close();
    }
  };
}

/** The tabs of one browser. */
function browser(gateway, more = {}) {
  const options = { WebSocket: gateway.WebSocket, fetch: null, locks: new Locks(), ...more };
  const name = "url" in more ? {} : { name: `browser ${++browsers}` };
  return async (mine = {}) => {
    const page = new Page();
    const own = { ...name, page, BroadcastChannel: channelOf(page), random: () => 0.01 };
    const client = new Client({ url: "http://127.0.0.1/chat", ...own, ...options, ...mine });
    client.page = page;
    client.entries = [];
    client.on("entry", (entry) => client.entries.push(`${entry.room_id.at(-1)}:${entry.seq}`));
    clients.push(client);
    client.start();
    await until(() => client.state === "live" && client.rooms.length);
    await client.room(ROOM).load();
    return client;
  };
}

const contents = (client) => client.room(ROOM).messages.map((message) => message.content);

test("three tabs have one connection, and show the same", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  const tab = browser(gateway);
  const tabs = [await tab(), await tab(), await tab()];
  assert.equal(gateway.sockets.length, 1);
  assert.deepEqual(tabs.map((client) => client.isLeader), [true, false, false]);
  gateway.write(ROOM, BOB, "hello");
  tabs[2].room(ROOM).send("from the third");
  assert.equal(tabs[2].room(ROOM).messages.at(-1).status, "sending");
  for (const client of tabs) await until(() => contents(client).length === 2 && client.entries.length === 2);
  for (const client of tabs) {
    await until(() => client.room(ROOM).messages.every((message) => message.status === "sent"));
    assert.deepEqual(contents(client), ["hello", "from the third"]);
    assert.equal(client.room(ROOM).unread, 1);
  }
});

test("another tab takes over when the leader is closed, without a gap or a repeat", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  const tab = browser(gateway);
  const [first, second, third] = [await tab(), await tab(), await tab()];
  gateway.write(ROOM, BOB, "one");
  await until(() => third.entries.length === 1);
  gateway.silent.add("send");
  third.room(ROOM).send("two");
  await until(() => gateway.commands.some((command) => command.type === "send"));
  gateway.silent.clear();
  first.stop();
  gateway.write(ROOM, BOB, "meanwhile");
  for (const client of [second, third]) {
    await until(() => client.state === "live" && client.entries.length === 3);
    assert.deepEqual(contents(client), ["one", "meanwhile", "two"]);
    assert.deepEqual(client.entries, ["1:1", "1:2", "1:3"]);
  }
  assert.deepEqual([second.isLeader, third.isLeader], [true, false]);
  assert.equal(gateway.messages(ROOM).length, 3);
});

test("a hidden leader lets a visible tab lead", async () => {
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  first.page.show("hidden");
  await until(() => second.isLeader && !first.isLeader && first.state === "live");
  gateway.write(ROOM, BOB, "hello");
  for (const client of [first, second]) await until(() => contents(client).length === 1);
  assert.equal(gateway.sockets.length, 1);
});

test("a hidden leader without a visible tab stays", async () => {
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  second.page.show("hidden");
  first.page.show("hidden");
  gateway.write(ROOM, BOB, "hello");
  await until(() => contents(second).length === 1);
  assert.ok(first.isLeader);
});

test("a visible tab takes over from a leader that shows no sign of life", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  first.page.isSuspended = true;
  const { now } = Date;
  context.mock.method(Date, "now", () => now() + 61_000);
  context.mock.timers.tick(10_000);
  await until(() => second.isLeader && second.state === "live");
  gateway.write(ROOM, BOB, "hello");
  await until(() => contents(second).length === 1);
  for (const client of [first, second]) client.stop();
});

test("a tab that becomes visible takes over from a leader that the browser has suspended", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  second.page.show("hidden");
  first.page.show("hidden");
  first.page.isSuspended = true;
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
  const { now } = Date;
  context.mock.method(Date, "now", () => now() + 3_000); // The leader sent a message before this tab asks for the lead.
  second.page.show("visible");
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
  assert.ok(!second.isLeader);
  context.mock.timers.tick(3_000);
  await until(() => second.isLeader && second.state === "live");
  gateway.write(ROOM, BOB, "hello");
  await until(() => contents(second).length === 1);
  for (const client of [first, second]) client.stop();
});

test("a visible tab does not take over from a visible leader", async (context) => {
  context.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  const { now } = Date;
  context.mock.method(Date, "now", () => now() + 5_000);
  const { length } = gateway.commands;
  second.page.show("visible");
  await until(() => gateway.commands.length > length); // The leader has checked whether its connection is alive.
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
  context.mock.timers.tick(3_000);
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
  assert.ok(first.isLeader && !second.isLeader);
  for (const client of [first, second]) client.stop();
});

test("a hidden leader lets the visible one of two tabs lead, not the first in the queue", async () => {
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway);
  const [first, second, third] = [await tab(), await tab(), await tab()];
  second.page.show("hidden");
  first.page.show("hidden");
  await until(() => third.isLeader && third.state === "live");
  assert.deepEqual([first.isLeader, second.isLeader], [false, false]);
  first.stop();
  gateway.write(ROOM, BOB, "hello");
  for (const client of [second, third]) await until(() => contents(client).length === 1);
});

test("a hidden tab that gets the lead because another one was closed passes it on", async () => {
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway);
  const [first, second, third] = [await tab(), await tab(), await tab()];
  second.page.show("hidden");
  first.stop();
  await until(() => third.isLeader && third.state === "live");
});

test("a page without locks or channels, as a frame whose storage is blocked, leads alone", async () => {
  const refused = () => Promise.reject(new DOMException("no storage", "SecurityError"));
  const Blocked = class {
    constructor() {
      throw new DOMException("no storage", "SecurityError");
    }
  };
  for (const blocked of [{ locks: { request: refused } }, { BroadcastChannel: Blocked }]) {
    const gateway = new Gateway(ROOM);
    const client = await browser(gateway, blocked)();
    assert.ok(client.isLeader);
  }
});

test("tabs of two users have connections of their own", async () => {
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway, { url: `http://127.0.0.1/${crypto.randomUUID()}` });
  const first = await tab();
  const hello = gateway.hello.bind(gateway);
  gateway.hello = (socket, frame) => hello(socket, frame, BOB);
  const second = await tab({ userId: BOB });
  assert.ok(first.isLeader && second.isLeader);
  assert.equal(second.userId, BOB);
});

test("the room of each tab is watched before further rooms of one tab, and no longer when it is closed", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  gateway.limits.watched_rooms = 2;
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  const watched = () => gateway.commands.filter((command) => command.type === "watch").at(-1)?.room_ids.join();
  first.watch([ROOM, "third", "fourth"]);
  second.watch([OTHER]);
  await until(() => watched() === [ROOM, OTHER].join());
  second.stop();
  await until(() => watched() === [ROOM, "third"].join());
});

test("missed notices lead to one list of rooms, which all tabs get", async () => {
  const gateway = new Gateway(ROOM);
  gateway.write(ROOM, BOB, "one");
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  const lists = () => gateway.commands.filter((command) => command.type === "rooms").length;
  const before = lists();
  gateway.rooms.get(ROOM).read = 1;
  gateway.tell({ type: "missed" });
  for (const client of [first, second]) await until(() => client.room(ROOM).lastReadSeq === 1);
  assert.equal(lists(), before + 1);
});

test("a tab that misses the first event of a room loads it again with the second", async () => {
  const gateway = new Gateway(ROOM);
  gateway.write(ROOM, BOB, "before");
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  first.page.isSuspended = true; // It passes nothing on.
  gateway.write(ROOM, BOB, "one");
  await until(() => first.entries.length === 1);
  first.page.isSuspended = false;
  gateway.write(ROOM, BOB, "two");
  await until(() => contents(second).length === 3);
  assert.deepEqual(contents(second), ["before", "one", "two"]);
});

test("requests of a tab survive the end of the leader", async () => {
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  gateway.silent.add("me");
  const answer = second.request({ type: "me" });
  await until(() => gateway.commands.some((command) => command.type === "me"));
  gateway.silent.clear();
  gateway.answers.me = () => ({ id: BOB });
  first.stop();
  assert.deepEqual(await answer, { id: BOB });
});

test("a request that is to be sent once is not given to the next leader", async () => {
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  gateway.silent.add("typing");
  const answer = second.request({ type: "typing" }, { once: true });
  await until(() => gateway.commands.some((command) => command.type === "typing"));
  first.stop();
  await assert.rejects(answer, { error: "disconnected", retry: true });
  await until(() => second.state === "live");
  assert.equal(gateway.commands.filter((command) => command.type === "typing").length, 1);
});

test("a message that another tab has discarded is not sent by a page that comes back", async () => {
  const gateway = new Gateway(ROOM);
  const rows = new Map();
  const client = await browser(gateway, { indexedDB: database(rows) })();
  gateway.isUp = false;
  gateway.cut();
  await until(() => client.state === "waiting");
  client.room(ROOM).send("better not");
  client.room(ROOM).send("this one");
  await until(() => rows.size === 2);
  client.page.dispatchEvent(new Event("pagehide"));
  rows.delete([...rows.values()].find((row) => row.content === "better not").id);
  gateway.isUp = true;
  client.page.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
  await until(() => client.state === "live" && !rows.size);
  assert.deepEqual(contents(client), ["this one"]);
  assert.deepEqual(gateway.messages(ROOM).map((message) => message.content), ["this one"]);
});

test("a tab that was frozen and missed what the leader passed on loads its rooms again", async () => {
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  gateway.write(ROOM, BOB, "one");
  await until(() => second.entries.length === 1);
  first.page.isSuspended = true; // It passes nothing on.
  gateway.write(ROOM, BOB, "two");
  await until(() => first.entries.length === 2);
  first.page.isSuspended = false;
  gateway.write(ROOM, BOB, "three");
  await until(() => contents(second).length === 3);
  assert.deepEqual(contents(second), ["one", "two", "three"]);
  assert.deepEqual(second.entries, ["1:1", "1:3"]);
});

test("a tab that was frozen while a room was left no longer has it when the leader reconnects", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  first.page.isSuspended = true; // It passes nothing on.
  gateway.rooms.delete(OTHER);
  gateway.tell({ type: "room_gone", room_id: OTHER });
  await until(() => first.rooms.length === 1);
  first.page.isSuspended = false;
  assert.equal(second.rooms.length, 2);
  const ready = new Promise((resolve) => second.on("ready", resolve));
  gateway.cut();
  await ready;
  assert.deepEqual(second.rooms.map((room) => room.id), [ROOM]);
});

test("a tab that was closed while it stole the lock does not keep it", async () => {
  const gateway = new Gateway(ROOM);
  let second = null;
  class Stolen extends Locks {
    request(name, options, hold) {
      const held = super.request(name, options, hold);
      if (options.steal) second.stop(); // Before the lock is granted.
      return held;
    }
  }
  const tab = browser(gateway, { locks: new Stolen() });
  const first = await tab();
  second = await tab();
  first.page.show("hidden");
  await until(() => second.state === "stopped");
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate); // The lock is stolen from the leader.
  await until(() => first.isLeader && first.state === "live");
});

test("an ended session stops all tabs", async () => {
  const gateway = new Gateway(ROOM);
  const tab = browser(gateway);
  const [first, second] = [await tab(), await tab()];
  gateway.cut(4401);
  for (const client of [first, second]) {
    await until(() => client.state === "stopped");
    assert.equal(client.reason.code, 4401);
  }
});

test("a page in the back/forward cache has no connection, and comes back with what it missed", async () => {
  const gateway = new Gateway(ROOM);
  const client = await browser(gateway)();
  client.page.dispatchEvent(new Event("pagehide"));
  assert.equal(gateway.sockets.length, 0);
  gateway.write(ROOM, BOB, "meanwhile");
  client.page.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
  await until(() => client.state === "live" && contents(client).length === 1);
  assert.deepEqual(client.entries, ["1:1"]);
});

test("after a log-in in one tab the tab with the connection connects again", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  const open = browser(gateway);
  const first = await open();
  const second = await open();
  gateway.cut(4401);
  await until(() => first.state === "stopped" && second.state === "stopped");
  assert.equal(second.reason.code, 4401);
  second.start();
  await until(() => first.state === "live" && second.state === "live");
  assert.ok(first.isLeader && !second.isLeader);
  gateway.write(ROOM, BOB, "hello");
  await until(() => contents(second).length === 1 && contents(first).length === 1);
});

test("a new tab connects again for a tab that an ended session has stopped", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  const open = browser(gateway);
  const first = await open();
  gateway.cut(4401);
  await until(() => first.state === "stopped");
  const second = await open();
  assert.ok(first.isLeader && !second.isLeader);
  assert.equal(first.state, "live");
  assert.equal(gateway.sockets.length, 1);
  gateway.write(ROOM, BOB, "hello");
  await until(() => contents(second).length === 1 && contents(first).length === 1);
});

test("a page that comes out of the back/forward cache does not undo the end of a session", async () => {
  const gateway = new Gateway(ROOM, OTHER);
  const open = browser(gateway);
  const [first, second] = [await open(), await open()];
  second.page.dispatchEvent(new Event("pagehide"));
  gateway.cut(4401);
  await until(() => first.state === "stopped");
  second.page.dispatchEvent(Object.assign(new Event("pageshow"), { persisted: true }));
  await until(() => second.state === "stopped");
  assert.equal(second.reason.code, 4401);
  assert.equal(gateway.sockets.length, 0);
});
