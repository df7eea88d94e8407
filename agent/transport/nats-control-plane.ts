import { Events, type NatsConnection } from "nats";
import { CodedError, codeOf, messageOf } from "#common/adapters/coded-error.js";
import { requestError } from "#common/adapters/nats/bus.js";
import { NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { deviceInbox, subjects } from "#common/domain/subjects.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import { BlobRangeReply, BlobRangeRequest, HeartbeatReply, HeartbeatRequest } from "#proto/shoal/v1/device_wire.js";
import type { GatewayPlane } from "./control-plane.js";
import { dial, isCredentialRefused } from "./dial.js";
import type { Identity } from "./identity.js";

const HEARTBEAT_TIMEOUT_MS = 5_000;
const BLOB_TIMEOUT_MS = 15_000;
/** Not above what the asking device itself waits for. */
const VIA_TIMEOUT_MS = 5_000;
const UPLOAD_TIMEOUT_MS = 30_000;

const REJECTED = "the control plane does not accept this device's credential any more; join again with a new token";

/** Refusals without a connection in between after which the credential counts as rejected. */
const MOST_REFUSALS = 3;

/** Logs what happens to the connection, and ends it when the server keeps refusing the credential. */
async function followStatus(nc: NatsConnection, log: Log, rejected: () => void): Promise<void> {
  let refusals = 0;
  for await (const { type, data } of nc.status()) {
    if (type === Events.Disconnect) log.warn("disconnected from the control plane; reconnecting");
    else if (type === Events.Reconnect) {
      refusals = 0;
      log.info("reconnected to the control plane");
    } else if (type === Events.Error) {
      log.warn("NATS reports an error", { error: typeof data === "string" ? data : JSON.stringify(data) });
      if (!isCredentialRefused({ code: data }) || ++refusals < MOST_REFUSALS) continue;
      rejected();
      await nc.close();
    }
  }
}

async function request(nc: NatsConnection, subject: string, data: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
  try {
    return (await nc.request(subject, data, { timeout: timeoutMs })).data;
  } catch (error) {
    throw requestError(error, subject, timeoutMs);
  }
}

async function blobRange(nc: NatsConnection, device: string, range: BlobRangeRequest): Promise<Uint8Array> {
  const bytes = BlobRangeRequest.encode(range).finish();
  const reply = BlobRangeReply.decode(await request(nc, subjects.blob(device), bytes, BLOB_TIMEOUT_MS));
  if (reply.refusal === undefined) return reply.data;
  throw new CodedError(reply.refusal.reason, reply.refusal.message);
}

/** The control plane over NATS, with the device's own credential and on its own subjects only. */
export async function connectControlPlane(
  identity: Identity,
  { clock, log, signal }: { clock: Clock; log: Log; signal: AbortSignal },
): Promise<GatewayPlane> {
  const { device, seed, servers } = identity;
  let { jwt } = identity;
  const inboxPrefix = deviceInbox(device);
  const nc = await dial({ servers, jwt: () => jwt, seed, inboxPrefix, name: device, clock, log, signal });
  let rejected = false;
  void followStatus(nc, log, () => (rejected = true));
  const closed = nc.closed().then((error) => {
    const refused = rejected || (error instanceof Error && isCredentialRefused(error));
    if (error instanceof Error && !refused) log.error("the connection ended", { error: messageOf(error) });
    return { rejected: refused ? REJECTED : undefined };
  });
  return {
    heartbeat: async (beat) => {
      const bytes = HeartbeatRequest.encode(beat).finish();
      return HeartbeatReply.decode(await request(nc, subjects.heartbeat(device), bytes, HEARTBEAT_TIMEOUT_MS));
    },
    blobRange: (digest, offset, length) => blobRange(nc, device, { digest, offset, length }),
    via: (name, asked, data) => request(nc, subjects.via(device, name, asked), data, VIA_TIMEOUT_MS),
    uplink: new NatsUpdateUplink(nc, device, UPLOAD_TIMEOUT_MS),
    onNudge: (listener) => {
      nc.subscribe(subjects.nudge(device), {
        callback: (error) => {
          if (error === null) listener();
          else log.warn("the subscription to nudges failed", { code: codeOf(error) });
        },
      });
    },
    renew: (renewed) => (jwt = renewed),
    closed,
    close: () => nc.close(),
  };
}
