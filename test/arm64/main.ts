import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { prepareEmulator } from "./emulator.js";
import type { Figure, Figures } from "./figures.js";

interface Row {
  readonly what: Figure["what"];
  readonly of: string;
  readonly difference: number;
  readonly bound: number;
}

const BOUNDS: Readonly<Record<Figure["what"], number>> = {
  logits: 1e-5,
  "cached logits": 1e-5,
  losses: 1e-5,
  weights: 1e-4,
};

function compute([command, ...flags]: readonly [string, ...string[]]): Figures {
  const output = execFileSync(command, [...flags, resolve("dist/test/arm64/figures.js")], {
    encoding: "utf8",
    maxBuffer: 1 << 28,
    stdio: ["ignore", "pipe", "inherit"],
  });
  return JSON.parse(output) as Figures;
}

/** Losses by their largest difference, in nats; vectors by relative L2 distance. */
function differ(what: Figure["what"], a: readonly number[], b: readonly number[]): number {
  if (a.length !== b.length) return NaN;
  const apart = a.map((x, i) => Math.abs(x - (b[i] ?? NaN)));
  if (what === "losses") return apart.reduce((most, x) => (x <= most ? most : x), 0);
  return Math.sqrt(apart.reduce((sum, x) => sum + x * x, 0) / a.reduce((sum, x) => sum + x * x, 0));
}

function compare(own: Figures, emulated: Figures): Row[] {
  return own.figures.map(({ what, of, values }) => {
    const other = emulated.figures.find((figure) => figure.what === what && figure.of === of);
    return { what, of, difference: differ(what, values, other?.values ?? []), bound: BOUNDS[what] };
  });
}

const holds = ({ difference, bound }: Row): boolean => difference <= bound;

function printTable(rows: readonly Row[]): void {
  const line = (what: string, of: string, difference: string, bound: string, verdict: string): void =>
    void process.stdout.write(
      `${what.padEnd(14)} ${difference.padStart(10)} ${bound.padStart(7)} ${verdict.padEnd(5)} ${of}\n`,
    );
  line("what", "of", "difference", "bound", "");
  for (const row of rows) {
    const verdict = holds(row) ? "ok" : "MISS";
    line(row.what, row.of, row.difference.toExponential(2), row.bound.toExponential(0), verdict);
  }
}

function check(folder: string): number {
  const emulator = prepareEmulator(folder);
  const [own, emulated] = [compute([process.execPath]), compute(emulator)];
  if (emulated.arch !== "arm64") throw new Error(`the emulated processor says it is ${emulated.arch}`);
  const rows = compare(own, emulated);
  process.stdout.write(`${emulated.arch} (emulated) against ${own.arch}: losses in nats, vectors relative\n`);
  printTable(rows);
  const misses = rows.filter((row) => !holds(row)).length;
  process.stdout.write(`${rows.length - misses} hold, ${misses} missed\n`);
  return misses === 0 && rows.length > 0 ? 0 : 1;
}

/** Runs the backend on this processor and on an emulated arm64 one; the exit code is 0 if all figures agree. */
function main(): number {
  const { values } = parseArgs({ options: { dir: { type: "string" } } });
  if (process.platform !== "linux" || process.arch !== "x64") {
    process.stdout.write(`this check emulates arm64 on Linux x64; here is ${process.platform}-${process.arch}\n`);
    return 2;
  }
  if (values.dir !== undefined) return check(resolve(values.dir));
  const folder = mkdtempSync(join(tmpdir(), "shoal-arm64-"));
  try {
    return check(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

process.exitCode = main();
