import { isIPv4 } from "node:net";
import { InvalidArgumentError } from "commander";

/** A whole number in a range, for commander. */
export function wholeNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== "" && Number.isInteger(value) && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`must be a whole number from ${min} to ${max}.`);
  };
}

/** One IPv4 address that others can be told, for commander. */
export function ipAddress(text: string): string {
  if (isIPv4(text) && text !== "0.0.0.0") return text;
  throw new InvalidArgumentError("must be one IPv4 address of this machine, e.g. 192.168.1.10.");
}

/** A number of servers of which a majority outlives the loss of one, or a single one, for commander. */
export function oddNodes(text: string): number {
  if (["1", "3", "5"].includes(text.trim())) return Number(text);
  throw new InvalidArgumentError("must be 1, 3 or 5.");
}

/** A number in a range, for commander. */
export function realNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (text.trim() !== "" && value >= min && value <= max) return value;
    throw new InvalidArgumentError(`must be a number from ${min} to ${max}.`);
  };
}

/** "HOST:PORT", for commander. */
export function hostAndPort(text: string): { host: string; port: number } {
  const match = /^([A-Za-z0-9.-]+):(\d{1,5})$/.exec(text);
  const port = Number(match?.[2]);
  if (match?.[1] !== undefined && port >= 1 && port <= 65_535) return { host: match[1], port };
  throw new InvalidArgumentError("must look like HOST:PORT, e.g. 0.0.0.0:4223.");
}

/** Collects repeated KEY=VALUE options. */
export function keyValue(text: string, before: Readonly<Record<string, string>> = {}): Record<string, string> {
  const at = text.indexOf("=");
  if (at < 1 || at === text.length - 1) throw new InvalidArgumentError("must look like name=value.");
  return { ...before, [text.slice(0, at)]: text.slice(at + 1) };
}

const UNITS_MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** "90s", "12h", "7d"... in milliseconds, for commander. */
export function durationMs(text: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(text);
  const value = Number(match?.[1]) * (UNITS_MS[match?.[2] ?? ""] ?? NaN);
  if (Number.isFinite(value) && value > 0) return value;
  throw new InvalidArgumentError("must be a number and a unit: ms, s, m, h or d.");
}
