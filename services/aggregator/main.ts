import { totalmem } from "node:os";
import { setFlagsFromString } from "node:v8";
import { CodedError } from "#common/adapters/coded-error.js";
import { DigestThread } from "#common/adapters/digest-thread.js";
import { hostService, type ServiceHost } from "#common/adapters/service-host.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { Controller } from "#common/runtime/controller.js";
import { storeSource, triggerSource } from "#common/runtime/source.js";
import { AggregatorServiceService } from "#proto/shoal/v1/aggregator_service.js";
import { AggregatorApi } from "./aggregator-api.js";
import { keepCollectingBlobs } from "./blob-collector.js";
import { reconcileKey, type AggregatorPorts } from "./controller.js";
import { serveAggregator } from "./grpc.js";
import { keepCollecting } from "./log-collector.js";
import { aggregatorMeters, blobMeters, logMeters } from "./meters.js";
import { RunningSums } from "./running-sums.js";
import { roundKeys } from "./watched-rounds.js";

/** A setting that only the aggregator has. */
interface Setting {
  /** For one that is not given. */
  fallback: number;
  least: number;
  mostDigits: number;
  /** What it must be, for people. */
  remedy: string;
}

/** Within the grace a writer must get from a blob to the resource that refers to it. */
const LEAST_BLOB_GRACE_MS = 1_000;

/** What the machine has, or what the process's container may take of it. */
function usableMemoryBytes(): number {
  const limit = process.constrainedMemory();
  return limit > 0 ? Math.min(limit, totalmem()) : totalmem();
}

const SETTINGS = {
  /** Rounds of a job whose updates stay in the log; 0 keeps all. */
  SHOAL_LOG_RETAIN_ROUNDS: { fallback: 3, least: 0, mostDigits: 6, remedy: "must be a whole number from 0" },
  /** Milliseconds that a blob to which nothing refers stays at least. */
  SHOAL_BLOB_GRACE_MS: {
    fallback: 10 * 60_000,
    least: LEAST_BLOB_GRACE_MS,
    mostDigits: 10,
    remedy: `must be whole milliseconds from ${LEAST_BLOB_GRACE_MS}`,
  },
  /**
   * Memory for sums of updates that are taken while these are judged, 8 bytes a value, and where there is room for what their rounds
   * start from: 1 GiB holds 134 M values. 0 reads all from the log.
   */
  SHOAL_FOLD_SUMS_MAX_BYTES: {
    fallback: Math.min(1024 ** 3, Math.floor(usableMemoryBytes() / 4)),
    least: 0,
    mostDigits: 15,
    remedy: "must be a whole number of bytes",
  },
} satisfies Record<string, Setting>;

/** Throws code "BAD_CONFIG" for anything but a whole number in its bounds. */
function readSetting(name: keyof typeof SETTINGS): number {
  const { fallback, least, mostDigits, remedy }: Setting = SETTINGS[name];
  const given = process.env[name] ?? "";
  const text = given.trim();
  if (text === "") return fallback;
  if (/^\d+$/.test(text) && text.length <= mostDigits && Number(text) >= least) return Number(text);
  throw new CodedError("BAD_CONFIG", `${name}=${JSON.stringify(given)}: ${remedy}`);
}

async function* committedRounds(log: UpdateLog, signal: AbortSignal): AsyncGenerator<string> {
  for await (const { round } of log.watchCommits(signal)) yield round;
}

function start(host: ServiceHost): Promise<void> {
  const digests = new DigestThread();
  host.onStop("digests", () => digests.close());
  const ports: AggregatorPorts = {
    store: host.store,
    digests,
    blobs: host.blobs,
    log: host.updateLog,
    clock: host.clock,
    journal: host.log,
    meters: aggregatorMeters(host.metrics),
    enqueue: (key) => controller.enqueue(key),
    retainRounds: readSetting("SHOAL_LOG_RETAIN_ROUNDS"),
    sums: new RunningSums(readSetting("SHOAL_FOLD_SUMS_MAX_BYTES")),
  };
  const controller: Controller = new Controller({
    name: "aggregator",
    sources: [
      storeSource(host.store, "Round", roundKeys(ports.retainRounds)),
      triggerSource("commits", (signal) => committedRounds(host.updateLog, signal)),
    ],
    reconcile: async (key) => {
      await reconcileKey(ports, key);
      return { type: "done" };
    },
    queue: host.queue("aggregator"),
    clock: host.clock,
    log: host.log,
    metrics: host.metrics,
    random: Math.random,
    resyncMs: host.config.resyncMs,
  });
  host.grpc.addService(AggregatorServiceService, serveAggregator(new AggregatorApi(ports), host.handlers));
  const { clock, config, log: journal, store, updateLog } = host;
  const { retainRounds } = ports;
  const graceMs = readSetting("SHOAL_BLOB_GRACE_MS");
  const blobs = { clock, journal, store, blobs: host.blobs, meters: blobMeters(host.metrics), retainRounds, graceMs };
  host.background("collection of blobs", (signal) => keepCollectingBlobs(blobs, signal));
  const collector = { clock, journal, store, log: updateLog, meters: logMeters(host.metrics), retainRounds };
  host.background("collection of the update log", (signal) =>
    keepCollecting({ ...collector, resyncMs: config.resyncMs }, signal),
  );
  host.background("aggregator", (signal) => controller.run(signal));
  return Promise.resolve();
}

// Updates pass through as buffers outside the heap, which V8 counts as part of it. Left to itself it collects after every few dozen
// of them, which took a quarter of a round; so it waits until there is three times what lives, which is some shards of a model.
setFlagsFromString("--heap-growing-percent=200");
await hostService("aggregator", start, { runs: true });
