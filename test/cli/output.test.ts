import test from "ava";
import fc from "fast-check";
import {
  formatAge,
  formatBytes,
  formatCount,
  formatDuration,
  formatLabels,
  formatLoss,
} from "#services/cli/output/format.js";
import { cutToWidth, formatBar, LiveArea, redraw } from "#services/cli/output/progress.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { JobServiceExplainResponse } from "#proto/shoal/v1/job_service.js";
import { describeJob } from "#services/cli/commands/describe.js";
import { formatFields, formatTable, printable } from "#services/cli/output/table.js";

test("bytes have a binary unit and three significant digits", (t) => {
  const cases: [number, string][] = [
    [0, "0 B"],
    [1023, "1023 B"],
    [1024, "1.00 KiB"],
    [1536 * 1024, "1.50 MiB"],
    [25.4 * 1024 * 1024, "25.4 MiB"],
    [999 * 1024 ** 3, "999 GiB"],
    [NaN, "-"],
  ];
  for (const [bytes, text] of cases) t.is(formatBytes(bytes), text);
});

test("durations show their two largest units", (t) => {
  const cases: [number, string][] = [
    [-5, "0ms"],
    [850, "850ms"],
    [999.6, "1000ms"],
    [12_340, "12.3s"],
    [59_999, "59.9s"],
    [185_000, "3m05s"],
    [8_040_000, "2h14m"],
    [3_600_000 * 122, "5d02h"],
    [NaN, "-"],
  ];
  for (const [ms, text] of cases) t.is(formatDuration(ms), text);
});

test("what was never measured or never happened is a dash", (t) => {
  t.is(formatAge(0, 5000), "-");
  t.is(formatAge(2000, 5000), "3.0s");
  t.is(formatLoss(undefined), "-");
  t.is(formatLoss(NaN), "-");
  t.is(formatLoss(1.84), "1.8400");
  t.is(formatLabels({}), "-");
  t.is(formatLabels({ b: "2", a: "1" }), "a=1,b=2");
  t.is(formatCount(1_032_576), "1.03 M");
  t.is(formatCount(9_999), "9999");
  t.is(formatCount(12_345), "12.3 k");
});

test("a table aligns its columns and leaves no trailing spaces", (t) => {
  const text = formatTable(
    [
      { title: "NAME", cell: (row: [string, number]) => row[0] },
      { title: "COUNT", right: true, cell: (row) => String(row[1]) },
      { title: "", cell: () => "" },
    ],
    [
      ["long-name", 7],
      ["b", 1234],
    ],
  );
  t.is(text, "NAME       COUNT\nlong-name      7\nb           1234\n");
});

test("control characters never reach the terminal", (t) => {
  t.is(printable("a\u001b[2Jb\nc"), "a [2Jb c");
  t.is(formatFields([["Key", "x\ry"]]), "Key: x y\n");
  t.false(formatTable([{ title: "A", cell: (x: string) => x }], ["\u001b]0;owned\u0007"]).includes("\u001b"));
});

test("a bar always fills its width and grows with what is done", (t) => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 80 }),
      fc.integer({ min: 0, max: 500 }),
      fc.integer(),
      (width, total, done) => {
        t.is(Array.from(formatBar(done, total, width)).length, width);
      },
    ),
  );
  t.is(formatBar(0, 10, 4), "░░░░");
  t.is(formatBar(10, 10, 4), "████");
  t.is(formatBar(5, 10, 4), "██░░");
  t.is(formatBar(1, 16, 4), "▎░░░");
  t.is(formatBar(3, 0, 4), "░░░░");
});

test("redrawing goes up by the lines drawn before and cuts to the width", (t) => {
  t.is(redraw(0, ["ab"], 10), "\u001b[2Kab\n\u001b[J");
  t.true(redraw(3, ["ab"], 10).startsWith("\u001b[3A\r"));
  t.is(cutToWidth("abcdef", 4), "abc…");
  t.is(cutToWidth("abcd", 4), "abcd");
});

test("a live area is silent when not on a terminal, and its lines that stay come out plain", (t) => {
  const written: string[] = [];
  const plain = new LiveArea((text) => written.push(text), false, 80);
  plain.show(["bar"]);
  plain.log("line");
  t.deepEqual(written, ["line\n"]);
  const drawn: string[] = [];
  const terminal = new LiveArea((text) => drawn.push(text), true, 80);
  terminal.show(["bar"]);
  terminal.log("line");
  terminal.show(["bar"]);
  t.deepEqual(drawn, ["\u001b[2Kbar\n\u001b[J", "\u001b[1A\r\u001b[J", "line\n", "\u001b[2Kbar\n\u001b[J"]);
});

test("a described job tells its way down, and staleness where an update has some", (t) => {
  const job = TrainingJob.fromPartial({
    spec: { strategy: { name: "fedbuff" }, codec: { name: "int8", down: "int4" } },
  });
  const verdicts = [0, 2].map((staleness, i) => ({ accepted: true, staleness, manifest: { device: `gate-${i}` } }));
  const text = describeJob(JobServiceExplainResponse.fromPartial({ job, tally: { verdicts } }), 0);
  t.regex(text, /Strategy: +fedbuff, int8 updates, int4 down\n/);
  t.regex(text, /DEVICE +VERDICT +STALE/);
  t.regex(text, /gate-1 +accepted +2 /);
  const fresh = JobServiceExplainResponse.fromPartial({ tally: { verdicts: verdicts.slice(0, 1) } });
  t.notRegex(describeJob(fresh, 0), /STALE|updates,/);
});

test("of many devices that are left out some are shown, and how many more there are", (t) => {
  const exclusions = [{ device: "ann", reasons: ["is cordoned", "is slow"] }];
  const described = (leftOut: number): string =>
    describeJob(JobServiceExplainResponse.fromPartial({ round: { status: { exclusions, leftOut } } }), 0);
  t.regex(described(0), /Left out:?\n {2}ann: is cordoned; is slow\n(?! {2}and)/);
  t.regex(described(5001), /ann: is cordoned; is slow\n {2}and 5000 more\n/);
});
