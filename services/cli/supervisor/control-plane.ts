import { chmodSync, mkdirSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { CONTEXT_FILE, type Context } from "../context.js";
import { CliError, EXIT } from "../exit.js";
import { findProgram } from "./binaries.js";
import { choosePorts, livingOrphans, type ProcessRecord } from "./decision.js";
import { takeLock } from "./lock.js";
import { prepareNats } from "./nats-files.js";
import { drawPort, isPortFree } from "./ports.js";
import { endProcess, startTimeOf } from "./process-table.js";
import { readState, writeAtomically, writeState } from "./state.js";
import { Supervisor } from "./supervisor.js";
import {
  addresses,
  natsNames,
  natsNodesOf,
  natsUrls,
  planUnits,
  portNames,
  redisUrl,
  type UnitFacts,
} from "./units.js";

export interface ControlPlaneOptions {
  /** Where data, keys, logs and the context live; continued from if it exists. */
  readonly dir: string;
  /** Processes of each service. */
  readonly replicas: number;
  /** Address of this machine at which NATS listens. */
  readonly natsHost: string;
  /** NATS servers; 1, or 3 and more as a cluster that keeps three copies of everything. */
  readonly natsNodes: number;
  /** The PATH. */
  readonly path: string;
  /** Settings handed through to the services. */
  readonly settings: Readonly<Record<string, string>>;
  /** Ends a start that is under way. */
  readonly signal: AbortSignal;
  /** A line for people. */
  readonly say: (line: string) => void;
}

/** A control plane on this machine. */
export interface ControlPlane {
  readonly context: Context;
  /** Drains the services in reverse order and gives the directory free. */
  stop(): Promise<void>;
}

const ORPHAN_GRACE_MS = 5_000;
const SERVICES_DIR = fileURLToPath(new URL("../../", import.meta.url)).replace(/\/$/, "");

async function endOrphans(records: readonly ProcessRecord[], say: (line: string) => void): Promise<void> {
  for (const orphan of livingOrphans(records, startTimeOf)) {
    say(`ending ${orphan.name} (pid ${orphan.pid}) of an earlier run`);
    await endProcess(orphan, ORPHAN_GRACE_MS);
  }
}

function makeContext(facts: UnitFacts, pids: Readonly<Record<string, number>>): Context {
  return {
    version: 1,
    grpc: addresses(facts.ports, facts.replicas, "grpc"),
    metrics: addresses(facts.ports, facts.replicas, "metrics"),
    natsUrl: natsUrls(facts),
    redisUrl: redisUrl(facts.ports),
    pids: { up: process.pid, ...pids },
  };
}

async function prepareUnits(options: ControlPlaneOptions, dir: string): Promise<UnitFacts> {
  const natsCommand = findProgram("nats-server", "nats-server", options.path);
  const redisCommand = findProgram("redis-server", "redis-server", options.path);
  const before = readState(dir);
  await endOrphans(before.processes, options.say);
  const { natsHost, natsNodes } = options;
  const nodesBefore = natsNodesOf(before.ports) ?? natsNodes;
  if (nodesBefore !== natsNodes) {
    const message = `${dir} was made with --nats-nodes ${nodesBefore}: start it so, or name another directory`;
    throw new CliError(message, EXIT.usage);
  }
  const isFree = (port: number): Promise<boolean> => isPortFree(port, natsHost);
  const ports = await choosePorts(portNames(options.replicas, natsNodes), before.ports, isFree, drawPort);
  for (const name of natsNames(natsNodes)) {
    if (before.ports[name] === undefined || before.ports[name] === ports[name]) continue;
    const what = `port ${before.ports[name]} is taken: ${name} moves to ${ports[name] ?? "?"}`;
    options.say(`${what}; devices that know no other server must join again`);
  }
  writeState(dir, { version: 1, ports: { ...before.ports, ...ports }, processes: [] });
  const keysDir = join(dir, "keys");
  const files = await prepareNats({ dir, keysDir, host: natsHost, nodes: natsNodes, ports });
  return {
    replicas: options.replicas,
    ports,
    nats: { command: natsCommand, host: natsHost, ...files },
    redis: { command: redisCommand },
    keysDir,
    node: process.execPath,
    servicesDir: SERVICES_DIR,
    settings: options.settings,
  };
}

async function startUnits(options: ControlPlaneOptions, dir: string, facts: UnitFacts): Promise<ControlPlane> {
  const logsDir = join(dir, "logs");
  const contextFile = join(dir, CONTEXT_FILE);
  mkdirSync(logsDir, { recursive: true });
  let complete = false;
  const supervisor: Supervisor = new Supervisor(planUnits(facts), logsDir, {
    say: options.say,
    processes: (records) => {
      writeState(dir, { version: 1, ports: { ...readState(dir).ports, ...facts.ports }, processes: [...records] });
      if (complete) writeContext();
    },
  });
  const writeContext = (): Context => {
    const context = makeContext(facts, supervisor.pids());
    writeAtomically(contextFile, `${JSON.stringify(context, null, 2)}\n`);
    return context;
  };
  const stop = async (): Promise<void> => {
    complete = false;
    await supervisor.stop();
    rmSync(contextFile, { force: true });
  };
  options.signal.addEventListener("abort", () => supervisor.interrupt(), { once: true });
  try {
    await supervisor.start();
    if (options.signal.aborted) throw new CliError("interrupted", EXIT.failed);
  } catch (error) {
    await stop();
    throw error;
  }
  complete = true;
  return { context: writeContext(), stop };
}

/**
 * Starts NATS, Redis and the services under a directory, or goes on with what is there.
 * @throws CliError: another `up` holds the directory (75), a program is missing or does not start (69)
 */
export async function startControlPlane(options: ControlPlaneOptions): Promise<ControlPlane> {
  const dir = resolve(options.dir);
  mkdirSync(dir, { recursive: true });
  // Keys and credentials lie below.
  chmodSync(dir, 0o700);
  const locked = takeLock(dir, process.pid, startTimeOf);
  if (!locked.ok) {
    throw new CliError(`${dir} is in use by "shoal up" with pid ${locked.holder}: stop that one first`, EXIT.temporary);
  }
  try {
    const plane = await startUnits(options, dir, await prepareUnits(options, dir));
    const stop = async (): Promise<void> => {
      await plane.stop();
      locked.lock.release();
    };
    return { context: plane.context, stop };
  } catch (error) {
    locked.lock.release();
    throw error;
  }
}
