import type { DecodedAttribute, DecodedNode } from "../decoding.js";
import type { Tensor } from "./tensor.js";

/** A node with the values of its operands. */
export class Call {
  readonly #node: DecodedNode;
  readonly #operands: readonly (Tensor | undefined)[];

  constructor(node: DecodedNode, operands: readonly (Tensor | undefined)[]) {
    this.#node = node;
    this.#operands = operands;
  }

  /** All operands, none of which is left out. */
  get operands(): readonly Tensor[] {
    return this.#operands.map((_, i) => this.operand(i));
  }

  has(i: number): boolean {
    return this.#operands[i] !== undefined;
  }

  operand(i: number): Tensor {
    const value = this.#operands[i];
    if (value === undefined) throw new TypeError(`operand ${i} is missing`);
    return value;
  }

  /** The numbers of a small operand, such as axes. */
  list(i: number): number[] {
    return [...this.operand(i).data];
  }

  #attribute(name: string): DecodedAttribute | undefined {
    return this.#node.attributes.get(name);
  }

  /** An int or float attribute. Without a default it is needed. */
  number(name: string, fallback?: number): number {
    const value = this.#attribute(name) ?? fallback;
    if (typeof value === "number") return value;
    throw new TypeError(`attribute ${name} is not a number`);
  }

  flag(name: string, fallback: boolean): boolean {
    return this.number(name, fallback ? 1 : 0) !== 0;
  }

  text(name: string, fallback: string): string {
    const value = this.#attribute(name) ?? fallback;
    if (typeof value === "string") return value;
    throw new TypeError(`attribute ${name} is not text`);
  }

  numbers(name: string): readonly number[] | undefined {
    const value = this.#attribute(name);
    return Array.isArray(value) ? (value as readonly number[]) : undefined;
  }

  tensor(name: string): Tensor | undefined {
    const value = this.#attribute(name);
    return typeof value === "object" && "data" in value ? value : undefined;
  }

  /** Refuses an attribute that is there with another value than its neutral one. */
  only(name: string, neutral: number): void {
    if (this.number(name, neutral) !== neutral) throw new TypeError(`attribute ${name} is not defined here`);
  }
}

/** The results of an operator. Types and shapes that do not fit throw. */
export type Operator = (call: Call) => Tensor[];
export type Operators = Readonly<Record<string, Operator>>;
