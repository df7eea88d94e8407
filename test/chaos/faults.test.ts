import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import test from "ava";
import fc from "fast-check";
import { createRng } from "#common/domain/rng.js";
import { markdown, tabulate, type Entry } from "./books.js";
import { drawFaults, FAULT_KINDS, KIND_NAMES, type FaultKind } from "./faults.js";

const subsets = fc.uniqueArray(fc.constantFrom(...KIND_NAMES), { minLength: 1 });

test("the same seed draws the same faults, another one others", (t) => {
  const draw = (seed: number): unknown => drawFaults(createRng(seed), 50, KIND_NAMES, 1000);
  t.deepEqual(draw(5), draw(5));
  t.notDeepEqual(draw(5), draw(6));
});

test("only kinds that were asked for are drawn, each of them in a run that is long enough, within their bounds", (t) => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 1e6 }), subsets, fc.integer({ min: 0, max: 80 }), (seed, kinds, count) => {
      const faults = drawFaults(createRng(seed), count, kinds, 700);
      t.is(faults.length, count);
      const drawn = new Set(faults.map(({ kind }) => kind));
      t.true([...drawn].every((kind) => kinds.includes(kind)));
      if (count >= 2 * kinds.length) t.is(drawn.size, kinds.length);
      for (const { kind, pauseMs, holdMs, jumpMs } of faults) {
        const { holdMs: bounds }: FaultKind = FAULT_KINDS[kind];
        t.true(holdMs >= bounds[0] && holdMs <= bounds[1]);
        t.true(pauseMs >= 0 && pauseMs <= 1400);
        t.true(Math.abs(jumpMs) >= 60_000 && Math.abs(jumpMs) <= 30 * 86_400_000);
      }
    }),
  );
});

test("a problem is counted with every kind that struck in its round, and once in all", (t) => {
  const entries: Entry[] = [
    { kind: "agent", rounds: ["j-1"], healed: true },
    { kind: "agent", rounds: ["j-1", "j-2"], healed: true },
    { kind: "slow", rounds: ["j-2"], healed: false },
  ];
  const problems = {
    lost: ["j-2/device-1@17", "receipt j-9/device-2"],
    doubled: ["j-1"],
    mismatched: ["lineage j-11"],
  };
  const rows = tabulate(entries, problems, new Map([["loss", "no nft"] as const]));
  t.deepEqual(
    rows.map(({ title, struck, healed, rounds, lost, doubled, mismatched }) =>
      [title, struck, healed, rounds, lost, doubled, mismatched].join(" "),
    ),
    [
      `${FAULT_KINDS.agent.title} 2 2 2 1 1 0`,
      `${FAULT_KINDS.loss.title} 0 0 0 0 0 0`,
      `${FAULT_KINDS.slow.title} 1 0 1 1 0 0`,
      "all 3 2 2 2 1 1",
    ],
  );
  const lines = markdown(rows).trimEnd().split("\n");
  t.is(new Set(lines.map((line) => line.length)).size, 1);
  t.regex(lines[3] ?? "", /left out: no nft/);
});

test("the shifted clock moves Date while a process runs, and nothing else", (t) => {
  const folder = mkdtempSync(join(tmpdir(), "shoal-test-"));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  writeFileSync(join(folder, "a"), "-86400000");
  const code = `
    const shown = () => [Date.now(), new Date().getTime(), Date.parse(Date()), new Date(5).getTime()];
    const [before, startMs] = [shown(), performance.now()];
    require("fs").rmSync(process.env.SHOAL_CHAOS_CLOCKS + "/a");
    setTimeout(() => console.log(JSON.stringify({ before, after: shown(), took: performance.now() - startMs, d: new Date() instanceof Date })), 200);`;
  const preload = pathToFileURL(fileURLToPath(new URL("shifted-clock.js", import.meta.url))).href;
  const out = execFileSync(process.execPath, ["--import", preload, "-e", code, "--", "--name", "a"], {
    encoding: "utf8",
    env: { ...process.env, SHOAL_CHAOS_CLOCKS: folder, SHOAL_REPLICA: "a" },
  });
  const { before, after, took, d } = JSON.parse(out) as { before: number[]; after: number[]; took: number; d: boolean };
  const near = (at: number | undefined, ms: number): boolean => Math.abs((at ?? 0) - ms) < 20_000;
  t.true(
    before.slice(0, 3).every((at) => near(at, Date.now() - 86_400_000)),
    out,
  );
  t.true(
    after.slice(0, 3).every((at) => near(at, Date.now())),
    out,
  );
  t.deepEqual([before[3], after[3], d], [5, 5, true]);
  t.true(took > 100 && took < 10_000);
});
