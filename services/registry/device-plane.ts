import { isResourceName } from "#common/domain/resources.js";
import { decideRange } from "#common/domain/readable.js";
import { gatewaySiteOf, siteOf } from "#common/domain/site.js";
import { deviceOf, MAX_PIECE_BYTES, parseVia, subjects } from "#common/domain/subjects.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { Bus, BusMessage } from "#common/ports/bus.js";
import type { Metrics } from "#common/ports/metrics.js";
import type { Device } from "#proto/shoal/v1/device.js";
import {
  BlobRangeReply,
  BlobRangeRequest,
  HeartbeatReply,
  HeartbeatRequest,
  JoinReply,
  JoinRequest,
  type Refusal,
} from "#proto/shoal/v1/device_wire.js";
import type { AssignmentIndex } from "./assignment-index.js";
import { CREDENTIAL_MS } from "./credentials.js";
import { changeDevice } from "./device-changes.js";
import { applyHeartbeat } from "./heartbeat.js";
import { join, type JoinPorts } from "./join.js";
import { isRemoved } from "./removal.js";

export interface DevicePlanePorts extends JoinPorts {
  readonly bus: Bus;
  readonly blobs: BlobStore;
  readonly metrics: Metrics;
  readonly index: AssignmentIndex;
  readonly heartbeatMs: number;
  readonly leaseMs: number;
}

/** All replicas share the devices' requests. */
const QUEUE = "registry";
/** A device may know its assignment from another replica a moment before this one does. */
const INDEX_LAG = { waits: 4, waitMs: 250 } as const;

/** Ranges of one device that are read at once; an honest agent asks for four. */
const MOST_RANGES = 8;

/** Refusals that tell an agent what to do next. */
const REFUSALS = {
  badRequest: { reason: "BadRequest", message: "the request cannot be read: update the agent" },
  unknownDevice: {
    reason: "UnknownDevice",
    message: "this device is not part of the fleet any more: join again with a new token",
  },
  blobAbsent: { reason: "BlobAbsent", message: "the blob is not stored (yet): try again" },
  otherSite: {
    reason: "OtherSite",
    message:
      "the device is not of this gateway's site: join with a token of the site, or connect to the fleet directly",
  },
  tooMany: {
    reason: "TooManyRequests",
    message: `at most ${MOST_RANGES} ranges of a device are read at once: wait for answers and ask again`,
  },
  contended: { reason: "Busy", message: "the device is being changed: the next heartbeat will do" },
} as const satisfies Record<string, Refusal>;

function decode<T>(type: { decode(bytes: Uint8Array): T }, bytes: Uint8Array): T | undefined {
  try {
    return type.decode(bytes);
  } catch {
    return undefined;
  }
}

/** Answers what devices ask on the bus: to join, heartbeats, ranges of blobs. Stateless but for the index. */
export class DevicePlane {
  private readonly answered;
  private readonly blobBytes;
  /** By device, the gateway through which its last heartbeat came. */
  private readonly gateways = new Map<string, string>();

  /** Ranges that are being read, by who carries the request and whose it is. */
  private readonly reading = new Map<string, number>();

  constructor(private readonly ports: DevicePlanePorts) {
    const { metrics } = ports;
    const help = "Requests of devices, by what they asked and the reason of a refusal.";
    this.answered = metrics.counter("shoal_registry_device_requests_total", help, ["request", "refusal"]);
    this.blobBytes = metrics.counter("shoal_registry_blob_bytes_total", "Bytes of blobs sent to devices.");
  }

  /** Subscribes until the signal aborts. Call it when the index is synced: before, assignments would seem withdrawn. */
  serve(signal: AbortSignal): void {
    const options = { queue: QUEUE, signal };
    const { bus } = this.ports;
    bus.subscribe(subjects.joinAll, options, (message) => this.onJoin(message, message.subject.split(".")[2] ?? ""));
    bus.subscribe(subjects.heartbeatAll, options, (message) => {
      const name = deviceOf(message.subject) ?? "";
      this.gateways.delete(name);
      return this.onHeartbeat(message, name);
    });
    bus.subscribe(subjects.blobAll, options, (message) => {
      return this.onBlobRange(message, deviceOf(message.subject) ?? "", signal);
    });
    bus.subscribe(subjects.viaAll, options, (message) => this.onVia(message, signal));
  }

  /** Gateways through which these devices last came; only a hint, since another replica may have answered them. */
  gatewaysOf(devices: readonly string[]): string[] {
    const found = devices.flatMap((device) => this.gateways.get(device) ?? []);
    return [...new Set(found)];
  }

  private count(request: string, refusal: Refusal | undefined): void {
    this.answered.add(1, { request, refusal: refusal?.reason ?? "" });
  }

  /** A gateway passes on what a device of its site asked: it is answered as if it had come by itself. */
  private async onVia(message: BusMessage, signal: AbortSignal): Promise<void> {
    const via = parseVia(message.subject);
    if (via === undefined) return;
    const { gateway, name, request } = via;
    // The secret in a request to join is what speaks for it, whoever carries it.
    if (request === "join") return this.onJoin(message, name);
    const refused = await this.refuseVia(gateway, name);
    if (refused === undefined) this.gateways.set(name, gateway);
    if (request === "heartbeat") return this.onHeartbeat(message, name, refused);
    if (request === "blob") return this.onBlobRange(message, name, signal, refused);
  }

  private async refuseVia(gateway: string, name: string): Promise<Refusal | undefined> {
    if (!isResourceName(gateway) || !isResourceName(name)) return REFUSALS.unknownDevice;
    const [carrier, device] = await Promise.all([
      this.ports.store.get("Device", gateway),
      this.ports.store.get("Device", name),
    ]);
    if (device === undefined) return REFUSALS.unknownDevice;
    const site = carrier === undefined || isRemoved(carrier) ? undefined : gatewaySiteOf(carrier);
    return site !== undefined && siteOf(device) === site ? undefined : REFUSALS.otherSite;
  }

  private async onJoin(message: BusMessage, tokenId: string): Promise<void> {
    const request = decode(JoinRequest, message.data);
    const reply =
      request === undefined
        ? JoinReply.fromPartial({ refusal: REFUSALS.badRequest })
        : await join(this.ports, tokenId, request);
    this.count("join", reply.refusal);
    message.respond(JoinReply.encode(reply).finish());
  }

  private async onHeartbeat(message: BusMessage, name: string, refused?: Refusal): Promise<void> {
    const request = decode(HeartbeatRequest, message.data);
    const refusal = (why: Refusal): HeartbeatReply => ({
      refusal: why,
      tasks: [],
      nextHeartbeatMs: this.ports.heartbeatMs,
      atMs: this.ports.clock.nowMs(),
      jwt: "",
      siteRounds: [],
      site: "",
      cordoned: false,
    });
    const reply =
      request === undefined || refused !== undefined
        ? refusal(refused ?? REFUSALS.badRequest)
        : await this.beat(name, request, refusal);
    this.count("heartbeat", reply.refusal);
    message.respond(HeartbeatReply.encode(reply).finish());
  }

  private async beat(
    name: string,
    request: HeartbeatRequest,
    refusal: (why: Refusal) => HeartbeatReply,
  ): Promise<HeartbeatReply> {
    const { store, clock, credentials, heartbeatMs } = this.ports;
    if (!isResourceName(name)) return refusal(REFUSALS.unknownDevice);
    const lease = await store.get("Lease", name);
    const nowMs = clock.nowMs();
    let dueLease: typeof lease;
    const changed = await changeDevice(store, name, (device) => {
      if (isRemoved(device)) return undefined;
      const changes = applyHeartbeat(device, lease, request, nowMs, this.ports.leaseMs);
      dueLease = changes.lease;
      return changes.device;
    });
    if (!changed.ok) return refusal(changed.reason === "NotFound" ? REFUSALS.unknownDevice : REFUSALS.contended);
    if (isRemoved(changed.device)) return refusal(REFUSALS.unknownDevice);
    if (dueLease !== undefined) {
      // A lost race means that another replica has just renewed it.
      await (lease === undefined ? store.create("Lease", dueLease) : store.update("Lease", dueLease));
    }
    const publicKey = changed.device.spec?.publicKey ?? "";
    const renew = request.renewCredential && publicKey !== "";
    const jwt = renew ? await credentials.issueDevice(name, publicKey, nowMs + CREDENTIAL_MS) : "";
    // As in a join: a removal that began meanwhile may have revoked too early for this credential.
    const current = renew ? await store.get("Device", name) : changed.device;
    if (current === undefined || isRemoved(current)) return refusal(REFUSALS.unknownDevice);
    const site = gatewaySiteOf(changed.device);
    return {
      refusal: undefined,
      siteRounds: site === undefined ? [] : this.ports.index.siteRounds(site),
      site: site ?? "",
      tasks: this.ports.index.tasks(changed.device),
      nextHeartbeatMs: heartbeatMs,
      atMs: clock.nowMs(),
      jwt,
      cordoned: changed.device.spec?.cordoned === true || changed.device.spec?.draining === true,
    };
  }

  private async onBlobRange(message: BusMessage, name: string, signal: AbortSignal, refused?: Refusal): Promise<void> {
    const request = decode(BlobRangeRequest, message.data);
    const reply =
      request === undefined || refused !== undefined
        ? BlobRangeReply.fromPartial({ refusal: refused ?? REFUSALS.badRequest })
        : await this.admitRange(`${deviceOf(message.subject) ?? ""}/${name}`, () =>
            this.readRange(name, request, signal),
          );
    this.count("blob", reply.refusal);
    this.blobBytes.add(reply.data.length);
    message.respond(BlobRangeReply.encode(reply).finish());
  }

  /** Reads unless the device has too much under way already: one device must not take the memory and time of all. */
  private async admitRange(who: string, read: () => Promise<BlobRangeReply>): Promise<BlobRangeReply> {
    const underWay = this.reading.get(who) ?? 0;
    if (underWay >= MOST_RANGES) return BlobRangeReply.fromPartial({ refusal: REFUSALS.tooMany });
    this.reading.set(who, underWay + 1);
    try {
      return await read();
    } finally {
      const left = (this.reading.get(who) ?? 1) - 1;
      if (left > 0) this.reading.set(who, left);
      else this.reading.delete(who);
    }
  }

  private async readRange(name: string, request: BlobRangeRequest, signal: AbortSignal): Promise<BlobRangeReply> {
    const refuse = (refusal: Refusal): BlobRangeReply => BlobRangeReply.fromPartial({ refusal });
    const device = isResourceName(name) ? await this.ports.store.get("Device", name) : undefined;
    if (device === undefined || isRemoved(device)) return refuse(REFUSALS.unknownDevice);
    const verdict = await this.judgeRange(device, request, signal);
    if (!verdict.ok) return refuse(verdict.refusal);
    const { blob, offset, length } = verdict;
    const data = length === 0 ? new Uint8Array() : await this.ports.blobs.getRange(blob.digest, offset, length);
    if (data === undefined) return refuse(REFUSALS.blobAbsent);
    return { refusal: undefined, blob, data: Buffer.from(data.buffer, data.byteOffset, data.byteLength) };
  }

  private async judgeRange(
    device: Device,
    request: BlobRangeRequest,
    signal: AbortSignal,
  ): Promise<ReturnType<typeof decideRange>> {
    for (let waited = 0; ; waited++) {
      const verdict = decideRange(request, this.ports.index.tasks(device), MAX_PIECE_BYTES);
      const mayLag = !verdict.ok && verdict.refusal.reason === "NotAssigned";
      if (!mayLag || waited === INDEX_LAG.waits || signal.aborted) return verdict;
      await this.ports.clock.sleep(INDEX_LAG.waitMs, signal);
    }
  }
}
