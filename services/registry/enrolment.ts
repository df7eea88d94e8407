import { createHash, timingSafeEqual } from "node:crypto";
import { API_VERSION, isResourceName, newMeta } from "#common/domain/resources.js";
import { RESERVED_LABELS } from "#common/domain/site.js";
import { type Device, DeviceFacts, DeviceStatus, type JoinToken } from "#proto/shoal/v1/device.js";
import type { JoinRequest, Refusal } from "#proto/shoal/v1/device_wire.js";
import { cleanFacts, labelViolations } from "./facts.js";
import { isPublicUserKey } from "./nkey.js";
import { isRemoved } from "./removal.js";

/** Most devices a counted token may enrol: each takes a line in the token, which must fit one message. */
export const MAX_COUNTED_USES = 5000;

/** What the registry knows when a device asks to join. */
export interface JoinFacts {
  readonly token: JoinToken | undefined;
  /** The device of the wished name. */
  readonly existing: Device | undefined;
  /** The device of the name that the token reserved for this key, if it did; see `reservedName`. */
  readonly reserved: Device | undefined;
}

export type JoinVerdict =
  /** Write the token if it is given (it has one use less, reserved for this key), then create the device. */
  | { ok: true; action: "Enrol"; device: Device; token: JoinToken | undefined }
  /** The device exists with this key: only the answer was lost. */
  | { ok: true; action: "Rejoin"; device: Device }
  | { ok: false; refusal: Refusal };

const RESERVED = "shoal.dev/use.";
/** Written in place of the name when the device is removed, so that its old token does not let it back in. */
const SPENT = "";

/** Hexadecimal SHA-256 of a token's secret. */
export function hashSecret(secret: string): string {
  return createHash("sha256").update(secret, "utf8").digest("hex");
}

function secretMatches(secret: string, sha256: string): boolean {
  const given = Buffer.from(hashSecret(secret), "hex");
  const stored = Buffer.from(sha256, "hex");
  return given.length === stored.length && timingSafeEqual(given, stored);
}

/** Name for which a use of the token is reserved to this key; undefined if none is. */
export function reservedName(token: JoinToken, publicKey: string): string | undefined {
  return token.metadata?.annotations[RESERVED + publicKey];
}

const refuse = (reason: string, message: string): { ok: false; refusal: Refusal } => ({
  ok: false,
  refusal: { reason, message },
});

/** The refusal of a device that an operator removed. */
export const deviceRemoved = (): { ok: false; refusal: Refusal } =>
  refuse("DeviceRemoved", "the device of this key was removed from the fleet: join with a new token and key");

function tokenRefusal(token: JoinToken | undefined, secret: string, nowMs: number): Refusal | undefined {
  // Unknown id and wrong secret look alike, so that ids cannot be probed.
  if (token === undefined || !secretMatches(secret, token.secretSha256)) {
    return { reason: "TokenUnknown", message: "no such join token, or its secret is wrong: issue a new token" };
  }
  if (token.revoked) return { reason: "TokenRevoked", message: "this join token was revoked: ask for another" };
  if (token.expiresAtMs !== 0 && nowMs >= token.expiresAtMs) {
    return { reason: "TokenExpired", message: "this join token has expired: issue a new one" };
  }
  return undefined;
}

function requestRefusal(request: JoinRequest): Refusal | undefined {
  if (!isResourceName(request.device)) {
    const message = "the name must be 1 to 63 lower-case letters, digits and inner '-': choose another --name";
    return { reason: "InvalidName", message };
  }
  if (!isPublicUserKey(request.publicKey)) {
    return { reason: "InvalidKey", message: "public_key must be the public nkey of a NATS user (U and 55 characters)" };
  }
  const [label] = labelViolations("labels", request.labels);
  if (label !== undefined) {
    return { reason: "InvalidLabels", message: `${label.field} "${label.value}": ${label.description}` };
  }
  // A site's gateway speaks for other devices; no device may make itself one, or choose whose word stands for its own.
  const reserved = Object.keys(request.labels).find((key) => key.startsWith(RESERVED_LABELS));
  if (reserved !== undefined) {
    const message = `label "${reserved}" is given by the join token alone: issue a token with it, and leave out --label`;
    return { reason: "InvalidLabels", message };
  }
  return undefined;
}

function newDevice(token: JoinToken, request: JoinRequest): Device {
  // What the token says of a device is the operator's word and wins over what the device says of itself.
  const labels = { ...request.labels, ...token.deviceLabels };
  const facts = cleanFacts(request.facts ?? DeviceFacts.fromPartial({})).value;
  return {
    apiVersion: API_VERSION,
    kind: "Device",
    metadata: newMeta(request.device, labels),
    spec: {
      cordoned: false,
      draining: false,
      publicKey: request.publicKey,
      joinTokenId: token.metadata?.name ?? "",
    },
    status: DeviceStatus.fromPartial({ facts }),
  };
}

function reserveUse(token: JoinToken, request: JoinRequest): JoinToken {
  const metadata = token.metadata ?? newMeta("");
  const annotations = { ...metadata.annotations, [RESERVED + request.publicKey]: request.device };
  const taken = reservedName(token, request.publicKey) === undefined ? 1 : 0;
  return { ...token, usesLeft: token.usesLeft - taken, metadata: { ...metadata, annotations } };
}

/** The token after the removal of a device that came with it; undefined if it holds no use for this key. */
export function spendUse(token: JoinToken, publicKey: string): JoinToken | undefined {
  const name = reservedName(token, publicKey);
  if (token.metadata === undefined || name === undefined || name === SPENT) return undefined;
  const annotations = { ...token.metadata.annotations, [RESERVED + publicKey]: SPENT };
  return { ...token, metadata: { ...token.metadata, annotations } };
}

/**
 * Whether a device may enrol. A use of a counted token is reserved to the device's key before the device is created, so
 * that a crash in between neither loses the use nor counts it twice. `nowMs` is the registry's clock, Unix milliseconds.
 */
export function decideJoin(facts: JoinFacts, request: JoinRequest, nowMs: number): JoinVerdict {
  const { token, existing, reserved } = facts;
  const refusal = tokenRefusal(token, request.secret, nowMs) ?? requestRefusal(request);
  if (refusal !== undefined) return { ok: false, refusal };
  if (token === undefined) return refuse("TokenUnknown", "no such join token");

  if (existing?.spec?.publicKey === request.publicKey && isRemoved(existing)) return deviceRemoved();
  if (existing?.spec?.publicKey === request.publicKey) return { ok: true, action: "Rejoin", device: existing };
  if (existing !== undefined) {
    return refuse("NameTaken", `a device named ${request.device} exists with another key: choose another --name`);
  }
  if (reserved?.spec?.publicKey === request.publicKey) {
    return refuse("KeyTaken", `this key belongs to the device ${reserved.metadata?.name ?? ""}: join under that name`);
  }
  const device = newDevice(token, request);
  if (token.usesLeft < 0) return { ok: true, action: "Enrol", device, token: undefined };
  const wasReserved = reservedName(token, request.publicKey);
  if (wasReserved === SPENT) return deviceRemoved();
  if (wasReserved === undefined && token.usesLeft === 0) {
    return refuse("TokenUsedUp", "this join token has enrolled as many devices as it may: issue a new one");
  }
  const changed = wasReserved !== request.device;
  return { ok: true, action: "Enrol", device, token: changed ? reserveUse(token, request) : undefined };
}
