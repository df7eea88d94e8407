import { randomUUID } from "node:crypto";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import { DeviceFacts, type DataPolicy } from "#proto/shoal/v1/device.js";
import type { Backend } from "../backend/backend.js";
import { BlobCache } from "../cache.js";
import { calibrate } from "../calibrate.js";
import { Datasets } from "../data/datasets.js";
import { folderSource } from "../data/source.js";
import type { Disk } from "../disk.js";
import type { AgentOptions } from "../options.js";
import { Outbox } from "../outbox/outbox.js";
import { DEFAULT_OUTBOX_BYTES } from "../outbox/room.js";
import { Sessions } from "../train/sessions.js";
import type { ControlPlane } from "../transport/control-plane.js";
import { isRenewalDue } from "../transport/credential.js";
import { storeIdentity, type Identity } from "../transport/identity.js";
import { inspectMachine } from "./machine.js";
import { outboxFolder } from "./membership.js";
import type { AgentParts } from "./parts.js";

export const DEFAULT_CACHE_BYTES = 4 * 1024 ** 3;
export const AGENT_VERSION = "0.1.0";

export interface Base {
  readonly options: AgentOptions;
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Log;
  readonly backend: Backend;
  readonly policy: DataPolicy;
}

/** What the device measured of itself; its speed with the throttle counted in. */
export async function measureFacts({ options, disk, clock, backend }: Base): Promise<DeviceFacts> {
  const { threads = 1, throttle = 1, stateDir } = options;
  const { gflops } = await calibrate(backend, threads, { disk, folder: stateDir, clock });
  const machine = inspectMachine();
  return DeviceFacts.fromPartial({
    ...machine,
    cores: Math.min(machine.cores, threads),
    gflops: gflops * throttle,
    agentVersion: AGENT_VERSION,
    backend: backend.name,
  });
}

/** Opens everything the loop needs, after the connection. */
export async function assembleAgent(
  base: Base,
  facts: DeviceFacts,
  identity: Identity,
  plane: ControlPlane,
): Promise<AgentParts> {
  const { options, disk, clock, log, backend, policy } = base;
  const { stateDir, dataset, throttle = 1, cacheBytes = DEFAULT_CACHE_BYTES } = options;
  const { outboxMaxBytes = DEFAULT_OUTBOX_BYTES, leastFreeBytes } = options;
  const cacheOptions = { disk, folder: `${stateDir}/cache`, maxBytes: cacheBytes, clock, log };
  const sources = new Map(Object.entries(dataset).map(([name, folder]) => [name, folderSource(folder)]));
  return {
    clock,
    log,
    plane,
    policy,
    facts,
    throttle,
    cache: await BlobCache.open(cacheOptions),
    outbox: await Outbox.open({
      disk,
      folder: outboxFolder(stateDir),
      log,
      limits: { maxBytes: outboxMaxBytes, leastFreeBytes },
    }),
    datasets: new Datasets(sources, log),
    sessions: new Sessions(backend),
    nonce: randomUUID,
    credential: credentialOf(disk, stateDir, identity),
  };
}

/** The credential of an identity, and where a renewed one goes. */
export function credentialOf(disk: Disk, stateDir: string, identity: Identity): AgentParts["credential"] {
  let { jwt } = identity;
  return {
    isDue: (nowMs) => isRenewalDue(jwt, nowMs),
    store: async (renewed) => {
      jwt = renewed;
      await storeIdentity(disk, stateDir, { ...identity, jwt });
    },
  };
}
