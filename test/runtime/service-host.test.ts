import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import test from "ava";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { credsPaths } from "#common/adapters/nats/keys.js";
import { newMeta } from "#common/domain/resources.js";
import { Lease } from "#proto/shoal/v1/device.js";
import { freePort, startNats, startRedis } from "#test/support/servers.js";

const ECHO = fileURLToPath(new URL("../support/echo-service.js", import.meta.url));

class Service {
  readonly child: ChildProcess;
  private output = "";

  constructor(env: Record<string, string>) {
    this.child = spawn(process.execPath, [ECHO], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
    for (const stream of [this.child.stdout, this.child.stderr])
      stream?.on("data", (data: Buffer) => (this.output += data.toString()));
  }

  get text(): string {
    return this.output;
  }

  async says(what: string, ms = 60_000): Promise<boolean> {
    const endMs = performance.now() + ms;
    while (!this.output.includes(what) && performance.now() < endMs) await sleep(20);
    return this.output.includes(what);
  }

  async end(signal?: NodeJS.Signals): Promise<number | null> {
    const ended = once(this.child, "exit");
    if (signal !== undefined) this.child.kill(signal);
    if (this.child.exitCode === null) await ended;
    return this.child.exitCode;
  }
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function get(port: number, path: string): Promise<{ code: number; text: string }> {
  const response = await fetch(`http://127.0.0.1:${port}${path}`);
  return { code: response.status, text: await response.text() };
}

test.serial("a bad environment ends with code 78 and tells every fault", async (t) => {
  const service = new Service({ SHOAL_NATS_URL: "http://x", SHOAL_HEARTBEAT_MS: "soon" });
  t.is(await service.end(), 78);
  for (const name of ["SHOAL_NATS_CREDS", "SHOAL_NATS_URL", "SHOAL_HEARTBEAT_MS"]) t.true(service.text.includes(name));
  const unreadable = new Service({ SHOAL_NATS_CREDS: "/nowhere/x.creds", SHOAL_METRICS_LISTEN: "127.0.0.1:0" });
  t.is(await unreadable.end(), 78);
  t.true(unreadable.text.includes("SHOAL_NATS_CREDS"));
});

test.serial("a service waits for NATS and Redis, says so, works, and drains on SIGTERM", async (t) => {
  const [nats, redis] = [await startNats(), await startRedis()];
  await nats.kill();
  await redis.kill();
  const metricsPort = await freePort();
  const service = new Service({
    SHOAL_NATS_URL: nats.url,
    SHOAL_NATS_CREDS: credsPaths(`${nats.dir}/keys`).service,
    SHOAL_REDIS_URL: redis.url,
    SHOAL_GRPC_LISTEN: "127.0.0.1:0",
    SHOAL_METRICS_LISTEN: `127.0.0.1:${metricsPort}`,
    SHOAL_RESYNC_MS: "1000",
  });
  try {
    t.true(await service.says("waiting for NATS"));
    t.is((await get(metricsPort, "/healthz")).code, 200);
    t.deepEqual(await get(metricsPort, "/readyz"), { code: 503, text: "waiting for NATS, the service to start\n" });
    await nats.start();
    t.true(await service.says('"serving"'));
    t.deepEqual(await get(metricsPort, "/readyz"), { code: 503, text: "waiting for Redis\n" });
    const link = await nats.connect();
    const store = await NatsResourceStore.open(link);
    await store.create("Lease", Lease.fromPartial({ metadata: newMeta("while-redis-is-away") }));
    await redis.start();
    t.true(await service.says('"key":"while-redis-is-away"'));
    t.is((await get(metricsPort, "/readyz")).code, 200);
    const metrics = await get(metricsPort, "/metrics");
    t.true(metrics.text.includes('shoal_reconciles_total{controller="echo-controller",outcome="done"'));
    const promtool = spawn("promtool", ["check", "metrics"], { stdio: ["pipe", "pipe", "pipe"] });
    promtool.stdin.end(metrics.text);
    let complaint = "";
    promtool.stderr.on("data", (data: Buffer) => (complaint += data.toString()));
    t.deepEqual([(await once(promtool, "exit"))[0], complaint], [0, ""]);
    await link.close();
    const startMs = performance.now();
    t.is(await service.end("SIGTERM"), 0);
    t.true(performance.now() - startMs < 8000);
    t.true(service.text.includes('"clean":true'));
  } finally {
    service.child.kill("SIGKILL");
    await nats.stop();
    await redis.stop();
  }
});
