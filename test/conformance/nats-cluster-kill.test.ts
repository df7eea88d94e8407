import { randomBytes } from "node:crypto";
import test from "ava";
import { RequestStrategy } from "nats";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { createUserKeys, formatCreds, issueDeviceUser, revokeUsers } from "#common/adapters/nats/credentials.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { ensureStreams } from "#common/adapters/nats/streams.js";
import { NatsUpdateLog, NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { MAX_PIECE_BYTES } from "#common/domain/subjects.js";
import { Lease } from "#proto/shoal/v1/device.js";
import { insist, startNatsCluster, type NatsTestServer } from "#test/support/servers.js";

let servers: NatsTestServer[] = [];
let link: NatsLink;

test.before(async () => {
  servers = await startNatsCluster();
  link = await (servers[0] as NatsTestServer).connect();
  await insist(() => ensureStreams(link, { replicas: 3, updatesMaxBytes: 1024 ** 3 }));
});

test.after.always(async () => {
  await link.close();
  for (const server of servers) await server.stop();
});

/** A fault of all servers at once, from which they come back with what they had on disk. */
async function killAll(): Promise<void> {
  await Promise.all(servers.map((server) => server.kill()));
  await Promise.all(servers.map((server) => server.start()));
}

test.serial("what is collected takes nothing else with it when all servers are killed", async (t) => {
  const [log, blobs] = [new NatsUpdateLog(link), new NatsBlobStore(link)];
  const kept: number[] = [];
  const append = async (device: string, round: string, index: number): Promise<number> =>
    (
      await new NatsUpdateUplink(link.nc, device, 30_000).appendChunk(
        round,
        `${round}-${device}-${index}`,
        new Uint8Array(40_000).fill(index),
      )
    ).seq;
  const early = await blobs.put(randomBytes(3 * MAX_PIECE_BYTES));
  for (let turn = 0; turn < 2; turn++) {
    for (let index = 0; index < 30; index++) kept.push(await append(`dev-${index % 4}`, "kept-1", 100 * turn + index));
    const doomed = [await append("dev-0", "gone-1", turn), await append("dev-1", "gone-1", turn)];
    const late = await blobs.put(randomBytes(2 * MAX_PIECE_BYTES));
    t.is(await log.purge({ round: "gone-1", device: "dev-1", part: "chunk", upToSeq: doomed[1] ?? 0 }), 1);
    await log.purgeRound("gone-1");
    const { version } = (await blobs.contents()).blobs.find(({ digest }) => digest === late.digest) ?? { version: 0 };
    t.true(await blobs.collect(late.digest, version));
    kept.push(await append("dev-1", "kept-1", 100 * turn + 99));
    await killAll();
    const { state } = await insist(async () => (await link.manager()).streams.info("UPDATES"));
    t.true(state.first_seq <= (kept[0] ?? 0), `the log begins at ${state.first_seq}`);
    for (const seq of kept) t.is((await insist(() => log.readChunk(seq)))?.round, "kept-1", `sequence ${seq}`);
    for (const seq of doomed) t.is(await insist(() => log.readChunk(seq)), undefined);
    t.is((await insist(() => blobs.get(early.digest)))?.length, early.sizeBytes);
    t.is(await insist(() => blobs.get(late.digest)), undefined);
  }
});

test.serial("what was written last is what comes back, however many writes were refused before", async (t) => {
  const store = await insist(() => NatsResourceStore.open(link));
  const lease = (name: string, renewedAtMs = 0) => Lease.fromPartial({ metadata: { name }, renewedAtMs });
  const created = await insist(() => store.create("Lease", lease("kept")));
  if (!created.ok) throw new Error(created.reason);
  for (let i = 0; i < 4; i++) t.false((await store.create("Lease", lease("kept"))).ok);
  let current = created.resource;
  for (let renewedAtMs = 1; renewedAtMs <= 5; renewedAtMs++) {
    const next = { ...current, renewedAtMs };
    // Of two at once one is refused.
    const both = await Promise.all([store.update("Lease", next), store.update("Lease", next)]);
    const won = both.filter((written) => written.ok);
    t.is(won.length, 1);
    current = won[0]?.resource ?? current;
  }
  await killAll();
  t.is((await insist(() => store.get("Lease", "kept")))?.renewedAtMs, 5);
});

test.serial("a server that was down while a device was revoked does not let it in again", async (t) => {
  const [first, second, third] = servers as [NatsTestServer, NatsTestServer, NatsTestServer];
  const { root } = first;
  const join = async (device: string): Promise<{ publicKey: string; creds: string }> => {
    const { publicKey, seed } = createUserKeys();
    const { deviceAccountSeed } = root;
    const jwt = await issueDeviceUser({ deviceAccountSeed, device, publicKey, expiresAtMs: Date.now() + 3_600_000 });
    return { publicKey, creds: formatCreds({ jwt, seed }) };
  };
  const revoke = async (server: NatsTestServer, publicKey: string): Promise<void> => {
    const system = await server.connect(root.systemCreds);
    t.teardown(() => system.close());
    await insist(async () => {
      const options = { strategy: RequestStrategy.JitterTimer, maxWait: 1000 };
      let routed = 0;
      for await (const answer of await system.nc.requestMany("$SYS.REQ.SERVER.PING", "", options))
        routed += answer.data.length > 0 ? 1 : 0;
      if (routed < (server === third ? 3 : 2)) throw new Error(`${routed} servers`);
    });
    await revokeUsers(system.nc, root, new Map([[publicKey, Date.now()]]));
    await system.close();
  };
  const [early, late] = [await join("early"), await join("late")];
  for (const { creds } of [early, late]) await (await third.connect(creds)).close();
  await third.kill();
  await revoke(first, early.publicKey);
  await third.start();
  await revoke(third, late.publicKey);
  for (const server of [first, second, third])
    for (const { creds } of [early, late])
      await t.throwsAsync(server.connect(creds), { code: "AUTHORIZATION_VIOLATION" });
});
