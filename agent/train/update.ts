import { createRng } from "#common/domain/rng.js";
import { deriveSeed } from "#common/domain/seed.js";
import { codecByName, codecNames } from "#common/tensor/codec.js";
import { encodeWithFeedback, encodeUpdate, forVectors } from "#common/tensor/chunk.js";
import { synchronisedRanges, updateVectors } from "#common/domain/fragment.js";
import { gather, scatter } from "#common/tensor/stretches.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { UpdateManifest, type Assignment, type RoundTask } from "#proto/shoal/v1/round.js";
import type { UpdateDraft } from "../outbox/draft.js";
import type { InnerState } from "../outbox/inner-state.js";
import { jobKey, roundKey } from "../round-key.js";
import type { LocalOutcome } from "./local-round.js";

export type Encoded = { ok: true; draft: UpdateDraft; inner: InnerState | undefined } | { ok: false; message: string };

/** What fetching cost. */
export interface FetchCost {
  readonly bytesDown: number;
  readonly fetchMs: number;
}

function codecRandom({ seed }: Assignment): () => number {
  const rng = createRng(deriveSeed(seed, "codec"));
  return () => rng.uniform();
}

/**
 * Turns a local outcome into chunks with their manifest, and the state the job keeps once they are committed. The
 * residual of earlier rounds goes in if the job feeds errors back; one that does not fit the model is dropped.
 */
export function encodeOutcome(
  task: RoundTask,
  assignment: Assignment,
  outcome: LocalOutcome,
  kept: InnerState | undefined,
  cost: FetchCost,
): Encoded {
  const { delta, evaluation, next } = outcome;
  const plain = codecByName(task.codec?.name ?? "", task.codec?.topk);
  if (plain === undefined) {
    const known = codecNames.join(", ");
    return {
      ok: false,
      message: `codec "${task.codec?.name ?? ""}" is not known to this agent, or not with these sizes; it knows ${known}`,
    };
  }
  const codec = forVectors(plain, updateVectors(task));
  // Its own stream, so that it does not depend on how much randomness training took.
  const random = task.codec?.stochasticRounding === true ? codecRandom(assignment) : undefined;
  // Zero is what jobs say that know of no decay.
  const decay = task.codec?.errorDecay || 1;
  // A lossless codec leaves nothing to carry on.
  const feedback = task.codec?.errorFeedback === true && !codec.lossless;
  let chunks: Uint8Array[] = [];
  let residual: Float32Array | undefined;
  if (delta !== undefined && feedback) {
    const whole = updateVectors(task) * task.parameters;
    const old = kept?.residual?.length === whole ? kept.residual : undefined;
    const ranges = synchronisedRanges(task);
    const sent = encodeWithFeedback(delta, old && ranges ? gather(old, ranges) : old, codec, decay, random);
    ({ chunks, residual } = sent);
    if (ranges !== undefined) {
      // What other fragments lost waits for their rounds.
      residual = old?.slice() ?? new Float32Array(task.parameters);
      scatter(sent.residual, ranges, residual);
    }
  } else if (delta !== undefined) {
    chunks = encodeUpdate(delta, codec, random);
  }
  const manifest = UpdateManifest.fromPartial({
    device: assignment.device,
    round: task.round,
    codec: codec.name,
    values: delta?.length ?? 0,
    sizeBytes: chunks.reduce((sum, chunk) => sum + chunk.length, 0),
    digest: sha256Digest(...chunks),
    tokens: outcome.tokens,
    localSteps: outcome.localSteps,
    trainLoss: outcome.trainLoss,
    evalLossSum: evaluation.lossSum,
    evalTokens: evaluation.tokens,
    bytesDown: cost.bytesDown,
    fetchMs: Math.round(cost.fetchMs),
    trainMs: Math.round(outcome.trainMs),
    baseDigest: task.weights?.digest ?? "",
    jobUid: task.jobUid,
  });
  return {
    ok: true,
    draft: { job: jobKey(task), key: roundKey(task), manifest, chunks },
    inner: next && { ...next, residual },
  };
}
