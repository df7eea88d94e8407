import test from "ava";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { ensureStreams } from "#common/adapters/nats/streams.js";
import { startNats, type NatsTestServer } from "#test/support/servers.js";
import { resourceStoreConformance } from "./resource-store.js";

let server: NatsTestServer;
let link: NatsLink;
let store: NatsResourceStore;

test.before(async () => {
  server = await startNats();
  link = await server.connect();
  // Replicas of a service start at the same time.
  await Promise.all([ensureStreams(link), ensureStreams(link), ensureStreams(link)]);
  store = await NatsResourceStore.open(link);
});

test.after.always(async () => {
  await link.close();
  await server.stop();
});

resourceStoreConformance(test, "NATS store", () => store);
