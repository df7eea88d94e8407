import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import test from "ava";

/** Files that break one rule each: the rule, the file, and what it imports (written as the source would). */
const violations: [rule: string, file: string, imports: string][] = [
  ["tensor", "services/common/tensor/bad.ts", "#common/domain/good.js"],
  ["tensor", "services/common/tensor/reads.ts", "node:fs"],
  ["tensor-kernels", "services/common/tensor/kernels/module.ts", "#common/domain/good.js"],
  ["domain", "services/common/domain/bad.ts", "#common/ports/good.js"],
  ["domain", "services/common/domain/reads.ts", "node:fs"],
  ["graph", "services/common/graph/bad.ts", "#common/ports/good.js"],
  ["graph", "services/common/graph/asks.ts", "node:os"],
  ["ports", "services/common/ports/bad.ts", "#common/runtime/good.js"],
  ["runtime", "services/common/runtime/bad.ts", "#common/adapters/nats/good.js"],
  ["runtime", "services/common/runtime/library.ts", "nats"],
  ["common-knows-no-service", "services/common/adapters/bad.ts", "#services/scheduler/main.js"],
  ["common-knows-no-service", "services/common/adapters/agent.ts", "#agent/step.js"],
  ["contracts", "proto/gen/bad.ts", "#common/domain/good.js"],
  ["services-apart", "services/registry/bad.ts", "#services/scheduler/main.js"],
  ["services-apart", "services/telemetry/bad.ts", "#agent/step.js"],
  ["cli", "services/cli/bad.ts", "#services/registry/main.js"],
  ["cli", "services/cli/agent.ts", "#agent/step.js"],
  ["agent", "agent/bad.ts", "#services/scheduler/main.js"],
  ["wiring-in-main", "services/scheduler/store.ts", "#common/adapters/nats/good.js"],
  ["wiring-in-main", "agent/store.ts", "#common/adapters/nats/good.js"],
  ["pure-files", "agent/step.ts", "#common/ports/good.js"],
  ["pure-files", "services/aggregator/fold.ts", "node:fs"],
  ["onnxruntime", "agent/backend/other.ts", "onnxruntime-node"],
  ["onnxruntime-web", "agent/backend/another.ts", "onnxruntime-web"],
  ["foreign-functions", "agent/backend/foreign.ts", "koffi"],
  ["nats", "services/scheduler/wire.ts", "nats"],
  ["nats", "services/common/adapters/grpc/wire.ts", "@nats-io/jwt"],
  ["nkeys", "agent/key.ts", "nkeys.js"],
  ["bullmq", "services/scheduler/queue.ts", "bullmq"],
  ["bullmq", "services/common/adapters/nats/queue.ts", "ioredis"],
  ["tests-stay-outside", "services/registry/tested.ts", "#test/good.js"],
  ["shipped-dependencies", "services/registry/unlisted.ts", "fast-check"],
  ["no-utils", "services/registry/handy.ts", "./utils.js"],
  ["resolvable", "services/registry/lost.ts", "./nowhere.js"],
  ["no-cycles", "services/registry/egg.ts", "./hen.js"],
];

/** Files that break nothing: the same imports where they belong. */
const lawful: [file: string, imports: string][] = [
  ["services/common/tensor/good.ts", "node:crypto"],
  ["services/common/tensor/check.ts", "node:zlib"],
  ["services/common/domain/good.ts", "#common/tensor/good.js"],
  ["services/common/graph/good.ts", "#common/domain/good.js"],
  ["services/common/ports/good.ts", "#common/domain/good.js"],
  ["services/common/runtime/good.ts", "#common/ports/good.js"],
  ["services/common/adapters/nats/good.ts", "nats"],
  ["services/common/adapters/bullmq/good.ts", "bullmq"],
  ["services/scheduler/main.ts", "#common/adapters/nats/good.js"],
  ["services/registry/main.ts", "#common/runtime/good.js"],
  ["services/registry/hen.ts", "./egg.js"],
  ["services/registry/utils.ts", "#common/domain/good.js"],
  ["services/cli/main.ts", "#agent/main.js"],
  ["agent/main.ts", "#common/ports/good.js"],
  ["agent/backend/onnx.ts", "onnxruntime-node"],
  ["agent/backend/web.ts", "onnxruntime-web"],
  ["agent/backend/c-api.ts", "koffi"],
  ["agent/transport/wire.ts", "nats"],
  ["test/good.ts", "#services/registry/main.js"],
];

const libraries = [
  "nats",
  "nkeys.js",
  "@nats-io/jwt",
  "bullmq",
  "ioredis",
  "onnxruntime-node",
  "onnxruntime-web",
  "koffi",
  "fast-check",
];

interface Report {
  summary: { violations: { from: string; to: string; rule: { name: string } }[] };
}

/** A tree with all of these files and stand-ins for the libraries. */
function plantTree(): string {
  const root = mkdtempSync(join(tmpdir(), "shoal-rooms-"));
  const files = [...lawful, ...violations.map(([, file, imports]) => [file, imports] as const)];
  for (const [file, imports] of files) {
    mkdirSync(join(root, dirname(file)), { recursive: true });
    writeFileSync(join(root, file), `import * as it from "${imports}";\nexport const own = it;\n`);
  }
  for (const library of libraries) {
    mkdirSync(join(root, "node_modules", library), { recursive: true });
    writeFileSync(join(root, "node_modules", library, "package.json"), `{"name":"${library}","main":"index.js"}`);
    writeFileSync(join(root, "node_modules", library, "index.js"), "module.exports = {};\n");
  }
  for (const file of ["package.json", "tsconfig.json"]) cpSync(file, join(root, file));
  return root;
}

function cruise(root: string): Report {
  const cli = resolve("node_modules/dependency-cruiser/bin/dependency-cruise.mjs");
  const flags = [
    "--config",
    resolve(".dependency-cruiser.cjs"),
    "--output-type",
    "json",
    "services",
    "agent",
    "test",
    "proto/gen",
  ];
  const run = spawnSync(process.execPath, [cli, ...flags], { cwd: root, encoding: "utf8", maxBuffer: 1 << 26 });
  return JSON.parse(run.stdout) as Report;
}

const root = plantTree();
const found = cruise(root).summary.violations.map(({ from, rule }) => `${rule.name}: ${from}`);
test.after.always(() => {
  rmSync(root, { recursive: true, force: true });
});

for (const [rule, file, imports] of violations) {
  test(`room rule "${rule}" refuses ${imports} in ${file}`, (t) => {
    t.true(found.includes(`${rule}: ${file}`), found.join("\n"));
  });
}

test("lawful imports pass", (t) => {
  const files = new Set(lawful.map(([file]) => file));
  files.delete("services/registry/hen.ts"); // half of the planted cycle
  t.deepEqual(
    found.filter((line) => files.has(line.split(": ")[1] ?? "")),
    [],
  );
});

test("every rule has a violation here", (t) => {
  const { forbidden } = createRequire(import.meta.url)(resolve(".dependency-cruiser.cjs")) as {
    forbidden: { name: string }[];
  };
  t.deepEqual(
    forbidden.map(({ name }) => name).filter((name) => !violations.some(([rule]) => rule === name)),
    [],
  );
});
