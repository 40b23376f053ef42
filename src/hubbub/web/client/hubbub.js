/**
 * hubbub.js: the client of hubbub's gateway, for browsers and Node.js. One module, no dependencies.
 *
 *     const client = new Client({ url: "/chat" });
 *     client.on("messages", (room) => draw(room.messages));
 *     client.start();
 *
 * The client keeps its position in every room and sends the positions when it connects. So it continues without a gap
 * or a repeat, after a second or a year. A message that is sent goes to an outbox first, with an id from the client. It
 * leaves the outbox when the server acknowledges it. docs/client.md describes the client, docs/protocol.md the frames.
 */

const SUBPROTOCOL = "hubbub.1";
const CONNECT_SECONDS = 5; // Until a transport is open. A login may take longer, such as after a restart of the server.
const REQUEST_SECONDS = 30; // Longer than a tunnel or a restart of the server interrupts.
const STABLE_SECONDS = 10; // A connection of this length ends the backoff.
const MAX_WAIT_SECONDS = 30; // A network that is back is noticed within this time, even without a browser event.
const FIRST_WAIT_SECONDS = 0.5; // Most interruptions concern one connection, and the next attempt succeeds.
const GRACE_SECONDS = 10; // Without a byte for the ping interval and this time, the connection is dead.
const PROBE_SECONDS = 5; // A connection that may have died in sleep has this long to answer.
const AT_ONCE = 16; // Commands that a gateway runs at once, unless `ready` has another number.
const MAX_TIMER = 2 ** 31 - 1; // In milliseconds. A longer one fires at once.
const MANY_ROOMS = 128; // In more rooms a client sends fingerprints of its positions first. 128 positions are 9 KB.
const MAX_PAGES = 1024; // From the protocol, like the 10 rooms on a page.
const PAGE = 50; // Messages: more than a screen shows, in one frame of some 20 KB.
const WATCHED_ROOMS = 10; // The limit of a gateway whose `ready` names none.
const TYPING_AGAIN_SECONDS = 3; // Half of the next, so that one lost frame does not end typing for others.
const TYPING_SECONDS = 6; // From the protocol: without another start, other clients end typing then.
const BEAT_SECONDS = 10; // The interval at which the leader of the tabs reports to the others.
const FROZEN_SECONDS = 60; // Browsers run timers of hidden tabs once a minute, so a leader may be silent for that long.
const LEADER_SECONDS = 3; // A leader that is not suspended answers within this time.
const DISK_SECONDS = 3; // Some releases of Safari never answer when IndexedDB is opened.

// ---------------------------------------------------------------------------------------------------------- values

/** A refusal of a command by the server, or the reason why there is no answer. */
export class HubbubError extends Error {
  /** @param {object} frame An `error` of docs/protocol.md. `detail` and the fields after it may be missing. */
  constructor({ error, detail, retry = false, after = null, field = null, outcome_unknown = false }) {
    super(detail ?? error);
    this.name = "HubbubError";
    this.error = error;
    this.retry = retry;
    this.after = after;
    this.field = field;
    this.outcomeUnknown = outcome_unknown;
  }
}

let lastMillisecond = 0;
let lastCount = 0;

/** A UUID of version 7. The ids of one tab sort in the order of their creation. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const now = Date.now();
  if (now > lastMillisecond) {
    lastMillisecond = now;
    lastCount = ((bytes[6] & 7) << 8) | bytes[7];
  } else if (++lastCount > 0xfff) {
    lastMillisecond++;
    lastCount = 0;
  }
  const view = new DataView(bytes.buffer);
  view.setUint16(0, Math.floor(lastMillisecond / 2 ** 32));
  view.setUint32(2, lastMillisecond % 2 ** 32);
  view.setUint16(6, 0x7000 | lastCount);
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** The longest wait in seconds before this attempt, counted from 0. The caller waits a random part of it. */
const backoff = (attempt) => Math.min(MAX_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** attempt);

/** Splits positions into frames of at most 500. There is at least one frame. */
function inFrames(positions) {
  const frames = [];
  for (let at = 0; at === 0 || at < positions.length; at += 500) {
    frames.push({ positions: Object.fromEntries(positions.slice(at, at + 500)), more: at + 500 < positions.length });
  }
  return frames;
}

/** The page of a room, by the random bits at the end of its id. The number of pages is a power of two. */
const pageOf = (roomId, pages) => Number.parseInt(roomId.slice(-4), 16) % pages;

/** A digest of the rooms and cursors of a page, like that of the server, in 12 characters. */
async function fingerprint(page) {
  const lines = page.map(([roomId, cursor]) => roomId.replaceAll("-", "") + cursor).sort();
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(lines.join("")));
  const text = String.fromCharCode(...new Uint8Array(digest, 0, 9));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_");
}

class Emitter {
  #listeners = new Map();

  /** Call `listener` at each event of this name. Returns a function that ends it. */
  on(name, listener) {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  emit(name, ...values) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        listener(...values);
      } catch (error) {
        queueMicrotask(() => {
          throw error; // A failing listener stops neither the others nor the client.
        });
      }
    }
  }
}

// ------------------------------------------------------------------------------------------------------ transports

/** The end of a transport: a code of docs/protocol.md, or 1006 where the network has none. */
class WebSocketTransport {
  #socket;

  constructor({ url, WebSocket }, { opened, received, closed }) {
    const address = new URL("socket", url);
    address.protocol = address.protocol.replace("http", "ws");
    this.#socket = new WebSocket(address.href, [SUBPROTOCOL]);
    this.#socket.onopen = opened;
    this.#socket.onmessage = (message) => received(String(message.data).split("\n"));
    this.#socket.onclose = (close) => closed(close.code);
    this.#socket.onerror = () => {}; // A close event follows, with all that is known.
  }

  hello(hello, rest) {
    for (const frame of [hello, ...rest]) this.send(frame);
  }

  send(frame) {
    this.#socket.send(JSON.stringify(frame));
  }

  close() {
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close(1000);
  }
}

/** Whether an answer comes from the gateway, and not from a proxy or a captive portal. */
const isProblem = ({ headers }) => (headers.get("Content-Type") ?? "").startsWith("application/problem+json");

/** The WebSocket code that corresponds to an answer that refuses a request. */
const codeOf = (response) => (isProblem(response) && { 401: 4401, 403: 4403 }[response.status]) || 1006;

/** Events by a stream that `fetch` reads, commands by POST. For networks that block WebSockets. */
class StreamTransport {
  #options;
  #on;
  #abort = new AbortController();
  #stream = null;
  #hello;
  #token = null; // The token of the stream. The next stream has the newest token.
  #isOpen = false;
  #watched = [];
  #wanted = [];

  constructor(options, on) {
    this.#options = options;
    this.#on = on;
    queueMicrotask(on.opened);
  }

  hello({ token, device, positions }, rest) {
    for (const frame of rest) Object.assign((positions ??= {}), frame.positions);
    this.#hello = { token, device };
    this.#follow(positions);
  }

  /** Read a stream in place of the previous one. */
  async #follow(positions) {
    this.#stream?.abort();
    this.#isOpen = false;
    this.#watched = this.#wanted;
    this.#token = this.#hello.token;
    const stream = (this.#stream = new AbortController());
    const end = (code) => stream === this.#stream && this.#end(code);
    const path = this.#watched.length ? `events?watch=${this.#watched.join()}` : "events";
    try {
      const response = await this.#post(path, { device: this.#hello.device, positions }, stream.signal);
      if (!response.ok) return end(codeOf(response));
      this.#isOpen = true;
      this.#followWanted();
      await this.#read(response.body.getReader(), stream);
    } catch {
      // A network error counts as the end of the stream.
    }
    end(1006);
  }

  async #read(reader, stream) {
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done || stream !== this.#stream) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n|\r/);
      rest = lines.pop();
      this.#on?.received(lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5)));
    }
  }

  async send({ ref, ...command }) {
    if (command.type === "auth") return this.#renew(ref, command.token);
    try {
      const response = await this.#post("commands", command);
      if (codeOf(response) === 4401) return this.#end(4401); // As on the stream. Requests in flight have no answer.
      if (!response.ok && !isProblem(response)) throw new Error("an answer of a proxy");
      const body = await response.json();
      if (response.ok && command.type === "watch") this.#watch(command.room_ids);
      if (response.ok) return this.#answer({ type: "ack", ref, result: body });
      const retry = response.status === 429 || response.status >= 503;
      this.#answer({ ...body, type: "error", ref, error: String(body.type).replace("urn:hubbub:", ""), retry });
    } catch {
      const error = { type: "error", ref, error: "temporarily-unavailable", retry: true, outcome_unknown: true };
      this.#answer({ ...error, retry_after_seconds: 1 });
    }
  }

  /** A stream gets the watched rooms when it begins, so this opens another one at the client's positions. */
  #watch(roomIds) {
    this.#wanted = roomIds;
    // A stream that reaches the server late would close the next one, because both have the same device.
    if (this.#isOpen) this.#followWanted();
  }

  /** Each request has the newest token. Only the stream keeps the token from its beginning. */
  #renew(ref, token) {
    this.#hello.token = token;
    this.#answer({ type: "ack", ref, result: null });
    if (this.#isOpen) this.#followWanted();
  }

  #followWanted() {
    const isCurrent = this.#token === this.#hello.token && this.#wanted.every((id) => this.#watched.includes(id));
    if (this.#on && !isCurrent) this.#follow(this.#on.positions());
  }

  close() {
    this.#on = null;
    this.#stream?.abort();
    this.#abort.abort();
  }

  #post(path, body, signal = this.#abort.signal) {
    const headers = { "Content-Type": "application/json" };
    if (this.#hello.token) headers.Authorization = `Bearer ${this.#hello.token}`;
    const { fetch, url } = this.#options;
    // The cookie is also sent to other hosts of the same site, as for a WebSocket. With a token it is not needed, and
    // a browser hides answers with `Access-Control-Allow-Origin: *` from requests that may have cookies.
    const credentials = this.#hello.token ? "same-origin" : "include";
    return fetch(new URL(path, url), { method: "POST", credentials, headers, body: JSON.stringify(body), signal });
  }

  #answer(frame) {
    this.#on?.answered(frame);
  }

  #end(code) {
    const on = this.#on;
    this.#on = null;
    on?.closed(code);
  }
}

// ------------------------------------------------------------------------------------------------------ connection

/**
 * One connection at a time, until `stop`.
 *
 *     idle -> connecting -> catching_up -> live -> waiting -> connecting ...
 *                                any of them -> stopped, by `stop` or by a code after which clients stay away
 */
class Connection {
  state = "idle";
  reason = null;
  #options;
  #on;
  #transport = null;
  #isReady = false;
  #readyAt = 0;
  #heardAt = 0;
  #hasExpiry = false;
  #attempts = 0;
  #turn = 0; // Attempts since the choice between socket and stream started.
  #usual = null; // The last transport that was ready.
  #isHeldBack = false;
  #bye = null;
  #timer = null;
  #silence = null;
  #renewal = null;
  #pingSeconds = 25;
  #spreadSeconds = 0;
  #atOnce = AT_ONCE;
  #frameBytes = Infinity;
  #lastRef = 0;
  #queue = [];
  #inFlight = new Map();
  #device = newId();
  #pages = [];

  constructor(options, on) {
    this.#options = options;
    this.#on = on;
  }

  start() {
    if (this.state === "idle" || this.state === "stopped") this.#connect();
  }

  /** The network may be back or may have changed: connect now, or check whether the connection is alive. */
  wake() {
    if (this.state === "waiting" && !this.#isHeldBack) this.#connect();
    else if (this.state === "connecting" && this.#transport) this.#expectWithin(PROBE_SECONDS);
    if (!this.#isReady) return;
    const silentSeconds = (Date.now() - this.#heardAt) / 1000; // Timers stop while a machine is asleep.
    if (silentSeconds > this.#pingSeconds + GRACE_SECONDS) return this.#lost(1006);
    if (!(this.#transport instanceof WebSocketTransport)) return; // An answer to a POST proves nothing about the stream.
    // The gateway refuses this unknown frame without a query.
    this.#transport.send({ type: "probe", ref: ++this.#lastRef });
    this.#expectWithin(PROBE_SECONDS);
  }

  /** End the connection. `start` connects again. Returns the requests that have no answer. */
  pause() {
    if (this.state === "stopped") return [];
    this.#drop();
    this.#enter("idle");
    const requests = this.#queue.splice(0);
    for (const request of requests) this.#end(request);
    return requests;
  }

  stop(reason = null) {
    this.#drop();
    this.reason = reason;
    for (const request of this.#queue.splice(0)) this.#fail(request, { error: "stopped" });
    this.#enter("stopped");
  }

  /** The caller has loaded everything that was missed. */
  caughtUp() {
    if (this.state === "catching_up") this.#enter("live");
  }

  /**
   * The result of a command. It is sent again after an interruption. With `once` its outcome is unknown instead.
   */
  request(command, { once = false, seconds = REQUEST_SECONDS } = {}) {
    return new Promise((resolve, reject) => {
      const request = { command, once, resolve, reject, isSent: false, wasCut: false, isHeld: false };
      if (this.state === "stopped") return this.#fail(request, { error: "stopped" });
      request.timer = setTimeout(() => {
        this.#queue = this.#queue.filter((other) => other !== request);
        for (const [ref, other] of this.#inFlight) if (other === request) this.#inFlight.delete(ref);
        this.#fail(request, { error: "timeout", retry: true });
        this.#pump();
      }, seconds * 1000);
      this.#queue.push(request);
      this.#pump();
    });
  }

  #end(request) {
    clearTimeout(request.timer);
    clearTimeout(request.hold);
  }

  #fail(request, error) {
    this.#end(request);
    request.reject(new HubbubError({ outcome_unknown: request.isSent, ...error }));
  }

  #enter(state) {
    if (this.state === state) return;
    this.state = state;
    this.#on.state(state);
  }

  async #connect() {
    this.#drop();
    this.reason = null;
    this.#bye = null;
    this.#isHeldBack = false;
    this.#enter("connecting");
    const limit = (seconds) => (this.#timer = setTimeout(() => this.#lost(1006), seconds * 1000));
    const asking = limit(REQUEST_SECONDS);
    let token;
    try {
      token = await this.#options.getToken?.();
    } catch {
      if (this.#timer === asking) this.#lost(1006);
      return;
    }
    if (this.#timer !== asking) return; // Stopped, or too late.
    clearTimeout(asking);
    limit(CONNECT_SECONDS);
    const Transport = this.#nextTransport();
    let transport = null;
    const current = (handler) => (value) => transport === this.#transport && handler(value);
    try {
      transport = new Transport(this.#options, {
        opened: current(() => this.#opened(token)),
        received: current((lines) => this.#received(lines)),
        answered: current((frame) => this.#answer(frame)),
        closed: current((code) => this.#lost(code)),
        positions: () => this.#on.positions(),
      });
    } catch {
      return this.#lost(1006);
    }
    this.#transport = transport;
  }

  /**
   * Until a transport has worked, two of four attempts are streams. Later one of four uses the other transport, because
   * a server that is down is more likely than a changed network.
   */
  #nextTransport() {
    const { WebSocket, fetch } = this.#options;
    const turn = this.#turn++ % 4;
    const isForSocket = this.#usual === StreamTransport ? turn === 3 : turn < (this.#usual ? 3 : 2);
    return WebSocket && (isForSocket || !fetch) ? WebSocketTransport : StreamTransport;
  }

  async #opened(token) {
    clearTimeout(this.#timer);
    this.#expectWithin(this.#pingSeconds + GRACE_SECONDS);
    const transport = this.#transport;
    const hello = { type: "hello", device: this.#device };
    if (token) hello.token = token;
    const positions = Object.entries(this.#on.positions());
    // Pages without TLS have no crypto.subtle, and streams have the positions in their body.
    if (positions.length > MANY_ROOMS && globalThis.crypto.subtle && transport instanceof WebSocketTransport) {
      const pages = Math.min(2 ** Math.ceil(Math.log2(positions.length / 10)), MAX_PAGES);
      this.#pages = Array.from({ length: pages }, () => []);
      for (const position of positions) this.#pages[pageOf(position[0], pages)].push(position);
      hello.pages = (await Promise.all(this.#pages.map(fingerprint))).join("");
      if (transport === this.#transport) transport.hello(hello, []);
      return;
    }
    const [first, ...rest] = inFrames(positions);
    if (positions.length) Object.assign(hello, first);
    transport.hello(hello, rest.map((frame) => ({ type: "positions", ...frame })));
  }

  /** The server asks for the positions on these pages, because its heads differ. */
  #sendPages(numbers) {
    const positions = numbers.flatMap((number) => this.#pages[number] ?? []);
    for (const frame of inFrames(positions)) this.#transport.send({ type: "positions", ...frame });
  }

  #received(lines) {
    this.#heardAt = Date.now();
    this.#expectWithin(this.#pingSeconds + GRACE_SECONDS);
    const frames = [];
    for (const line of lines) {
      let frame;
      try {
        frame = JSON.parse(line);
      } catch {
        continue; // Like a frame that is unknown to this version.
      }
      if (frame.type === "ack" || frame.type === "error") this.#answer(frame);
      else if (frame.type === "ask") this.#sendPages(frame.pages);
      else if (frame.type === "ready") this.#ready(frame, frames);
      else if (frame.type === "bye") this.#bye = frame;
      else if (frame.type !== "ping") frames.push(frame);
      if (!this.#transport) return; // A listener has stopped the connection.
    }
    if (frames.length) this.#on.frames(frames);
  }

  #ready(frame, frames) {
    const { userId } = this.#options;
    if (userId && userId !== frame.user_id) return this.stop({ code: 4401, detail: "another user is logged in" });
    // A client that resumes has the positions of its rooms, but other tabs may lack them.
    if (frame.resumed) frame.positions = { ...this.#on.positions(), ...frame.positions };
    this.#isReady = true;
    this.#pages = [];
    const kind = this.#transport.constructor;
    if (kind === WebSocketTransport || kind !== this.#usual) this.#turn = 0;
    this.#usual = kind;
    this.#readyAt = Date.now();
    this.#pingSeconds = frame.ping_seconds ?? this.#pingSeconds;
    this.#spreadSeconds = frame.spread_seconds ?? 0;
    this.#atOnce = frame.limits?.commands ?? AT_ONCE;
    this.#frameBytes = frame.limits?.frame_bytes ?? Infinity;
    this.#expectWithin(this.#pingSeconds + GRACE_SECONDS);
    this.#hasExpiry = frame.expires_in_seconds != null;
    this.#renew(frame.expires_in_seconds);
    frames.push(frame);
    this.#enter("catching_up");
    this.#pump();
  }

  /** Any byte shows that the connection is alive. Scripts do not see the pings of WebSockets. */
  #expectWithin(seconds) {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#lost(1006), seconds * 1000);
  }

  /** Replace a token before it expires. */
  #renew(seconds) {
    clearTimeout(this.#renewal);
    if (seconds == null || !this.#options.getToken) return;
    const renewal = setTimeout(async () => {
      let left = seconds * 0.2;
      try {
        const token = await this.#options.getToken();
        if (renewal !== this.#renewal) return;
        left = (await this.request({ type: "auth", token }))?.expires_in_seconds;
      } catch {
        // Repeat while the old token is valid. After that the next connection asks for a token.
      }
      if (renewal === this.#renewal) this.#renew(left);
    }, Math.min(Math.max(seconds * 0.8, 1) * 1000, MAX_TIMER));
    this.#renewal = renewal;
  }

  #pump() {
    while (this.#isReady && this.#inFlight.size < this.#atOnce) {
      const at = this.#queue.findIndex((one) => !one.isHeld);
      if (at < 0) return;
      const [request] = this.#queue.splice(at, 1);
      const frame = { ...request.command, ref: ++this.#lastRef };
      // A larger frame would end the connection of all tabs.
      if (new TextEncoder().encode(JSON.stringify(frame)).length > this.#frameBytes) {
        this.#fail(request, { error: "too-large", detail: `a command may have ${this.#frameBytes} bytes` });
        continue;
      }
      this.#inFlight.set(frame.ref, request);
      request.isSent = true;
      this.#transport.send(frame);
    }
  }

  #answer(frame) {
    const request = this.#inFlight.get(frame.ref);
    if (!request) return;
    this.#inFlight.delete(frame.ref);
    if (frame.type === "ack") {
      this.#end(request);
      request.resolve(frame.result);
    } else if (frame.error === "too-many-attempts" && !request.once) {
      request.isHeld = true;
      request.isSent = request.wasCut; // A command that was interrupted may have been done.
      request.hold = setTimeout(() => {
        request.isHeld = false;
        this.#pump();
      }, (frame.retry_after_seconds ?? 1) * 1000);
      this.#queue.push(request);
    } else {
      this.#fail(request, { outcome_unknown: false, ...frame, after: frame.retry_after_seconds });
    }
    this.#pump();
  }

  /** Drop the transport without waiting for its end. Requests in flight wait for the next one, in their order. */
  #drop() {
    clearTimeout(this.#timer);
    clearTimeout(this.#silence);
    clearTimeout(this.#renewal);
    this.#timer = this.#renewal = null;
    this.#transport?.close();
    this.#transport = null;
    this.#isReady = false;
    const requests = [...this.#inFlight.values()];
    this.#inFlight.clear();
    for (const request of requests.filter((one) => one.once)) {
      this.#fail(request, { error: "disconnected", retry: true });
    }
    const repeated = requests.filter((one) => !one.once);
    for (const request of repeated) request.wasCut = true;
    this.#queue.unshift(...repeated);
  }

  #lost(code) {
    const bye = this.#bye;
    const wasReady = this.#isReady;
    if (wasReady && Date.now() - this.#readyAt > STABLE_SECONDS * 1000) this.#attempts = 0;
    this.#drop();
    code = bye?.code ?? code;
    if (code === 4503) this.#on.forget();
    // A token may expire while the machine is asleep. One new token is tried: a second 4401 without a `ready` counts.
    const hasExpired = code === 4401 && wasReady && this.#hasExpiry && this.#options.getToken;
    // Each client has its own device. 4409 means that an abandoned connection reached the server after this one.
    const isOwn = code === 4409;
    const isFinal = code === 1009 || (code >= 4400 && code < 4500 && ![4408, 4429].includes(code));
    const mayReturn = hasExpired || isOwn || (bye?.reconnect ?? !isFinal);
    if (!mayReturn) return this.stop({ code, detail: bye?.reason ?? null });
    // A server that shuts down closes all connections at once, and not every server sends `bye`.
    const within = bye?.within_seconds || ([1012, 1013].includes(code) ? this.#spreadSeconds : 0);
    this.#isHeldBack = code === 4429 && within > 0;
    this.#enter("waiting");
    if (this.state !== "waiting") return; // A listener has stopped the client.
    this.#timer = setTimeout(() => this.#connect(), this.#wait(within) * 1000);
  }

  /** The wait in seconds with full jitter, so that a thousand clients do not reconnect at the same time. */
  #wait(within) {
    const random = this.#options.random();
    if (this.#isHeldBack) return within * (1 + random);
    return Math.max(within, backoff(this.#attempts++)) * random;
  }
}

// ---------------------------------------------------------------------------------------------------------- outbox

/** Unsent messages in the order of typing. They outlive the page. */
class Outbox {
  isDurable = false;
  entries = [];
  #stored = new Set(); // The ids of entries that have been on the disk.
  #unsaved = new Map(); // The ids of this tab's entries that are not on the disk, and whether writing was tried.
  #indexedDB;
  #name;
  #late;
  #database = null;
  #lastNumber = 0;

  /** `late` is called when the disk answers after its deadline. */
  constructor({ indexedDB, name }, late) {
    this.#indexedDB = indexedDB;
    this.#name = `hubbub:${name}`;
    this.#late = late;
  }

  /**
   * Read the entries on the disk, for the first time or again. Returns the entries that another tab has deleted since.
   * Without IndexedDB, as in some private windows, the outbox ends with the page.
   */
  async open() {
    if (!this.#indexedDB) return [];
    try {
      const entries = await this.#run("readonly", (store) => store.getAll());
      const ids = new Set(entries.map((entry) => entry.id));
      const gone = this.entries.filter((entry) => this.#stored.has(entry.id) && !ids.has(entry.id));
      for (const entry of gone) this.forget(entry.id);
      for (const entry of entries) {
        this.#stored.add(entry.id);
        this.put(entry);
      }
      this.isDurable = true;
      for (const id of [...this.#unsaved.keys()]) {
        const entry = this.entries.find((one) => one.id === id);
        // A missing entry was sent or discarded while earlier entries were written.
        if (entry) await this.add(entry);
      }
      return gone;
    } catch {
      this.#fallBack();
      return [];
    }
  }

  /** Number and write an entry. It is in the outbox when this returns, and on the disk when the promise resolves. */
  async add(entry) {
    entry.number = ++this.#lastNumber;
    this.put(entry);
    this.#unsaved.set(entry.id, this.isDurable);
    const isWritten = await this.#write((store) => {
      // Tabs share the numbers: an entry comes after all entries in the database.
      const newest = store.index("number").openCursor(null, "prev");
      newest.onsuccess = () => {
        entry.number = Math.max(entry.number, (newest.result?.key ?? 0) + 1);
        this.#lastNumber = Math.max(this.#lastNumber, entry.number);
        store.put(entry);
      };
    });
    if (!isWritten) return;
    if (!this.has(entry.id)) return this.remove(entry.id); // It was removed while it was written.
    this.#unsaved.delete(entry.id);
    this.#stored.add(entry.id);
  }

  /** Add an entry of another tab, or replace a changed one. */
  put(entry) {
    this.#lastNumber = Math.max(this.#lastNumber, entry.number);
    this.entries = this.entries.filter((one) => one.id !== entry.id);
    this.entries.push(entry);
    this.entries.sort((a, b) => a.number - b.number);
  }

  async update(entry) {
    this.put(entry);
    await this.#write((store) => store.put(entry));
  }

  /** Remove an entry, even if writing has failed in the meantime, because the next page sends what is on the disk. */
  async remove(id) {
    const wasTried = this.#unsaved.get(id) ?? true;
    this.forget(id);
    if (!wasTried) return;
    await this.#erase((store) => store.delete(id));
  }

  has(id) {
    return this.entries.some((entry) => entry.id === id);
  }

  isStored(id) {
    return this.#stored.has(id);
  }

  /** Forget an entry, which the leader deletes from the disk. */
  forget(id) {
    this.entries = this.entries.filter((entry) => entry.id !== id);
    this.#stored.delete(id);
    this.#unsaved.delete(id);
  }

  async clear() {
    for (const { id } of this.entries) this.forget(id);
    await this.#erase((store) => store.clear());
  }

  close() {
    this.#database?.then((database) => database.close(), () => {});
    this.#database = null;
  }

  /** Returns whether the change is on the disk. */
  async #write(change, mayWrite = this.isDurable) {
    if (!mayWrite) return false;
    try {
      await this.#run("readwrite", change);
      return true;
    } catch {
      this.#fallBack();
      return false;
    }
  }

  /** A page that writes nothing to the disk any more still erases from it. */
  #erase(change) {
    return this.#write(change, Boolean(this.#indexedDB));
  }

  /** Run one transaction. Browsers close the database of a page in the background, and then it is opened once more. */
  async #run(mode, work) {
    for (let attempt = 1; ; attempt++) {
      try {
        const database = await (this.#database ??= this.#connect());
        return await new Promise((resolve, reject) => {
          const transaction = database.transaction("outbox", mode);
          const request = work(transaction.objectStore("outbox"));
          transaction.oncomplete = () => resolve(request?.result);
          transaction.onabort = transaction.onerror = () => reject(transaction.error);
        });
      } catch (error) {
        this.close();
        if (attempt === 2 || error?.name === "TimeoutError") throw error;
      }
    }
  }

  #connect() {
    return new Promise((resolve, reject) => {
      const request = this.#indexedDB.open(this.#name, 2);
      let isLate = false;
      const limit = setTimeout(() => {
        isLate = true;
        reject(new DOMException("IndexedDB does not answer", "TimeoutError"));
      }, DISK_SECONDS * 1000);
      const fail = () => {
        isLate = true;
        clearTimeout(limit);
        reject(request.error ?? new Error("IndexedDB is blocked"));
      };
      request.onupgradeneeded = () => {
        const { result } = request;
        if (result.objectStoreNames.contains("outbox")) result.deleteObjectStore("outbox");
        result.createObjectStore("outbox", { keyPath: "id" }).createIndex("number", "number");
      };
      request.onsuccess = () => {
        clearTimeout(limit);
        request.result.onversionchange = () => this.close();
        resolve(request.result);
        if (!isLate) return;
        // The database stays open, because a slow disk would be late at the next opening as well.
        if (this.#database) request.result.close();
        else this.#database = Promise.resolve(request.result);
        this.#late();
      };
      request.onerror = request.onblocked = fail;
    });
  }

  #fallBack() {
    this.isDurable = false;
    this.close();
  }
}

// ------------------------------------------------------------------------------------------------------------ tabs

/**
 * Several tabs with one connection. The tab that holds a lock of the browser is the leader and has the connection.
 * It forwards events to the other tabs and sends for them. Without locks or a channel each tab is a leader.
 *
 * A visible tab asks for the lead, because browsers throttle hidden tabs, and suspend them on phones. A hidden leader
 * lets it steal the lock, as the next tab in the queue may be hidden, too. A leader that does not answer is suspended.
 */
class Tabs {
  isLeader = false;
  #id = newId();
  #name;
  #locks;
  #channel = null;
  #on;
  #release = null;
  #waiting = null;
  #asking = null;
  #yieldedAt = 0;
  #heardAt = Date.now();
  #lastRef = 0;
  #requests = new Map();

  constructor({ name, locks, BroadcastChannel }, on) {
    this.#name = `hubbub:${name}`;
    this.#on = on;
    if (!locks || !BroadcastChannel) return;
    this.#locks = locks;
    try {
      this.#channel = new BroadcastChannel(this.#name);
    } catch {
      return; // A frame whose storage is blocked has no channel.
    }
    this.#channel.onmessage = ({ data }) => this.#received(data);
  }

  /** With `starts`, a leader that was stopped by the server reconnects. */
  start({ starts }) {
    if (!this.#channel) return this.#leadAlone();
    this.#queueUp();
    if (starts) this.post({ kind: "start" });
    this.post({ kind: "who" });
    this.askToLead();
  }

  close() {
    clearTimeout(this.#asking);
    this.#waiting?.abort();
    this.#release?.();
    this.isLeader = false;
    for (const request of this.#requests.values()) {
      request.reject(new HubbubError({ error: "stopped", outcome_unknown: true }));
    }
    this.#closeChannel();
  }

  #closeChannel() {
    if (this.#channel) this.#channel.onmessage = null;
    this.#channel?.close();
    this.#channel = null;
  }

  post(message) {
    this.#channel?.postMessage({ ...message, tab: this.#id });
  }

  /** Send a request by the connection of the leader. A new leader gets it again. */
  request(command, options = {}) {
    return new Promise((resolve, reject) => {
      const ref = ++this.#lastRef;
      const end = (settle) => (value) => {
        clearTimeout(timer);
        this.#requests.delete(ref);
        settle(value);
      };
      const expire = () => end(reject)(new HubbubError({ error: "timeout", retry: true, outcome_unknown: true }));
      const timer = setTimeout(expire, (options.seconds ?? REQUEST_SECONDS) * 1000);
      this.#requests.set(ref, { ref, command, options, resolve: end(resolve), reject: end(reject) });
      this.post({ kind: "request", ref, command, options });
    });
  }

  /** The requests that a new leader gets again. Requests with `once` are excluded, because they may have been sent. */
  #toRepeat() {
    for (const { options, reject } of [...this.#requests.values()]) {
      if (options.once) reject(new HubbubError({ error: "disconnected", retry: true, outcome_unknown: true }));
    }
    return [...this.#requests.values()];
  }

  /** The leader is hidden, so visible tabs ask for the lead. */
  hidden() {
    if (this.isLeader) this.post({ kind: "hidden" });
  }

  /** This tab is visible. */
  askToLead() {
    if (this.isLeader || !this.#channel || !this.#on.isVisible()) return;
    const askedAt = Date.now();
    this.post({ kind: "visible" });
    clearTimeout(this.#asking);
    this.#asking = setTimeout(() => {
      if (this.#heardAt < askedAt && this.#on.isVisible()) this.#steal();
    }, LEADER_SECONDS * 1000);
  }

  /** This tab is visible and has received nothing from the leader for this long, so the leader may be frozen. */
  stealAfter(seconds) {
    if (Date.now() - this.#heardAt >= seconds * 1000) this.#steal();
  }

  #steal() {
    if (this.isLeader || !this.#channel) return;
    this.#heardAt = Date.now();
    this.#queueUp({ steal: true });
  }

  /** Request the lock: the former leader no longer has it, or this tab waits behind the leader. */
  #queueUp(options = {}) {
    this.#waiting?.abort();
    const waiting = (this.#waiting = options.steal ? null : new AbortController());
    const lead = () => {
      if (!this.#channel) return; // The lock was granted after `close`. A promise would hold it.
      return new Promise((resolve) => {
        this.#release = resolve;
        this.#waiting = null;
        this.#lead();
      });
    };
    this.#locks.request(this.#name, waiting ? { signal: waiting.signal } : options, lead).then(
      () => {},
      (error) => {
        if (waiting?.signal.aborted || !this.#channel) return;
        if (error?.name !== "AbortError") this.#leadAlone(); // A frame whose storage is blocked gets no lock.
        else if (this.isLeader) this.#follow(); // Another tab has stolen the lock.
      },
    );
  }

  #leadAlone() {
    this.#closeChannel();
    this.#lead();
  }

  #lead() {
    clearTimeout(this.#asking);
    this.isLeader = true;
    this.#on.lead();
    for (const { command, options, resolve, reject } of this.#toRepeat()) {
      this.#on.request(command, options).then(resolve, reject);
    }
    if (!this.#on.isVisible()) this.hidden();
  }

  #follow() {
    this.isLeader = false;
    this.#release = null;
    this.#heardAt = Date.now();
    this.#on.follow();
    if (this.#channel) this.#queueUp();
  }

  #received(message) {
    if (message.tab !== this.#id && ["leader", "frames"].includes(message.kind)) this.#heardAt = Date.now();
    if (message.kind === "request") {
      if (this.isLeader) this.#answer(message);
    } else if (message.kind === "reply") {
      if (message.to !== this.#id) return;
      const request = this.#requests.get(message.ref);
      if (message.error) request?.reject(new HubbubError(message.error));
      else request?.resolve(message.result);
    } else if (message.kind === "hidden") {
      this.askToLead();
    } else if (message.kind === "visible") {
      if (this.isLeader) this.#yieldTo(message.tab);
    } else if (message.kind === "lead") {
      if (message.to === this.#id) this.#steal();
    } else {
      if (message.kind === "leader" && message.isNew) {
        for (const { ref, command, options } of this.#toRepeat()) this.post({ kind: "request", ref, command, options });
      }
      this.#on.message(message);
    }
  }

  #yieldTo(tab) {
    if (this.#on.isVisible()) return this.#on.stays();
    if (Date.now() - this.#yieldedAt < LEADER_SECONDS * 1000) return; // Another tab takes the lead.
    this.#yieldedAt = Date.now();
    this.post({ kind: "lead", to: tab });
  }

  async #answer({ tab, ref, command, options }) {
    try {
      this.post({ kind: "reply", to: tab, ref, result: (await this.#on.request(command, options)) ?? null });
    } catch ({ error, message, retry, after, field, outcomeUnknown }) {
      const frame = { error, detail: message, retry, after, field, outcome_unknown: outcomeUnknown };
      this.post({ kind: "reply", to: tab, ref, error: frame });
    }
  }
}

// ------------------------------------------------------------------------------------------------------------ rooms

/** A time of the server as sortable text. The server omits zeros at the end of a fraction. */
function instant(time) {
  const [, second, fraction = ""] = /^([^.Z+]*)(?:\.(\d+))?/.exec(time ?? "");
  return `${second}.${fraction.padEnd(9, "0")}`;
}

/** The messages of a room, each once: first those of the log by `seq`, then unsent ones in the order of typing. */
class Timeline {
  #byId = new Map();
  #logged = [];
  #pending = [];
  #list = null;

  /** A change replaces the array, and the object of a changed message. */
  get list() {
    return (this.#list ??= Object.freeze([...this.#logged, ...this.#pending]));
  }

  get oldest() {
    return this.#logged[0]?.seq ?? null;
  }

  get newest() {
    return this.#logged.at(-1)?.seq ?? null;
  }

  get(id) {
    return this.#byId.get(id);
  }

  /** Add a message of the log, from a page, an event or an answer. A deletion wins, then the later change. */
  log(message) {
    const known = this.#byId.get(message.id);
    if (known && known.seq !== null) {
      if (known.deleted_at && !message.deleted_at) return;
      if (!message.deleted_at && instant(message.updated_at) < instant(known.updated_at)) return;
      const at = this.#find(known.seq);
      this.#logged[at] = this.#know({ ...message, status: "sent" });
      return;
    }
    if (known) this.#pending = this.#pending.filter((other) => other.id !== message.id);
    this.#logged.splice(this.#find(message.seq), 0, this.#know({ ...message, status: "sent" }));
  }

  /** Add a message of the outbox. */
  wait({ number, status, error = null, detail = null, ...fields }) {
    const known = this.#byId.get(fields.id);
    if (known && known.seq !== null) return;
    const message = this.#know({ ...fields, seq: null, is_edited: false, deleted_at: null, status, error, detail });
    const at = this.#pending.findIndex((other) => other.id === fields.id);
    if (at >= 0) this.#pending[at] = message;
    else this.#pending.push(message);
  }

  discard(id) {
    this.#byId.delete(id);
    this.#pending = this.#pending.filter((message) => message.id !== id);
    this.#list = null;
  }

  /** Forget messages of the log, except the newest. Returns whether any was forgotten. */
  reset(keep = 0) {
    const forgotten = this.#logged.splice(0, Math.max(0, this.#logged.length - keep));
    for (const message of forgotten) this.#byId.delete(message.id);
    this.#list = null;
    return forgotten.length > 0;
  }

  #know(message) {
    this.#list = null;
    this.#byId.set(message.id, Object.freeze(message));
    return message;
  }

  /** The index of the first message that is not before this seq. Most calls are about the end. */
  #find(seq) {
    let from = 0;
    let to = this.#logged.length;
    if (to && this.#logged[to - 1].seq < seq) return to;
    while (from < to) {
      const middle = (from + to) >> 1;
      if (this.#logged[middle].seq < seq) from = middle + 1;
      else to = middle;
    }
    return from;
  }
}

/** A room of the user: its name, its loaded messages, its unread count and its members. */
export class Room {
  name = "";
  description = null;
  isPrivate = true;
  isDirect = false;
  isGone = false;
  isLoaded = false;
  hasOlder = false;
  role = null;
  partnerId = null;
  createdBy = null;
  lastMessage = null;
  lastReadSeq = 0;
  activeAt = "";
  /** The members and their roles, by user id, once `loadMembers` has been called. */
  members = new Map();
  /** The application's metadata of each member in this room, by user id. Members without any are missing. */
  memberMetadata = new Map();
  /** The `seq` up to which other members have read, as far as it is known. */
  readMarks = new Map();

  #client;
  #timeline = new Timeline();
  #isAttached = false;
  #generation = 0;
  #loading = null;
  #failures = 0;
  #older = null;
  #held = new Map();
  #typing = new Map();
  #typedAt = 0;
  #counted = { unread: 0, upTo: 0 };
  #newer = [];
  #loads = new Set(); // For each `loadMembers` that runs, the events of members since its start.

  /** @internal The newest entry of the log that was received as an event. */
  _seq = null;
  /** @internal The head of the log when the list of rooms was read. */
  _head = 0;

  constructor(client, id) {
    this.#client = client;
    this.id = id;
  }

  /** The loaded messages, the oldest first. A new array after each change. */
  get messages() {
    return this.#timeline.list;
  }

  message(id) {
    return this.#timeline.get(id);
  }

  /** The number of messages of others after the read mark. The server counts up to 100 of them. */
  get unread() {
    return this.#counted.unread + this.#newer.length;
  }

  /** The ids of the other users who are typing. */
  get typing() {
    return [...this.#typing.keys()];
  }

  /** Load the newest messages. Later messages are added automatically. */
  load() {
    if (this.isLoaded) return Promise.resolve();
    return (this.#loading ??= this.#loadNewest().finally(() => (this.#loading = null)));
  }

  async #loadNewest() {
    for (;;) {
      const generation = this.#generation;
      this.#isAttached = true; // From here on events are kept, so that none is lost between the page and the events.
      const page = await this.#newestPage();
      if (generation !== this.#generation) continue;
      this.#merge(page);
      this.isLoaded = true;
      this.#failures = 0;
      return;
    }
  }

  async #newestPage() {
    try {
      return await this.#client.request({ type: "page", room_id: this.id, limit: PAGE });
    } catch (error) {
      // The caller may not call this again.
      if (error.retry) this.#client._retryLater(this.#failures++, error, () => this._resume());
      throw error;
    }
  }

  /** Load messages before the loaded ones. Returns whether there are more. */
  loadOlder(limit = PAGE) {
    if (!this.hasOlder) return Promise.resolve(false);
    return (this.#older ??= this.#loadBefore(limit).finally(() => (this.#older = null)));
  }

  async #loadBefore(limit) {
    const generation = this.#generation;
    const before = this.#timeline.oldest;
    const page = await this.#client.request({ type: "page", room_id: this.id, before, limit });
    if (generation === this.#generation) this.#merge(page);
    return this.hasOlder;
  }

  /** Forget all loaded messages except the newest, such as when the room is hidden. `loadOlder` reloads them. */
  forgetOlder(keep = 100) {
    if (!this.isLoaded || this.#older || !this.#timeline.reset(keep)) return;
    this.hasOlder = true;
    this.#client._changed(this);
  }

  #merge(page) {
    this.#client._people(page.users);
    for (const message of page.items) this.#timeline.log(message);
    for (const message of this.#held.values()) if (message.seq >= this.#timeline.oldest) this.#timeline.log(message);
    this.#held.clear();
    this.hasOlder = page.has_older;
    this.#client._changed(this);
  }

  /** Send a message. It is in `messages` at once, with the status `sending` and later `sent` or `failed`. */
  send(content, { replyTo = null, messageType = "text", metadata = null } = {}) {
    const user_id = this.#client.userId;
    if (!user_id) throw new HubbubError({ error: "not-logged-in", detail: "the user is not known yet" });
    const now = new Date().toISOString();
    const entry = { id: newId(), room_id: this.id, user_id, content, message_type: messageType, reply_to: replyTo };
    Object.assign(entry, { metadata, created_at: now, updated_at: now, status: "sending" });
    this.#typedAt = 0;
    this.#client._enqueue(entry);
    return this.#timeline.get(entry.id);
  }

  /** Send a failed message again. */
  retry(id) {
    this.#client._retry(id);
  }

  /** Remove an unsent message from the outbox. */
  discard(id) {
    this.#client._discard(this, id);
  }

  /**
   * Change a message of the log. Unlike a message, an edit is not stored for later, because the message may change in
   * the meantime. Without a connection it waits up to 30 seconds for one, and then rejects with `timeout`.
   */
  async edit(id, content) {
    this.#log(await this.#client.request({ type: "edit", room_id: this.id, message_id: id, content }));
  }

  /** Delete a message of the log, under the conditions of `edit`. `discard` removes an unsent message. */
  async delete(id) {
    this.#log(await this.#client.request({ type: "delete", room_id: this.id, message_id: id }));
  }

  /** Mark everything up to this `seq` as read. The mark is sent when there is a connection. */
  markRead(seq = this.#timeline.newest) {
    if (seq === null || seq <= this.lastReadSeq) return;
    this._readUpTo(seq);
    this.#client._mark(this, seq);
  }

  /** Mark everything from this `seq` on as unread. */
  async markUnread(seq) {
    await this.#client._sendMarks(); // A read mark that is sent later would undo this one.
    this.#client._unmark(this.id);
    const { last_read_seq } = await this.#client.request({ type: "unread", room_id: this.id, from_seq: seq });
    this._readUpTo(last_read_seq);
    this.#client._changed(this);
  }

  /** The readers of a message: each user with the time, or null if the room keeps no times. */
  async readers(id) {
    const readers = [];
    for await (const { user_id, read_at } of this.#allOf({ type: "readers", message_id: id })) {
      readers.push({ userId: user_id, readAt: read_at });
    }
    return readers;
  }

  /** The items of all pages of a list of the room. */
  async *#allOf(command) {
    let after; // Undefined at first, so that the first frame does not have it.
    do {
      const page = await this.#client.request({ ...command, room_id: this.id, limit: 200, after });
      this.#client._people(page.users);
      yield* page.items;
      after = page.next;
    } while (after);
  }

  /** Report that the user is typing. Call it at each key: at most one frame in 3 seconds is sent. */
  startTyping() {
    if (Date.now() - this.#typedAt < TYPING_AGAIN_SECONDS * 1000) return;
    this.#typedAt = Date.now();
    this.#client._typing(this.id, true);
  }

  stopTyping() {
    if (!this.#typedAt) return;
    this.#typedAt = 0;
    this.#client._typing(this.id, false);
  }

  async loadMembers() {
    const members = new Map();
    const metadata = new Map();
    const events = [];
    this.#loads.add(events);
    try {
      for await (const member of this.#allOf({ type: "members" })) {
        members.set(member.user_id, member.role);
        if (member.metadata) metadata.set(member.user_id, member.metadata);
        if (member.user_id !== this.#client.userId) this._othersRead(member.user_id, member.last_read_seq);
      }
    } finally {
      this.#loads.delete(events);
    }
    for (const event of events) this.#changeMember(event, members, metadata); // The pages may be older.
    this.members = members;
    this.memberMetadata = metadata;
    this.#client._changed(this);
    return members;
  }

  async invite(userId) {
    await this.#client.request({ type: "invite", room_id: this.id, user_id: userId });
  }

  async setRole(userId, role) {
    await this.#client.request({ type: "set_role", room_id: this.id, user_id: userId, role });
  }

  /** End the membership of another user. */
  async remove(userId) {
    await this.#client.request({ type: "remove", room_id: this.id, user_id: userId });
  }

  /** Change the given properties. */
  async update({ name, description, isPrivate }) {
    const command = { type: "update_room", room_id: this.id, name, is_private: isPrivate };
    if (description !== undefined) command.description = description ?? "";
    await this.#client.request(command);
  }

  async leave() {
    await this.#client.request({ type: "leave", room_id: this.id });
    this.#client._gone(this.id);
  }

  /** Delete the room with all its messages, for all members. */
  async deleteRoom() {
    await this.#client.request({ type: "delete_room", room_id: this.id });
    this.#client._gone(this.id);
  }

  #log(message) {
    if (this.#isAttached) this.#timeline.log(message);
    if (this.lastMessage?.id === message.id) this.lastMessage = message;
    this.#client._changed(this);
  }

  // Calls of the client.

  /** @internal */
  _summary({ room, role, last_read_seq, unread, partner_id, last_message, active_at }) {
    this._describe(room);
    this.isDirect = room.is_direct;
    this.createdBy = room.created_by;
    this.role = role;
    this.partnerId = partner_id;
    if (instant(active_at) > instant(this.activeAt)) this.activeAt = active_at;
    if (room.last_seq < this.#counted.upTo) return; // A later answer has overtaken this one.
    if ((this.lastMessage?.seq ?? 0) <= room.last_seq) this.lastMessage = last_message;
    const mark = Math.max(last_read_seq, this.#client._pendingMark(this.id));
    this.lastReadSeq = mark;
    this.#newer = this.#newer.filter((seq) => seq > Math.max(room.last_seq, mark));
    this.#counted = { unread, upTo: room.last_seq };
    if (mark > last_read_seq) this._readUpTo(mark);
    this._head = Math.max(this._head, room.last_seq);
  }

  /** @internal */
  _describe({ name, description, is_private }) {
    Object.assign(this, { name, description, isPrivate: is_private });
  }

  /** @internal A new message. */
  _sent(message) {
    if (this.#isAttached) this.#timeline.log(message);
    else if (this.#timeline.get(message.id)) this.#timeline.discard(message.id);
    this._stopped(message.user_id);
    if (message.user_id !== this.#client.userId && !message.deleted_at) {
      if (message.seq > Math.max(this.#counted.upTo, this.lastReadSeq)) this.#newer.push(message.seq);
    }
    if (message.seq > (this.lastMessage?.seq ?? 0) && !message.deleted_at) this.lastMessage = message;
    if (instant(message.created_at) > instant(this.activeAt)) this.activeAt = message.created_at;
  }

  /** @internal An edit or a deletion. */
  _revised(message) {
    if (this.#isAttached && message.seq >= (this.#timeline.oldest ?? Infinity)) this.#timeline.log(message);
    else if (this.#loading || this.#older) this.#held.set(message.id, message); // The page may be older.
    if (this.lastMessage?.id === message.id) this.lastMessage = message;
  }

  /**
   * @internal A deletion, which is the entry `seq` of the log. Events have the current state of messages, so a message that
   * was deleted later was never counted, unless the server counted it before the deletion.
   */
  _uncount(message, seq) {
    this.#newer = this.#newer.filter((other) => other !== message.seq);
    if (message.user_id === this.#client.userId || message.seq <= this.lastReadSeq) return;
    const { unread, upTo } = this.#counted;
    if (message.seq <= upTo && seq > upTo && unread > 0 && unread < 100) this.#counted.unread--;
  }

  /** @internal The acknowledgement of a message of the outbox. */
  _acknowledged(message) {
    if (this.#isAttached) this.#timeline.log(message);
    else this.#timeline.discard(message.id);
    if (message.seq > (this.lastMessage?.seq ?? 0)) this.lastMessage = message;
    if (instant(message.created_at) > instant(this.activeAt)) this.activeAt = message.created_at;
  }

  /** @internal */
  _waits(entry, isStored = false) {
    this.#timeline.wait({ ...entry, isStored });
  }

  /** @internal */
  _discarded(id) {
    this.#timeline.discard(id);
  }

  /** @internal The user's own read mark, possibly from another device. */
  _readUpTo(seq) {
    const isBack = seq < this.lastReadSeq;
    this.lastReadSeq = seq;
    if (isBack) return this.#client._refresh(this.id);
    const { unread, upTo } = this.#counted;
    this.#newer = this.#newer.filter((newer) => newer > seq);
    if (seq >= upTo) {
      this.#counted.unread = 0;
    } else if (this.isLoaded && (!this.hasOlder || this.#timeline.oldest <= seq + 1)) {
      const isUnread = (message) =>
        message.seq > seq && message.seq <= upTo && message.user_id !== this.#client.userId && !message.deleted_at;
      this.#counted.unread = this.messages.filter(isUnread).length;
    } else if (unread) {
      this.#client._refresh(this.id);
    }
  }

  /** @internal */
  _othersRead(userId, seq) {
    this.readMarks.set(userId, Math.max(seq, this.readMarks.get(userId) ?? 0));
  }

  /** @internal A user joined or left, or the role or the metadata changed. */
  _memberChanged(event) {
    for (const events of this.#loads) events.push(event);
    this.#changeMember(event, this.members, this.memberMetadata);
  }

  #changeMember({ type, user_id, role, metadata }, members, metadataOf) {
    if (type === "member_left") members.delete(user_id);
    else if (role && members.size) members.set(user_id, role);
    if (metadata) metadataOf.set(user_id, metadata);
    else if (!role) metadataOf.delete(user_id);
  }

  /** @internal */
  _typed(userId) {
    clearTimeout(this.#typing.get(userId));
    const end = () => {
      if (this._stopped(userId)) this.#client.emit("typing", this);
    };
    this.#typing.set(userId, setTimeout(end, TYPING_SECONDS * 1000));
  }

  /** @internal */
  _stopped(userId) {
    clearTimeout(this.#typing.get(userId));
    return this.#typing.delete(userId);
  }

  /** @internal The log cannot be continued: reload the newest page, if any was loaded. */
  _reset() {
    const wasAttached = this.#isAttached;
    this.#generation++;
    this.#timeline.reset();
    this.#isAttached = false;
    this.isLoaded = this.hasOlder = false;
    this._seq = null;
    this._head = 0;
    this.lastMessage = null;
    this.#newer = [];
    this.#counted = { unread: 0, upTo: 0 };
    this.#held.clear();
    this.#isAttached = wasAttached;
    this._resume();
  }

  /** @internal Load what was requested and not received. */
  _resume() {
    if (this.#isAttached && !this.isLoaded && !this.isGone) this.load().catch(() => {});
  }

  /** @internal End the typing of all users, whose stops may be missed. */
  _quiet() {
    for (const userId of this.typing) this._stopped(userId);
  }
}

// ---------------------------------------------------------------------------------------------------------- client

/** One tab's view of a user's chat. */
export class Client extends Emitter {
  /** Of the one connection of all tabs: `idle`, `connecting`, `catching_up`, `live`, `waiting` or `stopped`. */
  state = "idle";
  /** The reason of the state `stopped`: the code and the detail of docs/protocol.md, or null after `stop`. */
  reason = null;
  userId;
  /** The known users, by id. */
  users = new Map();
  limits = {};

  #options;
  #connection;
  #tabs;
  #outbox;
  #positions = new Map();
  #rooms = new Map();
  #sorted = null;
  #isStarted = false;
  #isOpen = false;
  #hasReady = false;
  #spreadSeconds = 0;
  #listing = 0;
  #listFailures = 0;
  #isFullyListed = false;
  #left = new Set();
  #unwritten = new Set();
  #behind = new Map();
  #sending = new Set();
  #sendFailures = 0;
  #marks = new Map();
  #marking = null;
  #markFailures = 0;
  #reads = new Map(); // The marks in flight, one per room.
  #refreshing = new Map();
  #wanted = new Set();
  #isAsking = false;
  #watched = [];
  #watchedByTab = new Map();
  #watching = [];
  #online = null;
  #changedOnline = null;
  #watchFailures = 0;
  #dirty = new Set();
  #isListDirty = false;
  #beat = null;
  #timers = new Set();
  #due = new Set(); // The names of calls that `#soon` has planned.
  #unlisten = [];

  /**
   * @param {object} options `url` of the gateway, and as needed: `userId` to write before the first connection,
   *   `getToken` without a cookie, `resume` with the `token` of an earlier client, `name` for the database and the
   *   tabs, which is made of the user and the URL by default.
   *   In Node.js pass what it lacks: `WebSocket`, `fetch`, `indexedDB`, `locks`, `BroadcastChannel`.
   */
  constructor(options) {
    super();
    const base = globalThis.document?.baseURI;
    const url = new URL(options.url, base);
    if (!url.pathname.endsWith("/")) url.pathname += "/";
    this.#options = {
      name: options.userId ? `${url.href} ${options.userId}` : url.href,
      random: Math.random,
      WebSocket: globalThis.WebSocket,
      fetch: globalThis.fetch?.bind(globalThis),
      indexedDB: globalThis.indexedDB,
      locks: globalThis.navigator?.locks,
      BroadcastChannel: globalThis.BroadcastChannel,
      page: globalThis.window,
      ...options,
      url,
    };
    this.userId = options.userId ?? null;
    if (options.resume) this.#positions = new Map(Object.entries(JSON.parse(options.resume)));
    this.#outbox = new Outbox(this.#options, () => this.#isStarted && this.#readOutbox());
    this.#connection = new Connection(this.#options, {
      positions: () => Object.fromEntries(this.#positions),
      state: (state) => this.#stateOfConnection(state),
      frames: (frames) => this.#receivedByLeader(frames),
      forget: () => this.#positions.clear(),
    });
  }

  /**
   * Connect, and stay connected until `stop` or until the server refuses the client. After that, for instance after
   * another login, it starts again, even if the connection belongs to another tab.
   */
  start() {
    const isAgain = this.#isStarted && this.state === "stopped";
    if (this.#isStarted && !isAgain) return;
    if (isAgain) this.stop();
    this.#isStarted = true;
    this.reason = null;
    this.#enter("connecting");
    this.#readOutbox();
    this.#join({ starts: true });
    this.#listenToPage();
  }

  /** Show the entries on the disk, and forget those that another tab has sent or discarded. */
  #readOutbox() {
    this.#isOpen = false;
    const reading = this.#opened.then(() => this.#outbox.open());
    this.#opened = reading.then((gone) => {
      this.#isOpen = true;
      for (const { id, room_id } of gone) {
        const room = this.#rooms.get(room_id);
        if (room?.message(id)?.seq !== null) continue;
        room._discarded(id);
        this._changed(room);
      }
      for (const entry of this.#outbox.entries) this.#show(entry);
      this.#flush();
      this.#sendNext();
    });
  }

  #join({ starts }) {
    this.#tabs = new Tabs(this.#options, {
      lead: () => this.#lead(),
      follow: () => this.#follow(),
      request: (command, options) => this.#connection.request(command, options),
      isVisible: () => this.#isVisible,
      stays: () => {
        this.#connection.wake();
        this.#eachBeat();
      },
      message: (message) => this.#fromTab(message),
    });
    this.#tabs.start({ starts });
    this.#beat = setInterval(() => this.#eachBeat(), BEAT_SECONDS * 1000);
  }

  #part() {
    clearInterval(this.#beat);
    if (!this.isLeader) this.#tabs.post({ kind: "watch", room_ids: [] });
    this.#tabs.close();
    for (const { reject, isSent } of this.#connection.pause()) {
      reject(new HubbubError({ error: "stopped", outcome_unknown: isSent }));
    }
    this.#outbox.close();
  }

  #opened = Promise.resolve();

  /** Disconnect this tab. The outbox stays as it is. */
  stop() {
    if (!this.#isStarted) return;
    this.#isStarted = false;
    this.#marking = null;
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    this.#due.clear();
    this.#sending.clear();
    for (const unlisten of this.#unlisten.splice(0)) unlisten();
    this.#part();
    this.#connection.stop();
    for (const room of this.#rooms.values()) room._quiet();
    this.#enter("stopped");
  }

  /** Delete everything on the disk, for a logout. Unsent messages are lost. */
  async clear() {
    this.#unwritten.clear();
    await this.#opened; // Entries that are read after the clearing would be sent.
    await this.#outbox.clear();
    this.#outbox.close();
  }

  /** The positions as one string, for `resume` of another client. Store it together with the state made from events. */
  get token() {
    return JSON.stringify(Object.fromEntries(this.#positions));
  }

  /** Whether unsent messages outlive the page. */
  get isDurable() {
    return this.#outbox.isDurable;
  }

  get isLeader() {
    return this.#tabs?.isLeader ?? false;
  }

  /** The rooms of the user, the most recently active first. A new array after each change. */
  get rooms() {
    if (this.#sorted) return this.#sorted;
    const rooms = [...this.#rooms.values()].filter((room) => room.role);
    const byActivity = rooms.map((room) => ({ room, at: instant(room.activeAt) }));
    byActivity.sort((a, b) => (a.at < b.at ? 1 : a.at > b.at ? -1 : 0));
    return (this.#sorted = Object.freeze(byActivity.map(({ room }) => room)));
  }

  room(id) {
    return this.#rooms.get(id);
  }

  /** The profile of a user, or undefined until it is loaded. Then the event `people` follows. */
  user(id) {
    if (id && !this.users.has(id) && !this.#wanted.has(id)) this.#want(id);
    return this.users.get(id);
  }

  /** Whether a member of a watched room is online. Undefined if that is unknown. */
  isOnline(userId) {
    if (userId === this.userId) return this.state === "live" || undefined;
    if (this.state !== "live" || !this.#online) return undefined;
    // The answer has the first 200 members of a room.
    const isWatched = (room) => room?.partnerId === userId || (room?.members.has(userId) && room.members.size <= 200);
    const isKnown = this.#watching.some((id) => isWatched(this.#rooms.get(id)));
    return this.#online.get(userId) ?? (isKnown ? false : undefined);
  }

  /** The result of any command of docs/protocol.md. It waits for a connection, at most 30 seconds. */
  request(command, options) {
    if (!this.#isStarted) return Promise.reject(new HubbubError({ error: "stopped" }));
    return this.#tabs.isLeader ? this.#connection.request(command, options) : this.#tabs.request(command, options);
  }

  async createRoom(name, { description = null, isPrivate = true } = {}) {
    const command = { type: "create", id: newId(), name, description, is_private: isPrivate };
    return this.#enterRoom((await this.request(command)).id);
  }

  /** The direct room with this user, created by the first call. */
  async direct(userId) {
    return this.#enterRoom((await this.request({ type: "direct", user_id: userId })).id);
  }

  async join(roomId) {
    await this.request({ type: "join", room_id: roomId });
    return this.#enterRoom(roomId);
  }

  async publicRooms(prefix = "") {
    return (await this.request({ type: "public_rooms", ...(prefix ? { prefix } : {}) })).items;
  }

  async searchUsers(prefix, limit = 10) {
    const { items } = await this.request({ type: "users", prefix, limit });
    this._people(items);
    return items;
  }

  /** Change the given properties of the user's own profile. Null clears a property. */
  async updateProfile({ username, displayName, avatarUrl, metadata }) {
    const command = { type: "update_profile", username, display_name: displayName, avatar_url: avatarUrl, metadata };
    const user = await this.request(command);
    this._people([user]);
    return user;
  }

  /** The sessions of the user. `current` is the id of this session. */
  sessions() {
    return this.request({ type: "sessions" });
  }

  revokeSession(id) {
    return this.request({ type: "revoke", session_id: id });
  }

  /** Name the rooms on the screen. The presence of their members is reported by events. */
  watch(roomIds) {
    this.#watched = [...roomIds];
    this.#watch();
  }

  // ------------------------------------------------------------------------------------------ frames of the server

  #receivedByLeader(frames) {
    this.#tabs.post({ kind: "frames", frames });
    this.#apply(frames);
  }

  #apply(frames) {
    for (const frame of frames) {
      const apply = this.#frames[frame.type];
      if (apply) apply(frame);
      else if (frame.cursor && frame.seq) this.#entry(frame, () => {}); // An entry of a later release.
    }
    this.#flush();
  }

  #frames = {
    __proto__: null,
    ready: (frame) => this.#ready(frame),
    message_sent: (frame) => this.#entry(frame, (room) => this.#messageSent(room, frame.message)),
    message_edited: (frame) => this.#entry(frame, (room) => room._revised(frame.message)),
    message_deleted: (frame) =>
      this.#entry(frame, (room) => {
        room._revised(frame.message);
        room._uncount(frame.message, frame.seq);
      }),
    member_joined: (frame) => this.#entry(frame, (room) => room._memberChanged(frame)),
    member_left: (frame) =>
      this.#entry(frame, (room) => {
        room._memberChanged(frame);
        if (frame.user_id === this.userId) this.#forget(room.id);
      }),
    role_changed: (frame) =>
      this.#entry(frame, (room) => {
        room._memberChanged(frame);
        if (frame.user_id === this.userId) room.role = frame.role;
      }),
    member_changed: (frame) => this.#entry(frame, (room) => room._memberChanged(frame)),
    room_changed: (frame) => this.#entry(frame, (room) => room._describe(frame)),
    room_gone: ({ room_id }) => {
      this.#left.delete(room_id);
      this.#forget(room_id);
    },
    resync: (frame) => {
      this.#positions.set(frame.room_id, frame.cursor);
      this.#behind.delete(frame.room_id);
      this.#reset(frame.room_id);
      this.#checkCaughtUp();
    },
    typing_changed: ({ room_id, user_id, is_typing }) => {
      const room = this.#rooms.get(room_id);
      if (!room || user_id === this.userId) return;
      if (is_typing) room._typed(user_id);
      else room._stopped(user_id);
      this.#want(user_id);
      this.emit("typing", room);
    },
    read_mark_changed: ({ room_id, user_id, last_read_seq }) => {
      const room = this.#rooms.get(room_id);
      if (!room) return;
      if (user_id !== this.userId) room._othersRead(user_id, last_read_seq);
      else if (!this.#marks.has(room_id)) room._readUpTo(last_read_seq);
      this._changed(room);
    },
    presence_changed: ({ user_id, is_online }) => {
      this.#online ??= new Map();
      this.#online.set(user_id, is_online);
      this.#changedOnline?.set(user_id, is_online);
      this.emit("presence", user_id);
    },
    online: ({ user_ids, room_ids, changed }) => {
      this.#online = new Map([...user_ids.map((userId) => [userId, true]), ...changed]);
      this.#watching = room_ids;
      this.emit("presence", null);
    },
    listed: ({ page }) => this.#listed(page, true),
    profile_changed: ({ type, user_id, ...profile }) => {
      const user = this.users.get(user_id);
      if (user) this._people([{ ...user, ...profile }]);
    },
    missed: () => {
      // The other tabs get the list of this tab.
      if (this.isLeader) this.#soon("list", () => this.#list(false, true));
      this.#readAgain();
    },
  };

  #ready(frame) {
    const isFresh = !frame.resumed || !this.#hasReady || (this.userId !== null && frame.user_id !== this.userId);
    this.#hasReady = true;
    this.userId = frame.user_id;
    this.limits = frame.limits ?? {};
    this.#spreadSeconds = frame.spread_seconds ?? 0;
    this.#left.clear();
    this.#positions = new Map(Object.entries(frame.positions)); // All positions, even if the connection was resumed.
    this.#behind.clear();
    this.#isListed = false;
    if (isFresh) this.#isFullyListed = false;
    this.#online = null;
    for (const id of [...this.#rooms.keys()]) {
      if (!this.#positions.has(id)) this.#forget(id);
      else if (isFresh) this.#rooms.get(id)._reset(); // The list of rooms has its summary.
      else this.#rooms.get(id)._resume();
    }
    for (const entry of this.#outbox.entries) this.#show(entry);
    this.#list(isFresh);
    if (!isFresh) this.#readAgain();
    this.#watch();
    this.#sendNext();
    this._sendMarks();
    this.emit("ready", isFresh);
  }

  /** An entry of a log: each once, in order. */
  #entry(frame, change) {
    const { room_id, seq, cursor } = frame;
    const isOwn = frame.user_id === this.userId;
    const isOwnJoin = frame.type === "member_joined" && isOwn;
    if (this.#left.has(room_id)) {
      if (isOwnJoin || (frame.type === "member_left" && isOwn)) this.#left.delete(room_id);
      if (!isOwnJoin) return; // An entry from before this user left the room.
    }
    const isNew = !this.#rooms.has(room_id);
    const room = this.#roomOf(room_id);
    if (room._seq !== null && seq <= room._seq) return; // A repeat, from a leader that was behind this tab.
    const known = room._seq ?? (room._head || seq);
    const isGap = seq > known + 1 && !isOwnJoin; // This tab was frozen for a while.
    if (isGap) this.#reset(room_id);
    room._seq = seq;
    this.#positions.set(room_id, cursor);
    this.emit("entry", frame, isGap);
    change(room);
    if (isOwnJoin || (isNew && this.#isListed)) this._refresh(room_id);
    if (seq >= this.#behind.get(room_id)) this.#behind.delete(room_id);
    this.#checkCaughtUp();
    if (!room.isGone) this._changed(room);
  }

  #messageSent(room, message) {
    this.user(message.user_id);
    room._sent(message);
    if (this.isLeader && this.#outbox.has(message.id)) this.#sent(message);
    else this.#outbox.forget(message.id);
    if (message.user_id !== this.userId) this.emit("message", room, message);
  }

  #roomOf(id) {
    if (!this.#rooms.has(id)) this.#rooms.set(id, new Room(this, id));
    return this.#rooms.get(id);
  }

  #isGone(id) {
    return !this.#positions.has(id) && !this.#rooms.has(id);
  }

  #reset(id) {
    this.#roomOf(id)._reset();
    this._refresh(id);
    this._changed(this.#rooms.get(id));
  }

  #forget(id) {
    const room = this.#rooms.get(id);
    this.#positions.delete(id);
    this.#behind.delete(id);
    this.#marks.delete(id);
    if (!room) return;
    this.#rooms.delete(id);
    for (const entry of this.#outbox.entries) if (entry.room_id === id) this.#show(entry);
    room.isGone = true;
    room._quiet();
    this.#isListDirty = true;
    this.emit("gone", room);
  }

  /** Read the list of rooms: all pages of it, or the first where the events have brought the rest. */
  async #list(isFresh, isForAllTabs = false) {
    const listing = ++this.#listing;
    const isOverdue = () => listing !== this.#listing;
    const all = isFresh || !this.#isFullyListed; // The connection may have been lost before the last page.
    let after;
    try {
      do {
        const page = await this.request({ type: "rooms", limit: 200, after });
        if (isOverdue()) return;
        if (isForAllTabs) this.#tabs.post({ kind: "frames", frames: [{ type: "listed", page }] });
        this.#listed(page, !isFresh);
        after = all ? page.next : null;
        this.#flush();
      } while (after);
    } catch (error) {
      if (isOverdue() || error.error === "stopped") return;
      this._retryLater(this.#listFailures++, error, () => !isOverdue() && this.#list(isFresh, isForAllTabs));
      return;
    }
    this.#listFailures = 0;
    this.#isListed = true;
    this.#isFullyListed ||= all;
    this.#checkCaughtUp();
  }

  #isListed = false;

  #listed({ items, users }, isResumed) {
    this._people(users);
    for (const summary of items) this.#summary(summary, isResumed);
  }

  /**
   * Call this at a random moment, because all clients of a server miss something at the same time. A call that is
   * already planned replaces this one.
   */
  #soon(name, call) {
    if (this.#due.has(name)) return;
    this.#due.add(name);
    this._later(this.#spreadSeconds * this.#options.random(), () => {
      this.#due.delete(name);
      call();
    });
  }

  /** Reload data without a position: profiles, and members with their read marks. */
  #readAgain() {
    this.#soon("people", async () => {
      const rooms = [...this.#rooms.values()].filter((room) => room.members.size);
      const ids = [...this.users.keys()];
      try {
        while (ids.length) await this.#readProfiles(ids.splice(0, 100));
        for (const room of rooms) if (!room.isGone) await room.loadMembers();
      } catch {
        // The next connection reloads them.
      }
    });
  }

  async #readProfiles(user_ids) {
    while (user_ids?.length) {
      const { items, rest } = await this.request({ type: "users", user_ids });
      this._people(items);
      user_ids = rest; // Ids that did not fit into the answer.
    }
  }

  #summary(summary, isResumed = false) {
    const id = summary.room.id;
    if (this.#isGone(id)) return; // Left meanwhile.
    const room = this.#roomOf(id);
    const known = Math.max(room._seq ?? 0, room._head);
    // A room that was reset gets no entries. It is reloaded.
    if (isResumed && room.role && known && summary.room.last_seq > known) this.#behind.set(id, summary.room.last_seq);
    room._summary(summary);
    this.user(summary.partner_id);
    this._changed(room);
  }

  #checkCaughtUp() {
    if (this.isLeader && this.#isListed && !this.#behind.size) this.#connection.caughtUp();
  }

  /** Wait until a joined room is in the list. */
  async #enterRoom(id) {
    this.#roomOf(id); // The event of the join, which has its position, may arrive later.
    await this._refresh(id);
    return this.#rooms.get(id);
  }

  /** @internal Reload the summary of a room, once for all concurrent calls. */
  _refresh(id) {
    const current = this.#refreshing.get(id);
    if (current) return current;
    const refreshing = this.#readSummary(id).finally(() => this.#refreshing.delete(id));
    this.#refreshing.set(id, refreshing);
    return refreshing;
  }

  async #readSummary(id) {
    try {
      await this._sendMarks();
      const { users, ...summary } = await this.request({ type: "room", room_id: id });
      this._people(users);
      if (this.#rooms.has(id)) this.#summary(summary);
      this.#flush();
    } catch {
      // The user has left, or the next connection reloads the list.
    }
  }

  /** @internal */
  _people(users = []) {
    if (!users.length) return;
    for (const user of users) this.users.set(user.id, Object.freeze(user));
    this.emit("people");
  }

  #want(id) {
    if (!id || this.users.has(id)) return;
    this.#wanted.add(id);
    if (this.#isAsking) return;
    this.#isAsking = true;
    queueMicrotask(() => this.#askForPeople());
  }

  async #askForPeople() {
    try {
      while (this.#wanted.size) {
        const ids = [...this.#wanted].slice(0, 100);
        const asking = this.#readProfiles(ids);
        await asking.finally(() => ids.forEach((id) => this.#wanted.delete(id)));
      }
    } catch {
      this.#wanted.clear(); // The next call of `user` starts again.
    }
    this.#isAsking = false;
  }

  // -------------------------------------------------------------------------------------------- changes by the user

  /** @internal */
  _enqueue(entry) {
    this.#roomOf(entry.room_id)._waits(entry);
    this._changed(this.#rooms.get(entry.room_id));
    this.#flush();
    this.#unwritten.add(entry.id);
    this.#opened.then(() => this.#write(entry));
  }

  async #write(entry) {
    if (!this.#unwritten.delete(entry.id)) return; // It was discarded before the disk was open.
    await this.#outbox.add(entry);
    if (!this.#outbox.has(entry.id)) return; // Or in the meantime.
    this.#show(entry);
    this.#tabs.post({ kind: "outbox", entry });
    this.#sendNext();
  }

  /** @internal */
  _retry(id) {
    const entry = this.#outbox.entries.find((one) => one.id === id);
    if (entry) this.#change({ ...entry, status: "sending", error: null, detail: null });
  }

  /** @internal */
  _discard(room, id) {
    room._discarded(id);
    this._changed(room);
    this.#flush();
    if (!this.#unwritten.delete(id)) this.#outbox.remove(id);
    this.#tabs.post({ kind: "discarded", id, room_id: room.id });
  }

  async #change(entry) {
    this.#show(entry);
    this.#flush();
    await this.#outbox.update(entry);
    this.#tabs.post({ kind: "outbox", entry });
    this.#sendNext();
  }

  #show(entry) {
    if (entry.user_id !== this.userId) return;
    const isLost = entry.status === "failed" && this.#hasReady && this.#isGone(entry.room_id);
    if (isLost && this.isLeader) this.#outbox.remove(entry.id); // No room shows it, so the user could not discard it.
    const room = this.#rooms.get(entry.room_id);
    room?._waits(entry, this.#outbox.isStored(entry.id));
    if (room) this._changed(room);
  }

  /** One message per room is in flight, so that messages arrive in the order of typing. */
  #sendNext() {
    if (!this.isLeader || !this.#isOpen || !["catching_up", "live"].includes(this.state)) return;
    const rooms = new Set(this.#sending);
    for (const entry of this.#outbox.entries) {
      if (rooms.has(entry.room_id) || entry.status !== "sending" || entry.user_id !== this.userId) continue;
      rooms.add(entry.room_id);
      this.#send(entry);
    }
  }

  async #send(entry) {
    const { id, room_id, content, message_type, reply_to, metadata } = entry;
    const command = { type: "send", id, room_id, content, message_type, reply_to, metadata };
    this.#sending.add(room_id);
    let pause = 0;
    try {
      const message = await this.#connection.request(command, { once: true });
      this.#sendFailures = 0;
      this.#sent(message);
    } catch (error) {
      if (error.error === "stopped") return;
      if (!(error instanceof HubbubError)) throw error;
      if (error.error === "disconnected") return; // The next `ready` sends it again.
      if (error.retry) pause = error.after ?? backoff(this.#sendFailures++);
      else if (this.#isGone(room_id)) this.#outbox.remove(id); // No room shows the message.
      else if (this.#outbox.has(id)) {
        this.#change({ ...entry, status: "failed", error: error.error, detail: error.message });
      }
    } finally {
      if (pause) this._later(pause * (0.5 + this.#options.random()), () => this.#free(room_id));
      else this.#free(room_id);
    }
  }

  #free(roomId) {
    this.#sending.delete(roomId);
    this.#sendNext();
  }

  #sent(message) {
    this.#outbox.remove(message.id);
    this.#tabs.post({ kind: "sent", message });
    this.#acknowledged(message);
  }

  #acknowledged(message) {
    const room = this.#rooms.get(message.room_id);
    room?._acknowledged(message);
    if (room) this._changed(room);
    this.#flush();
  }

  /** @internal */
  _mark(room, seq) {
    this.#marks.set(room.id, seq);
    this._changed(room);
    this.#flush();
    this.#marking ??= this._later(0.3, () => this._sendMarks());
  }

  /** @internal */
  _unmark(roomId) {
    this.#marks.delete(roomId);
  }

  /** @internal */
  _pendingMark(roomId) {
    return this.#marks.get(roomId) ?? 0;
  }

  /** @internal */
  async _sendMarks() {
    clearTimeout(this.#marking);
    this.#timers.delete(this.#marking);
    this.#marking = null;
    if (this.state === "waiting" || this.state === "stopped") return;
    for (const id of this.#marks.keys()) if (!this.#reads.has(id)) this.#reads.set(id, this.#sendMark(id));
    await Promise.all(this.#reads.values());
  }

  /** Send the mark of a room, and then the one that has replaced it. */
  async #sendMark(room_id) {
    const up_to = this.#marks.get(room_id);
    try {
      await this.request({ type: "read", room_id, up_to });
      this.#markFailures = 0;
    } catch (error) {
      if (error.error === "stopped") return; // It is sent after the next `ready`.
      const again = () => this._sendMarks();
      // The connection may last, so this does not wait for a `ready`. Newer marks share the pause.
      if (error.retry) return (this.#marking ??= this._retryLater(this.#markFailures++, error, again));
    } finally {
      this.#reads.delete(room_id);
    }
    if (this.#marks.get(room_id) === up_to) this.#marks.delete(room_id);
    else if (this.#marks.has(room_id)) await this._sendMarks();
  }

  /** @internal */
  _typing(room_id, is_typing) {
    if (this.state !== "live") return;
    this.request({ type: "typing", room_id, is_typing }, { once: true, seconds: TYPING_AGAIN_SECONDS }).catch(() => {});
  }

  /** The first room of each tab, then the second of each, up to the limit of the gateway. */
  #watchedByAll() {
    const lists = [this.#watched, ...this.#watchedByTab.values()];
    const longest = Math.max(...lists.map((list) => list.length));
    const inTurn = Array.from({ length: longest }, (_, at) => lists.flatMap((list) => list.slice(at, at + 1))).flat();
    return [...new Set(inTurn)].slice(0, this.limits.watched_rooms ?? WATCHED_ROOMS);
  }

  async #watch() {
    if (!this.#isStarted) return;
    if (!this.isLeader) return this.#tabs.post({ kind: "watch", room_ids: this.#watched });
    if (this.state !== "catching_up" && this.state !== "live") return;
    const room_ids = this.#watchedByAll();
    const changed = (this.#changedOnline = new Map()); // Events may arrive before the answer is handled.
    try {
      const { online } = await this.#connection.request({ type: "watch", room_ids });
      this.#watchFailures = 0;
      if (changed !== this.#changedOnline) return; // A later call gets a newer answer.
      this.#receivedByLeader([{ type: "online", user_ids: online, room_ids, changed: [...changed] }]);
    } catch (error) {
      // Without an answer presence is unknown, and `isOnline` is undefined.
      const again = () => changed === this.#changedOnline && this.#watch();
      if (error.retry) this._retryLater(this.#watchFailures++, {}, again);
    }
  }

  // ------------------------------------------------------------------------------------------------ tabs and the page

  #lead() {
    if (!this.#isStarted) return;
    this.#connection.start();
    this.#announce(true);
    // Other tabs' outbox entries are on the disk. Entries that are only in memory are posted again.
    this.#opened.then(() => {
      if (this.#outbox.isDurable) this.#readOutbox();
      else this.#sendNext();
    });
  }

  #follow() {
    for (const { command, once, resolve, reject } of this.#connection.pause()) {
      this.#tabs.request(command, { once }).then(resolve, reject);
    }
    this.#tabs.post({ kind: "who" });
  }

  #announce(isNew = false) {
    const { state, reason } = this.#connection;
    const ready = this.#hasReady && state !== "idle" && state !== "stopped" ? this.#asReady() : null;
    this.#tabs.post({ kind: "leader", isNew, state, reason, ready });
  }

  /** A `ready` frame for the current state. */
  #asReady() {
    const positions = Object.fromEntries(this.#positions);
    const known = { limits: this.limits, spread_seconds: this.#spreadSeconds };
    return { type: "ready", user_id: this.userId, resumed: true, positions, ...known };
  }

  #fromTab(message) {
    if (!this.#isStarted) return;
    if (message.kind === "who") {
      if (this.isLeader) this.#announce();
    } else if (message.kind === "start") {
      if (this.isLeader && this.state === "stopped") this.#connection.start();
    } else if (message.kind === "leader") {
      if (this.isLeader) return;
      if (message.ready && !this.#hasReady) this.#apply([message.ready]);
      else if (message.ready) this.#compare(message.ready.positions);
      this.reason = message.reason;
      this.#enter(message.state);
      if (message.isNew) for (const entry of this.#outbox.entries) this.#tabs.post({ kind: "outbox", entry });
      if (message.isNew) this.#watch();
    } else if (message.kind === "frames") {
      if (!this.isLeader && (this.#hasReady || message.frames.some((frame) => frame.type === "ready"))) {
        this.#apply(message.frames);
      }
    } else if (message.kind === "outbox") {
      this.#outbox.put(message.entry);
      this.#show(message.entry);
      this.#flush();
      this.#sendNext();
    } else if (message.kind === "sent") {
      this.#outbox.forget(message.message.id);
      this.#acknowledged(message.message);
    } else if (message.kind === "discarded") {
      this.#outbox.forget(message.id);
      const room = this.#rooms.get(message.room_id);
      room?._discarded(message.id);
      if (room) this._changed(room);
      this.#flush();
    } else if (message.kind === "watch" && this.isLeader) {
      this.#watchedByTab.set(message.tab, message.room_ids);
      if (!message.room_ids.length) this.#watchedByTab.delete(message.tab);
      this.#watch();
    }
  }

  /** The leader has other positions, because this tab was frozen and has missed forwarded events. */
  #compare(positions) {
    for (const [id, cursor] of Object.entries(positions)) {
      if (this.#positions.get(id) === cursor || this.#left.has(id)) continue;
      this.#positions.set(id, cursor);
      this.#reset(id);
    }
    for (const id of [...this.#positions.keys()]) if (!(id in positions)) this.#forget(id);
    this.#flush();
  }

  get #isVisible() {
    return this.#options.page?.document?.visibilityState !== "hidden";
  }

  #eachBeat() {
    if (this.isLeader) this.#tabs.post({ kind: "leader", state: this.state, reason: this.reason });
    else if (this.#isVisible) this.#tabs.stealAfter(FROZEN_SECONDS);
  }

  #listenToPage() {
    const { page } = this.#options;
    if (!page) return;
    const listen = (target, name, listener) => {
      target.addEventListener(name, listener);
      this.#unlisten.push(() => target.removeEventListener(name, listener));
    };
    const wake = () => {
      if (this.isLeader) this.#connection.wake();
    };
    listen(page, "online", wake);
    listen(page, "pageshow", ({ persisted }) => {
      if (!persisted) return;
      this.#readOutbox();
      this.#join({ starts: false });
    });
    // An open socket or a held lock keeps a page out of the back/forward cache.
    listen(page, "pagehide", () => this.#part());
    listen(page.document, "visibilitychange", () => {
      if (!this.#isVisible) return this.#tabs.hidden();
      wake();
      this.#tabs.askToLead();
    });
  }

  #stateOfConnection(state) {
    if (!this.#isStarted || !this.isLeader) return;
    this.reason = this.#connection.reason;
    this.#enter(state);
    this.#tabs.post({ kind: "leader", state, reason: this.reason });
    if (this.reason?.code === 4410) this.clear();
  }

  #enter(state) {
    if (this.state === state) return;
    this.state = state;
    this.emit("state", state, this.reason);
    if (state === "live") this.#sendNext();
  }

  /** @internal */
  _later(seconds, call) {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      call();
    }, seconds * 1000);
    this.#timers.add(timer);
    return timer;
  }

  /** @internal Call again after an answer that may change. */
  _retryLater(failures, { after }, call) {
    return this._later((after ?? backoff(failures)) * (0.5 + this.#options.random()), call);
  }

  /** @internal */
  _gone(id) {
    // The answer overtakes waiting events, up to the event of the leave.
    if (this.#positions.has(id)) this.#left.add(id);
    this.#forget(id);
    this.#flush();
  }

  /** @internal Emit the change of a room after the frames of one message are applied, or after the task. */
  _changed(room) {
    if (!this.#dirty.size && !this.#isListDirty) queueMicrotask(() => this.#flush());
    this.#dirty.add(room);
  }

  #flush() {
    if (!this.#dirty.size && !this.#isListDirty) return;
    const rooms = [...this.#dirty];
    this.#dirty.clear();
    this.#isListDirty = false;
    this.#sorted = null;
    for (const room of rooms) if (!room.isGone) this.emit("messages", room);
    this.emit("rooms");
  }
}
