import { answer, type Answer, invalid, refuse } from "#common/domain/answer.js";
import { cutPage, parsePage } from "#common/domain/pages.js";
import { API_VERSION, isResourceName, nameViolations, newMeta, type Violation } from "#common/domain/resources.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import { Device, type JoinToken, type Lease } from "#proto/shoal/v1/device.js";
import { JoinBundle } from "#proto/shoal/v1/device_wire.js";
import type {
  CordonDeviceRequest,
  CordonDeviceResponse,
  DeleteDeviceRequest,
  DeleteDeviceResponse,
  DeviceWithLease,
  DrainDeviceRequest,
  DrainDeviceResponse,
  GetDeviceRequest,
  GetDeviceResponse,
  IssueJoinTokenRequest,
  IssueJoinTokenResponse,
  ListDevicesRequest,
  ListDevicesResponse,
  RevokeJoinTokenRequest,
  RevokeJoinTokenResponse,
  WatchDevicesRequest,
  WatchDevicesResponse,
} from "#proto/shoal/v1/fleet_service.js";
import { WatchEventType } from "#proto/shoal/v1/meta.js";
import type { CredentialIssuer } from "./credentials.js";
import { changeDevice } from "./device-changes.js";
import { hashSecret, MAX_COUNTED_USES, spendUse } from "./enrolment.js";
import { labelViolations } from "./facts.js";
import { markRemoved } from "./removal.js";

export interface FleetPorts {
  readonly store: ResourceStore;
  readonly clock: Clock;
  readonly log: Log;
  readonly credentials: CredentialIssuer;
  /** Unguessable bytes, for secrets. */
  readonly randomBytes: (count: number) => Uint8Array;
  /** NATS servers that join tokens name. */
  readonly publicServers: readonly string[];
}

/** What a join token's text begins with. */
export const TOKEN_PREFIX = "shoal1.";

const PAGES = { max: 1000, fallback: 100 };
const DAY_MS = 24 * 60 * 60 * 1000;
const MAX_TTL_MS = 3650 * DAY_MS;
const MAX_ATTEMPTS = 16;
const SECRET_BYTES = 32;
const TOKEN_ID_BYTES = 6;

const noDevice = (name: string): Answer<never> =>
  refuse("NOT_FOUND", `no device is named "${name.slice(0, 64)}": list devices to see their names`);

/** The answer to a name that no resource can have; undefined to one that some may have. */
const badName = (field: string, name: string): Answer<never> | undefined =>
  isResourceName(name) ? undefined : invalid(...nameViolations(field, name));

/** Orders that any change of the spec counts as a generation. */
function withSpec(device: Device, cordoned: boolean, draining: boolean): Device | undefined {
  const { spec, metadata } = device;
  if (spec === undefined || metadata === undefined) return undefined;
  if (spec.cordoned === cordoned && spec.draining === draining) return undefined;
  const next = { ...metadata, generation: metadata.generation + 1 };
  return { ...device, metadata: next, spec: { ...spec, cordoned, draining } };
}

/** FleetService without gRPC: operators see and steer the fleet. Any replica answers. */
export class FleetApi {
  constructor(private readonly ports: FleetPorts) {}

  /** A page of devices in order of name. */
  async listDevices(request: ListDevicesRequest): Promise<Answer<ListDevicesResponse>> {
    const { pageSize, pageToken, labelSelector } = request;
    const scope = `devices ${JSON.stringify(Object.entries(labelSelector).sort())}`;
    const parsed = parsePage(pageSize, pageToken, scope, PAGES);
    const violations = [...labelViolations("label_selector", labelSelector), ...(parsed.ok ? [] : parsed.violations)];
    if (!parsed.ok || violations.length > 0) return invalid(...violations);
    const [devices, leases] = await Promise.all([
      this.ports.store.list("Device", { labels: labelSelector }),
      this.ports.store.list("Lease"),
    ]);
    const byName = new Map(leases.items.map((lease) => [lease.metadata?.name ?? "", lease]));
    const { items, nextPageToken } = cutPage(
      devices.items,
      (device) => device.metadata?.name ?? "",
      parsed.page,
      scope,
    );
    return answer({
      devices: items.map((device) => this.withLease(device, byName.get(device.metadata?.name ?? ""))),
      nextPageToken,
      resourceVersion: devices.version,
    });
  }

  async getDevice({ name }: GetDeviceRequest): Promise<Answer<GetDeviceResponse>> {
    const bad = badName("name", name);
    if (bad !== undefined) return bad;
    const [device, lease] = await Promise.all([
      this.ports.store.get("Device", name),
      this.ports.store.get("Lease", name),
    ]);
    return device === undefined ? noDevice(name) : answer({ device: this.withLease(device, lease) });
  }

  /** What exists, then "synced", then changes, until the signal aborts. */
  watchDevices(request: WatchDevicesRequest, signal: AbortSignal): Answer<AsyncIterable<WatchDevicesResponse>> {
    const { name, resourceVersion } = request;
    const bad = name === "" ? undefined : badName("name", name);
    if (bad !== undefined) return bad;
    if (resourceVersion !== "" && !/^\d{1,19}$/.test(resourceVersion)) {
      const description = "is not a version: send the resource_version of a list or of an event, or nothing";
      return invalid({ field: "resource_version", value: resourceVersion.slice(0, 64), description });
    }
    return answer(this.follow(name, resourceVersion, signal));
  }

  private async *follow(name: string, version: string, signal: AbortSignal): AsyncGenerator<WatchDevicesResponse> {
    const options = {
      signal,
      ...(name === "" ? {} : { name }),
      ...(version === "" ? {} : { afterVersion: version }),
    };
    for await (const event of this.ports.store.watch("Device", options)) {
      const resourceVersion = event.version;
      if (event.type === "put") yield { type: WatchEventType.PUT, device: event.resource, resourceVersion };
      else if (event.type === "synced") yield { type: WatchEventType.SYNCED, device: undefined, resourceVersion };
      else {
        const device = Device.fromPartial({ apiVersion: API_VERSION, kind: "Device", metadata: newMeta(event.name) });
        yield { type: WatchEventType.DELETE, device, resourceVersion };
      }
    }
  }

  /** Cordons, or ends cordon and drain. */
  async cordonDevice({ name, uncordon }: CordonDeviceRequest): Promise<Answer<CordonDeviceResponse>> {
    return this.steer(name, (device) => withSpec(device, !uncordon, !uncordon && device.spec?.draining === true));
  }

  async drainDevice({ name }: DrainDeviceRequest): Promise<Answer<DrainDeviceResponse>> {
    return this.steer(name, (device) => withSpec(device, true, true));
  }

  private async steer(
    name: string,
    change: (device: Device) => Device | undefined,
  ): Promise<Answer<{ device: Device }>> {
    const bad = badName("name", name);
    if (bad !== undefined) return bad;
    const changed = await changeDevice(this.ports.store, name, change);
    if (changed.ok) return answer({ device: changed.device });
    if (changed.reason === "NotFound") return noDevice(name);
    return refuse("ABORTED", "the device is being changed by others: try again");
  }

  /**
   * Marks the device first, so that it can neither join again nor renew its credential, then revokes and removes. After
   * a crash in between the device still exists, shut out, and can be deleted again.
   */
  async deleteDevice({ name }: DeleteDeviceRequest): Promise<Answer<DeleteDeviceResponse>> {
    const bad = badName("name", name);
    if (bad !== undefined) return bad;
    const { store, credentials, log } = this.ports;
    const marked = await this.steer(name, markRemoved);
    if (!marked.ok) return marked;
    const { publicKey = "", joinTokenId = "" } = marked.value.device.spec ?? {};
    if (publicKey !== "") {
      await credentials.revoke(publicKey);
      const spent = await this.changeToken(joinTokenId, (token) => spendUse(token, publicKey));
      if (spent === "Contended") return refuse("ABORTED", "the device's join token is being used: delete it again");
    }
    await store.delete("Lease", name);
    await store.delete("Device", name);
    // Once more, for a credential that was being issued when the mark was set.
    if (publicKey !== "") await credentials.revoke(publicKey);
    log.info("a device was removed", { device: name });
    return answer({});
  }

  /** The secret is in the answer only; what is stored is its hash. */
  async issueJoinToken(request: IssueJoinTokenRequest): Promise<Answer<IssueJoinTokenResponse>> {
    const violations = tokenViolations(request);
    if (violations.length > 0) return invalid(...violations);
    const { store, clock, credentials, log, publicServers, randomBytes } = this.ports;
    const id = Buffer.from(randomBytes(TOKEN_ID_BYTES)).toString("hex");
    const secret = Buffer.from(randomBytes(SECRET_BYTES)).toString("base64url");
    const expiresAtMs = clock.nowMs() + (request.ttlMs === 0 ? DAY_MS : request.ttlMs);
    const { jwt, seed } = await credentials.issueBootstrap(id, expiresAtMs);
    const created = await store.create("JoinToken", {
      apiVersion: API_VERSION,
      kind: "JoinToken",
      metadata: newMeta(id),
      secretSha256: hashSecret(secret),
      expiresAtMs,
      usesLeft: request.uses === 0 ? 1 : request.uses,
      deviceLabels: request.deviceLabels,
      revoked: false,
    });
    if (!created.ok) return refuse("ABORTED", "the token's id was taken: try again");
    log.info("a join token was issued", { joinToken: id, uses: request.uses, expiresAtMs });
    const bundle = { servers: [...publicServers], tokenId: id, secret, bootstrapJwt: jwt, bootstrapSeed: seed };
    const token = TOKEN_PREFIX + Buffer.from(JoinBundle.encode(bundle).finish()).toString("base64url");
    return answer({ id, token, expiresAtMs });
  }

  /** Revoking twice is no error. */
  async revokeJoinToken({ id }: RevokeJoinTokenRequest): Promise<Answer<RevokeJoinTokenResponse>> {
    const bad = badName("id", id);
    if (bad !== undefined) return bad;
    const changed = await this.changeToken(id, (token) => (token.revoked ? undefined : { ...token, revoked: true }));
    if (changed === "Done") return answer({});
    if (changed === "Contended") return refuse("ABORTED", "the token is being used at this moment: try again");
    return refuse("NOT_FOUND", `no join token has the id "${id.slice(0, 64)}"`);
  }

  private async changeToken(
    id: string,
    change: (token: JoinToken) => JoinToken | undefined,
  ): Promise<"Done" | "NotFound" | "Contended"> {
    if (!isResourceName(id)) return "NotFound";
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      const token = await this.ports.store.get("JoinToken", id);
      if (token === undefined) return "NotFound";
      const next = change(token);
      if (next === undefined || (await this.ports.store.update("JoinToken", next)).ok) return "Done";
    }
    return "Contended";
  }

  private withLease(device: Device, lease: Lease | undefined): DeviceWithLease {
    return { device, lease, alive: lease !== undefined && lease.expiresAtMs > this.ports.clock.nowMs() };
  }
}

function tokenViolations({ ttlMs, uses, deviceLabels }: IssueJoinTokenRequest): Violation[] {
  const violations = labelViolations("device_labels", deviceLabels);
  if (ttlMs < 0 || ttlMs > MAX_TTL_MS) {
    const description = `must be from 1 to ${MAX_TTL_MS} (ten years), or 0 for a day`;
    violations.push({ field: "ttl_ms", value: String(ttlMs), description });
  }
  if (uses < -1 || uses > MAX_COUNTED_USES) {
    const description = `must be from 1 to ${MAX_COUNTED_USES}, 0 for one, or -1 for any number`;
    violations.push({ field: "uses", value: String(uses), description });
  }
  return violations;
}
