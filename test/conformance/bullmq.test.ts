import { randomUUID } from "node:crypto";
import test from "ava";
import { BullWorkQueue } from "#common/adapters/bullmq/work-queue.js";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { freePort, startRedis, type RedisTestServer } from "#test/support/servers.js";
import { Redis } from "ioredis";
import { workQueueConformance } from "./work-queue.js";

let server: RedisTestServer;
const clock = new SystemClock();
const log = new MemoryLog();

const open = (name: string = randomUUID(), redisUrl = server.url): BullWorkQueue =>
  new BullWorkQueue({ redisUrl, name, clock, log, addTimeoutMs: 1000 });

test.before(async () => {
  server = await startRedis();
});

test.after.always(async () => {
  await server.stop();
});

workQueueConformance(test, "BullMQ", () => open());

async function until(what: () => boolean): Promise<void> {
  for (let turn = 0; turn < 6000 && !what(); turn += 1) await clock.sleep(10);
}

test.serial("BullMQ: replicas share the keys", async (t) => {
  const name = randomUUID();
  const queues = [open(name), open(name)];
  const stop = new AbortController();
  const seen: string[] = [];
  const handler = async (key: string): Promise<void> => {
    seen.push(key);
    await clock.sleep(50);
  };
  const running = queues.map((queue) => queue.run(handler, { concurrency: 1, signal: stop.signal }));
  for (let index = 0; index < 10; index += 1) await queues[index % 2]?.add(`key-${index}`);
  await until(() => seen.length >= 10);
  await clock.sleep(100);
  stop.abort();
  await Promise.all(running);
  await Promise.all(queues.map((queue) => queue.close()));
  t.is(seen.length, 10);
  t.is(new Set(seen).size, 10);
});

test.serial("BullMQ: after FLUSHALL and after a crash of Redis keys added again run", async (t) => {
  const queue = open();
  const stop = new AbortController();
  const seen: string[] = [];
  const running = queue.run(
    (key) => {
      seen.push(key);
      return Promise.resolve();
    },
    { concurrency: 2, signal: stop.signal },
  );
  await queue.add("a", { delayMs: 100_000 });
  await queue.add("b");
  await until(() => seen.length === 1);
  const redis = new Redis(server.url);
  await redis.flushall();
  redis.disconnect();
  await queue.add("a");
  await until(() => seen.length === 2);
  await server.kill();
  await t.throwsAsync(queue.add("c"), { code: "QUEUE_UNAVAILABLE" });
  await server.start();
  await until(() => queue.connected);
  await queue.add("c");
  await queue.add("d", { delayMs: 50 });
  await until(() => seen.length === 4);
  stop.abort();
  await running;
  await queue.close();
  t.deepEqual([...seen].sort(), ["a", "b", "c", "d"]);
});

test.serial(
  "BullMQ: an absent Redis fails adds in bounded time and does not keep run and close from ending",
  async (t) => {
    const queue = open(randomUUID(), `redis://127.0.0.1:${await freePort()}`);
    const stop = new AbortController();
    const running = queue.run(() => Promise.resolve(), { concurrency: 1, signal: stop.signal });
    const startMs = performance.now();
    await t.throwsAsync(queue.add("a"), { code: "QUEUE_UNAVAILABLE" });
    await t.throwsAsync(queue.add("a", { delayMs: 10 }), { code: "QUEUE_UNAVAILABLE" });
    t.true(performance.now() - startMs < 4000);
    t.false(queue.connected);
    t.true(log.lines.some(({ message }) => message.startsWith("Redis fails")));
    stop.abort();
    await running;
    await queue.close();
    t.true(performance.now() - startMs < 20_000);
  },
);
