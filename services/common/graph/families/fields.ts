import type { Violation } from "./family.js";

/** A whole number with its bounds; `remedy` says what to write instead. */
export interface SizeRule {
  readonly max: number;
  readonly remedy: string;
}

/** Reads the fields of a config one by one and collects what is wrong with them. */
export class FieldReader {
  readonly violations: Violation[] = [];
  readonly #fields: Readonly<Record<string, unknown>>;

  constructor(fields: Readonly<Record<string, unknown>>) {
    this.#fields = fields;
  }

  refuse(field: string, description: string): void {
    this.violations.push({ field, value: this.#fields[field], description });
  }

  /** A whole number from 1 to the rule's maximum; 1 stands in for a refused value. */
  size(field: string, rule: SizeRule): number {
    const value = this.#fields[field];
    if (typeof value === "number" && Number.isInteger(value) && value >= 1 && value <= rule.max) return value;
    this.refuse(field, `must be a whole number from 1 to ${rule.max}: ${rule.remedy}`);
    return 1;
  }

  /** A number inside an open interval, or the default where the field is absent. */
  numberBetween(field: string, low: number, high: number, fallback: number): number {
    const value = this.#fields[field];
    if (value === undefined) return fallback;
    if (typeof value === "number" && value > low && value < high) return value;
    this.refuse(field, `must be a number above ${low} and below ${high}; leave it out for ${fallback}`);
    return fallback;
  }

  /** Refuses a field that is present with anything but the given value. */
  only(field: string, accepted: readonly unknown[], description: string): void {
    const value = this.#fields[field];
    if (value !== undefined && value !== null && !accepted.includes(value)) this.refuse(field, description);
  }

  /** Refuses fields that nobody reads: a misspelt name must not silently mean the default. */
  onlyFields(known: readonly string[]): void {
    for (const field of Object.keys(this.#fields)) {
      if (!known.includes(field)) this.refuse(field, `is not a field of this family; known are ${known.join(", ")}`);
    }
  }
}
