import { randomUUID } from "node:crypto";
import type { Bus } from "#common/ports/bus.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { CollectableLog } from "#common/ports/update-log.js";
import { DeviceFacts } from "#proto/shoal/v1/device.js";
import type { JoinBundle } from "#proto/shoal/v1/device_wire.js";
import { BlobCache } from "../cache.js";
import type { Disk } from "../disk.js";
import { nameFromHost, type GatewayOptions } from "../options.js";
import { Outbox } from "../outbox/outbox.js";
import { DEFAULT_OUTBOX_BYTES } from "../outbox/room.js";
import { SiteLedger } from "../site/ledger.js";
import { SiteRelay } from "../site/relay.js";
import type { GatewayPlane } from "../transport/control-plane.js";
import type { Identity } from "../transport/identity.js";
import { connectControlPlane } from "../transport/nats-control-plane.js";
import { startSiteServer } from "../transport/site-server.js";
import { AGENT_VERSION, credentialOf, DEFAULT_CACHE_BYTES } from "./assemble.js";
import { GatewayLoop, type GatewayParts } from "./gateway-loop.js";
import type { Exit } from "./loop.js";
import { inspectMachine } from "./machine.js";
import { establishIdentity, outboxFolder, runAs } from "./membership.js";

/** What a gateway is started with. */
export interface GatewayBase {
  readonly options: GatewayOptions;
  readonly bundle: JoinBundle | undefined;
  readonly hostName: string;
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Log;
}

const siteFolder = (stateDir: string): string => `${stateDir}/site`;

/** A gateway has no speed to speak of: it does not train. */
function gatewayFacts(): DeviceFacts {
  return DeviceFacts.fromPartial({ ...inspectMachine(), gflops: 0, agentVersion: AGENT_VERSION, backend: "gateway" });
}

/** Joins if need be, starts the site's server, and folds until the signal aborts. Throws as `establishIdentity` does. */
export async function runSite(base: GatewayBase, signal: AbortSignal): Promise<Exit> {
  const { options, bundle, hostName, disk, clock, log } = base;
  const facts = gatewayFacts();
  const name = options.name ?? nameFromHost(hostName);
  const joining = { disk, stateDir: options.stateDir, bundle, name, labels: {}, facts, clock, log, signal };
  const identity = await establishIdentity(joining);
  return runAs(identity, joining, () => serveSite(base, identity, facts, signal));
}

async function serveSite(
  base: GatewayBase,
  identity: Identity,
  facts: DeviceFacts,
  signal: AbortSignal,
): Promise<Exit> {
  const { options, disk, clock } = base;
  const { stateDir, host, port, via } = options;
  const log = base.log.with({ device: identity.device });
  const servers = via === undefined ? identity.servers : [via];
  const plane = await connectControlPlane({ ...identity, servers }, { clock, log, signal });
  const folder = siteFolder(stateDir);
  const { natsServer: program, logBytes } = options;
  const serverOptions = { program, host, port, jwt: identity.jwt, folder, logBytes, disk, clock, log, signal };
  const site = await startSiteServer(serverOptions).catch(async (error: unknown) => {
    await plane.close();
    throw error;
  });
  const serving = new AbortController();
  try {
    const relay = await openRelay(base, site.bus, plane);
    const loop = new GatewayLoop(await assembleGateway({ ...base, log }, identity, facts, plane, relay, site.updates));
    relay.serve(serving.signal, (key) => loop.onRound(key));
    log.info("members may connect", { address: `${host}:${port}` });
    return await loop.run(signal);
  } finally {
    serving.abort();
    await site.close();
    await plane.close();
  }
}

async function openRelay(
  { options, disk, clock, log }: GatewayBase,
  bus: Bus,
  plane: GatewayPlane,
): Promise<SiteRelay> {
  const maxBytes = options.cacheBytes ?? DEFAULT_CACHE_BYTES;
  const cache = await BlobCache.open({ disk, folder: `${options.stateDir}/cache`, maxBytes, clock, log });
  return new SiteRelay({ bus, cache, clock, log, via: (...asked) => plane.via(...asked) });
}

async function assembleGateway(
  { options, disk, clock, log }: GatewayBase,
  identity: Identity,
  facts: DeviceFacts,
  plane: GatewayPlane,
  relay: SiteRelay,
  updates: CollectableLog,
): Promise<GatewayParts> {
  const { stateDir, outboxMaxBytes = DEFAULT_OUTBOX_BYTES, leastFreeBytes } = options;
  const limits = { maxBytes: outboxMaxBytes, leastFreeBytes };
  return {
    device: identity.device,
    clock,
    log,
    plane,
    facts,
    relay,
    updates,
    outbox: await Outbox.open({ disk, folder: outboxFolder(stateDir), log, limits }),
    ledger: await SiteLedger.open(disk, `${siteFolder(stateDir)}/updates`),
    nonce: randomUUID,
    credential: credentialOf(disk, stateDir, identity),
  };
}
