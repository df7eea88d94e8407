import { setTimeout as sleep } from "node:timers/promises";
import test from "ava";
import { NatsBus } from "#common/adapters/nats/bus.js";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import {
  accountOf,
  createSiteTrustRoot,
  createTrustRoot,
  createUserKeys,
  formatCreds,
  issueDeviceUser,
  type TrustRoot,
} from "#common/adapters/nats/credentials.js";
import { ensureSiteLog } from "#common/adapters/nats/streams.js";
import { NatsUpdateLog, NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { deviceInbox, subjects } from "#common/domain/subjects.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";
import { fillUntilRefused } from "./update-log.js";
import { startNats } from "#test/support/servers.js";

async function deviceOf(fleet: TrustRoot, device: string): Promise<{ jwt: string; creds: string }> {
  const { publicKey, seed } = createUserKeys();
  const { deviceAccountSeed } = fleet;
  const jwt = await issueDeviceUser({ deviceAccountSeed, device, publicKey, expiresAtMs: Date.now() + 3_600_000 });
  return { jwt, creds: formatCreds({ jwt, seed }) };
}

test("a site's server lets in the fleet's devices as they are, and keeps what they send in a log of its own", async (t) => {
  const fleet = await createTrustRoot();
  const ann = await deviceOf(fleet, "ann");
  t.is(accountOf(ann.jwt), fleet.deviceAccount);
  const root = await createSiteTrustRoot(accountOf(ann.jwt));
  t.false(JSON.stringify(root).includes(fleet.deviceAccountSeed), "the site has no key to make devices with");
  const server = await startNats({ root });
  const links: NatsLink[] = [];
  const connect = async (...args: Parameters<typeof server.connect>): Promise<NatsLink> => {
    const link = await server.connect(...args);
    links.push(link);
    return link;
  };
  try {
    const gateway = await connect();
    await ensureSiteLog(gateway, 3_600_000);
    await ensureSiteLog(gateway, 3_600_000);
    const link = await connect(ann.creds, deviceInbox("ann"));

    const uplink = new NatsUpdateUplink(link.nc, "ann");
    const chunk = await uplink.appendChunk("tiny-1", "a-0", new Uint8Array([1, 2, 3]));
    t.deepEqual(
      await uplink.appendChunk("tiny-1", "a-0", new Uint8Array([1, 2, 3])),
      chunk,
      "sent twice is stored once",
    );
    await uplink.appendCommit("tiny-1", "a-c", UpdateManifest.fromPartial({ device: "ann", chunkSeqs: [chunk.seq] }));
    const log = new NatsUpdateLog(gateway);
    t.deepEqual(
      (await log.commits("tiny-1")).map(({ device }) => device),
      ["ann"],
    );
    t.deepEqual([...((await log.readChunk(chunk.seq))?.bytes ?? [])], [1, 2, 3]);

    const done = new AbortController();
    const asked: string[] = [];
    new NatsBus(gateway.nc, new MemoryLog()).subscribe("shoal.d.>", { signal: done.signal }, (message) => {
      asked.push(message.subject);
      message.respond(new Uint8Array([9]));
    });
    await gateway.nc.flush();
    t.deepEqual([...(await link.nc.request(subjects.heartbeat("ann"), "", { timeout: 30_000 })).data], [9]);
    await t.throwsAsync(link.nc.request(subjects.heartbeat("bob"), "", { timeout: 500 }), undefined, "not as another");
    t.deepEqual(asked, [subjects.heartbeat("ann")]);
    await t.throwsAsync(new NatsUpdateUplink(link.nc, "bob", 500).appendChunk("tiny-1", "b-0", new Uint8Array([1])));

    await ensureSiteLog(gateway, 3_600_000, 300_000);
    const { stored, code } = await fillUntilRefused(uplink, "tiny-2");
    t.is(code, "LOG_FULL", "a site's log that is full refuses, and the member keeps its update");
    t.true(stored.length >= 2);
    await log.purgeRound("tiny-2");
    t.true((await uplink.appendChunk("tiny-2", "again", new Uint8Array(100_000))).seq > 0);
    await ensureSiteLog(gateway, 3_600_000);
    t.is((await log.usage()).maxBytes, 300_000, "without a wish the limit stays");

    let nudges = 0;
    link.nc.subscribe(subjects.nudge("ann"), { callback: () => nudges++ });
    await link.nc.flush();
    gateway.nc.publish(subjects.nudge("ann"));
    for (let i = 0; i < 6000 && nudges === 0; i++) await sleep(10);
    t.is(nudges, 1);
    await t.throwsAsync(
      new NatsBlobStore(link).put(new Uint8Array(10)),
      undefined,
      "a device has no rights to streams",
    );

    const stranger = await deviceOf(await createTrustRoot(), "ann");
    await t.throwsAsync(server.connect(stranger.creds), { code: "AUTHORIZATION_VIOLATION" });
    done.abort();
  } finally {
    for (const link of links) await link.close();
    await server.stop();
  }
});
