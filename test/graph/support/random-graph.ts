import { GraphBuilder, type Shape, sizeOf, type Value } from "#common/graph/builder.js";
import { type Tensor, tensorOf } from "#common/graph/interpreter/tensor.js";
import { createRng, type Rng } from "#common/domain/rng.js";
import { reshape } from "#common/graph/ops.js";

/** One operator of a random graph: which one, and numbers from which it takes its choices. Shrinks to less. */
export interface Move {
  readonly kind: number;
  readonly choices: readonly number[];
}

/** Puts an operator behind values that are there; returns the values it makes, or none where nothing fits. */
export type Maker = (garden: Garden) => readonly Value[];

const LARGEST = 120;
const divisorsOf = (n: number): number[] => Array.from({ length: n }, (_, i) => i + 1).filter((d) => n % d === 0);

/** A graph under construction and the values its inputs will have. Inputs are made as operators ask for them. */
export class Garden {
  readonly g = new GraphBuilder();
  readonly feeds = new Map<string, Tensor>();
  /** The inputs whose gradients can be asked for. */
  readonly inputs: Value[] = [];
  readonly values: Value[] = [];
  readonly #rng: Rng;
  #choices: readonly number[] = [];
  #next = 0;

  constructor(seed: number) {
    this.#rng = createRng(seed);
    this.values.push(this.input(Array.from({ length: 1 + this.#rng.int(3) }, () => 1 + this.#rng.int(4))));
  }

  /** Choices for the next operator; when they are used up all further ones are 0. */
  begin(choices: readonly number[]): void {
    [this.#choices, this.#next] = [choices, 0];
  }

  /** A number below `n`. */
  choose(n: number): number {
    return (this.#choices[this.#next++] ?? 0) % n;
  }

  pick<T>(list: readonly T[]): T {
    return list[list.length - 1 - this.choose(list.length)] as T;
  }

  /** A value that is there; newer ones are likelier to be chosen by small numbers, so that graphs grow deep. */
  value(): Value {
    return this.pick(this.values);
  }

  #feed(value: Value, element: () => number): Value {
    this.feeds.set(
      value.name,
      tensorOf(value.type, value.shape, () => Math.fround(element())),
    );
    return value;
  }

  /** A new float32 input. */
  input(shape: Shape): Value {
    const value = this.g.input(`x${this.feeds.size}`, "float32", shape);
    this.inputs.push(value);
    return this.#feed(value, () => this.#rng.normal());
  }

  /** A new input without gradient, of whole numbers in [low, high). */
  whole(type: "int64" | "uint8", shape: Shape, low: number, high: number): Value {
    return this.#feed(this.g.input(`n${this.feeds.size}`, type, shape), () => low + this.#rng.int(high - low));
  }

  /** A new float32 input without gradient, of numbers in [0.5, 1.5). */
  fixed(shape: Shape): Value {
    return this.#feed(this.g.input(`s${this.feeds.size}`, "float32", shape), () => 0.5 + this.#rng.uniform());
  }

  /** A value of that shape that is there, or a new input. */
  operand(shape: Shape): Value {
    const fitting = this.values.filter((value) => value.shape.join() === shape.join());
    return fitting.length > 0 && this.choose(2) === 1 ? this.pick(fitting) : this.input(shape);
  }

  /** A value that is repeated to the shape: front axes may be missing, any may be 1. */
  repeated(shape: Shape): Value {
    const kept = shape.slice(this.choose(shape.length + 1));
    return this.operand(kept.map((d) => (this.choose(3) === 2 ? 1 : d)));
  }

  /** A shape of so many axes for x's elements. */
  shapeOf(x: Value, rank: number): number[] {
    let left = sizeOf(x.shape);
    const shape = Array.from({ length: rank - 1 }, () => {
      const d = this.pick(divisorsOf(left));
      left /= d;
      return d;
    });
    return [...shape, left];
  }

  axis(x: Value): number {
    return this.choose(x.shape.length);
  }

  /** Keeps what further operators can start from; scalars as vectors, for most operators want an axis. */
  take(values: readonly Value[]): void {
    const kept = values.filter(({ type, shape }) => type === "float32" && sizeOf(shape) <= LARGEST);
    this.values.push(...kept.map((value) => (value.shape.length === 0 ? reshape(this.g, value, [1]) : value)));
  }
}

/** Grows a graph by the given moves. */
export function growGraph(seed: number, moves: readonly Move[], makers: readonly Maker[]): Garden {
  const garden = new Garden(seed);
  for (const { kind, choices } of moves) {
    garden.begin(choices);
    garden.take((makers[kind % makers.length] as Maker)(garden));
  }
  return garden;
}

/** The same in segments of so many moves, each of which sees nothing of those before but the last value. */
export function growSegments(seed: number, moves: readonly Move[], makers: readonly Maker[], length: number): Garden {
  const garden = new Garden(seed);
  for (let from = 0; from < moves.length; from += length) {
    const input = garden.values.at(-1) as Value;
    garden.g.segment(input, (value) => {
      garden.values.splice(0, Infinity, value);
      for (const { kind, choices } of moves.slice(from, from + length)) {
        garden.begin(choices);
        garden.take((makers[kind % makers.length] as Maker)(garden));
      }
      return garden.values.at(-1) as Value;
    });
    garden.values.splice(0, garden.values.length - 1);
  }
  return garden;
}
