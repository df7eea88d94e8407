import test from "ava";
import { DebugEvents, headers } from "nats";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { NatsEventLog } from "#common/adapters/nats/event-log.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { ensureStreams, STREAMS } from "#common/adapters/nats/streams.js";
import { NatsUpdateLog, NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { newMeta } from "#common/domain/resources.js";
import { Lease } from "#proto/shoal/v1/device.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";
import { insist, startNats, type NatsTestServer } from "#test/support/servers.js";
import { fillUntilRefused } from "./update-log.js";

const lease = (name: string): Lease => Lease.fromPartial({ metadata: newMeta(name), renewedAtMs: 1 });
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

async function until(what: () => boolean, ms = 60_000): Promise<boolean> {
  const endMs = performance.now() + ms;
  while (!what() && performance.now() < endMs) await sleep(20);
  return what();
}

async function withServer(work: (server: NatsTestServer, link: NatsLink) => Promise<void>): Promise<void> {
  const server = await startNats();
  try {
    const link = await server.connect();
    await ensureStreams(link);
    await work(server, link);
    await link.close();
  } finally {
    await server.stop();
  }
}

test.serial("a watch goes on after kill -9 of the server, without a gap and without repeats", async (t) => {
  await withServer(async (server, link) => {
    const store = await NatsResourceStore.open(link);
    const stop = new AbortController();
    const seen: string[] = [];
    const watching = (async () => {
      for await (const event of store.watch("Lease", { signal: stop.signal }))
        seen.push(event.type === "put" ? (event.resource.metadata?.name ?? "") : event.type);
    })();
    for (const name of ["a", "b"]) await store.create("Lease", lease(name));
    t.true(await until(() => seen.includes("b")));
    for (const round of ["c", "d", "e"]) {
      await server.restart();
      await insist(() => store.create("Lease", lease(round)));
      t.true(await until(() => seen.includes(round)), `${round} after a restart`);
    }
    stop.abort();
    await watching;
    t.deepEqual(
      seen.filter((name) => name !== "synced"),
      ["a", "b", "c", "d", "e"],
    );
    t.is(seen.filter((name) => name === "synced").length, 1);
  });
});

test.serial("a connection comes back after its clock, which was ahead, was set right", async (t) => {
  await withServer(async (server, link) => {
    const { now } = Date;
    let reconnects = 0;
    link.onReconnect(() => (reconnects += 1));
    try {
      Date.now = () => now() + 3_600_000;
      await server.restart();
      t.true(await until(() => reconnects === 1, 10_000));
    } finally {
      Date.now = now;
    }
    let attempts = 0;
    void (async () => {
      for await (const { type } of link.nc.status()) if (type === DebugEvents.Reconnecting) attempts += 1;
    })();
    await server.kill();
    await sleep(3000);
    // Every 500 to 750 ms, and one at once.
    t.true(attempts >= 4 && attempts <= 8, String(attempts));
    await server.start();
    t.true(await until(() => reconnects === 2, 10_000));
  });
});

test.serial("what was acknowledged is there after kill -9", async (t) => {
  await withServer(async (server, link) => {
    const store = await NatsResourceStore.open(link);
    const blobs = new NatsBlobStore(link);
    const log = new NatsUpdateLog(link);
    const uplink = new NatsUpdateUplink(link.nc, "dev-a");
    const events = new NatsEventLog(link);
    const bytes = new Uint8Array(1_500_000).fill(7);
    const { digest } = await blobs.put(bytes);
    const written = await store.create("Lease", lease("kept"));
    const chunk = await uplink.appendChunk("r-1", "r-1/0", bytes.subarray(0, 1000));
    const commit = await uplink.appendCommit("r-1", "r-1/c", UpdateManifest.fromPartial({ device: "dev-a" }));
    await events.appendEvent("e-1", {
      seq: 0,
      atMs: 1,
      type: "Normal",
      reason: "A",
      message: "",
      objectKind: "",
      objectName: "",
      job: "",
    });
    await server.restart();
    t.deepEqual(await insist(() => store.get("Lease", "kept")), written.ok ? written.resource : undefined);
    t.is((await insist(() => blobs.get(digest)))?.length, bytes.length);
    t.is((await insist(() => log.readChunk(chunk.seq)))?.bytes.length, 1000);
    t.deepEqual(
      (await insist(() => log.commits("r-1"))).map(({ seq }) => seq),
      [commit.seq],
    );
    // The server remembers message ids across the crash.
    t.deepEqual(await insist(() => uplink.appendCommit("r-1", "r-1/c", UpdateManifest.fromPartial({}))), commit);
    t.deepEqual(await insist(() => uplink.appendChunk("r-1", "r-1/0", new Uint8Array(5))), chunk);
  });
});

test.serial("a full update log refuses, loses nothing, and takes more when a round is purged", async (t) => {
  await withServer(async (_server, link) => {
    await ensureStreams(link, { updatesMaxBytes: 2_000_000 });
    const uplink = new NatsUpdateUplink(link.nc, "dev-a");
    const log = new NatsUpdateLog(link);
    const { stored, code } = await fillUntilRefused(uplink, "full-1");
    t.is(code, "LOG_FULL");
    t.true(stored.length >= 15 && stored.length < 20, String(stored.length));
    for (const seq of stored) t.is((await log.readChunk(seq))?.bytes.length, 100_000);
    await log.purgeRound("full-1");
    await t.notThrowsAsync(uplink.appendChunk("full-2", "full-2/0", new Uint8Array(100_000)));
  });
});

test.serial("the default limit gives way to the server's storage, one that was asked for does not", async (t) => {
  const maxFileStoreBytes = 3 * 1024 ** 3;
  const server = await startNats({ maxFileStoreBytes });
  const link = await server.connect();
  try {
    await Promise.all([ensureStreams(link), ensureStreams(link)]);
    t.is((await new NatsUpdateLog(link).usage()).maxBytes, 2 * 1024 ** 3);
    await ensureStreams(link);
    t.is((await new NatsUpdateLog(link).usage()).maxBytes, 2 * 1024 ** 3);
    const error = await t.throwsAsync(ensureStreams(link, { updatesMaxBytes: 4 * 1024 ** 3 }), { code: "NO_STORAGE" });
    t.regex(error.message, /lower SHOAL_UPDATES_MAX_BYTES/);
    await ensureStreams(link, { updatesMaxBytes: 1024 ** 3 });
    t.is((await new NatsUpdateLog(link).usage()).maxBytes, 1024 ** 3);
  } finally {
    await link.close();
    await server.stop();
  }
});

test.serial("without the server the uplink says so in its own words, and a read ends", async (t) => {
  await withServer(async (server, link) => {
    const uplink = new NatsUpdateUplink(link.nc, "dev-a", 300);
    await server.kill();
    const error = await t.throwsAsync(uplink.appendChunk("r-1", "r-1/0", new Uint8Array(5)));
    t.true("code" in error && ["TIMEOUT", "NO_RESPONDERS"].includes(String(error.code)));
    await server.start();
    t.true((await insist(() => uplink.appendChunk("r-1", "r-1/0", new Uint8Array(5)))).seq >= 1);
  });
});

test.serial("what a copy of the stream that lags does not have yet is asked of the leader", async (t) => {
  await withServer(async (_server, link) => {
    const uplink = new NatsUpdateUplink(link.nc, "dev-a");
    const log = new NatsUpdateLog(link);
    const { seq } = await uplink.appendChunk("r-1", "r-1/0", new Uint8Array(50).fill(7));
    const { streams } = await link.manager();
    await streams.update(STREAMS.updates, { allow_direct: false });
    let asked = 0;
    const lagging = headers(404, "Message Not Found");
    link.nc.subscribe(`$JS.API.DIRECT.GET.${STREAMS.updates}`, {
      callback: (_error, message) => {
        asked += 1;
        message.respond(new Uint8Array(), { headers: lagging });
      },
    });
    t.is((await log.readChunk(seq))?.bytes.length, 50);
    t.is(await log.readChunk(seq + 1), undefined);
    t.is(asked, 2);
  });
});
