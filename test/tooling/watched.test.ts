import test from "ava";
import { startTimeOf } from "#services/cli/supervisor/process-table.js";
import { runWatched } from "./watched.js";

function runScript(script: string, quietMs = 60_000) {
  const lines: string[] = [];
  const startedMs = performance.now();
  return runWatched({
    command: process.execPath,
    args: ["-e", script],
    env: process.env,
    quietMs,
    isLast: (text) => text === "done",
    line: (text) => lines.push(text),
  }).then((trouble) => ({ trouble, lines, tookMs: performance.now() - startedMs }));
}

test("every line is told, and what went wrong", async (t) => {
  t.like(await runScript(`console.log("a\\nb")`), { trouble: "", lines: ["a", "b"] });
  t.like(await runScript(`console.log("a"); process.exitCode = 3`), { trouble: "exit code 3", lines: ["a"] });
  t.like(await runScript(`process.kill(process.pid, "SIGTERM")`), { trouble: "SIGTERM", lines: [] });
});

test("one that hangs is ended, and one that speaks is not", async (t) => {
  const { trouble, lines } = await runScript(`console.log("a"); for (;;);`, 2000);
  t.is(trouble, "nothing printed for 2 s");
  t.deepEqual(lines, ["a"]);
  const talks = `let n = 0; const tick = setInterval(() => { console.log(++n); if (n === 6) clearInterval(tick); }, 500);`;
  t.like(await runScript(talks, 2000), { trouble: "", lines: ["1", "2", "3", "4", "5", "6"] });
});

test("one that is done and does not end is no trouble", async (t) => {
  const { trouble, lines, tookMs } = await runScript(`console.log("done"); for (;;);`, 100_000);
  t.is(trouble, "");
  t.deepEqual(lines, ["done"]);
  t.true(tookMs < 60_000);
  t.like(await runScript(`console.log("done"); process.exitCode = 1`), { trouble: "exit code 1" });
});

test("a process left behind holds nobody up and is ended", async (t) => {
  const script = `
    const { spawn } = require("node:child_process");
    const left = spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)"], { stdio: "inherit" });
    console.log(left.pid);
    process.exit(0);`;
  const { trouble, lines, tookMs } = await runScript(script);
  t.is(trouble, "");
  t.true(tookMs < 20_000);
  const pid = Number(lines[0]);
  for (let turn = 0; turn < 100 && startTimeOf(pid) !== undefined; turn++)
    await new Promise((resolve) => setTimeout(resolve, 50));
  t.is(startTimeOf(pid), undefined);
});

test("a command that cannot be started is an error", async (t) => {
  const start = runWatched({
    command: "no-such-command",
    args: [],
    env: {},
    quietMs: 1000,
    isLast: () => false,
    line: () => undefined,
  });
  await t.throwsAsync(start, { code: "ENOENT" });
});
