import type { Batch, FrozenTensors, TrainState } from "./backend.js";
import type { OrtRuntime, OrtSession, Tensors } from "./runtime.js";

export const product = (dims: readonly number[]): number => dims.reduce((all, d) => all * d, 1);

/** Copies into a tensor's int64 buffer, which is reused from step to step. */
export function fill(target: BigInt64Array, values: Int32Array): void {
  if (values.length !== target.length) {
    throw new RangeError(`the graph takes ${target.length} tokens in a batch, got ${values.length}`);
  }
  for (let i = 0; i < values.length; i++) target[i] = BigInt(values[i] ?? 0);
}

/** Shape of a graph's input or output, all of it known. */
export function dimensions({ inputMetadata, outputMetadata }: OrtSession, name: string): number[] {
  const metadata = [...inputMetadata, ...outputMetadata].find((candidate) => candidate.name === name);
  if (metadata?.isTensor !== true) throw new TypeError(`the graph has no tensor input or output ${name}`);
  return metadata.shape.map((d) => {
    if (typeof d !== "number") throw new TypeError(`${name} of the graph has the open dimension ${d}`);
    return d;
  });
}

const BATCH_INPUTS = ["tokens", "targets", "segments"] as const;

/** Buffers of a batch's inputs, as far as the graph has them. */
export class BatchFeeds {
  readonly feeds: Tensors = {};
  readonly #buffers: { name: (typeof BATCH_INPUTS)[number]; data: BigInt64Array }[] = [];

  constructor({ Tensor }: OrtRuntime, session: OrtSession) {
    for (const name of BATCH_INPUTS.filter((input) => session.inputNames.includes(input))) {
      const dims = dimensions(session, name);
      const data = new BigInt64Array(product(dims));
      this.#buffers.push({ name, data });
      this.feeds[name] = new Tensor("int64", data, dims);
    }
  }

  set(batch: Batch): void {
    for (const { name, data } of this.#buffers) {
      const values = batch[name];
      if (values === undefined) throw new RangeError(`the graph packs documents: the batch must have ${name}`);
      fill(data, values);
    }
  }
}

/** Where an input lies in its flat vector. */
export interface Piece {
  readonly dims: readonly number[];
  readonly begin: number;
  readonly end: number;
}

export const total = (pieces: readonly Piece[]): number => pieces.at(-1)?.end ?? 0;

/** Where the graph's inputs `<name>.0`, `<name>.1`, ... lie in their flat vector: one after the other. */
export function piecesOf(session: OrtSession, name: string): Piece[] {
  let end = 0;
  const count = session.inputNames.filter((input) => input.startsWith(`${name}.`)).length;
  return Array.from({ length: count }, (_, i) => {
    const dims = dimensions(session, `${name}.${i}`);
    const begin = end;
    end += product(dims);
    return { dims, begin, end };
  });
}

/** Tensors `<name>.0`, `<name>.1`, ... that are views of one flat vector, which is not copied. */
export function views(
  { Tensor }: OrtRuntime,
  name: string,
  pieces: readonly Piece[],
  flat: Float32Array | Uint8Array,
): Tensors {
  if (flat.length !== total(pieces)) {
    throw new RangeError(`the graph has ${total(pieces)} values of ${name}, the vector has ${flat.length}`);
  }
  const tensors = pieces.map(({ dims, begin, end }) =>
    flat instanceof Uint8Array
      ? new Tensor("uint8", flat.subarray(begin, end), dims)
      : new Tensor("float32", flat.subarray(begin, end), dims),
  );
  return Object.fromEntries(tensors.map((tensor, i) => [`${name}.${i}`, tensor]));
}

const SLOTS = ["m", "v"] as const;
type Slot = (typeof SLOTS)[number];

/** The optimizer's slots that a graph has. */
export const slotsOf = ({ inputNames }: OrtSession): Slot[] => SLOTS.filter((slot) => inputNames.includes(`${slot}.0`));

/** The vectors that training changes, in place. */
export class TrainedVectors {
  readonly parameters: number;
  readonly buffers: TrainState;
  /** Those that the optimizer has. */
  readonly kept: readonly ("weights" | Slot)[];

  /** @param slots those that the optimizer has */
  constructor(
    parameters: number,
    slots: readonly Slot[],
    allocate = (values: number): Float32Array => new Float32Array(values),
  ) {
    this.parameters = parameters;
    this.kept = ["weights", ...slots];
    const buffer = (name: "weights" | Slot): Float32Array =>
      this.kept.includes(name) ? allocate(parameters) : new Float32Array(0);
    this.buffers = { weights: buffer("weights"), m: buffer("m"), v: buffer("v") };
  }

  /** @throws RangeError for a vector of another length, with nothing changed */
  load(state: TrainState): void {
    for (const key of this.kept) {
      if (state[key].length !== this.parameters) {
        throw new RangeError(`the graph has ${this.parameters} parameters, ${key} has ${state[key].length}`);
      }
    }
    for (const key of this.kept) this.buffers[key].set(state[key]);
  }

  copy(): TrainState {
    const { weights, m, v } = this.buffers;
    return { weights: weights.slice(), m: m.slice(), v: v.slice() };
  }
}

/** Pieces in the shapes that a graph's inputs or outputs `<name>.0`, `<name>.1`, ... have: its own, with the same values. */
export function shapedAs(session: OrtSession, name: string, pieces: readonly Piece[]): Piece[] {
  return pieces.map((piece, i) => ({ ...piece, dims: dimensions(session, `${name}.${i}`) }));
}

/**
 * The tensors that show the trained vectors to a graph as its inputs and as its outputs. They are the same ones: a step
 * updates in place. That is safe because the optimizer comes last, after the norm of all gradients and so after all else
 * that reads weights, and its operators go through old and new values element by element.
 */
export class StateBuffers {
  readonly feeds: Tensors = {};
  readonly fetches: Tensors = {};

  constructor(runtime: OrtRuntime, session: OrtSession, pieces: readonly Piece[], { kept, buffers }: TrainedVectors) {
    for (const name of kept) {
      Object.assign(this.feeds, views(runtime, name, pieces, buffers[name]));
      // The optimizer gives a piece's values in order, but cut into blocks: in a shape of its own.
      const outputs = shapedAs(session, `${name}_out`, pieces);
      Object.assign(this.fetches, views(runtime, `${name}_out`, outputs, buffers[name]));
    }
  }
}

/** A graph's frozen tensors, which are views of the caller's vectors. */
export class FrozenFeeds {
  readonly #runtime: OrtRuntime;
  readonly #pieces: Readonly<Record<keyof FrozenTensors, readonly Piece[]>>;
  #feeds: Tensors | undefined;

  constructor(runtime: OrtRuntime, session: OrtSession) {
    this.#runtime = runtime;
    const [plain, packed, scales] = ["frozen", "packed", "scales"].map((name) => piecesOf(session, name));
    this.#pieces = { plain: plain ?? [], packed: packed ?? [], scales: scales ?? [] };
    if (Object.values(this.#pieces).every((pieces) => pieces.length === 0)) this.#feeds = {};
  }

  /** Length of the vector of those that are not quantised. */
  get parameters(): number {
    return total(this.#pieces.plain);
  }

  load(values: Float32Array | FrozenTensors): void {
    const none = { packed: new Uint8Array(), scales: new Float32Array() };
    const { plain, packed, scales } = values instanceof Float32Array ? { plain: values, ...none } : values;
    this.#feeds = {
      ...views(this.#runtime, "frozen", this.#pieces.plain, plain),
      ...views(this.#runtime, "packed", this.#pieces.packed, packed),
      ...views(this.#runtime, "scales", this.#pieces.scales, scales),
    };
  }

  /** The tensors by name; throws if they have not been loaded. */
  get feeds(): Tensors {
    if (this.#feeds === undefined) throw new RangeError("the graph has frozen tensors: load them first");
    return this.#feeds;
  }
}
