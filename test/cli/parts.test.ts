import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import fc from "fast-check";
import { InvalidArgumentError } from "commander";
import { durationMs, keyValue, realNumber, wholeNumber } from "#services/cli/arguments.js";
import { targetOf } from "#services/cli/calls.js";
import { outcomeOf, progressBarLine, progressLine } from "#services/cli/commands/watch.js";
import { folderSource, textOf } from "#services/cli/generation.js";
import { kindOf } from "#services/cli/commands/apply.js";
import { contextPlace, loadContext, parseContext } from "#services/cli/context.js";
import { CliError, EXIT, exitCodeOfStatus } from "#services/cli/exit.js";
import { formatViolations, lineOf, pathKeys } from "#services/cli/violations.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";

test("numbers of the command line stay in their range", (t) => {
  t.is(wholeNumber(1, 8)("8"), 8);
  t.is(realNumber(0, 1)("0.35"), 0.35);
  for (const text of ["", " ", "9", "0", "1.5", "x", "NaN", "Infinity"]) {
    t.throws(() => wholeNumber(1, 8)(text), { instanceOf: InvalidArgumentError }, text);
  }
  for (const text of ["", "1.01", "-1", "NaN"]) t.throws(() => realNumber(0, 1)(text), undefined, text);
});

test("repeated name=value options add up; the value may hold another =", (t) => {
  t.deepEqual(keyValue("b=x=y", keyValue("a=1")), { a: "1", b: "x=y" });
  for (const text of ["a", "=1", "a="]) t.throws(() => keyValue(text), undefined, text);
});

test("durations have a unit", (t) => {
  t.is(durationMs("90s"), 90_000);
  t.is(durationMs("1.5h"), 5_400_000);
  for (const text of ["90", "0s", "-1s", "1y", "s"]) t.throws(() => durationMs(text), undefined, text);
});

test("the option goes before the variable, the variable before ./.shoal", (t) => {
  t.is(contextPlace("a", "b"), "a");
  t.is(contextPlace(undefined, "b"), "b");
  t.is(contextPlace(undefined, undefined), ".shoal");
  t.is(contextPlace("", ""), ".shoal");
});

test("contexts: what is wrong is named", (t) => {
  const addresses = { registry: ["a:1"], scheduler: ["a:2"], telemetry: ["a:3"], aggregator: ["a:5"] };
  const good = {
    version: 1,
    grpc: addresses,
    metrics: { registry: ["a:4"] },
    natsUrl: "n",
    redisUrl: "r",
    pids: { up: 1 },
  };
  t.deepEqual(parseContext(JSON.stringify(good)), { ok: true, context: good } as ReturnType<typeof parseContext>);
  const { aggregator, ...others } = addresses;
  const earlier = parseContext(JSON.stringify({ ...good, grpc: others }));
  t.deepEqual(earlier.ok && earlier.context.grpc, { ...others, aggregator: [] });
  t.is(aggregator.length, 1);
  t.like(parseContext("{"), { ok: false, problem: "is not JSON" });
  const bad = parseContext(JSON.stringify({ ...good, grpc: { ...addresses, scheduler: "a:2" } }));
  t.true(!bad.ok && bad.problem.startsWith("grpc.scheduler:"));
  const error = t.throws(() => loadContext("/nowhere", undefined), { instanceOf: CliError });
  t.is(error.exitCode, EXIT.unavailable);
});

test("several replicas make one target", (t) => {
  t.is(targetOf(["127.0.0.1:1", "127.0.0.1:2"]), "ipv4:127.0.0.1:1,127.0.0.1:2");
  t.is(targetOf(["shoal.example:50051"]), "dns:shoal.example:50051");
  t.throws(() => targetOf([]), { instanceOf: CliError });
});

test("gRPC codes become exit codes", (t) => {
  t.is(exitCodeOfStatus(0), EXIT.ok);
  t.is(exitCodeOfStatus(3), EXIT.invalid);
  t.is(exitCodeOfStatus(14), EXIT.unavailable);
  t.is(exitCodeOfStatus(4), EXIT.temporary);
  t.is(exitCodeOfStatus(5), EXIT.failed);
  t.is(exitCodeOfStatus(13), EXIT.failed);
});

const MANIFEST = `# a job
kind: TrainingJob
spec:
  cohort: { min: 1, target: x }
  list:
    - a
    - b: 1
`;

test("violations point at the line of their field, or of the nearest parent", (t) => {
  const cases: [string, number | undefined][] = [
    ["kind", 2],
    ["spec", 3],
    ["spec.cohort.target", 4],
    ["spec.cohort.absent", 4],
    ["spec.absent.deep", 3],
    ["spec.list[1].b", 7],
    ["spec.list[0]", 6],
    ["metadata.name", undefined],
    ["", undefined],
  ];
  for (const [field, line] of cases) t.is(lineOf(MANIFEST, field), line, field);
  t.deepEqual(pathKeys("a.b[2].c"), ["a", "b", 2, "c"]);
  t.is(
    formatViolations("job.yaml", MANIFEST, [
      { field: "spec.cohort.target", description: "must be a number" },
      { field: "", description: "is empty" },
    ]),
    "job.yaml: 2 fields are not valid\n" +
      "  job.yaml:4: spec.cohort.target: must be a number\n" +
      "  job.yaml: the manifest: is empty\n",
  );
});

test("no text breaks the search for lines", (t) => {
  fc.assert(fc.property(fc.string(), fc.string(), (text, field) => t.notThrows(() => lineOf(text, field))));
});

test("the kind of a manifest decides who gets it; what cannot be read goes to the scheduler", (t) => {
  t.is(kindOf("kind: Dataset"), "Dataset");
  for (const text of ["", "- a", "kind: 7", "{{", "kind: {}"]) t.is(kindOf(text), undefined, text);
});

test("a job's outcome decides the exit code; its line says how far it is", (t) => {
  const job = (phase: string): TrainingJob =>
    TrainingJob.fromPartial({
      metadata: { name: "j" },
      spec: { rounds: 10 },
      status: { phase, completedRounds: 5, trainLoss: 2, startedAtMs: 1000, bytesUp: 2048 },
    });
  t.is(outcomeOf(job("Completed")), EXIT.ok);
  t.is(outcomeOf(job("Failed")), EXIT.failed);
  t.is(outcomeOf(job("Cancelled")), EXIT.failed);
  t.is(outcomeOf(job("Running")), undefined);
  t.is(progressLine(job("Running")), "j Running  round 5/10  train 2.0000  held-out -  2.00 KiB up, 0 B down");
  t.regex(progressBarLine(job("Running"), 11_000), /10\.0s left$/);
  t.notRegex(progressBarLine(job("Completed"), 11_000), /left/);
});

test("streamed text waits for whole characters", async (t) => {
  const bytes = new TextEncoder().encode("aé€b");
  async function* tokens(): AsyncGenerator<number> {
    for (const byte of bytes) yield await Promise.resolve(byte);
  }
  const pieces: string[] = [];
  const decode = (all: readonly number[]): string => new TextDecoder().decode(Uint8Array.from(all));
  for await (const piece of textOf(tokens(), decode)) pieces.push(piece);
  t.deepEqual(pieces, ["a", "é", "€", "b"]);
});

test("an exported folder brings its tokenizer along", (t) => {
  const directory = mkdtempSync(join(tmpdir(), "shoal-test-"));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  t.is(folderSource(directory).tokenizer.vocabulary, 256);
  writeFileSync(join(directory, "shoal_tokenizer.json"), '{"kind":"chars","chars":"abc"}');
  t.deepEqual([...folderSource(directory).tokenizer.encode("cab")], [2, 0, 1]);
  writeFileSync(join(directory, "shoal_tokenizer.json"), '{"kind":"runes"}');
  const error = t.throws(() => folderSource(directory), { instanceOf: CliError });
  t.is(error.exitCode, EXIT.invalid);
});
