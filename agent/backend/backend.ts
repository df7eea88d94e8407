/** int32 tokens and targets [batch * seqLen], row by row, for a graph of that shape. Targets of -100 are masked. */
export interface Batch {
  readonly tokens: Int32Array;
  readonly targets: Int32Array;
  /** Which document each token belongs to, for a graph that packs several into a row. */
  readonly segments?: Int32Array;
}

/** Flat vectors [parameters]: the trainable weights and what the optimizer keeps; empty for what it does not keep. */
export interface TrainState {
  readonly weights: Float32Array;
  readonly m: Float32Array;
  readonly v: Float32Array;
}

/** What a round adds to the local gradient, for graphs built with it; vectors are [parameters] and are not copied. */
export interface RoundTerms {
  /** FedProx: the round's starting weights. */
  readonly anchor?: Float32Array;
  readonly mu?: number;
  /** SCAFFOLD: c - c_k. */
  readonly correction?: Float32Array;
}

/** Frozen tensors: floats, and packed integers with the scales of their blocks, as `freezeBase` makes them. */
export interface FrozenTensors {
  readonly plain: Float32Array;
  readonly packed: Uint8Array;
  readonly scales: Float32Array;
}

/** A graph on this machine. */
export interface GraphSession {
  /** Length of the flat vector of tensors that are not trained and not quantised; 0 if there is none. */
  readonly frozenParameters: number;
  /**
   * Gives the frozen tensors, once, before the first run; floats alone for a graph that keeps nothing quantised. They are
   * not copied: the caller must not change them.
   */
  loadFrozen(values: Float32Array | FrozenTensors): void;
  dispose(): Promise<void>;
}

/** A training step graph with the state it works on. */
export interface TrainSession extends GraphSession {
  /** Length of the flat trainable vectors. */
  readonly parameters: number;
  /** Replaces the state with a copy of the given one. */
  load(state: TrainState): void;
  /** Sets the round's terms; a graph built without them takes none, one built with them needs them. */
  setTerms(terms: RoundTerms): void;
  /**
   * One optimizer step.
   * @param step counts from 1, for AdamW's bias correction
   * @returns mean loss in nats per unmasked token, and the gradient's norm before clipping
   */
  step(batch: Batch, lr: number, step: number): Promise<{ loss: number; gradNorm: number }>;
  /** A copy of the state. */
  state(): TrainState;
}

/** An evaluation graph. */
export interface EvalSession extends GraphSession {
  /** Summed loss in nats and the number of unmasked tokens. */
  evaluate(weights: Float32Array, batch: Batch): Promise<{ lossSum: number; tokens: number }>;
}

/** A next-token graph. */
export interface LogitsSession extends GraphSession {
  /** Longest context; of a longer sequence only the end is seen. */
  readonly seqLen: number;
  /** Logits [vocab] of the token that follows `tokens` (at least one). */
  logits(weights: Float32Array, tokens: Int32Array): Promise<Float32Array>;
}

/** A next-token graph with a cache of what it has seen. */
export interface DecodeSession extends GraphSession {
  /** Tokens the cache holds at most. */
  readonly capacity: number;
  /** Tokens it holds now. */
  readonly filled: number;
  /** Forgets all tokens. */
  reset(): void;
  /**
   * Logits [vocab] of the token that follows those in the cache and `tokens` (at least one), which join the cache.
   * @throws RangeError if the cache cannot take them
   */
  next(weights: Float32Array, tokens: Int32Array): Promise<Float32Array>;
}

/** Runs the graphs of common/graph on this machine. */
export interface Backend {
  readonly name: string;
  train(graph: Uint8Array): Promise<TrainSession>;
  eval(graph: Uint8Array): Promise<EvalSession>;
  logits(graph: Uint8Array): Promise<LogitsSession>;
  decode(graph: Uint8Array): Promise<DecodeSession>;
  /** Measured GFLOP/s of products [n,n] x [n,n] over about the given time: what this device can really do. */
  matmulGflops(n: number, seconds: number): Promise<number>;
}
