import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { credentials } from "@grpc/grpc-js";
import test from "ava";
import { createUserKeys, formatCreds } from "#common/adapters/nats/credentials.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { credsPaths } from "#common/adapters/nats/keys.js";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { newMeta } from "#common/domain/resources.js";
import { deviceInbox, joinInbox, subjects } from "#common/domain/subjects.js";
import {
  BlobRangeReply,
  BlobRangeRequest,
  HeartbeatReply,
  HeartbeatRequest,
  JoinBundle,
  JoinReply,
  JoinRequest,
} from "#proto/shoal/v1/device_wire.js";
import { FleetServiceClient } from "#proto/shoal/v1/fleet_service.js";
import { Round } from "#proto/shoal/v1/round.js";
import { TelemetryServiceClient, type WatchEventsResponse } from "#proto/shoal/v1/telemetry_service.js";
import { freePort, type NatsTestServer, startNats } from "#test/support/servers.js";

const SERVICES = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "services");
const WAIT_MS = 60_000;

interface Service {
  readonly child: ChildProcess;
  readonly grpcPort: number;
  readonly metricsPort: number;
}

/** A service's main as a process of its own, once it says that it serves. */
async function startService(name: string, nats: NatsTestServer): Promise<Service> {
  const [grpcPort, metricsPort] = [await freePort(), await freePort()];
  const keysDir = join(nats.dir, "keys");
  const child = spawn(process.execPath, [join(SERVICES, name, "main.js")], {
    stdio: ["ignore", "ignore", "inherit"],
    env: {
      PATH: process.env["PATH"],
      SHOAL_NATS_URL: nats.url,
      SHOAL_NATS_CREDS: credsPaths(keysDir).service,
      SHOAL_KEYS_DIR: keysDir,
      SHOAL_GRPC_LISTEN: `127.0.0.1:${grpcPort}`,
      SHOAL_METRICS_LISTEN: `127.0.0.1:${metricsPort}`,
      SHOAL_LOG_LEVEL: "error",
    },
  });
  await eventually(async () => (await fetch(`http://127.0.0.1:${metricsPort}/readyz`)).ok);
  return { child, grpcPort, metricsPort };
}

/** SIGTERM; resolves to the exit code. */
async function stop({ child }: Service): Promise<number | null> {
  const ended = once(child, "exit");
  child.kill("SIGTERM");
  const [code] = (await ended) as [number | null];
  return code;
}

async function eventually(holds: () => Promise<boolean>): Promise<void> {
  for (const endMs = Date.now() + WAIT_MS; ;) {
    if (await holds().catch(() => false)) return;
    if (Date.now() > endMs) throw new Error(`does not hold after ${WAIT_MS} ms: ${String(holds)}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Asks and waits for the answer, however slow the machine. */
async function ask<T>(
  link: NatsLink,
  subject: string,
  data: Uint8Array,
  type: { decode(bytes: Uint8Array): T },
): Promise<T> {
  return type.decode((await link.nc.request(subject, data, { timeout: 30_000 })).data);
}

test("a device joins through real services, works with its own subjects only, and is shut out when it is deleted", async (t) => {
  const nats = await startNats();
  const [first, second, telemetry] = await Promise.all([
    startService("registry", nats),
    startService("registry", nats),
    startService("telemetry", nats),
  ]);
  const fleet = new FleetServiceClient(`127.0.0.1:${first.grpcPort}`, credentials.createInsecure());
  const events = new TelemetryServiceClient(`127.0.0.1:${telemetry.grpcPort}`, credentials.createInsecure());
  const services = await nats.connect();
  const links = [services];
  t.teardown(async () => {
    fleet.close();
    events.close();
    for (const { child } of [first, second, telemetry]) child.kill("SIGKILL");
    for (const { nc } of links) await nc.close();
    await nats.stop();
  });

  const token = await new Promise<string>((resolve, reject) => {
    fleet.issueJoinToken({ ttlMs: 0, uses: 1, deviceLabels: {} }, (error, response) => {
      if (error === null) resolve(response.token);
      else reject(error);
    });
  });
  const bundle = JoinBundle.decode(Buffer.from(token.slice("shoal1.".length), "base64url"));
  t.deepEqual(bundle.servers, [nats.url]);
  const keys = createUserKeys();
  const bootstrapCreds = formatCreds({ jwt: bundle.bootstrapJwt, seed: bundle.bootstrapSeed });
  const bootstrap = await nats.connect(bootstrapCreds, joinInbox(bundle.tokenId));
  links.push(bootstrap);
  const request = JoinRequest.fromPartial({ secret: bundle.secret, publicKey: keys.publicKey, device: "a" });
  const joined = await ask(bootstrap, subjects.join(bundle.tokenId), JoinRequest.encode(request).finish(), JoinReply);
  t.is(joined.refusal, undefined);
  await t.throwsAsync(bootstrap.nc.request(subjects.heartbeat("a"), new Uint8Array(), { timeout: 500 }));
  await bootstrap.close();

  const device = await nats.connect(formatCreds({ jwt: joined.jwt, seed: keys.seed }), deviceInbox("a"));
  links.push(device);
  const store = await NatsResourceStore.open(services);
  const bytes = Uint8Array.from({ length: 700_000 }, (_, i) => i % 253);
  const weights = await new NatsBlobStore(services).put(bytes);
  let nudges = 0;
  device.nc.subscribe(subjects.nudge("a"), { callback: () => (nudges += 1) });
  await device.nc.flush();
  await store.create(
    "Round",
    Round.fromPartial({
      metadata: newMeta("tale-1"),
      spec: { job: "tale", number: 1, task: { round: "tale-1", weights } },
      status: { phase: "Training", plannedAtMs: 1, assignments: [{ device: "a", localSteps: 4 }] },
    }),
  );
  const beat = HeartbeatRequest.encode(
    HeartbeatRequest.fromPartial({ atMs: Date.now(), renewCredential: true }),
  ).finish();
  await eventually(async () => (await ask(device, subjects.heartbeat("a"), beat, HeartbeatReply)).tasks.length === 1);
  await eventually(() => Promise.resolve(nudges > 0));
  t.true((await ask(device, subjects.heartbeat("a"), beat, HeartbeatReply)).jwt.length > 100);

  const read = async (offset: number): Promise<BlobRangeReply> => {
    const range = BlobRangeRequest.encode({ digest: weights.digest, offset, length: 1 << 20 }).finish();
    return ask(device, subjects.blob("a"), range, BlobRangeReply);
  };
  const head = await read(0);
  const tail = await read(head.data.length);
  t.deepEqual(new Uint8Array(Buffer.concat([head.data, tail.data])), bytes);

  await t.throwsAsync(device.nc.request(subjects.heartbeat("b"), beat, { timeout: 500 }));
  await t.throwsAsync(device.nc.request("$JS.API.STREAM.NAMES", "", { timeout: 500 }));

  t.is(await stop(second), 0);
  t.is((await ask(device, subjects.heartbeat("a"), beat, HeartbeatReply)).tasks.length, 1);

  await eventually(async () => {
    const reasons: string[] = [];
    const watch = events.watchEvents({ job: "", afterSeq: 0, pastOnly: true });
    for await (const { event } of watch as AsyncIterable<WatchEventsResponse>) reasons.push(event?.reason ?? "");
    return reasons.includes("DeviceJoined") && reasons.includes("RoundPlanned");
  });
  for (const { metricsPort } of [first, telemetry]) {
    const metrics = await (await fetch(`http://127.0.0.1:${metricsPort}/metrics`)).text();
    t.regex(metrics, /shoal_/);
    t.notThrows(() => execFileSync("promtool", ["check", "metrics"], { input: metrics }));
  }

  const closed = device.nc.closed();
  await new Promise<void>((resolve, reject) => {
    fleet.deleteDevice({ name: "a" }, (error) => {
      if (error === null) resolve();
      else reject(error);
    });
  });
  await closed;
  t.true(device.nc.isClosed());
  await t.throwsAsync(nats.connect(formatCreds({ jwt: joined.jwt, seed: keys.seed }), deviceInbox("a")));
  t.is(await stop(first), 0);
  t.is(await stop(telemetry), 0);
});
