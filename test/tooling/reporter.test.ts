import test from "ava";
import { closingLine, createReporter, refusal } from "./reporter.js";

function report(tap: string, every = 100) {
  const lines: string[] = [];
  const reporter = createReporter({ write: (text) => lines.push(text), elapsedMs: () => 1500, every });
  for (const line of tap.split("\n")) reporter.line(line);
  return { lines, reporter, tally: reporter.tally() };
}

const MIXED = `TAP version 13
ok 1 - graph › layout › c # SKIP
not ok 2 - d # TODO
ok 3 - a # 1 is no directive
not ok 4 - b
#   hello
  ---
    name: AssertionError
    message: not ok 5 - inside
  ...
ok 5 - e

1..5
# tests 4
# pass 2
# skip 1
# fail 1`;

test("counts passed, failed, skipped and todo tests of a TAP stream", (t) => {
  t.deepEqual(report(MIXED).tally, { passed: 2, failed: 1, skipped: 2 });
});

test("prints a failure with its diagnostics and nothing of the closing counts", (t) => {
  const { lines } = report(MIXED);
  const at = lines.indexOf("✘ b");
  t.true(at >= 0);
  t.deepEqual(lines.slice(at + 1), [
    "    #   hello",
    "      ---",
    "        name: AssertionError",
    "        message: not ok 5 - inside",
    "      ...",
  ]);
});

test("keeps every failure with its diagnostics for the end of the run", (t) => {
  const { reporter } = report(MIXED);
  reporter.fail("AVA ended with exit code 1");
  const kept = reporter.failures();
  t.is(kept[0], "✘ b");
  t.true(kept.includes("        message: not ok 5 - inside"));
  t.is(kept.at(-1), "✘ AVA ended with exit code 1");
  t.is(kept.length, 7);
});

test("names every test, or shows progress at intervals", (t) => {
  t.deepEqual(report("ok 1 - a\nok 2 - b", 1).lines, ["✔ a (1.5 s)", "✔ b (1.5 s)"]);
  t.deepEqual(report("ok 1 - a\nok 2 - b\nok 3 - c", 2).lines, ["  2 tests, 0 failed (1.5 s)"]);
});

test("a runner that died counts as a failure", (t) => {
  const { reporter } = report("ok 1 - a");
  reporter.fail("AVA ended with exit code 1");
  t.is(closingLine(reporter.tally()), "1 passed, 1 failed");
});

test("the closing line mentions skips only when there are some", (t) => {
  t.is(closingLine({ passed: 3, failed: 0, skipped: 0 }), "3 passed, 0 failed");
  t.is(closingLine({ passed: 3, failed: 1, skipped: 2 }), "3 passed, 1 failed, 2 skipped");
});

test("a run is refused when something failed, nothing ran, or CI skipped", (t) => {
  t.is(refusal({ passed: 1, failed: 0, skipped: 1 }, false), undefined);
  t.is(refusal({ passed: 1, failed: 0, skipped: 0 }, true), undefined);
  t.regex(refusal({ passed: 1, failed: 0, skipped: 1 }, true) ?? "", /1 skipped/);
  t.regex(refusal({ passed: 0, failed: 0, skipped: 0 }, false) ?? "", /no test ran/);
  t.regex(refusal({ passed: 9, failed: 1, skipped: 0 }, false) ?? "", /1 failed/);
});
