import test from "ava";
import fc from "fast-check";
import { backoffMs } from "#common/runtime/backoff.js";
import { readServiceConfig } from "#common/runtime/config.js";

const MINIMAL = { SHOAL_NATS_CREDS: "/keys/service.creds" };
const read = (env: Record<string, string>) => readServiceConfig({ ...MINIMAL, ...env }, { replica: "r1" });

test("defaults suit one machine", (t) => {
  const result = read({});
  t.true(result.ok);
  if (!result.ok) return;
  const { config } = result;
  t.deepEqual(config.natsUrls, ["nats://127.0.0.1:4222"]);
  t.deepEqual(config.publicNatsUrls, config.natsUrls);
  t.deepEqual(config.grpcListen, { host: "127.0.0.1", port: 50051 });
  t.deepEqual([config.heartbeatMs, config.leaseMs, config.resyncMs], [5000, 15_000, 30_000]);
  t.is(config.replica, "r1");
  t.is(config.keysDir, undefined);
});

test("every value is taken from its variable", (t) => {
  const result = read({
    SHOAL_NATS_URL: "nats://a:1, tls://b:2",
    SHOAL_REDIS_URL: "redis://:pw@c:3/1",
    SHOAL_GRPC_LISTEN: "[::1]:0",
    SHOAL_METRICS_LISTEN: "0.0.0.0:65535",
    SHOAL_REPLICA: "x",
    SHOAL_KEYS_DIR: "/keys",
    SHOAL_LOG_LEVEL: "debug",
    SHOAL_HEARTBEAT_MS: "100",
    SHOAL_LEASE_MS: "300",
    SHOAL_RESYNC_MS: "1000",
    SHOAL_PUBLIC_NATS_URLS: "wss://edge.example:443",
    SHOAL_UPDATES_MAX_BYTES: "2000000",
  });
  t.true(result.ok);
  if (!result.ok) return;
  t.deepEqual(result.config, {
    natsUrls: ["nats://a:1", "tls://b:2"],
    natsCredsPath: "/keys/service.creds",
    keysDir: "/keys",
    redisUrl: "redis://:pw@c:3/1",
    grpcListen: { host: "::1", port: 0 },
    metricsListen: { host: "0.0.0.0", port: 65535 },
    replica: "x",
    logLevel: "debug",
    heartbeatMs: 100,
    leaseMs: 300,
    resyncMs: 1000,
    publicNatsUrls: ["wss://edge.example:443"],
    updatesMaxBytes: 2_000_000,
    streamReplicas: 1,
  });
});

test("all that is wrong is told at once, with name, value and remedy", (t) => {
  const bad = {
    SHOAL_NATS_CREDS: "",
    SHOAL_NATS_URL: "http://a",
    SHOAL_REDIS_URL: "nonsense",
    SHOAL_GRPC_LISTEN: "50051",
    SHOAL_METRICS_LISTEN: "a:70000",
    SHOAL_LOG_LEVEL: "loud",
    SHOAL_HEARTBEAT_MS: "5s",
    SHOAL_RESYNC_MS: "-1",
    SHOAL_STREAM_REPLICAS: "9",
    SHOAL_PUBLIC_NATS_URLS: "nats://ok:1,ftp://no",
  };
  const result = read(bad);
  t.false(result.ok);
  if (result.ok) return;
  t.deepEqual(result.violations.map(({ name }) => name).sort(), Object.keys(bad).sort());
  for (const violation of result.violations) t.not(violation.remedy, "");
  t.is(result.violations.find(({ name }) => name === "SHOAL_HEARTBEAT_MS")?.value, "5s");
});

test("a lease outlives a lost beat", (t) => {
  const result = read({ SHOAL_HEARTBEAT_MS: "5000", SHOAL_LEASE_MS: "9999" });
  t.deepEqual(!result.ok && result.violations.map(({ name }) => name), ["SHOAL_LEASE_MS"]);
  t.true(read({ SHOAL_HEARTBEAT_MS: "5000", SHOAL_LEASE_MS: "10000" }).ok);
});

test("backoff grows to its bound and stays in its half", (t) => {
  const backoff = { baseMs: 100, maxMs: 5000 };
  t.deepEqual(
    [1, 2, 3, 7, 1000].map((failures) => backoffMs(backoff, failures, 0.999999)),
    [100, 200, 400, 5000, 5000],
  );
  fc.assert(
    fc.property(fc.nat(2000), fc.double({ min: 0, max: 0.999, noNaN: true }), (failures, random) => {
      const ms = backoffMs(backoff, failures, random);
      const full = Math.min(100 * 2 ** Math.min(Math.max(0, failures - 1), 40), 5000);
      return ms >= Math.floor(full / 2) && ms <= full;
    }),
  );
  t.pass();
});
