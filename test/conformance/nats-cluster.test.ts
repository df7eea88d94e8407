import test from "ava";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { ensureStreams, STREAMS } from "#common/adapters/nats/streams.js";
import { NatsUpdateLog, NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { subjects } from "#common/domain/subjects.js";
import { Lease } from "#proto/shoal/v1/device.js";
import { insist, startNatsCluster, type NatsTestServer } from "#test/support/servers.js";
import { blobCollectionConformance } from "./blob-collection.js";
import { blobStoreConformance } from "./blob-store.js";
import { resourceStoreConformance } from "./resource-store.js";
import { logCollectionConformance, type OpenLog, updateLogConformance } from "./update-log.js";

let servers: NatsTestServer[] = [];
let link: NatsLink;
let store: NatsResourceStore;

test.before(async () => {
  servers = await startNatsCluster();
  link = await (servers[0] as NatsTestServer).connect();
  await insist(() => ensureStreams(link, { replicas: 3, updatesMaxBytes: 1024 ** 3 }));
  store = await NatsResourceStore.open(link);
});

test.after.always(async () => {
  await link.close();
  for (const server of servers) await server.stop();
});

const uplinkOf = (device: string): NatsUpdateUplink => new NatsUpdateUplink(link.nc, device, 30_000);

/** Waits until every copy has done what its leader has: a read may be of any of them. */
async function agree(stream: string): Promise<void> {
  for (;;) {
    const { cluster } = await (await link.manager()).streams.info(stream);
    const copies = cluster?.replicas ?? [];
    // A lag of 0 is left out.
    if (copies.length === 2 && copies.every(({ current, lag }) => current && !(lag > 0))) break;
    await link.clock.sleep(50);
  }
  await link.clock.sleep(200);
}

/** The same, whose methods of these names begin and end only when all copies agree. */
function settling<T extends object>(target: T, stream: string, names: readonly (keyof T)[]): T {
  return new Proxy(target, {
    get(own, name) {
      const value: unknown = Reflect.get(own, name);
      if (typeof value !== "function") return value;
      const method = value.bind(own) as (...args: unknown[]) => unknown;
      if (!names.includes(name as keyof T)) return method;
      return async (...args: unknown[]) => {
        await agree(stream);
        const result = await method(...args);
        await agree(stream);
        return result;
      };
    },
  });
}

const openBlobs = (): NatsBlobStore =>
  settling(new NatsBlobStore(link), STREAMS.blobs, ["unstage", "collect", "collectPartial"]);
const openLog = (): OpenLog => ({
  log: settling(new NatsUpdateLog(link), STREAMS.updates, ["purge", "purgeRound", "purgeDevice", "purgeStrays"]),
  uplink: uplinkOf,
  publishRaw: async (device, round, data) => {
    await link.jetstream().publish(subjects.updateCommit(device, round), data);
  },
});
resourceStoreConformance(test, "NATS cluster store", () => store);
blobStoreConformance(test, "NATS cluster blobs", openBlobs);
blobCollectionConformance(test, "NATS cluster blobs", openBlobs);
updateLogConformance(test, "NATS cluster update log", openLog);
logCollectionConformance(test, "NATS cluster update log", openLog);

test("NATS cluster store: whichever server it is written through, a version is followed once", async (t) => {
  const links = await Promise.all(servers.map((server) => server.connect()));
  t.teardown(() => Promise.all(links.map((own) => own.close())));
  const stores = await Promise.all(links.map((own) => NatsResourceStore.open(own)));
  const created = await store.create("Lease", Lease.fromPartial({ metadata: { name: "one-chain" } }));
  t.true(created.ok);
  // Each adds one, again and again: what is added twice to the same version is lost.
  const add = async (own: NatsResourceStore): Promise<void> => {
    for (let added = 0; added < 25;) {
      const lease = await own.get("Lease", "one-chain");
      if (lease === undefined) throw new Error("the lease is gone");
      const written = await own.update("Lease", { ...lease, renewedAtMs: lease.renewedAtMs + 1 });
      if (written.ok) added += 1;
    }
  };
  await Promise.all([...stores, ...stores].map(add));
  t.is((await store.get("Lease", "one-chain"))?.renewedAtMs, 150);
});
