import test from "ava";
import { existsSync, readdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { holds, measureCase, readCase } from "#test/graph/parity.js";

const folder = resolve("../shared/fixtures/parity");
const absent = !existsSync(folder) && process.env["CI"] === undefined;
const cases = absent ? ["gpt2-tiny"] : readdirSync(folder).sort();

for (const name of cases) {
  const title = `${name} equals PyTorch float64 (needs ../shared${absent ? ", which is absent here" : ""})`;
  (absent ? test.skip : test)(title, async (t) => {
    const one = readCase(join(folder, name));
    const measured = await measureCase(await openOnnxBackend({ threads: 1 }), one);
    for (const row of measured) {
      t.log(`${row.what}: ${row.error.toExponential(2)}`);
      t.true(holds(row), `${row.what}: ${row.error}`);
    }
    t.true(measured.length >= 7, "logits, gradients, losses, norms, two sets of weights and the last loss");
  });
}
