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
