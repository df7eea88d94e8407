import { isResourceName } from "#common/domain/resources.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { Device } from "#proto/shoal/v1/device.js";
import type { JoinReply, JoinRequest, Refusal } from "#proto/shoal/v1/device_wire.js";
import { CREDENTIAL_MS, type CredentialIssuer } from "./credentials.js";
import { decideJoin, deviceRemoved, reservedName, type JoinVerdict } from "./enrolment.js";
import { isRemoved } from "./removal.js";

export interface JoinPorts {
  readonly store: ResourceStore;
  readonly clock: Clock;
  readonly log: Log;
  readonly credentials: CredentialIssuer;
  /** NATS servers that devices are told. */
  readonly publicServers: readonly string[];
}

/** Lost races after which a device is asked to come again. */
const MAX_ATTEMPTS = 16;

const refused = (refusal: Refusal): JoinReply => ({ refusal, device: "", jwt: "", servers: [] });

async function decide(ports: JoinPorts, tokenId: string, request: JoinRequest): Promise<JoinVerdict> {
  const { store, clock } = ports;
  // What is no name is not looked up; the verdict then says what is wrong with it.
  const [token, existing] = await Promise.all([
    isResourceName(tokenId) ? store.get("JoinToken", tokenId) : undefined,
    isResourceName(request.device) ? store.get("Device", request.device) : undefined,
  ]);
  const name = token === undefined ? undefined : reservedName(token, request.publicKey);
  const reserved = name === undefined || name === "" ? undefined : await store.get("Device", name);
  return decideJoin({ token, existing, reserved }, request, clock.nowMs());
}

async function enrol(ports: JoinPorts, device: Device): Promise<JoinReply> {
  const name = device.metadata?.name ?? "";
  const expiresAtMs = ports.clock.nowMs() + CREDENTIAL_MS;
  const jwt = await ports.credentials.issueDevice(name, device.spec?.publicKey ?? "", expiresAtMs);
  // A removal that began before this look comes too late to revoke the new credential; one that begins after it revokes it.
  const current = await ports.store.get("Device", name);
  if (current === undefined || isRemoved(current)) return refused(deviceRemoved().refusal);
  return { refusal: undefined, device: name, jwt, servers: [...ports.publicServers] };
}

/**
 * Enrols a device, or says why not. Safe to repeat after any crash: the use of the token is reserved to the key first,
 * then the device is created once, and a device that asks again with its key gets its answer again.
 */
export async function join(ports: JoinPorts, tokenId: string, request: JoinRequest): Promise<JoinReply> {
  const log = ports.log.with({ device: request.device, joinToken: tokenId });
  for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
    const verdict = await decide(ports, tokenId, request);
    if (!verdict.ok) {
      log.warn("a device may not join", { reason: verdict.refusal.reason });
      return refused(verdict.refusal);
    }
    if (verdict.action === "Rejoin") return enrol(ports, verdict.device);
    if (verdict.token !== undefined) {
      const reserved = await ports.store.update("JoinToken", verdict.token);
      if (!reserved.ok) continue;
    }
    const created = await ports.store.create("Device", verdict.device);
    if (!created.ok) continue;
    log.info("a device joined");
    return enrol(ports, created.resource);
  }
  return refused({ reason: "Busy", message: "many devices join at this moment: try again in a second" });
}
