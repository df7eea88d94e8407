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

/** Prints the results as a table and writes them to a file if one is named. A figure above its bound fails the process. */
export function report(name: string, results: BenchResult[], file: string | undefined): void {
  const whole: BenchReport = { name, machine: machineFacts(), results };
  for (const r of results) {
    const bound =
      r.bound === undefined
        ? ""
        : `  (bound ${r.bound}${r.ratio === undefined ? "" : `, ratio ${r.ratio.toFixed(3)}`})`;
    console.log(`${r.case.padEnd(28)} ${r.metric.padEnd(24)} ${String(r.value)} ${r.unit}${bound}`);
  }
  if (results.some((r) => r.bound !== undefined && r.value > r.bound)) process.exitCode = 1;
  if (file !== undefined) writeFileSync(file, `${JSON.stringify(whole, null, 2)}\n`);
}
