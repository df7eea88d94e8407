import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { DataPolicy, DeviceFacts } from "#proto/shoal/v1/device.js";
import type { BlobCache } from "../cache.js";
import type { Datasets } from "../data/datasets.js";
import type { Outbox } from "../outbox/outbox.js";
import type { Sessions } from "../train/sessions.js";
import type { ControlPlane } from "../transport/control-plane.js";

/** Everything a running agent is made of. */
export interface AgentParts {
  readonly clock: Clock;
  readonly log: Log;
  readonly plane: ControlPlane;
  readonly cache: BlobCache;
  readonly outbox: Outbox;
  readonly datasets: Datasets;
  readonly sessions: Sessions;
  readonly policy: DataPolicy;
  /** Measured facts but for the link's speed. */
  readonly facts: DeviceFacts;
  /** Share of the full speed. */
  readonly throttle: number;
  /** A text that no other call returns. */
  readonly nonce: () => string;
  readonly credential: {
    /** Whether it should be renewed at this time of the registry. */
    isDue(nowMs: number): boolean;
    /** Stores a renewed one. */
    store(jwt: string): Promise<void>;
  };
}
