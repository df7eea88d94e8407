import type { Backend, Batch, FrozenTensors, RoundTerms, TrainState } from "#agent/backend/backend.js";

/** A graph with all that its training needs, ready to be sent to another process or a browser. */
export interface TrainingCase {
  readonly name: string;
  readonly graph: Uint8Array;
  readonly weights: Float32Array;
  readonly frozen?: FrozenTensors;
  readonly terms?: RoundTerms;
  readonly lr: number;
  readonly batches: readonly Batch[];
}

export interface TrainingRun {
  readonly losses: number[];
  readonly norms: number[];
  readonly state: TrainState;
}

/** One step per batch, from empty moments. Imports nothing that a browser lacks. */
export async function runTraining(backend: Backend, one: TrainingCase): Promise<TrainingRun> {
  const session = await backend.train(one.graph);
  try {
    if (one.frozen !== undefined) session.loadFrozen(one.frozen);
    const zeros = new Float32Array(session.parameters);
    session.load({ weights: one.weights, m: zeros, v: zeros });
    if (one.terms !== undefined) session.setTerms(one.terms);
    const [losses, norms]: [number[], number[]] = [[], []];
    for (const [i, batch] of one.batches.entries()) {
      const { loss, gradNorm } = await session.step(batch, one.lr, i + 1);
      losses.push(loss);
      norms.push(gradNorm);
    }
    return { losses, norms, state: session.state() };
  } finally {
    await session.dispose();
  }
}

/** Relative L2 distance of two vectors. */
export function distance(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) return NaN;
  const norm = (values: Float32Array): number => Math.sqrt(values.reduce((sum, x) => sum + x * x, 0));
  return norm(a.map((x, i) => x - (b[i] ?? NaN))) / norm(b);
}
