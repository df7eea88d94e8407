/** int32 tokens and targets [batch * seqLen], row by row, for a graph of that shape. Targets of -100 are masked. */
export interface Batch {
  readonly tokens: Int32Array;
  readonly targets: Int32Array;
}

/** Flat vectors [parameters]: the weights and AdamW's two moments. */
export interface TrainState {
  readonly weights: Float32Array;
  readonly m: Float32Array;
  readonly v: Float32Array;
}

/** A training step graph with the state it works on. */
export interface TrainSession {
  /** Length of the flat vectors. */
  readonly parameters: number;
  /** Replaces the state with a copy of the given one. */
  load(state: TrainState): void;
  /**
   * One optimizer step.
   * @param step counts from 1, for AdamW's bias correction
   * @returns mean loss in nats per unmasked token, and the gradient's norm before clipping
   */
  step(batch: Batch, lr: number, step: number): Promise<{ loss: number; gradNorm: number }>;
  /** A copy of the state. */
  state(): TrainState;
  dispose(): Promise<void>;
}

/** An evaluation graph. */
export interface EvalSession {
  /** Summed loss in nats and the number of unmasked tokens. */
  evaluate(weights: Float32Array, batch: Batch): Promise<{ lossSum: number; tokens: number }>;
  dispose(): Promise<void>;
}

/** A next-token graph. */
export interface LogitsSession {
  /** Longest context; of a longer sequence only the end is seen. */
  readonly seqLen: number;
  /** Logits [vocab] of the token that follows `tokens` (at least one). */
  logits(weights: Float32Array, tokens: Int32Array): Promise<Float32Array>;
  dispose(): Promise<void>;
}

/** Runs the graphs of common/graph on this machine. */
export interface Backend {
  readonly name: string;
  train(graph: Uint8Array): Promise<TrainSession>;
  eval(graph: Uint8Array): Promise<EvalSession>;
  logits(graph: Uint8Array): Promise<LogitsSession>;
  /** Measured GFLOP/s of products [n,n] x [n,n] over about the given time: what this device can really do. */
  matmulGflops(n: number, seconds: number): Promise<number>;
}
