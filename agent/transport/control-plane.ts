import type { ViaRequest } from "#common/domain/subjects.js";
import type { UpdateUplink } from "#common/ports/update-log.js";
import type { HeartbeatReply, HeartbeatRequest } from "#proto/shoal/v1/device_wire.js";
import type { RangeSource } from "../fetch.js";

/** The control plane as a device sees it. IO failures are thrown with a `code` and may be tried again. */
export interface ControlPlane {
  heartbeat(request: HeartbeatRequest): Promise<HeartbeatReply>;
  readonly blobRange: RangeSource;
  readonly uplink: UpdateUplink;
  /** Calls the listener at every nudge. */
  onNudge(listener: () => void): void;
  /** Uses a renewed credential from the next connection on. */
  renew(jwt: string): void;
  /** Settles when the connection is closed for good; with a message if the credential was refused. */
  readonly closed: Promise<{ rejected: string | undefined }>;
  close(): Promise<void>;
}

/** The control plane as a site's gateway sees it. */
export interface GatewayPlane extends ControlPlane {
  /** Asks for a device of the site: the request as that device made it, and the answer to it. */
  via(name: string, request: ViaRequest, data: Uint8Array): Promise<Uint8Array>;
}
