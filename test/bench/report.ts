import { cpus, totalmem, type as osType, release, arch } from "node:os";
import { writeFileSync } from "node:fs";

/** One figure of a benchmark. */
export interface BenchResult {
  case: string;
  metric: string;
  value: number;
  unit: string;
  /** What the value is held against, measured in the same run or stated by the issue. */
  bound?: number;
  /** value / bound, or ours / peer. */
  ratio?: number;
  /** Bars: a value on the wrong side of one fails the process where the benchmark is strict. */
  least?: number;
  most?: number;
}

export interface BenchReport {
  name: string;
  machine: Record<string, string | number>;
  results: BenchResult[];
}

/** Facts without which the figures mean nothing. */
export function machineFacts(): Record<string, string | number> {
  return {
    cpu: cpus()[0]?.model ?? "unknown",
    cores: cpus().length,
    memoryBytes: totalmem(),
    os: `${osType()} ${release()}`,
    arch: arch(),
    node: process.version,
  };
}

const misses = ({ value, least = -Infinity, most = Infinity }: BenchResult): boolean => value < least || value > most;

function shownBar(result: BenchResult): string {
  const { least, most } = result;
  if (least === undefined && most === undefined) return "";
  const bar = least === undefined ? `at most ${most}` : `at least ${least}`;
  return `  (${bar}: ${misses(result) ? "MISSED" : "met"})`;
}

function shown(r: BenchResult): string {
  const ratio = r.ratio === undefined ? "" : `, ratio ${r.ratio.toFixed(3)}`;
  const bound = r.bound === undefined ? "" : `  (bound ${r.bound}${ratio})`;
  return `${r.case.padEnd(28)} ${r.metric.padEnd(24)} ${String(r.value)} ${r.unit}${bound}${shownBar(r)}`;
}

/**
 * Prints the results as a table and writes them to a file if one is named. A figure above its bound fails the process,
 * and with `strict` one that misses a bar.
 */
export function report(name: string, results: BenchResult[], file: string | undefined, strict = false): void {
  const whole: BenchReport = { name, machine: machineFacts(), results };
  for (const result of results) console.log(shown(result));
  if (results.some((r) => r.bound !== undefined && r.value > r.bound)) process.exitCode = 1;
  if (strict && results.some(misses)) process.exitCode = 1;
  if (file !== undefined) writeFileSync(file, `${JSON.stringify(whole, null, 2)}\n`);
}
