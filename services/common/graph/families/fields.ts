import { shownName, shownValue, type Violation } from "./family.js";

/** A whole number with its bounds; `remedy` says what to write instead. */
export interface SizeRule {
  readonly max: number;
  readonly remedy: string;
}

const MAX_VIOLATIONS = 100;

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** A switch that is off, or a list or table without entries. */
const isOff = (value: unknown): boolean =>
  value === null || value === false || (typeof value === "object" && Object.keys(value).length === 0);

/** Reads the fields of a config one by one and collects what is wrong with them. A null is an absent field. */
export class FieldReader {
  readonly violations: Violation[] = [];
  readonly #fields: Readonly<Record<string, unknown>>;
  readonly #prefix: string;
  readonly #read = new Set<string>();

  /** @param prefix put before the names in violations, for a record inside a config */
  constructor(fields: Readonly<Record<string, unknown>>, prefix = "") {
    this.#fields = fields;
    this.#prefix = prefix;
  }

  #value(field: string): unknown {
    this.#read.add(field);
    return this.#fields[field] ?? undefined;
  }

  refuse(field: string, description: string): void {
    // One sentence a field is for people; thousands are an attack on whoever passes them on.
    if (this.violations.length >= MAX_VIOLATIONS) return;
    const name = shownName(`${this.#prefix}${field}`);
    this.violations.push({ field: name, value: shownValue(this.#fields[field]), description });
  }

  has(field: string): boolean {
    return this.#value(field) !== undefined;
  }

  /** Takes fields that this model does not use for read. */
  skip(...fields: string[]): void {
    for (const field of fields) this.#read.add(field);
  }

  isNull(field: string): boolean {
    return this.#fields[field] === null;
  }

  /** A whole number from 1 to the rule's maximum, or the default where the field is absent; 1 for a refused value. */
  size(field: string, rule: SizeRule, fallback?: number): number {
    const value = this.#value(field);
    if (value === undefined && fallback !== undefined) return fallback;
    if (typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= rule.max) return value;
    // A default of 0 means off, which may be written out too.
    if (value === 0 && fallback === 0) return 0;
    this.refuse(field, `must be a whole number from 1 to ${rule.max}: ${rule.remedy}`);
    return 1;
  }

  /** A number inside an open interval, or the default where the field is absent; without a default it is needed. */
  numberBetween(field: string, low: number, high: number, fallback?: number): number {
    const value = this.#value(field);
    if (value === undefined && fallback !== undefined) return fallback;
    if (typeof value === "number" && value > low && value < high) return value;
    const otherwise = fallback === undefined ? "" : `; leave it out for ${fallback}`;
    this.refuse(field, `must be a number above ${low} and below ${high}${otherwise}`);
    return fallback ?? 1;
  }

  /** true or false, or the default where the field is absent. */
  flag(field: string, fallback: boolean): boolean {
    const value = this.#value(field);
    if (value === undefined) return fallback;
    if (typeof value === "boolean") return value;
    this.refuse(field, `must be true or false; leave it out for ${fallback}`);
    return fallback;
  }

  /** One of some words, or the default where the field is absent. */
  oneOf(field: string, words: readonly string[], fallback: string): string {
    const value = this.#value(field);
    if (value === undefined) return fallback;
    if (typeof value === "string" && words.includes(value)) return value;
    this.refuse(field, `must be one of ${words.join(", ")}`);
    return fallback;
  }

  /** An object inside the config; empty where the field is absent. */
  record(field: string): Readonly<Record<string, unknown>> {
    const value = this.#value(field);
    if (value === undefined) return {};
    if (isRecord(value)) return value;
    this.refuse(field, "must be an object");
    return {};
  }

  /** Refuses a field that is present with anything but the given values. */
  only(field: string, accepted: readonly unknown[], description: string): void {
    const value = this.#value(field);
    if (value !== undefined && !accepted.includes(value)) this.refuse(field, description);
  }

  /** Refuses a list that is present and holds anything but the given words. */
  everyOf(field: string, words: readonly string[]): void {
    const value = this.#value(field);
    if (value === undefined) return;
    if (Array.isArray(value) && value.every((item) => words.includes(item as string))) return;
    this.refuse(field, `must be a list of nothing but ${words.join(" or ")}`);
  }

  /** Refuses fields that nobody reads: a misspelt name must not silently mean the default. */
  onlyFields(known: readonly string[]): void {
    for (const field of Object.keys(this.#fields)) {
      if (!known.includes(field)) this.refuse(field, `is not a field of this family; known are ${known.join(", ")}`);
    }
  }

  /** Refuses what was not read so far and is neither switched off nor neutral: it may change the computation. */
  refuseUnread(neutral: (field: string) => boolean): void {
    for (const [field, value] of Object.entries(this.#fields)) {
      if (this.#read.has(field) || isOff(value) || neutral(field)) continue;
      this.refuse(field, "is not supported: it may change what the model computes");
    }
  }
}
