import { updateLength, updateVectors } from "#common/domain/fragment.js";
import { forVectors, updateBytes } from "#common/tensor/chunk.js";
import { codecByName } from "#common/tensor/codec.js";
import type { Assignment, RoundTask } from "#proto/shoal/v1/round.js";

/** How much of the disk the outbox may take. */
export interface RoomLimits {
  /** Most bytes of updates, of what jobs keep between rounds, and of what was set aside. */
  readonly maxBytes: number;
  /** Bytes of the disk that stay free; undefined: 5 % of it, at most 256 MiB. */
  readonly leastFreeBytes: number | undefined;
}

/** Something that can be done without. */
export interface Dispensable {
  readonly path: string;
  /** "damaged" was set aside for people; "inner" is what a job left for its next round here. */
  readonly kind: "damaged" | "inner";
  /** Key of the job of an inner state. */
  readonly job: string;
  readonly sizeBytes: number;
  readonly usedMs: number;
}

/** What lies on the disk. */
export interface RoomFacts {
  /** Bytes of everything in the outbox. */
  readonly usedBytes: number;
  /** Of the disk. */
  readonly freeBytes: number;
  readonly totalBytes: number;
  readonly dispensable: readonly Dispensable[];
  readonly nowMs: number;
}

/** What goes first so that there is room; or why there is none. */
export type Room =
  { fits: true; remove: readonly Dispensable[] } | { fits: false; code: "OutboxFull" | "DiskLow"; message: string };

/** 124 million fp32 values with moments and residual, four times over. */
export const DEFAULT_OUTBOX_BYTES = 8 * 1024 ** 3;
const MOST_FREE_BYTES = 256 * 1024 ** 2;
const FREE_SHARE = 0.05;
/** Descriptions, acknowledgements, headers. */
const OVERHEAD_BYTES = 64 * 1024;
const FLOAT_BYTES = 4;
/** A job that was not heard of for so long may have to begin with fresh moments. */
const IDLE_MS = 86_400_000;

/** Bytes that an update of this assignment takes at most, with what the job keeps for its next round. */
export function updateNeed(task: RoundTask, { localSteps }: Pick<Assignment, "localSteps">): number {
  const plain = codecByName(task.codec?.name ?? "", task.codec?.topk);
  if (localSteps === 0 || plain === undefined) return OVERHEAD_BYTES;
  const { optimizer, codec } = task;
  const vectors = updateVectors(task);
  const isAdamw = optimizer?.name !== "sgd";
  const moments = (isAdamw || optimizer.momentum > 0 ? 1 : 0) + (isAdamw ? 1 : 0);
  const kept =
    (optimizer?.keepState === true ? moments : 0) +
    (codec?.errorFeedback === true && !plain.lossless ? vectors : 0) +
    (task.fragments.length > 0 ? 1 : 0) +
    (task.controlVariates ? 1 : 0);
  const payload = updateBytes(updateLength(task), forVectors(plain, vectors));
  return payload + FLOAT_BYTES * task.parameters * kept + OVERHEAD_BYTES;
}

/** What a member's part of a site's description takes at most. */
const MEMBER_BYTES = 2 * 1024;

/** Bytes that a site's update takes at most, with what its codec loses. A gateway keeps no moments, weights or variates. */
export function siteNeed(task: RoundTask, members: number): number {
  const described = OVERHEAD_BYTES + MEMBER_BYTES * members;
  const plain = codecByName(task.codec?.name ?? "", task.codec?.topk);
  if (plain === undefined) return described;
  const vectors = updateVectors(task);
  const residual = task.codec?.errorFeedback === true && !plain.lossless ? vectors * task.parameters : 0;
  return updateBytes(updateLength(task), forVectors(plain, vectors)) + FLOAT_BYTES * residual + described;
}

/** Bytes of a disk that stay free. */
export function freeFloor({ leastFreeBytes }: RoomLimits, totalBytes: number): number {
  return leastFreeBytes ?? Math.min(MOST_FREE_BYTES, Math.floor(FREE_SHARE * totalBytes));
}

/**
 * Whether so many bytes more fit, and what goes for them: what was set aside, the oldest first, then inner states of jobs that
 * were idle for a day, but never that of `job`, and never an update. Pure.
 */
export function planRoom(needBytes: number, job: string, facts: RoomFacts, limits: RoomLimits): Room {
  const floor = freeFloor(limits, facts.totalBytes);
  const overBytes = facts.usedBytes + needBytes - limits.maxBytes;
  const shortBytes = floor + needBytes - facts.freeBytes;
  const ripe = facts.dispensable.filter(
    (one) => one.kind === "damaged" || (one.job !== job && facts.nowMs - one.usedMs >= IDLE_MS),
  );
  ripe.sort((a, b) => (a.kind === b.kind ? a.usedMs - b.usedMs : a.kind === "damaged" ? -1 : 1));
  const remove: Dispensable[] = [];
  let missing = Math.max(overBytes, shortBytes);
  for (const one of ripe) {
    if (missing <= 0) break;
    remove.push(one);
    missing -= one.sizeBytes;
  }
  if (missing <= 0) return { fits: true, remove };
  const need = `the round's update and what its job keeps need ${needBytes} bytes`;
  if (overBytes >= shortBytes) {
    const message = `${need}, and the outbox holds ${facts.usedBytes} of at most ${limits.maxBytes}; raise --outbox-max-bytes`;
    return { fits: false, code: "OutboxFull", message };
  }
  const message = `${need}, and of the disk's free ${facts.freeBytes} bytes ${floor} must stay free; free space there or give the agent another --state-dir`;
  return { fits: false, code: "DiskLow", message };
}
