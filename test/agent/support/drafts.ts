import type { UpdateDraft } from "#agent/outbox/draft.js";
import type { InnerState } from "#agent/outbox/inner-state.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";

/** An update of three chunks that says which attempt made it. */
export function makeDraft(round: string, attempt = 0): UpdateDraft {
  const chunks = [1, 2, 3].map((i) => new Uint8Array(5 + i).fill(i * 10 + attempt));
  return {
    job: "job",
    key: round,
    manifest: UpdateManifest.fromPartial({
      device: "device",
      round,
      codec: "fp32",
      values: 4,
      sizeBytes: chunks.reduce((sum, chunk) => sum + chunk.length, 0),
      digest: sha256Digest(...chunks),
      localSteps: 3,
    }),
    chunks,
  };
}

export function makeInner(value: number): InnerState {
  const vector = (offset: number): Float32Array => Float32Array.from([value + offset, value - offset, value, 0]);
  return {
    steps: value,
    moments: { m: vector(1), v: vector(2) },
    residual: vector(3),
    local: { weights: vector(4), round: value, base: "sha256:base" },
  };
}
