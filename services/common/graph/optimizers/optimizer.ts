import type { GraphBuilder, Value } from "../builder.js";

/** One piece of the parameters with what the optimizer keeps of it, slot by slot. */
export interface PieceState {
  readonly weights: Value;
  readonly slots: readonly Value[];
}

/** Values that a step's update depends on, all float32 scalars; `step` counts from 1. */
export interface StepInputs {
  readonly lr: Value;
  readonly step: Value;
  /** From clipping: gradients are multiplied by it on their way in. */
  readonly gradientScale: Value;
}

/**
 * Emits the update of one piece, or of a block of one, into `g`: element by element, for it may overwrite old values.
 * `gradient` has its shape, `decay` says whether weight decay applies.
 */
export type Update = (g: GraphBuilder, state: PieceState, gradient: Value, decay: boolean) => PieceState;

/** A rule of how gradients change weights. */
export interface Optimizer {
  /** Names of the vectors kept beside the weights, each of their length. */
  readonly slots: readonly ("m" | "v")[];
  /** Emits what all pieces have in common. */
  prepare(g: GraphBuilder, inputs: StepInputs): Update;
}
