/** A gateway in memory with one log per room, for tests that decide when each frame arrives. */

export const ADA = "01970000-0000-7000-8000-00000000000a";
export const BOB = "01970000-0000-7000-8000-00000000000b";
export const ROOM = "01970000-0000-7000-8000-000000000001";
export const OTHER = "01970000-0000-7000-8000-000000000002";

/** A test that takes longer hangs. */
const HANGS_AFTER_SECONDS = Number(process.env.HANGS_AFTER_SECONDS ?? 60);

/** Wait for a condition that other tasks bring about. */
export async function until(condition) {
  const end = performance.now() + HANGS_AFTER_SECONDS * 1000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`this did not come: ${condition}`);
    await new Promise(setImmediate); // Not a timer, because a test may have replaced the clock.
  }
}

let clock = Date.UTC(2026, 10, 29);

export class Gateway {
  rooms = new Map();
  sockets = [];
  /** Every received command, without its ref. */
  commands = [];
  hellos = [];
  /** Answers of the test by type of command: a result, or an object like a HubbubError with `error`. */
  answers = {};
  /** Commands of these types get no answer. */
  silent = new Set();
  isUp = true;
  expiresInSeconds = null;
  spreadSeconds = 0;
  limits = { frame_bytes: 65536, commands: 16, watched_rooms: 10 };
  /** Rooms on a page of the list. */
  roomsPerPage = Infinity;
  /** Whether `hello` is answered. */
  isAnswering = true;
  /** Whether a message is announced to the followers of its room. */
  isEchoing = true;

  constructor(...ids) {
    for (const id of ids) this.rooms.set(id, { log: [], read: 0 });
  }

  /** The class for the option `WebSocket`. */
  get WebSocket() {
    const gateway = this;
    return class {
      constructor(url, protocols) {
        this.url = url;
        this.protocols = protocols;
        setImmediate(() => gateway.accept(this));
      }

      send(text) {
        gateway.received(this, JSON.parse(text));
      }

      close() {
        gateway.sockets = gateway.sockets.filter((socket) => socket !== this);
      }
    };
  }

  accept(socket) {
    if (!this.isUp) return socket.onclose?.({ code: 1006 });
    this.sockets.push(socket);
    socket.onopen?.();
  }

  cursor(id, seq = this.rooms.get(id).log.length) {
    return `${id.slice(-4)}:${seq}`;
  }

  received(socket, frame) {
    if (frame.type === "hello") return this.hello(socket, frame);
    const { ref, ...command } = frame;
    (socket.refs ??= []).push({ ref, type: command.type });
    this.commands.push(command);
    if (this.silent.has(command.type)) return;
    const own = command.type === "rooms" ? () => this.listRooms(command) : (one) => this[command.type]?.(one);
    const answer = this.answers[command.type]?.(command) ?? own(command) ?? null;
    if (answer?.error) this.say(socket, { type: "error", ref, retry: false, retry_after_seconds: null, ...answer });
    else this.say(socket, { type: "ack", ref, result: answer });
  }

  hello(socket, hello, user_id = ADA) {
    this.hellos.push(hello);
    if (!this.isAnswering) return;
    const heads = {};
    for (const id of this.rooms.keys()) heads[id] = hello.positions?.[id] ?? this.cursor(id);
    const resumed = hello.positions !== undefined;
    const ready = { type: "ready", user_id, resumed, positions: heads, ping_seconds: 25, limits: this.limits };
    this.say(socket, { ...ready, spread_seconds: this.spreadSeconds, expires_in_seconds: this.expiresInSeconds });
    for (const [id, cursor] of Object.entries(heads)) {
      const seq = Number(cursor.split(":")[1]);
      this.say(socket, ...this.rooms.get(id).log.slice(seq));
    }
  }

  /** Send frames in one message. */
  say(socket, ...frames) {
    if (frames.length) setImmediate(() => socket.onmessage?.({ data: frames.map((frame) => JSON.stringify(frame)).join("\n") }));
  }

  tell(...frames) {
    for (const socket of this.sockets) this.say(socket, ...frames);
  }

  /** End all connections. */
  cut(code = 1006) {
    for (const socket of this.sockets.splice(0)) socket.onclose?.({ code });
  }

  append(id, event) {
    const { log } = this.rooms.get(id);
    const seq = log.length + 1;
    const at = new Date(clock++).toISOString();
    const entry = { room_id: id, seq, cursor: this.cursor(id, seq), at, ...event };
    if (entry.type === "message_sent") Object.assign(entry.message, { seq, created_at: at, updated_at: at });
    log.push(entry);
    if (this.isEchoing) this.tell(entry);
    return entry;
  }

  /** Append a message of a user to the log, and send it to all connections. */
  write(roomId, userId, content, id = crypto.randomUUID()) {
    const fields = { message_type: "text", is_edited: false, deleted_at: null, reply_to: null, metadata: null };
    const message = { id, room_id: roomId, user_id: userId, content, ...fields };
    return this.append(roomId, { type: "message_sent", message }).message;
  }

  /** The current state of the messages of a room, the oldest first. */
  messages(id) {
    const present = new Map();
    for (const entry of this.rooms.get(id).log) if (entry.message) present.set(entry.message.id, entry.message);
    return [...present.values()].sort((a, b) => a.seq - b.seq);
  }

  revise(message, change, type = "message_edited") {
    const revised = { ...message, ...change, updated_at: new Date(clock++).toISOString() };
    return this.append(message.room_id, { type, by: message.user_id, message: revised });
  }

  // Commands, called by their names.

  send({ id, room_id, content }) {
    const known = this.messages(room_id).find((message) => message.id === id);
    return known ?? this.write(room_id, ADA, content, id);
  }

  summary(id) {
    const { log, read } = this.rooms.get(id);
    const messages = this.messages(id);
    const unread = messages.filter((one) => one.seq > read && one.user_id !== ADA && !one.deleted_at).length;
    const room = { id, name: id.slice(-1), description: null, is_private: true, is_direct: false, created_by: ADA };
    Object.assign(room, { last_seq: log.length, keeps_receipts: null });
    const last = messages.filter((one) => !one.deleted_at).at(-1) ?? null;
    const active_at = messages.at(-1)?.created_at ?? "2026-11-01T00:00:00Z";
    return { room, role: "admin", last_read_seq: read, unread, partner_id: null, last_message: last, active_at };
  }

  // The command `rooms`, whose name differs from the map.
  listRooms({ after = 0 }) {
    const ids = [...this.rooms.keys()];
    const end = Number(after) + this.roomsPerPage;
    const items = ids.slice(Number(after), end).map((id) => this.summary(id));
    return { items, next: end < ids.length ? String(end) : null, users: this.people() };
  }

  room({ room_id }) {
    if (!this.rooms.has(room_id)) return { error: "not-found" };
    return { ...this.summary(room_id), users: this.people() };
  }

  page({ room_id, before = Infinity, limit }) {
    const all = this.messages(room_id).filter((message) => message.seq < before);
    const items = all.slice(-limit);
    return { room_id, items, has_older: all.length > items.length, has_newer: false, users: this.people() };
  }

  read({ room_id, up_to }) {
    const room = this.rooms.get(room_id);
    room.read = Math.max(room.read, up_to);
    return { last_read_seq: room.read };
  }

  watch() {
    return { online: [BOB] };
  }

  users({ user_ids }) {
    return { items: this.people().filter((user) => user_ids.includes(user.id)) };
  }

  people() {
    return [
      { id: ADA, username: "ada", avatar_url: null },
      { id: BOB, username: "bob", avatar_url: null },
    ];
  }
}
