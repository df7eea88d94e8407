import { spawnSync } from "node:child_process";
import { findBaseline, findBreakingChanges, findStaleGenerated } from "./contracts.js";

/** One check; returns what is wrong, empty if nothing is. Tools print their own findings. */
interface Check {
  name: string;
  run: () => string;
}

function tool(name: string, ...args: string[]): Check {
  return {
    name: [name, ...args].join(" "),
    run: () => {
      const { status, error } = spawnSync(`node_modules/.bin/${name}`, args, { stdio: "inherit" });
      if (error !== undefined) return error.message;
      return status === 0 ? "" : `exit code ${status ?? "none"}`;
    },
  };
}

const breaking: Check = {
  name: "buf breaking",
  run: () => {
    const baseline = findBaseline();
    if (baseline === undefined) return "";
    process.stdout.write(`  against ${baseline}\n`);
    return findBreakingChanges(baseline);
  },
};

const generated: Check = {
  name: "generated code is what the contracts generate",
  run: () => {
    const stale = findStaleGenerated();
    return stale.length === 0 ? "" : `${stale.join("\n")}\nrun: npm run generate`;
  },
};

/** Rooms whose tests exercise the pure files of .c8rc.json. */
const pureRooms = ["tensor", "domain", "graph", "scheduler", "aggregator", "registry", "telemetry", "agent", "backend"];

const checks: Check[] = [
  tool("eslint", "."),
  tool("prettier", "--check", "--log-level", "warn", "."),
  tool("depcruise", "--config", ".dependency-cruiser.cjs", "services", "agent", "test", "proto/gen"),
  tool("knip"),
  tool("buf", "lint"),
  tool("buf", "format", "--diff", "--exit-code"),
  breaking,
  generated,
  tool("c8", process.execPath, "dist/test/tooling/run-tests.js", ...pureRooms.map((room) => `${room}/`)),
];

/** Runs every check, or those whose name holds one of the words given, and says at the end which ones failed. */
function main(words: string[]): void {
  const failed: string[] = [];
  for (const { name, run } of checks) {
    if (words.length > 0 && !words.some((word) => name.includes(word))) continue;
    process.stdout.write(`== ${name}\n`);
    const trouble = run();
    if (trouble === "") continue;
    process.stdout.write(`${trouble}\n`);
    failed.push(name);
  }
  for (const name of failed) process.stdout.write(`failed: ${name}\n`);
  process.stdout.write(failed.length === 0 ? "verified\n" : `${failed.length} checks failed\n`);
  process.exitCode = failed.length === 0 ? 0 : 1;
}

main(process.argv.slice(2));
