import type { Device, JoinToken, Lease } from "#proto/shoal/v1/device.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Dataset, Model } from "#proto/shoal/v1/model.js";
import type { FoldShard, Round, RoundResult, UpdateTally } from "#proto/shoal/v1/round.js";

/** Every stored kind and the type of its resources. */
export interface ResourceOf {
  TrainingJob: TrainingJob;
  Device: Device;
  Lease: Lease;
  JoinToken: JoinToken;
  Round: Round;
  UpdateTally: UpdateTally;
  RoundResult: RoundResult;
  FoldShard: FoldShard;
  Model: Model;
  Dataset: Dataset;
}

export type Kind = keyof ResourceOf;

export type Written<K extends Kind> =
  { ok: true; resource: ResourceOf[K] } | { ok: false; reason: "Exists" | "Conflict" | "NotFound" };

export type StoreEvent<K extends Kind> =
  | { type: "put"; resource: ResourceOf[K]; version: string }
  | { type: "delete"; name: string; version: string }
  | { type: "synced"; version: string };

export interface WatchOptions {
  /** Only events after this version; everything that exists is sent first if absent. */
  afterVersion?: string | undefined;
  /** Only the resource of this name. */
  name?: string | undefined;
  /** Ends the watch. */
  signal: AbortSignal;
}

/**
 * Resources by kind and name with compare-and-set and resumable watches.
 *
 * Versions are decimal strings that grow with every write of any kind. `create` fills metadata.uid, createdAtMs and
 * generation where they are unset; every write fills metadata.resourceVersion in the resource it returns. IO failures
 * are thrown with a `code`, "RESOURCE_TOO_LARGE" for what no message holds; lost races are returned.
 */
export interface ResourceStore {
  get<K extends Kind>(kind: K, name: string): Promise<ResourceOf[K] | undefined>;
  /** All resources of a kind in order of name, and a version from which a watch continues without a gap. */
  list<K extends Kind>(
    kind: K,
    options?: { labels?: Record<string, string>; prefix?: string },
  ): Promise<{ items: ResourceOf[K][]; version: string }>;
  /** Refused with "Exists" if the name is taken. */
  create<K extends Kind>(kind: K, resource: ResourceOf[K]): Promise<Written<K>>;
  /** Writes if metadata.resourceVersion is still the stored one; "Conflict" or "NotFound" otherwise. */
  update<K extends Kind>(kind: K, resource: ResourceOf[K]): Promise<Written<K>>;
  /** Removes; with a version only if it is still the stored one. Removing what is absent is "NotFound". */
  delete(
    kind: Kind,
    name: string,
    resourceVersion?: string,
  ): Promise<{ ok: true } | { ok: false; reason: "Conflict" | "NotFound" }>;
  /**
   * What exists, then "synced", then changes. Several changes of one resource may arrive as the last one only.
   * Survives reconnects of the store; ends only when the signal aborts.
   */
  watch<K extends Kind>(kind: K, options: WatchOptions): AsyncIterable<StoreEvent<K>>;
}
