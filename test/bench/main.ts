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

const name = positionals[0] ?? "";
const bench = benches[name];
if (name === "") {
  for (const each of Object.values(benches)) await each(values);
} else if (bench === undefined) {
  const names = Object.keys(benches).join("|");
  console.error(
    `unknown benchmark "${name}": npm run bench -- ${names} [--data DIR] [--json FILE] [--torch PYTHON] [--quick] [--strict]`,
  );
  process.exitCode = 64;
} else {
  await bench(values);
}
