import { Device, JoinToken, Lease } from "#proto/shoal/v1/device.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { Dataset, Model } from "#proto/shoal/v1/model.js";
import { FoldFailure, FoldShard, Round, RoundResult, UpdateTally } from "#proto/shoal/v1/round.js";
import type { Kind, ResourceOf } from "../ports/resource-store.js";
import { CodedError } from "./coded-error.js";

interface Codec<T> {
  toJSON(message: T): unknown;
  fromJSON(object: unknown): T;
}

const codecs: { [K in Kind]: Codec<ResourceOf[K]> } = {
  TrainingJob,
  Device,
  Lease,
  JoinToken,
  Round,
  UpdateTally,
  RoundResult,
  FoldShard,
  Model,
  Dataset,
};

/** Most bytes of a stored resource: NATS's usual 1 MiB for a message, less what stands around it. */
export const MOST_RESOURCE_BYTES = 1024 ** 2 - 4096;

/** Room that a tally leaves for the note of a failure: one that verdicts have filled must still say why its round ends. */
export const NOTE_BYTES = 4096;

/** What of this room is not taken yet. */
function reservedBytes<K extends Kind>(kind: K, resource: ResourceOf[K]): number {
  if (kind !== "UpdateTally") return 0;
  const { failure } = resource as UpdateTally;
  if (failure === undefined) return NOTE_BYTES;
  // In the tally a comma stands for the braces.
  const taken = Buffer.byteLength(JSON.stringify({ failure: FoldFailure.toJSON(failure) })) - 1;
  return Math.max(0, NOTE_BYTES - taken);
}

/** Says of a resource that no message of the store can hold it. */
export function tooLarge(kind: Kind, name: string, bytes: number, mostBytes: number): CodedError {
  const isOfRound = kind === "Round" || kind === "UpdateTally" || kind === "RoundResult";
  const remedy = isOfRound ? "give its job fewer devices a round (spec.cohort.target)" : "make it smaller";
  const message = `${kind} "${name}" has ${bytes} bytes and the store takes ${mostBytes}: ${remedy}`;
  return new CodedError("RESOURCE_TOO_LARGE", message);
}

/**
 * JSON text of a resource in protobuf's JSON mapping; its resourceVersion, which the store owns, is left out. Throws code
 * "RESOURCE_TOO_LARGE" above MOST_RESOURCE_BYTES, of a tally with room for a note of NOTE_BYTES.
 */
export function encodeResource<K extends Kind>(kind: K, resource: ResourceOf[K]): string {
  const { metadata } = resource;
  const bare = metadata === undefined ? resource : { ...resource, metadata: { ...metadata, resourceVersion: "" } };
  const text = JSON.stringify(codecs[kind].toJSON(bare));
  const bytes = Buffer.byteLength(text);
  const mostBytes = MOST_RESOURCE_BYTES - reservedBytes(kind, resource);
  if (bytes > mostBytes) throw tooLarge(kind, metadata?.name ?? "", bytes, mostBytes);
  return text;
}

/** The inverse of encodeResource, with the version filled in. */
export function decodeResource<K extends Kind>(kind: K, text: string, version: string): ResourceOf[K] {
  const resource = codecs[kind].fromJSON(JSON.parse(text) as unknown);
  if (resource.metadata !== undefined) resource.metadata.resourceVersion = version;
  return resource;
}

/** The resource with uid, createdAtMs and generation filled where unset: what `create` writes. */
export function withIdentity<K extends Kind>(resource: ResourceOf[K], uid: string, nowMs: number): ResourceOf[K] {
  const { metadata } = resource;
  if (metadata === undefined) return resource;
  return {
    ...resource,
    metadata: {
      ...metadata,
      uid: metadata.uid === "" ? uid : metadata.uid,
      createdAtMs: metadata.createdAtMs === 0 ? nowMs : metadata.createdAtMs,
      generation: metadata.generation === 0 ? 1 : metadata.generation,
    },
  };
}

/** Name of a resource; throws code "BAD_RESOURCE" without one, which is a fault of the caller. */
export function nameOf(resource: ResourceOf[Kind]): string {
  const name = resource.metadata?.name ?? "";
  if (name === "") throw Object.assign(new Error("a stored resource needs metadata.name"), { code: "BAD_RESOURCE" });
  return name;
}

/** Whether a resource has all these labels and a name with this prefix. */
export function isSelected(
  resource: ResourceOf[Kind],
  options: { labels?: Record<string, string>; prefix?: string } | undefined,
): boolean {
  const { metadata } = resource;
  if (options?.prefix !== undefined && !(metadata?.name ?? "").startsWith(options.prefix)) return false;
  return Object.entries(options?.labels ?? {}).every(([key, value]) => metadata?.labels[key] === value);
}
