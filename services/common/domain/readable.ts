import type { BlobRef } from "#proto/shoal/v1/meta.js";
import type { AssignedTask, BlobRangeRequest, Refusal } from "#proto/shoal/v1/device_wire.js";

/** The blobs that a device needs for its open assignments. */
export function readableBlobs(tasks: readonly AssignedTask[]): Map<string, BlobRef> {
  const refs = tasks.flatMap(({ task, assignment }) => [
    task?.weights,
    task?.delta?.blob,
    task?.control,
    task?.evalGraph,
    task?.tokenizer?.blob,
    task?.frozen?.blob,
    assignment?.trainGraph,
  ]);
  return new Map(refs.flatMap((ref) => (ref === undefined || ref.digest === "" ? [] : [[ref.digest, ref]])));
}

export type RangeVerdict =
  { ok: true; blob: BlobRef; offset: number; length: number } | { ok: false; refusal: Refusal };

/** Whether a device may read a range now. The length is cut to `maxLength` bytes; reading at the end gives no bytes. */
export function decideRange(
  request: BlobRangeRequest,
  tasks: readonly AssignedTask[],
  maxLength: number,
): RangeVerdict {
  const refuse = (reason: string, message: string): RangeVerdict => ({ ok: false, refusal: { reason, message } });
  const { digest, offset, length } = request;
  if (!Number.isSafeInteger(offset) || offset < 0) return refuse("BadRange", "offset must be 0 or more");
  if (!Number.isSafeInteger(length) || length <= 0) return refuse("BadRange", "length must be 1 or more");
  const blob = readableBlobs(tasks).get(digest);
  if (blob === undefined) {
    return refuse("NotAssigned", "no open assignment of this device names this blob: drop the task, heartbeat again");
  }
  if (offset > blob.sizeBytes) return refuse("BadRange", `offset is beyond the ${blob.sizeBytes} bytes of the blob`);
  return { ok: true, blob, offset, length: Math.min(length, maxLength, blob.sizeBytes - offset) };
}
