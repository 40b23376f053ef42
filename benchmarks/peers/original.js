// The original stack on Node.js: pg with a pool of 20 and ioredis, each as configured there.
//
// Reads one JSON object per line. The first has the load, and the addresses and contents of the servers. The others
// are windows, as {"seconds", "kept"}, or {"pooled"} for the quantiles of all kept windows. The answer to each is one
// line of figures. The program ends with its input.
const { randomUUID } = require("node:crypto");
const readline = require("node:readline");
const { Pool } = require("pg");
const Redis = require("ioredis");

const SEND = `
  INSERT INTO messages (room_id, user_id, content, message_type)
  VALUES ($1, $2, $3, $4)
  RETURNING *
`;
const CHANNEL = "room-ioredis";
const FIND_USER = "SELECT * FROM users WHERE id = $1";
const FIND_MEMBERSHIP = "SELECT * FROM room_users WHERE room_id = $1 AND user_id = $2";
const PAGE = `
  SELECT *
  FROM messages
  WHERE room_id = $1
  ORDER BY seq DESC
  LIMIT 50
`;

const mapToUser = (row) => ({
  id: row.id,
  email: row.email,
  username: row.username,
  passwordHash: row.password_hash,
  avatarUrl: row.avatar_url,
  isOnline: row.is_online,
  lastSeen: row.last_seen,
  createdAt: row.created_at,
  updatedAt: row.updated_at,
});
const mapToMessage = (row) => ({
  id: row.id,
  roomId: row.room_id,
  seq: row.seq,
  userId: row.user_id,
  content: row.content,
  messageType: row.message_type,
  isEdited: row.is_edited,
  createdAt: row.created_at,
  updatedAt: row.updated_at,
});
const mapToRoomUser = (row) => ({
  roomId: row.room_id,
  userId: row.user_id,
  joinedAt: row.joined_at,
  role: row.role,
  lastReadMessageId: row.last_read_message_id,
});

function one(rows) {
  if (rows.length !== 1) throw new Error(`expected one row, got ${rows.length}`);
  return rows[0];
}

// Each function is one operation of a caller. `n` selects the user and the room.
function operations({ postgres, people, rooms, page_rooms, strict_send, content, sessions, sql, first, ...more }) {
  const pool = new Pool({ ...postgres, max: 20, idleTimeoutMillis: 30000, connectionTimeoutMillis: 0 });
  const redis = new Redis({ ...more.redis, retryStrategy: (times) => Math.min(times * 50, 2000) });
  const person = (n) => people[n % people.length];
  const room = (n) => rooms[n % rooms.length];
  const named = async (name, text, values) => (await pool.query({ name, text, values })).rows;
  const strict = (id, n) => [randomUUID(), id, person(n), content, "text"];
  const page = async (n) => (await named("page", PAGE, [page_rooms[n % page_rooms.length]])).map(mapToMessage);
  const statement = async (...values) => one(await named("statement", sql, values));
  let next = first ?? 0;
  return {
    pool,
    redis,
    steps: {
      "send, bare": async (n) => mapToMessage(one(await named("send", SEND, [room(n), person(n), content, "text"]))),
      "send, strict": async (n) => mapToMessage(one(await named("strict", strict_send, strict(room(n), n)))),
      "send, one room": async (n) => mapToMessage(one(await named("strict", strict_send, strict(rooms[0], n)))),
      user: async (n) => mapToUser(one(await named("user", FIND_USER, [person(n)]))),
      membership: async (n) => mapToRoomUser(one(await named("membership", FIND_MEMBERSHIP, [room(n), person(n)]))),
      page,
      "page, JSON": async (n) => Buffer.from(JSON.stringify(await page(n))),
      // One statement of hubbub for each call.
      edit: (n) => statement(more.messages[n % more.messages.length], person(n), `${content} ${process.pid} ${next++}`),
      join: () => {
        const pair = next++;
        const member = person(Math.floor(pair / more.join_rooms.length));
        return statement(more.join_rooms[pair % more.join_rooms.length], member, "member", null, null);
      },
      "mark read": (n) => statement(more.mark_room, person(n % more.members), Date.now() * 1000 + (next++ % 1000)),
      "list of rooms": (n) => named("list", sql, [person(n), "infinity", more.last_id, 51, 100]),
      session: async (n) => {
        const session = JSON.parse(await redis.get(sessions[n % sessions.length]));
        if (!session.userId) throw new Error("not a session");
      },
    },
  };
}

async function closedLoop(step, callers, seconds) {
  const latencies = [];
  const cpuBegan = process.cpuUsage();
  const began = performance.now();
  const until = began + seconds * 1000;
  const caller = async (n) => {
    for (let ended = performance.now(); ; n += callers) {
      const started = ended;
      await step(n);
      ended = performance.now();
      latencies.push(ended - started);
      if (ended >= until) return;
    }
  };
  await Promise.all(Array.from({ length: callers }, (_, n) => caller(n)));
  return summary(latencies, performance.now() - began, process.cpuUsage(cpuBegan));
}

function summary(latencies, elapsed, cpu) {
  const operations = latencies.length;
  return {
    latencies,
    operations,
    rate: operations / (elapsed / 1000),
    ...quantiles(latencies),
    cpu_us: (cpu.user + cpu.system) / operations,
  };
}

function quantiles(latencies) {
  const sorted = Float64Array.from(latencies).sort();
  return { p50_ms: sorted[sorted.length >> 1], p99_ms: sorted[Math.floor(sorted.length * 0.99)] };
}

const delay = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// `publish` returns the number of expected messages.
async function delivered(sub, publish) {
  const latencies = [];
  sub.on("message", (_, message) => latencies.push(performance.now() - Number(message.slice(0, message.indexOf(" ")))));
  await sub.subscribe(CHANNEL);
  const cpuBegan = process.cpuUsage();
  const began = performance.now();
  const expected = await publish();
  while (latencies.length < expected) await delay(1);
  const figures = summary(latencies, performance.now() - began, process.cpuUsage(cpuBegan));
  sub.removeAllListeners("message");
  await sub.unsubscribe(CHANNEL);
  return figures;
}

// Publishers that each await their PUBLISH before the next.
function saturated({ redis, sub, payload }, publishers, seconds) {
  let count = 0;
  const publisher = async (until) => {
    do {
      await redis.publish(CHANNEL, `${performance.now()} ${payload}`);
      count++;
    } while (performance.now() < until);
  };
  const publish = async () => {
    const until = performance.now() + seconds * 1000;
    await Promise.all(Array.from({ length: publishers }, () => publisher(until)));
    return count;
  };
  return delivered(sub, publish);
}

function paced({ redis, sub, payload }, perSecond, seconds) {
  const total = Math.round(perSecond * seconds);
  const publish = async () => {
    const began = performance.now();
    for (let i = 0; i < total; i++) {
      const early = began + (i * 1000) / perSecond - performance.now();
      if (early > 0) await delay(early);
      await redis.publish(CHANNEL, `${performance.now()} ${payload}`);
    }
    return total;
  };
  return delivered(sub, publish);
}

async function main() {
  const lines = readline.createInterface({ input: process.stdin });
  const kept = [];
  let context;
  for await (const line of lines) {
    const request = JSON.parse(line);
    if (context === undefined) {
      context = { ...request, ...operations(request) };
      context.sub = context.redis.duplicate();
      console.log("{}");
      continue;
    }
    if (request.pooled) {
      console.log(JSON.stringify(quantiles(kept)));
      continue;
    }
    const { load, callers } = context;
    const loads = {
      publish: (seconds) => saturated(context, callers, seconds),
      "publish, paced": (seconds) => paced(context, callers, seconds),
    };
    const run = loads[load] ?? ((seconds) => closedLoop(context.steps[load], callers, seconds));
    const { latencies, ...figures } = await run(request.seconds);
    if (request.kept) for (const latency of latencies) kept.push(latency);
    console.log(JSON.stringify(figures));
  }
  await context?.pool.end();
  context?.redis.disconnect();
  context?.sub.disconnect();
}

main();
