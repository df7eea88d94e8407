import { readdirSync } from "node:fs";
import { closingLine, createReporter, refusal, type Reporter } from "./reporter.js";
import { runWatched } from "./watched.js";

/** Test files that share a way of running. */
interface Group {
  name: string;
  files: string[];
  concurrency: number;
  /** AVA gives up when no test ends for so long. */
  idleMinutes: number;
  every: number;
}

/** Rooms whose tests start whole systems: one file at a time, so that they do not steal each other's two cores. */
const HEAVY = /^dist\/test\/(integration|e2e|chaos|fleet|bench)\/|\.(integration|e2e|chaos)\.test\.js$/;

/** How much longer than AVA this waits. */
const GRACE_MS = 120_000;

function groupFiles(files: string[]): Group[] {
  const light = files.filter((file) => !HEAVY.test(file));
  const heavy = files.filter((file) => HEAVY.test(file));
  return [
    { name: "rooms", files: light, concurrency: 2, idleMinutes: 8, every: 50 },
    { name: "whole systems", files: heavy, concurrency: 1, idleMinutes: 15, every: 1 },
  ].filter((group) => group.files.length > 0);
}

/** Runs a group and counts an AVA that ends badly without naming a failed test as a failure of its own. */
async function runGroup(group: Group, reporter: Reporter): Promise<void> {
  const before = reporter.tally().failed;
  const flags = ["--tap", `--concurrency=${group.concurrency}`, `--timeout=${group.idleMinutes}m`];
  const trouble = await runWatched({
    command: process.execPath,
    args: ["node_modules/ava/entrypoints/cli.mjs", ...flags, ...group.files],
    env: { ...process.env, NODE_OPTIONS: `${process.env.NODE_OPTIONS ?? ""} --enable-source-maps`.trim() },
    quietMs: group.idleMinutes * 60_000 + GRACE_MS,
    isLast: (text) => text.startsWith("# fail "),
    line: (text) => reporter.line(text),
  });
  if (trouble !== "" && reporter.tally().failed === before) reporter.fail(`AVA ended with ${trouble} (${group.name})`);
}

/** Runs the rooms named (all if none); the last line printed is "N passed, N failed". */
async function main(rooms: string[]): Promise<void> {
  const startedMs = performance.now();
  const files = readdirSync("dist/test", { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".test.js"))
    .map((file) => `dist/test/${file}`)
    .sort();
  const chosen = rooms.length === 0 ? files : files.filter((file) => rooms.some((room) => file.includes(`/${room}`)));
  const output = {
    write: (text: string) => void process.stdout.write(`${text}\n`),
    elapsedMs: () => performance.now() - startedMs,
  };
  let tally = { passed: 0, failed: 0, skipped: 0 };
  const failures: string[] = [];
  for (const group of groupFiles(chosen)) {
    output.write(`${group.name}: ${group.files.length} files`);
    const reporter = createReporter({ ...output, every: group.every });
    await runGroup(group, reporter);
    const part = reporter.tally();
    failures.push(...reporter.failures());
    tally = {
      passed: tally.passed + part.passed,
      failed: tally.failed + part.failed,
      skipped: tally.skipped + part.skipped,
    };
  }
  for (const line of failures) output.write(line);
  const reason = refusal(tally, process.env.CI === "true");
  if (reason !== undefined) output.write(`not good: ${reason}`);
  output.write(closingLine(tally));
  process.exitCode = reason === undefined ? 0 : 1;
}

await main(process.argv.slice(2));
