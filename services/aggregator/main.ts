import { CodedError } from "#common/adapters/coded-error.js";
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

const DEFAULT_RETAINED_ROUNDS = 3;
const DEFAULT_BLOB_GRACE_MS = 10 * 60_000;
/** Within the grace a writer must get from a blob to the resource that refers to it. */
const LEAST_BLOB_GRACE_MS = 1_000;

/** SHOAL_LOG_RETAIN_ROUNDS: rounds of a job whose updates stay in the log; 0 keeps all. */
function readRetainedRounds(text: string | undefined): number {
  if (text === undefined || text.trim() === "") return DEFAULT_RETAINED_ROUNDS;
  if (/^\d{1,6}$/.test(text.trim())) return Number(text);
  throw new CodedError("BAD_CONFIG", `SHOAL_LOG_RETAIN_ROUNDS=${JSON.stringify(text)}: must be a whole number from 0`);
}

/** SHOAL_BLOB_GRACE_MS: milliseconds that a blob to which nothing refers stays at least. */
function readBlobGraceMs(text: string | undefined): number {
  if (text === undefined || text.trim() === "") return DEFAULT_BLOB_GRACE_MS;
  if (/^\d{4,10}$/.test(text.trim()) && Number(text) >= LEAST_BLOB_GRACE_MS) return Number(text);
  const remedy = `must be whole milliseconds from ${LEAST_BLOB_GRACE_MS}`;
  throw new CodedError("BAD_CONFIG", `SHOAL_BLOB_GRACE_MS=${JSON.stringify(text)}: ${remedy}`);
}

/** Room for the sums of 32 M values. */
const DEFAULT_SUMS_MAX_BYTES = 256 * 1024 ** 2;

/** SHOAL_FOLD_SUMS_MAX_BYTES: memory for sums of updates that are taken while these are judged; 0 reads all from the log. */
function readSumsMaxBytes(text: string | undefined): number {
  if (text === undefined || text.trim() === "") return DEFAULT_SUMS_MAX_BYTES;
  if (/^\d{1,15}$/.test(text.trim())) return Number(text);
  throw new CodedError(
    "BAD_CONFIG",
    `SHOAL_FOLD_SUMS_MAX_BYTES=${JSON.stringify(text)}: must be a whole number of bytes`,
  );
}

async function* committedRounds(log: UpdateLog, signal: AbortSignal): AsyncGenerator<string> {
  for await (const { round } of log.watchCommits(signal)) yield round;
}

function start(host: ServiceHost): Promise<void> {
  const ports: AggregatorPorts = {
    store: host.store,
    blobs: host.blobs,
    log: host.updateLog,
    clock: host.clock,
    journal: host.log,
    meters: aggregatorMeters(host.metrics),
    enqueue: (key) => controller.enqueue(key),
    retainRounds: readRetainedRounds(process.env["SHOAL_LOG_RETAIN_ROUNDS"]),
    sums: new RunningSums(readSumsMaxBytes(process.env["SHOAL_FOLD_SUMS_MAX_BYTES"])),
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
  const graceMs = readBlobGraceMs(process.env["SHOAL_BLOB_GRACE_MS"]);
  const blobs = { clock, journal, store, blobs: host.blobs, meters: blobMeters(host.metrics), retainRounds, graceMs };
  host.background("collection of blobs", (signal) => keepCollectingBlobs(blobs, signal));
  const collector = { clock, journal, store, log: updateLog, meters: logMeters(host.metrics), retainRounds };
  host.background("collection of the update log", (signal) =>
    keepCollecting({ ...collector, resyncMs: config.resyncMs }, signal),
  );
  host.background("aggregator", (signal) => controller.run(signal));
  return Promise.resolve();
}

await hostService("aggregator", start);
