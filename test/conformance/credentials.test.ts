import { mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { decode, encodeAccount } from "@nats-io/jwt";
import test from "ava";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import {
  createTrustRoot,
  createUserKeys,
  expiryOf,
  formatCreds,
  isUserPublicKey,
  issueBootstrapUser,
  issueDeviceUser,
  publicKeyOf,
  revokedIn,
  revokeInAccountJwts,
  revokeUsers,
} from "#common/adapters/nats/credentials.js";
import { credsPaths, ensureKeys, readKeys } from "#common/adapters/nats/keys.js";
import { ensureStreams } from "#common/adapters/nats/streams.js";
import { NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { deviceInbox, joinInbox, subjects } from "#common/domain/subjects.js";
import { NatsCredentials } from "#services/registry/nats-credentials.js";
import { startNats, type NatsTestServer } from "#test/support/servers.js";

let server: NatsTestServer;
let services: NatsLink;

test.before(async () => {
  server = await startNats();
  services = await server.connect();
  await ensureStreams(services);
});

test.after.always(async () => {
  await services.close();
  await server.stop();
});

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function credsFor(device: string, root = server.root): Promise<{ publicKey: string; creds: string }> {
  const { publicKey, seed } = createUserKeys();
  const { deviceAccountSeed } = root;
  const jwt = await issueDeviceUser({ deviceAccountSeed, device, publicKey, expiresAtMs: Date.now() + 3_600_000 });
  return { publicKey, creds: formatCreds({ jwt, seed }) };
}

async function joinAs(device: string): Promise<{ link: NatsLink; publicKey: string; creds: string }> {
  const own = await credsFor(device);
  return { link: await server.connect(own.creds, deviceInbox(device)), ...own };
}

/** Whether the services hear what the device publishes on a subject. */
async function isHeard(device: NatsLink, subject: string): Promise<boolean> {
  const heard: string[] = [];
  const subscription = services.nc.subscribe(subject, {
    callback: (_error, message) => void heard.push(message.subject),
  });
  await services.nc.flush();
  device.nc.publish(subject, "x");
  await device.nc.flush();
  await services.nc.flush();
  subscription.unsubscribe();
  return heard.length > 0;
}

/** Whether the device hears what is published on a subject. */
async function hears(device: NatsLink, subject: string): Promise<boolean> {
  const heard: string[] = [];
  const subscription = device.nc.subscribe(subject, {
    callback: (error, message) => {
      if (error === null) heard.push(message.subject);
    },
  });
  await device.nc.flush();
  services.nc.publish(subject.replaceAll("*", "other").replace(">", "x"), "secret");
  await services.nc.flush();
  await device.nc.flush();
  subscription.unsubscribe();
  return heard.length > 0;
}

test.serial("a device publishes and reads its own subjects", async (t) => {
  const { link } = await joinAs("own");
  for (const subject of [subjects.heartbeat("own"), subjects.blob("own")])
    t.true(await isHeard(link, subject), subject);
  t.true(await hears(link, subjects.nudge("own")));
  const answering = services.nc.subscribe(subjects.heartbeat("own"), {
    callback: (_error, m) => void m.respond("yes"),
  });
  await services.nc.flush();
  t.is((await link.nc.request(subjects.heartbeat("own"), "x", { timeout: 30_000 })).string(), "yes");
  answering.unsubscribe();
  const { seq } = await new NatsUpdateUplink(link.nc, "own").appendChunk("r-1", "own/r-1/0", new Uint8Array(1000));
  t.true(seq >= 1);
  await link.close();
});

test.serial("an answer or an acknowledgement cannot be aimed at the control plane's own subjects", async (t) => {
  const { link } = await joinAs("aimer");
  const aims = ["$KV.resources.Dataset.aimed", subjects.updateCommit("victim", "r-1"), "shoal.event.aimed"];
  const heard: string[] = [];
  const listening = services.nc.subscribe(">", { callback: (_error, message) => void heard.push(message.subject) });
  const answering = services.nc.subscribe(subjects.heartbeat("aimer"), {
    callback: (_error, message) => void message.respond('{"metadata":{"name":"aimed"}}'),
  });
  await services.nc.flush();
  for (const reply of aims) {
    link.nc.publish(subjects.heartbeat("aimer"), "x", { reply });
    link.nc.publish(subjects.updateChunk("aimer", "r-1"), "x", { reply });
  }
  await link.nc.flush();
  for (let i = 0; i < 3; i++) {
    await new NatsUpdateUplink(link.nc, "aimer").appendChunk("r-1", `aimer/${i}`, new Uint8Array(8));
    await services.nc.flush();
  }
  t.true(heard.includes(subjects.heartbeat("aimer")), "the requests themselves arrived");
  for (const aim of aims) t.false(heard.includes(aim), aim);
  const bucket = await (
    await services.manager()
  ).streams.info("KV_resources", { subjects_filter: "$KV.resources.Dataset.aimed" });
  t.is(Object.keys(bucket.state.subjects ?? {}).length, 0);
  listening.unsubscribe();
  answering.unsubscribe();
  await link.close();
});

test.serial("a device cannot publish as another, to its peers, or to the control plane's own subjects", async (t) => {
  const { link } = await joinAs("thief");
  const forbidden = [
    subjects.heartbeat("victim"),
    subjects.updateChunk("victim", "r-1"),
    subjects.updateCommit("victim", "r-1"),
    subjects.nudge("victim"),
    subjects.join("token"),
    "shoal.blob.00.ref",
    "shoal.event.x",
    "$KV.resources.Device.victim",
    `${deviceInbox("victim")}.x`,
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.PURGE.UPDATES",
    "$JS.API.CONSUMER.CREATE.UPDATES",
    "$JS.API.DIRECT.GET.KV_resources",
    "$JS.API.STREAM.MSG.GET.KV_resources",
    "$SYS.REQ.CLAIMS.UPDATE",
  ];
  for (const subject of forbidden) t.false(await isHeard(link, subject), subject);
  const uplink = new NatsUpdateUplink(link.nc, "victim", 500);
  await t.throwsAsync(uplink.appendChunk("r-1", "stolen", new Uint8Array(5)));
  await t.throwsAsync(link.nc.request("$JS.API.STREAM.INFO.UPDATES", "", { timeout: 500 }));
  await t.throwsAsync(new NatsBlobStore(link).put(new Uint8Array(5)));
  await link.close();
});

test.serial("a device cannot read another's subjects or inboxes", async (t) => {
  const { link } = await joinAs("ear");
  const forbidden = [
    ">",
    "shoal.>",
    "shoal.*.victim.>",
    subjects.nudge("victim"),
    subjects.allUpdates,
    subjects.updateChunk("victim", "r-1"),
    `${deviceInbox("victim")}.>`,
    "_INBOX.>",
    "$KV.resources.>",
    "shoal.event.>",
    "$JS.>",
    "$SYS.>",
  ];
  for (const subject of forbidden) t.false(await hears(link, subject), subject);
  await link.close();
});

test.serial("a bootstrap credential asks to join with its own token and nothing else", async (t) => {
  const options = { deviceAccountSeed: server.root.deviceAccountSeed, tokenId: "t1", expiresAtMs: Date.now() + 60_000 };
  const user = await issueBootstrapUser(options);
  const link = await server.connect(formatCreds(user), joinInbox("t1"));
  services.nc.subscribe(subjects.joinAll, { max: 1, callback: (_error, message) => void message.respond("welcome") });
  await services.nc.flush();
  t.is((await link.nc.request(subjects.join("t1"), "", { timeout: 30_000 })).string(), "welcome");
  for (const subject of [subjects.join("t2"), subjects.heartbeat("t1"), "$JS.API.INFO"])
    t.false(await isHeard(link, subject));
  t.false(await hears(link, `${joinInbox("t2")}.x`));
  await link.close();
});

test.serial("an expired credential is refused", async (t) => {
  const { publicKey, seed } = createUserKeys();
  const options = {
    deviceAccountSeed: server.root.deviceAccountSeed,
    device: "old",
    publicKey,
    expiresAtMs: Date.now() - 60_000,
  };
  const jwt = await issueDeviceUser(options);
  t.is(publicKeyOf(jwt), publicKey);
  t.true((expiryOf(jwt) ?? Infinity) <= Date.now());
  const creds = formatCreds({ jwt, seed });
  await t.throwsAsync(server.connect(creds, deviceInbox("old")), { message: /NATS refused the credential/ });
});

test.serial("a revoked device is thrown out, also after a restart of the server; others stay", async (t) => {
  const [bad, worse, good] = [await joinAs("bad"), await joinAs("worse"), await joinAs("good")];
  const system = await server.connect(server.root.systemCreds);
  t.teardown(() => Promise.all([bad.link, worse.link, good.link, system].map((link) => link.close())));
  const now = Date.now() + 1000;
  // Replicas of the registry revoke at the same time.
  await Promise.all([
    revokeUsers(system.nc, server.root, new Map([[bad.publicKey, now]])),
    revokeUsers(system.nc, server.root, new Map([[worse.publicKey, now]])),
  ]);
  for (const { creds } of [bad, worse])
    await t.throwsAsync(server.connect(creds, deviceInbox("bad")), { code: "AUTHORIZATION_VIOLATION" });
  t.true(await isHeard(good.link, subjects.heartbeat("good")));
  for (let turn = 0; turn < 2400 && !bad.link.nc.isClosed(); turn += 1) await sleep(25);
  t.true(bad.link.nc.isClosed());
  await server.restart();
  await t.throwsAsync(server.connect(bad.creds, deviceInbox("bad")), { code: "AUTHORIZATION_VIOLATION" });
  for (let turn = 0; turn < 2400 && !(good.link.connected && services.connected); turn += 1) await sleep(25);
  t.true(await isHeard(good.link, subjects.heartbeat("good")));
});

test.serial("a revocation outlives a restart also where the clock is behind that of the keys", async (t) => {
  const root = await createTrustRoot();
  const deviceAccountJwt = revokeInAccountJwts({
    accountJwts: [root.deviceAccountJwt],
    operatorSeed: root.operatorSeed,
    users: new Map(),
    nowMs: Date.now() + 3_600_000,
  });
  const ahead = await startNats({ root: { ...root, deviceAccountJwt } });
  t.teardown(() => ahead.stop());
  const { creds, publicKey } = await credsFor("bad", root);
  await (await ahead.connect(creds, deviceInbox("bad"))).close();
  const system = await ahead.connect(root.systemCreds);
  t.teardown(() => system.close());
  await revokeUsers(system.nc, ahead.root, new Map([[publicKey, Date.now()]]));
  for (const restarts of [0, 1]) {
    await t.throwsAsync(
      ahead.connect(creds, deviceInbox("bad")),
      { code: "AUTHORIZATION_VIOLATION" },
      String(restarts),
    );
    await ahead.restart();
  }
});

test.serial("many devices are revoked at once", async (t) => {
  const keysDir = join(server.dir, "keys");
  const ports = { root: server.root, keysDir, natsUrls: [server.url], clock: new SystemClock(), log: new MemoryLog() };
  const credentials = new NatsCredentials({ ...ports, signal: new AbortController().signal });
  t.teardown(() => credentials.close());
  const users = await Promise.all(Array.from({ length: 20 }, () => credsFor("many")));
  await Promise.all(users.map(({ publicKey }) => credentials.revoke(publicKey)));
  for (const { creds } of users)
    await t.throwsAsync(server.connect(creds, deviceInbox("many")), { code: "AUTHORIZATION_VIOLATION" });
});

test("what servers hold of an account is merged: the newest's claims, and each key's latest revocation", async (t) => {
  const root = await createTrustRoot();
  const sign = (accountJwts: readonly [string, ...string[]], users: Record<string, number>, nowMs: number): string =>
    revokeInAccountJwts({
      accountJwts,
      operatorSeed: root.operatorSeed,
      users: new Map(Object.entries(users)),
      nowMs,
    });
  const { iat } = decode(root.deviceAccountJwt);
  const now = 1000 * iat;
  const [a, b, c] = Array.from({ length: 3 }, () => createUserKeys().publicKey) as [string, string, string];
  const limited = decode<{ limits?: object }>(root.deviceAccountJwt);
  const other = await encodeAccount(
    "OTHER",
    root.deviceAccount,
    { ...limited.nats, limits: { conn: 7 } },
    { signer: new TextEncoder().encode(root.operatorSeed) },
  );
  const older = sign([root.deviceAccountJwt], { [a]: now + 5999, [b]: now, "*": 3000 }, now + 10_000);
  const newer = sign([other], { [a]: now + 1000, [b]: now + 2000 }, now + 20_000);
  for (const jwts of [[older, newer] as const, [newer, older] as const]) {
    const merged = sign(jwts, { [b]: now + 1000, [c]: now + 4000 }, now);
    t.deepEqual(
      revokedIn(merged),
      new Map([
        [b, iat + 2],
        [c, iat + 4],
        [a, iat + 5],
        ["*", 3],
      ]),
    );
    const { name, sub, iss, nats, ...claims } = decode<{ limits?: object; imports?: unknown[]; type?: string }>(merged);
    t.is(claims.iat, iat + 21, "later than the newest, by a clock that is behind");
    t.deepEqual({ name, sub, iss }, { name: "OTHER", sub: root.deviceAccount, iss: limited.iss });
    t.deepEqual([nats.limits, nats.imports?.length, nats.type], [{ conn: 7 }, 4, "account"]);
    t.false([older, newer].some((jwt) => decode(jwt).jti === claims.jti));
  }
  t.is(decode(sign([older, newer], {}, now + 60_000)).iat, iat + 60);
});

test.serial("keys are made once, also by racing processes, and are nobody else's to read", async (t) => {
  const dir = await mkdtemp(join(tmpdir(), "shoal-keys-"));
  t.is(await readKeys(dir), undefined);
  const roots = await Promise.all(Array.from({ length: 4 }, () => ensureKeys(dir)));
  for (const root of roots) t.deepEqual(root, roots[0]);
  t.deepEqual(await ensureKeys(dir), roots[0]);
  const paths = credsPaths(dir);
  for (const path of [join(dir, "trust.json"), paths.service, paths.system])
    t.is((await stat(path)).mode & 0o777, 0o600);
  t.is(await readFile(paths.service, "utf8"), roots[0]?.serviceCreds ?? "");
  await writeFile(join(dir, "trust.json"), "{ damaged");
  await t.throwsAsync(ensureKeys(dir), { code: "KEYS_UNREADABLE" });
  await rm(dir, { recursive: true });
});

test("a public key is told from other texts", (t) => {
  t.true(isUserPublicKey(createUserKeys().publicKey));
  for (const text of ["", "U", createUserKeys().seed, server.root.account]) t.false(isUserPublicKey(text));
});
