import { parseArgs } from "node:util";
import { calibrate } from "./calibrate.js";
import { shakespeare } from "./shakespeare.js";

/** A benchmark: reads its options, prints progress, returns nothing; writes its report to `json`. */
type Bench = (options: { data?: string | undefined; json?: string | undefined; quick: boolean }) => Promise<void>;

const benches: Record<string, Bench> = { calibrate, shakespeare };

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { data: { type: "string" }, json: { type: "string" }, quick: { type: "boolean", default: false } },
});

const name = positionals[0] ?? "";
const bench = benches[name];
if (name === "") {
  for (const each of Object.values(benches)) await each({ data: values.data, json: values.json, quick: values.quick });
} else if (bench === undefined) {
  console.error(
    `unknown benchmark "${name}": npm run bench -- ${Object.keys(benches).join("|")} [--data DIR] [--json FILE] [--quick]`,
  );
  process.exitCode = 64;
} else {
  await bench({ data: values.data, json: values.json, quick: values.quick });
}
