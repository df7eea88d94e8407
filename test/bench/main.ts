import { parseArgs } from "node:util";
import { aggregate } from "./aggregate.js";
import { backend } from "./backend.js";
import { calibrate } from "./calibrate.js";
import { communication } from "./communication.js";
import { overlap } from "./overlap.js";
import { round } from "./round.js";
import { shakespeare } from "./shakespeare.js";

interface BenchOptions {
  readonly data?: string | undefined;
  readonly json?: string | undefined;
  readonly torch?: string | undefined;
  readonly quick: boolean;
  readonly strict: boolean;
}

/** A benchmark: reads its options, prints progress, returns nothing; writes its report to `json`. */
type Bench = (options: BenchOptions) => Promise<void>;

const benches: Record<string, Bench> = { aggregate, backend, calibrate, communication, overlap, round, shakespeare };

const USAGE = `npm run bench -- [${Object.keys(benches).join("|")}] [--data DIR] [--json FILE] [--torch PYTHON] [--quick] [--strict]`;

/** What was asked for, or why it cannot be understood. */
function readOptions(): { names: string[]; options: BenchOptions } | { problem: string } {
  try {
    const { values, positionals } = parseArgs({
      allowPositionals: true,
      options: {
        data: { type: "string" },
        json: { type: "string" },
        torch: { type: "string" },
        quick: { type: "boolean", default: false },
        strict: { type: "boolean", default: false },
      },
    });
    const unknown = positionals.find((name) => benches[name] === undefined);
    if (unknown !== undefined) return { problem: `unknown benchmark "${unknown}"` };
    return { names: positionals.length > 0 ? positionals : Object.keys(benches), options: values };
  } catch (error) {
    return { problem: error instanceof Error ? error.message : String(error) };
  }
}

const asked = readOptions();
if ("problem" in asked) {
  console.error(`${asked.problem}: ${USAGE}`);
  process.exitCode = 64;
} else {
  for (const name of asked.names) await benches[name]?.(asked.options);
}
