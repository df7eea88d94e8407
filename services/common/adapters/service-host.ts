import { readFile } from "node:fs/promises";
import { hostname } from "node:os";
import type { CollectableBlobs } from "../ports/blob-store.js";
import type { Bus } from "../ports/bus.js";
import type { Clock } from "../ports/clock.js";
import type { EventLog } from "../ports/event-log.js";
import type { Log } from "../ports/log.js";
import type { Metrics } from "../ports/metrics.js";
import type { ResourceStore } from "../ports/resource-store.js";
import type { CollectableLog } from "../ports/update-log.js";
import type { WorkQueue } from "../ports/work-queue.js";
import { readServiceConfig, type Environment, type ServiceConfig } from "../runtime/config.js";
import { Lifecycle } from "../runtime/lifecycle.js";
import { BullWorkQueue } from "./bullmq/work-queue.js";
import { CodedError, codeOf, messageOf } from "./coded-error.js";
import { Handlers } from "./grpc/handlers.js";
import { GrpcServer } from "./grpc/server.js";
import { JsonLog } from "./json-log.js";
import { SystemClock } from "./memory/clock.js";
import { NatsBlobStore } from "./nats/blob-store.js";
import { NatsBus } from "./nats/bus.js";
import { NatsLink } from "./nats/connection.js";
import { NatsEventLog } from "./nats/event-log.js";
import { NatsResourceStore } from "./nats/kv-store.js";
import { ensureStreams } from "./nats/streams.js";
import { NatsUpdateLog } from "./nats/update-log.js";
import { MetricsServer, PromMetrics } from "./prometheus.js";

/** All a service needs of the world, connected. */
export interface ServiceHost {
  readonly config: ServiceConfig;
  readonly store: ResourceStore;
  readonly blobs: CollectableBlobs;
  readonly updateLog: CollectableLog;
  readonly eventLog: EventLog;
  readonly bus: Bus;
  readonly clock: Clock;
  readonly metrics: Metrics;
  readonly log: Log;
  /** `addService` before `start` resolves; the port opens afterwards. */
  readonly grpc: GrpcServer;
  /** Makes handlers of async functions. */
  readonly handlers: Handlers;
  /** Aborts when the service is told to stop. */
  readonly signal: AbortSignal;
  /** A queue shared by all replicas under this name. */
  queue(name: string): WorkQueue;
  /** Stopped in reverse order, before the connections. */
  onStop(name: string, stop: () => Promise<void> | void): void;
  /** Runs something until `signal` aborts and waits for its end when stopping; a failure ends the service. */
  background(name: string, run: (signal: AbortSignal) => Promise<void>): void;
}

/** What only some services need. */
export interface HostNeeds {
  /** A connection of its own for reading updates. */
  readonly runs?: boolean;
}

/** Exit code of a process that is configured wrongly (sysexits.h EX_CONFIG). */
export const EXIT_CONFIG = 78;
const EXIT_FAILURE = 1;

/**
 * Runs a service: reads the environment, opens metrics, waits for NATS, connects Redis, calls `start`, opens gRPC, and
 * drains on SIGTERM or SIGINT. Exits with 0 after a clean stop, 78 on a bad configuration, 1 otherwise.
 */
export async function hostService(
  name: string,
  start: (host: ServiceHost) => Promise<void>,
  needs: HostNeeds = {},
): Promise<void> {
  const config = configOrExit(name, process.env);
  if (config === undefined) return;
  const log = new JsonLog(config.logLevel, { service: name, replica: config.replica });
  const clock = new SystemClock();
  const lifecycle = new Lifecycle(log, clock);
  let stopping: Promise<void> | undefined;
  const stop = (why: string, exitCode: number): void => {
    if (stopping !== undefined) return;
    log.info("stopping", { why });
    stopping = lifecycle.stop().then((clean) => {
      log.info("stopped", { clean });
      process.exit(clean ? exitCode : EXIT_FAILURE);
    });
  };
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => stop(signal, 0));
  try {
    await run({ name, config, log, clock, lifecycle, needs, fail: (why) => stop(why, EXIT_FAILURE) }, start);
  } catch (error) {
    if (lifecycle.signal.aborted) return;
    log.error("cannot start", { error: messageOf(error), code: codeOf(error) });
    stop("cannot start", codeOf(error) === "BAD_CONFIG" ? EXIT_CONFIG : EXIT_FAILURE);
  }
}

function configOrExit(name: string, env: Environment): ServiceConfig | undefined {
  const read = readServiceConfig(env, { replica: `${hostname()}-${process.pid}` });
  if (read.ok) return read.config;
  for (const { name: setting, value, remedy } of read.violations)
    process.stderr.write(`${name}: ${setting}=${JSON.stringify(value)}: ${remedy}\n`);
  process.exitCode = EXIT_CONFIG;
  return undefined;
}

interface Process {
  name: string;
  config: ServiceConfig;
  log: Log;
  clock: Clock;
  lifecycle: Lifecycle;
  needs: HostNeeds;
  fail: (why: string) => void;
}

async function run(self: Process, start: (host: ServiceHost) => Promise<void>): Promise<void> {
  const { name, config, log, clock, lifecycle } = self;
  const metrics = new PromMetrics({ service: name, replica: config.replica });
  const state: { link?: NatsLink; serving: boolean } = { serving: false };
  const queues = new Map<string, BullWorkQueue>();
  const metricsServer = await MetricsServer.listen(config.metricsListen, metrics, () => [
    ...(state.link?.connected === true ? [] : ["NATS"]),
    ...([...queues.values()].every((queue) => queue.connected) ? [] : ["Redis"]),
    ...(state.serving ? [] : ["the service to start"]),
  ]);
  lifecycle.onStop("metrics", () => metricsServer.close());

  const creds = await readFile(config.natsCredsPath, "utf8").catch((error: unknown) => {
    throw new CodedError("BAD_CONFIG", `SHOAL_NATS_CREDS: ${messageOf(error)}; it must name a readable creds file`);
  });
  const connect = async (linkName: string, isForRuns: boolean): Promise<NatsLink> => {
    const { signal } = lifecycle;
    const options = { servers: config.natsUrls, creds, name: linkName, isForRuns, log, clock, signal };
    const link = await NatsLink.connect(options);
    lifecycle.onStop("NATS", () => link.close());
    void link.nc.closed().then((error) => {
      if (!signal.aborted) self.fail(`NATS closed the connection for good: ${messageOf(error)}`);
    });
    return link;
  };
  const nats = await connect(`${name} ${config.replica}`, false);
  state.link = nats;
  const runs = self.needs.runs === true ? await connect(`${name} ${config.replica} updates`, true) : nats;
  const store = await openStore(nats, config, log, lifecycle.signal);

  const grpc = new GrpcServer();
  const host: ServiceHost = {
    config,
    store,
    blobs: new NatsBlobStore(nats),
    updateLog: new NatsUpdateLog(nats, runs),
    eventLog: new NatsEventLog(nats),
    bus: new NatsBus(nats.nc, log),
    clock,
    metrics,
    log,
    grpc,
    handlers: new Handlers({ log, clock, metrics, signal: lifecycle.signal }),
    signal: lifecycle.signal,
    queue: (queueName) => {
      const known = queues.get(queueName);
      if (known !== undefined) return known;
      const queue = new BullWorkQueue({ redisUrl: config.redisUrl, name: queueName, clock, log });
      queues.set(queueName, queue);
      lifecycle.onStop(`queue ${queueName}`, () => queue.close());
      return queue;
    },
    onStop: (part, stop) => lifecycle.onStop(part, stop),
    background: (part, work) => {
      const running = work(lifecycle.signal).catch((error: unknown) => {
        log.error("a part of the service failed", { part, error });
        self.fail(`${part} failed`);
      });
      lifecycle.onStop(part, () => running);
    },
  };
  await start(host);
  if (lifecycle.signal.aborted) return;
  const grpcPort = await grpc.listen(config.grpcListen);
  lifecycle.onStop("gRPC", () => grpc.stop(5000));
  grpc.setServing(true);
  state.serving = true;
  log.info("serving", { grpcPort, metricsPort: metricsServer.port });
}

/** JetStream may take a moment after NATS itself, e.g. while it reads its streams after a crash. */
async function openStore(link: NatsLink, config: ServiceConfig, log: Log, signal: AbortSignal): Promise<ResourceStore> {
  const options = {
    replicas: config.streamReplicas,
    ...(config.updatesMaxBytes === undefined ? {} : { updatesMaxBytes: config.updatesMaxBytes }),
  };
  for (let attempt = 0; ; attempt += 1) {
    if (signal.aborted) throw new CodedError("ABORTED", "stopped while waiting for JetStream");
    try {
      await ensureStreams(link, options);
      return await NatsResourceStore.open(link);
    } catch (error) {
      if (attempt % 5 === 0) log.warn("waiting for JetStream", { error: messageOf(error) });
      await link.clock.sleep(1000, signal);
    }
  }
}
