// One case of the comparison, as the seed would run it: ioredis with its defaults, one connection for commands and
// a duplicate for subscriptions. Prints one line of JSON. The port, the password and the case come from the
// environment and the command line.
const Redis = require("ioredis");

const [, , name] = process.argv;
const seconds = Number(process.argv[3]);
const options = { host: "127.0.0.1", port: Number(process.env.REDIS_PORT), password: process.env.REDIS_PASSWORD };
const keys = Array.from({ length: 1000 }, (_, i) => `session:${i}`);
const payload = "x".repeat(200);

function meter() {
  const began = performance.now();
  const cpuBegan = process.cpuUsage();
  return (done) => {
    const cpu = process.cpuUsage(cpuBegan);
    return { rate: done / ((performance.now() - began) / 1000), cpu_us: (cpu.user + cpu.system) / done };
  };
}

async function lookups(redis, callers, seconds) {
  const until = performance.now() + seconds * 1000;
  let done = 0;
  const caller = async (first) => {
    for (let i = first; performance.now() < until; i++) {
      const session = JSON.parse(await redis.get(keys[i % keys.length]));
      if (!session.userId) throw new Error("not a session");
      done++;
    }
  };
  const read = meter();
  await Promise.all(Array.from({ length: callers }, (_, i) => caller(i * 7)));
  return read(done);
}

async function saturated(redis, sub, callers, seconds) {
  let delivered = 0;
  sub.on("message", () => delivered++);
  await sub.subscribe("room");
  const until = performance.now() + seconds * 1000;
  const publisher = async () => {
    while (performance.now() < until) await redis.publish("room", payload);
  };
  const read = meter();
  await Promise.all(Array.from({ length: callers }, publisher));
  return read(delivered);
}

async function paced(redis, sub, rate, seconds) {
  const latencies = [];
  sub.on("message", (_, sent) => latencies.push(performance.now() - Number(sent)));
  await sub.subscribe("room");
  const began = performance.now();
  for (let i = 0; i < rate * seconds; i++) {
    const due = began + (i * 1000) / rate;
    const early = due - performance.now();
    if (early > 0) await new Promise((resolve) => setTimeout(resolve, early));
    await redis.publish("room", String(performance.now()));
  }
  await new Promise((resolve) => setTimeout(resolve, 100));
  latencies.sort((a, b) => a - b);
  return { p50: latencies[latencies.length >> 1], p99: latencies[Math.floor(latencies.length * 0.99)] };
}

async function main() {
  const redis = new Redis(options);
  const sub = redis.duplicate();
  await Promise.all([redis.ping(), sub.ping()]);
  const cases = {
    "lookups-200": (time) => lookups(redis, 200, time),
    "lookups-1": (time) => lookups(redis, 1, time),
    saturated: (time) => saturated(redis, sub, 200, time),
    paced: (time) => paced(redis, sub, 200, time),
  };
  await cases[name](seconds / 2); // so that connections are open, and the compiler is done, before it counts
  sub.removeAllListeners("message");
  console.log(JSON.stringify(await cases[name](seconds)));
  redis.disconnect();
  sub.disconnect();
}

main();
