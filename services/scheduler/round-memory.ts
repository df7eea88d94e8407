import type { TrainingJob, TrainingJobSpec } from "#proto/shoal/v1/job.js";
import { strategyFacts } from "#common/domain/strategy-table.js";
import { forVectors, updateBytes } from "#common/tensor/chunk.js";
import { codecByName } from "#common/tensor/codec.js";

const FLOAT_BYTES = 4;

/** What of a job decides how many vectors a round holds. */
interface Shape {
  /** Of the optimizer. */
  readonly moments: number;
  /** Those of them that wait from round to round. */
  readonly keptMoments: number;
  readonly anchored: boolean;
  readonly streaming: boolean;
  readonly controlled: boolean;
  readonly feedback: boolean;
  readonly overlaps: boolean;
  /** Length of an update, in vectors. */
  readonly update: number;
  /** Length of its chunks, in vectors. */
  readonly chunks: number;
}

function shapeOf({ strategy, local, codec }: TrainingJobSpec, trainable: number): Shape {
  const facts = strategyFacts(strategy?.name ?? "");
  const streaming = facts?.streaming === true;
  const controlled = facts?.controlled === true;
  const { name = "adamw", momentum = 0, keepState = false } = local?.optimizer ?? {};
  const moments = name === "sgd" ? Number(momentum > 0) : 2;
  const vectors = controlled ? 2 : 1;
  const plain = codecByName(codec?.name ?? "", codec?.topk);
  const update = streaming ? 1 / Math.max(1, strategy?.fragments ?? 1) : vectors;
  const whole = FLOAT_BYTES * trainable * vectors;
  const encoded = plain === undefined ? whole : updateBytes(vectors * trainable, forVectors(plain, vectors));
  return {
    moments,
    keptMoments: keepState ? moments : 0,
    anchored: (local?.proximalMu ?? 0) > 0,
    streaming,
    controlled,
    feedback: codec?.errorFeedback === true && plain?.lossless === false,
    overlaps: (strategy?.overlapSteps ?? 0) > 0,
    update,
    chunks: whole === 0 ? 0 : (update * encoded) / whole,
  };
}

/** From the first step on: the global weights, what the last round left, and what is common to the cohort. */
function heldVectors({ moments, keptMoments, anchored, streaming, controlled, feedback, overlaps }: Shape): number {
  // FedProx's anchor is the weights, and the step counts it.
  const weights = anchored ? 0 : 1;
  const residual = feedback ? (controlled ? 2 : 1) : 0;
  // A device's own weights, and those it begins with.
  const own = streaming ? 2 : 0;
  const variates = controlled ? 2 : 0;
  const ahead = overlaps ? 1 + moments : 0;
  return weights + keptMoments + residual + own + variates + ahead;
}

/** After the last step: the session's weights and moments are copied out, and the update made. */
function endVectors(shape: Shape): number {
  // The difference, the variate, its change, and both together; of fragments both sides are gathered.
  const difference = shape.controlled ? 5 : shape.streaming ? 3 * shape.update : 1;
  return heldVectors(shape) + 1 + shape.moments + difference;
}

/** While the update is encoded and spooled with what is kept for the next round. */
function spoolVectors(shape: Shape): number {
  const { keptMoments, streaming, controlled, feedback, update, chunks } = shape;
  const next = keptMoments + (streaming ? 1 : 0) + (controlled ? 1 : 0);
  // What was lost lies beside the update; of fragments the part that goes in, and the whole that comes out.
  const residual = feedback ? update + (streaming ? 1 + update : 0) : 0;
  return heldVectors(shape) + next + update + residual + chunks;
}

/** While steps are taken ahead, and their end is copied out: the round's weights, what it kept, and the copies. */
function aheadVectors({ moments, keptMoments, overlaps }: Shape): number {
  return overlaps ? 2 + keptMoments + 1 + moments : 0;
}

/**
 * Memory of what a device holds in a round at its peak beside the training step, whose session keeps what it took, bytes. Counted
 * by going through agent/train and agent/runtime/worker.ts; a test holds it against whole rounds.
 * @param trainable values that are trained
 */
export function roundBytes({ spec }: Pick<TrainingJob, "spec">, trainable: number): number {
  if (spec === undefined) return 0;
  const shape = shapeOf(spec, trainable);
  return Math.round(FLOAT_BYTES * trainable * Math.max(endVectors(shape), spoolVectors(shape), aheadVectors(shape)));
}
