import type { Rng } from "#common/domain/rng.js";

/** Target of a position that counts for nothing. */
export const MASKED = -100;

export interface TokenBatch {
  /** [batchSize * seqLen], row by row. */
  readonly tokens: Int32Array;
  /** The tokens that follow; MASKED where there is none. */
  readonly targets: Int32Array;
  /** Number of the document in its row, from 0; where documents are told apart. */
  readonly segments?: Int32Array;
}

/** Least tokens from which a training sequence can be cut. */
export function tokensNeeded(seqLen: number): number {
  return seqLen + 1;
}

/** Windows at random places of the stream, as nanoGPT's get_batch. The stream has at least tokensNeeded(seqLen) tokens. */
export function sampleBatch(stream: Int32Array, batchSize: number, seqLen: number, rng: Rng): TokenBatch {
  const tokens = new Int32Array(batchSize * seqLen);
  const targets = new Int32Array(batchSize * seqLen);
  for (let row = 0; row < batchSize; row++) {
    const from = rng.int(stream.length - seqLen);
    tokens.set(stream.subarray(from, from + seqLen), row * seqLen);
    targets.set(stream.subarray(from + 1, from + seqLen + 1), row * seqLen);
  }
  return { tokens, targets };
}

/** Index of the last start that is not after `at`; starts are in order and the first is 0. */
function documentAt(starts: Int32Array, at: number): number {
  let [low, high] = [0, starts.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if ((starts[middle] ?? 0) <= at) low = middle;
    else high = middle - 1;
  }
  return low;
}

/**
 * As `sampleBatch`, with documents told apart: rows are cut anywhere, segments number the documents in a row, and the last
 * token of a document predicts nothing, since what follows is of another one.
 * @param starts first token of each document in the stream, in order, the first at 0
 */
export function samplePackedBatch(
  stream: Int32Array,
  starts: Int32Array,
  batchSize: number,
  seqLen: number,
  rng: Rng,
): TokenBatch {
  const tokens = new Int32Array(batchSize * seqLen);
  const targets = new Int32Array(batchSize * seqLen);
  const segments = new Int32Array(batchSize * seqLen);
  for (let row = 0; row < batchSize; row++) {
    const from = rng.int(stream.length - seqLen);
    const first = documentAt(starts, from);
    let document = first;
    for (let i = 0; i < seqLen; i++) {
      const at = row * seqLen + i;
      tokens[at] = stream[from + i] ?? 0;
      segments[at] = document - first;
      const ends = starts[document + 1] === from + i + 1;
      targets[at] = ends ? MASKED : (stream[from + i + 1] ?? 0);
      if (ends) document++;
    }
  }
  return { tokens, targets, segments };
}

/**
 * Consecutive windows that do not overlap, so that every token but the first is predicted once; the last batch is filled
 * up with masked positions. Above `maxBatches` batches, that many evenly spaced ones are taken.
 */
export function* evaluationBatches(
  stream: Int32Array,
  batchSize: number,
  seqLen: number,
  maxBatches: number,
): Generator<TokenBatch, void, undefined> {
  const predicted = Math.max(0, stream.length - 1);
  const total = Math.ceil(predicted / (batchSize * seqLen));
  const taken = Math.min(total, maxBatches);
  for (let i = 0; i < taken; i++) {
    const from = Math.floor((i * total) / taken) * batchSize * seqLen;
    const tokens = new Int32Array(batchSize * seqLen);
    const targets = new Int32Array(batchSize * seqLen).fill(MASKED);
    const length = Math.min(batchSize * seqLen, predicted - from);
    tokens.set(stream.subarray(from, from + length));
    targets.set(stream.subarray(from + 1, from + length + 1));
    yield { tokens, targets };
  }
}
