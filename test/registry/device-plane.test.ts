import test from "ava";
import { createUser } from "nkeys.js";
import { MemoryBlobStore } from "#common/adapters/memory/blob-store.js";
import { MemoryBus } from "#common/adapters/memory/bus.js";
import { ManualClock, settle } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { MemoryMetrics } from "#common/adapters/memory/metrics.js";
import { MemoryResourceStore } from "#common/adapters/memory/resource-store.js";
import { newMeta } from "#common/domain/resources.js";
import { GATEWAY_LABEL, SITE_LABEL } from "#common/domain/site.js";
import { subjects } from "#common/domain/subjects.js";
import { type DeepPartial, JoinBundle } from "#proto/shoal/v1/device_wire.js";
import {
  BlobRangeReply,
  BlobRangeRequest,
  HeartbeatReply,
  HeartbeatRequest,
  JoinReply,
  JoinRequest,
} from "#proto/shoal/v1/device_wire.js";
import { Round, UpdateTally } from "#proto/shoal/v1/round.js";
import { AssignmentIndex } from "#services/registry/assignment-index.js";
import type { CredentialIssuer } from "#services/registry/credentials.js";
import { DevicePlane } from "#services/registry/device-plane.js";
import { FleetApi, TOKEN_PREFIX } from "#services/registry/fleet-api.js";
import { loseBlob } from "#test/support/lost-blob.js";

/** Credentials that can be read in a test. */
class PlainCredentials implements CredentialIssuer {
  readonly revoked: string[] = [];

  issueDevice(device: string, publicKey: string, expiresAtMs: number): Promise<string> {
    return Promise.resolve(["device", device, publicKey, expiresAtMs].join());
  }

  issueBootstrap(tokenId: string): Promise<{ jwt: string; seed: string }> {
    return Promise.resolve({ jwt: `join,${tokenId}`, seed: "SU" });
  }

  revoke(publicKey: string): Promise<void> {
    this.revoked.push(publicKey);
    return Promise.resolve();
  }
}

async function registry(replicas = 1) {
  const clock = new ManualClock();
  const store = new MemoryResourceStore(clock);
  const log = new MemoryLog();
  const bus = new MemoryBus(log, clock);
  const blobs = new MemoryBlobStore();
  const metrics = new MemoryMetrics();
  const credentials = new PlainCredentials();
  const nudged: string[] = [];
  const ended = new AbortController();
  const common = { clock, store, log, bus, blobs, metrics, credentials, publicServers: ["nats://hub:4222"] };
  bus.subscribe("shoal.i.*.nudge", { signal: ended.signal }, ({ subject }) => {
    nudged.push(subject);
  });
  for (let i = 0; i < replicas; i++) {
    const index = new AssignmentIndex(store, (devices) => {
      const told = [...devices, ...plane.gatewaysOf(devices)];
      for (const device of told) bus.publish(subjects.nudge(device), new Uint8Array());
    });
    const plane: DevicePlane = new DevicePlane({ ...common, index, heartbeatMs: 5000, leaseMs: 15_000 });
    void index.follow(ended.signal, () => plane.serve(ended.signal));
  }
  await settle();
  let issued = 7;
  const fleet = new FleetApi({ ...common, randomBytes: (count) => new Uint8Array(count).fill(issued++) });
  return { ...common, fleet, nudged, end: () => ended.abort() };
}
type Registry = Awaited<ReturnType<typeof registry>>;

async function ask<T>(
  { bus, clock }: Registry,
  subject: string,
  data: Uint8Array,
  type: { decode(bytes: Uint8Array): T },
): Promise<T> {
  const reply = bus.request(subject, data, 60_000);
  // What waits for a lagging index gets its time.
  for (let i = 0; i < 8; i++) {
    await settle();
    await clock.advance(250);
  }
  return type.decode(await reply);
}

async function tokenOf({ fleet }: Registry, uses = 1): Promise<JoinBundle> {
  const issued = await fleet.issueJoinToken({ ttlMs: 0, uses, deviceLabels: { site: "pier" } });
  if (!issued.ok) throw new Error(issued.refusal.code);
  return JoinBundle.decode(Buffer.from(issued.value.token.slice(TOKEN_PREFIX.length), "base64url"));
}

const join = (home: Registry, { tokenId, secret }: JoinBundle, device: string, publicKey: string): Promise<JoinReply> =>
  ask(
    home,
    subjects.join(tokenId),
    JoinRequest.encode(JoinRequest.fromPartial({ secret, device, publicKey })).finish(),
    JoinReply,
  );
const beat = (home: Registry, device: string, fields: DeepPartial<HeartbeatRequest> = {}): Promise<HeartbeatReply> =>
  ask(
    home,
    subjects.heartbeat(device),
    HeartbeatRequest.encode(HeartbeatRequest.fromPartial(fields)).finish(),
    HeartbeatReply,
  );
const read = (home: Registry, device: string, digest: string, offset = 0, length = 100): Promise<BlobRangeReply> =>
  ask(home, subjects.blob(device), BlobRangeRequest.encode({ digest, offset, length }).finish(), BlobRangeReply);

async function enrolled(replicas = 1): Promise<Registry & { key: string }> {
  const home = await registry(replicas);
  const key = createUser().getPublicKey();
  await join(home, await tokenOf(home), "a", key);
  return { ...home, key };
}

const training = (weights: { digest: string; sizeBytes: number }): Round =>
  Round.fromPartial({
    metadata: newMeta("tale-1"),
    spec: { job: "tale", number: 1, task: { round: "tale-1", weights } },
    status: { phase: "Training", plannedAtMs: 1, deadlineAtMs: 9, assignments: [{ device: "a", localSteps: 5 }] },
  });

test("a device joins with a token and gets a credential for its own key", async (t) => {
  const home = await registry();
  const bundle = await tokenOf(home);
  t.deepEqual(bundle.servers, ["nats://hub:4222"]);
  t.is(bundle.bootstrapJwt, `join,${bundle.tokenId}`);
  const key = createUser().getPublicKey();
  const reply = await join(home, bundle, "a", key);
  t.is(reply.refusal, undefined);
  t.true(reply.jwt.startsWith(`device,a,${key},`));
  t.deepEqual(reply.servers, ["nats://hub:4222"]);
  const stored = await home.store.get("Device", "a");
  t.is(stored?.metadata?.labels["site"], "pier");
  const token = await home.store.get("JoinToken", bundle.tokenId);
  t.is(token?.usesLeft, 0);
  t.false(JSON.stringify(token).includes(bundle.secret));
  t.false(JSON.stringify(home.log).includes(bundle.secret));
  t.is((await join(home, bundle, "a", key)).device, "a");
  t.is((await join(home, bundle, "b", createUser().getPublicKey())).refusal?.reason, "TokenUsedUp");
  home.end();
});

test("of many devices that join at once through two replicas as many enter as the token allows", async (t) => {
  const home = await registry(2);
  const bundle = await tokenOf(home, 3);
  const replies = await Promise.all(
    Array.from({ length: 8 }, (_, i) => join(home, bundle, `d${i}`, createUser().getPublicKey())),
  );
  t.is(replies.filter(({ refusal }) => refusal === undefined).length, 3);
  t.is((await home.store.list("Device")).items.length, 3);
  home.end();
});

test("garbage on any subject is refused, not answered with silence", async (t) => {
  const home = await enrolled();
  const garbage = Uint8Array.from([0x0a, 0xff, 0xff, 0xff, 0x7f, 1]);
  t.is((await ask(home, subjects.join("x"), garbage, JoinReply)).refusal?.reason, "BadRequest");
  t.is((await ask(home, subjects.heartbeat("a"), garbage, HeartbeatReply)).refusal?.reason, "BadRequest");
  t.is((await ask(home, subjects.blob("a"), garbage, BlobRangeReply)).refusal?.reason, "BadRequest");
  home.end();
});

test("a device of an impossible name is told so; the store is not asked for it", async (t) => {
  const home = await registry();
  const bundle = await tokenOf(home);
  const get = home.store.get.bind(home.store);
  home.store.get = (kind, name) =>
    /^[a-z0-9-]+$/.test(name) ? get(kind, name) : Promise.reject(new Error(`bad key "${name}"`));
  for (const name of ["", "a.b", "*", "Gateway", "a b"]) {
    t.is((await join(home, bundle, name, createUser().getPublicKey())).refusal?.reason, "InvalidName", name);
  }
  t.is((await join(home, { ...bundle, tokenId: "A_b" }, "a", "U")).refusal?.reason, "TokenUnknown");
  t.is((await beat(home, "A_b")).refusal?.reason, "UnknownDevice");
  t.is((await read(home, "A_b", "sha256:0")).refusal?.reason, "UnknownDevice");
  home.end();
});

test("a heartbeat renews the lease and brings the assignment until the update is judged", async (t) => {
  const home = await enrolled();
  const weights = await home.blobs.put(new Uint8Array(300).fill(3));
  t.deepEqual((await beat(home, "a")).tasks, []);
  t.true(((await home.store.get("Lease", "a"))?.expiresAtMs ?? 0) > home.clock.nowMs());
  await home.store.create("Round", training(weights));
  await settle();
  const reply = await beat(home, "a");
  t.is(reply.tasks[0]?.task?.round, "tale-1");
  t.is(reply.tasks[0]?.assignment?.localSteps, 5);
  t.is(reply.nextHeartbeatMs, 5000);
  t.deepEqual(home.nudged, ["shoal.i.a.nudge"]);
  const tally = {
    metadata: newMeta("tale-1"),
    verdicts: [{ commitSeq: 1, accepted: true, manifest: { device: "a" } }],
  };
  await home.store.create("UpdateTally", UpdateTally.fromPartial(tally));
  await settle();
  t.deepEqual((await beat(home, "a")).tasks, []);
  home.end();
});

test("a replica that starts late knows what was judged before", async (t) => {
  const home = await enrolled();
  const weights = await home.blobs.put(new Uint8Array(3));
  await home.store.create("Round", training(weights));
  const tally = {
    metadata: newMeta("tale-1"),
    verdicts: [{ commitSeq: 1, accepted: true, manifest: { device: "a" } }],
  };
  await home.store.create("UpdateTally", UpdateTally.fromPartial(tally));
  const ended = new AbortController();
  const index = new AssignmentIndex(home.store, () => undefined);
  void index.follow(ended.signal, () => undefined);
  await settle();
  t.deepEqual(index.tasks(await home.store.get("Device", "a")), []);
  ended.abort();
  home.end();
});

test("a drained device loses its assignment, an uncordoned one has it again", async (t) => {
  const home = await enrolled();
  await home.store.create("Round", training(await home.blobs.put(new Uint8Array(3))));
  await settle();
  t.is((await beat(home, "a")).tasks.length, 1);
  await home.fleet.cordonDevice({ name: "a", uncordon: false });
  t.like(await beat(home, "a"), { tasks: { length: 1 }, cordoned: true });
  await home.fleet.drainDevice({ name: "a" });
  t.like(await beat(home, "a"), { tasks: { length: 0 }, cordoned: true });
  await home.fleet.cordonDevice({ name: "a", uncordon: true });
  t.like(await beat(home, "a"), { tasks: { length: 1 }, cordoned: false });
  home.end();
});

test("an unknown device is told so and leaves no lease", async (t) => {
  const home = await enrolled();
  t.is((await beat(home, "ghost")).refusal?.reason, "UnknownDevice");
  t.is((await read(home, "ghost", "sha256:x")).refusal?.reason, "UnknownDevice");
  t.is(await home.store.get("Lease", "ghost"), undefined);
  home.end();
});

test("a credential is renewed when asked for", async (t) => {
  const home = await enrolled();
  t.is((await beat(home, "a")).jwt, "");
  t.true((await beat(home, "a", { renewCredential: true })).jwt.startsWith(`device,a,${home.key},`));
  home.end();
});

test("a device whose clock is a year off works", async (t) => {
  const home = await enrolled();
  await home.store.create("Round", training(await home.blobs.put(new Uint8Array(3))));
  await settle();
  const reply = await beat(home, "a", { atMs: home.clock.nowMs() + 365 * 86_400_000 });
  t.is(reply.tasks.length, 1);
  const lease = await home.store.get("Lease", "a");
  t.true((lease?.expiresAtMs ?? Infinity) <= home.clock.nowMs() + 15_000);
  home.end();
});

test("blobs of open assignments are read in ranges, others are not", async (t) => {
  const home = await enrolled();
  const bytes = Uint8Array.from({ length: 1_200_000 }, (_, i) => i % 251);
  const weights = await home.blobs.put(bytes);
  const secret = await home.blobs.put(new Uint8Array(5));
  t.is((await read(home, "a", weights.digest)).refusal?.reason, "NotAssigned");
  await home.store.create("Round", training(weights));
  await settle();
  const parts: Uint8Array[] = [];
  for (let offset = 0; offset < bytes.length;) {
    const reply = await read(home, "a", weights.digest, offset, 10_000_000);
    t.is(reply.refusal, undefined);
    t.is(reply.blob?.sizeBytes, bytes.length);
    t.true(reply.data.length > 0 && reply.data.length <= 512 * 1024);
    parts.push(reply.data);
    offset += reply.data.length;
  }
  t.deepEqual(new Uint8Array(Buffer.concat(parts)), bytes);
  t.is((await read(home, "a", secret.digest)).refusal?.reason, "NotAssigned");
  t.is((await read(home, "a", weights.digest, -1)).refusal?.reason, "BadRange");
  await loseBlob(home.blobs, weights.digest);
  t.is((await read(home, "a", weights.digest)).refusal?.reason, "BlobAbsent");
  home.end();
});

test("an assignment that this replica learns a moment later is waited for", async (t) => {
  const home = await enrolled();
  const weights = await home.blobs.put(new Uint8Array(300));
  const reply = read(home, "a", weights.digest);
  await home.store.create("Round", training(weights));
  t.is((await reply).data.length, 100);
  home.end();
});

test("a removed device is revoked, unknown, and does not come back with its token", async (t) => {
  const home = await registry();
  const bundle = await tokenOf(home, 5);
  const key = createUser().getPublicKey();
  await join(home, bundle, "a", key);
  await beat(home, "a");
  t.true((await home.fleet.deleteDevice({ name: "a" })).ok);
  t.deepEqual(home.credentials.revoked, [key, key]);
  t.is(await home.store.get("Lease", "a"), undefined);
  t.is((await beat(home, "a")).refusal?.reason, "UnknownDevice");
  t.is((await join(home, bundle, "a", key)).refusal?.reason, "DeviceRemoved");
  t.is((await join(home, bundle, "a", createUser().getPublicKey())).refusal, undefined);
  home.end();
});

test("a device whose removal a crash cut off stays out, and is removed by the next call", async (t) => {
  const home = await registry();
  const bundle = await tokenOf(home, 5);
  const key = createUser().getPublicKey();
  await join(home, bundle, "a", key);
  const revoke = home.credentials.revoke.bind(home.credentials);
  home.credentials.revoke = () => Promise.reject(new Error("crash"));
  await t.throwsAsync(home.fleet.deleteDevice({ name: "a" }), { message: "crash" });
  t.is((await join(home, bundle, "a", key)).refusal?.reason, "DeviceRemoved");
  t.is((await beat(home, "a", { renewCredential: true })).refusal?.reason, "UnknownDevice");
  t.is((await read(home, "a", "sha256:0")).refusal?.reason, "UnknownDevice");
  home.credentials.revoke = revoke;
  t.true((await home.fleet.deleteDevice({ name: "a" })).ok);
  t.deepEqual(home.credentials.revoked, [key, key]);
  t.is(await home.store.get("Device", "a"), undefined);
  t.is((await join(home, bundle, "a", key)).refusal?.reason, "DeviceRemoved");
  home.end();
});

test("a credential that is issued while its device is removed is not handed out", async (t) => {
  const home = await registry();
  const bundle = await tokenOf(home, 5);
  const key = createUser().getPublicKey();
  await join(home, bundle, "a", key);
  const issue = home.credentials.issueDevice.bind(home.credentials);
  home.credentials.issueDevice = async (device, publicKey, expiresAtMs) => {
    await home.fleet.deleteDevice({ name: "a" });
    return issue(device, publicKey, expiresAtMs);
  };
  const reply = await join(home, bundle, "a", key);
  t.deepEqual([reply.refusal?.reason, reply.jwt], ["DeviceRemoved", ""]);
  home.end();
});

const siteToken = async (home: Registry, deviceLabels: Record<string, string>): Promise<JoinBundle> => {
  const issued = await home.fleet.issueJoinToken({ ttlMs: 0, uses: -1, deviceLabels });
  if (!issued.ok) throw new Error(issued.refusal.code);
  return JoinBundle.decode(Buffer.from(issued.value.token.slice(TOKEN_PREFIX.length), "base64url"));
};
const via = (home: Registry, gateway: string, name: string): Promise<HeartbeatReply> =>
  ask(
    home,
    subjects.via(gateway, name, "heartbeat"),
    HeartbeatRequest.encode(HeartbeatRequest.fromPartial({})).finish(),
    HeartbeatReply,
  );

test("a gateway speaks for the devices of its site and for no others, and is told its site's open rounds", async (t) => {
  const home = await registry();
  const key = (): string => createUser().getPublicKey();
  const gateToken = await siteToken(home, { [SITE_LABEL]: "pier", [GATEWAY_LABEL]: "true" });
  await join(home, gateToken, "gate", key());
  const pier = await siteToken(home, { [SITE_LABEL]: "pier" });
  await join(home, await siteToken(home, { [SITE_LABEL]: "dock" }), "cyd", key());
  // The request to join of a device behind the gateway is carried as it is.
  const request = JoinRequest.fromPartial({ secret: pier.secret, device: "ann", publicKey: key() });
  const carried = subjects.via("gate", pier.tokenId, "join");
  t.is((await ask(home, carried, JoinRequest.encode(request).finish(), JoinReply)).device, "ann");
  await join(home, pier, "bob", key());

  t.is((await via(home, "gate", "ann")).refusal, undefined);
  t.is((await via(home, "gate", "cyd")).refusal?.reason, "OtherSite");
  t.is((await via(home, "bob", "ann")).refusal?.reason, "OtherSite", "a device of the site is no gateway");
  t.is((await via(home, "gate", "nobody")).refusal?.reason, "UnknownDevice");

  const blob = await home.blobs.put(new Uint8Array(1000).fill(5));
  const assignments = [
    { device: "ann", site: "pier", localSteps: 3 },
    { device: "bob", site: "pier", localSteps: 3 },
    { device: "cyd", site: "dock", localSteps: 3 },
  ];
  const task = { job: "tiny", round: "tiny-1", weights: blob };
  const round = { metadata: newMeta("tiny-1"), spec: { job: "tiny", number: 1, task } };
  await home.store.create(
    "Round",
    Round.fromPartial({ ...round, status: { phase: "Training", assignments, deadlineAtMs: 9 } }),
  );
  await settle();
  t.true(home.nudged.includes("shoal.i.ann.nudge"));
  t.true(home.nudged.includes("shoal.i.gate.nudge"), "who sits behind a gateway hears through it");

  const { site, siteRounds, tasks } = await beat(home, "gate");
  t.is(site, "pier");
  t.deepEqual(tasks, []);
  const conditions = (await home.store.get("Device", "gate"))?.status?.conditions ?? [];
  t.is(conditions.find(({ type }) => type === "Ready")?.status, "True", "a gateway need not be calibrated");
  t.false(conditions.some(({ type }) => type === "DataReady"));
  t.deepEqual(
    siteRounds.map((one) => one.assignments.map(({ device }) => device)),
    [["ann", "bob"]],
  );
  t.is(siteRounds[0]?.deadlineAtMs, 9);
  t.deepEqual((await beat(home, "bob")).siteRounds, []);
  t.is((await via(home, "gate", "ann")).tasks.length, 1);
  const range = BlobRangeRequest.encode({ digest: blob.digest, offset: 0, length: 100 }).finish();
  t.is((await ask(home, subjects.via("gate", "ann", "blob"), range, BlobRangeReply)).data.length, 100);
  t.is((await ask(home, subjects.via("gate", "cyd", "blob"), range, BlobRangeReply)).refusal?.reason, "OtherSite");

  // A gateway's update accounts for its members: they are not waited for any more, nor is its site.
  const manifest = {
    device: "gate",
    site: "pier",
    members: [{ device: "ann" }, { device: "bob", refusal: "NotFinite" }],
  };
  const verdicts = [{ commitSeq: 4, accepted: true, manifest }];
  await home.store.create(
    "UpdateTally",
    UpdateTally.fromPartial({ metadata: newMeta("tiny-1"), verdicts, lastSeq: 4 }),
  );
  await settle();
  t.deepEqual((await beat(home, "gate")).siteRounds, []);
  t.deepEqual((await via(home, "gate", "ann")).tasks, []);
  home.end();
});

test("no device labels itself: site and gateway come with the token", async (t) => {
  const home = await registry();
  const { tokenId, secret } = await tokenOf(home, -1);
  const labels = { [SITE_LABEL]: "pier", [GATEWAY_LABEL]: "true" };
  const request = JoinRequest.fromPartial({ secret, device: "mole", publicKey: createUser().getPublicKey(), labels });
  const reply = await ask(home, subjects.join(tokenId), JoinRequest.encode(request).finish(), JoinReply);
  t.is(reply.refusal?.reason, "InvalidLabels");
  home.end();
});
