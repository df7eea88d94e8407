import { readdirSync, readFileSync } from "node:fs";
import test from "ava";
import fc from "fast-check";
import { Device, JoinToken, Lease } from "#proto/shoal/v1/device.js";
import { TrainingJob } from "#proto/shoal/v1/job.js";
import { Dataset, Model } from "#proto/shoal/v1/model.js";
import { FoldShard, Round, RoundResult, UpdateTally } from "#proto/shoal/v1/round.js";
import type { Kind } from "#common/ports/resource-store.js";
import {
  blobDigests,
  firstRoundKept,
  isSettled,
  judgeContents,
  roundsKept,
  type BlobNeeds,
  type Suspicion,
} from "#services/aggregator/blob-retention.js";

const KINDS: Record<Kind, { fromPartial(resource: object): unknown }> = {
  TrainingJob,
  Device,
  Lease,
  JoinToken,
  Round,
  UpdateTally,
  RoundResult,
  FoldShard,
  Model,
  Dataset,
};
/** Kinds that the collector reads: it must read every one that can name a blob. */
const READ: readonly Kind[] = ["Dataset", "Model", "Round", "RoundResult", "TrainingJob"];

interface Field {
  name: string;
  type: string;
  isRepeated: boolean;
}

/** Messages and their fields, from the text of the contracts. */
function readContracts(): Map<string, Field[]> {
  const messages = new Map<string, Field[]>();
  for (const file of readdirSync("proto/shoal/v1").filter((name) => name.endsWith(".proto"))) {
    const text = readFileSync(`proto/shoal/v1/${file}`, "utf8");
    for (const [, name = "", body = ""] of text.matchAll(/^message (\w+) \{([\s\S]*?)^\}/gm)) {
      const fields = body.matchAll(/^\s*(repeated |optional )?([\w.]+) (\w+) = \d+;/gm);
      messages.set(
        name,
        [...fields].map(([, label = "", type = "", snake = ""]) => ({
          name: snake.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase()),
          type,
          isRepeated: label === "repeated ",
        })),
      );
    }
  }
  return messages;
}

const messages = readContracts();

/** Every path of fields from a message to one of this type. */
function pathsTo(target: string, message: string, seen: readonly string[] = []): Field[][] {
  if (seen.includes(message)) return [];
  return (messages.get(message) ?? []).flatMap((field) => {
    if (field.type === target) return [[field]];
    return pathsTo(target, field.type, [...seen, message]).map((rest) => [field, ...rest]);
  });
}

function wrap(path: readonly Field[], value: object): object {
  return path.reduceRight((inner, { name, isRepeated }) => ({ [name]: isRepeated ? [inner] : inner }), value);
}

test("every BlobRef that the contracts let a resource name is found, and every such kind is read", (t) => {
  let found = 0;
  for (const kind of Object.keys(KINDS) as Kind[]) {
    for (const path of pathsTo("BlobRef", kind)) {
      const where = `${kind}.${path.map(({ name }) => name).join(".")}`;
      t.true(READ.includes(kind), `${where}: the collector does not read ${kind}`);
      const digest = `sha256:${where}`;
      const resource = KINDS[kind].fromPartial(wrap(path, { digest, sizeBytes: 1 }));
      t.true(blobDigests([resource]).includes(digest), `${where} is not found`);
      found++;
    }
  }
  t.true(found >= 18, `${found} paths`);
  // A map cannot be walked by this test's reading of the contracts: a new one of messages needs another.
  for (const [name, fields] of messages) for (const { type } of fields) t.not(type, "map", name);
});

test("no resource names a blob by the text of its digest alone", (t) => {
  const kinds = Object.keys(KINDS);
  const digests = kinds.flatMap((kind) =>
    pathsTo("string", kind)
      .filter((path) => /digest/i.test(path.at(-1)?.name ?? ""))
      .map((path) => [kind, ...path.map(({ name }) => name)].join(".")),
  );
  // Digests of updates' chunks in the log, the starting weights a device says it had, and those that a change is from.
  const ofUpdates = /\.(manifest\.(digest|baseDigest|members\.digest)|delta\.baseDigest)$/;
  const ofRefs = digests.filter((path) => !ofUpdates.test(path));
  const refs = kinds.flatMap((kind) =>
    pathsTo("BlobRef", kind).map((path) => [kind, ...path.map(({ name }) => name), "digest"].join(".")),
  );
  t.deepEqual(ofRefs.sort(), refs.sort());
});

const jobAt = (currentRound: number, completedRounds: number): TrainingJob =>
  TrainingJob.fromPartial({ metadata: { name: "job" }, status: { currentRound, completedRounds } });

test("rounds' blobs stay as long as their updates, those of the newest completed one always", (t) => {
  const table: [number, number, number, number][] = [
    // current, completed, retained, first kept
    [9, 8, 3, 6],
    [9, 9, 3, 6],
    [9, 8, 0, 1],
    [2, 1, 3, 1],
    [0, 0, 3, 1],
    [9, 5, 1, 5],
    [9, 8, 1, 8],
  ];
  for (const [current, completed, retained, first] of table) {
    const job = jobAt(current, completed);
    t.is(firstRoundKept(job, retained), first, `${current} ${completed} ${retained}`);
    const names = roundsKept(job, retained);
    t.is(names[0], `job-${first}`);
    t.is(names.at(-1), `job-${current + 1}`, "the next one may have been created meanwhile");
    t.is(names.length, current + 2 - first);
  }
  t.deepEqual(roundsKept(TrainingJob.fromPartial({ metadata: { name: "new" } }), 3), ["new-1"]);
  const strategy = { name: "fedbuff", maxStaleness: 5 };
  const late = TrainingJob.fromPartial({ spec: { strategy }, status: { currentRound: 9, completedRounds: 8 } });
  t.is(firstRoundKept(late, 3), 4, "devices may train from the weights of round 4 still");
});

test("a round is settled when it can come to nothing else", (t) => {
  const inPhase = (phase: string): Round => Round.fromPartial({ status: { phase } });
  const result = RoundResult.fromPartial({});
  t.true(isSettled(inPhase("Failed"), undefined));
  t.true(isSettled(inPhase("Completed"), result));
  t.false(isSettled(inPhase("Completed"), undefined));
  t.false(isSettled(inPhase("Aggregating"), result));
  t.false(isSettled(undefined, undefined));
});

const GRACE = { graceMs: 100, leastScans: 3, mostPauseMs: 60 };
const NOTHING: BlobNeeds = { digests: new Set(), stages: new Set() };
const entry = (digest: string, version = 1, staged = "") => ({ digest, sizeBytes: 10, staged, version });
type Contents = Parameters<typeof judgeContents>[1];
const holding = (contents: Partial<Contents>): Contents => ({
  blobs: [],
  stages: [],
  partial: [],
  version: 50,
  ...contents,
});

/** Scans one after the other; the last one's sentence. */
function judge(scans: readonly [atMs: number, contents: Contents, needs?: BlobNeeds][]) {
  let suspicion: Suspicion | undefined;
  let doomed: ReturnType<typeof judgeContents>["doomed"] = { blobs: [], partial: [], stages: [] };
  for (const [atMs, contents, needs = NOTHING] of scans) {
    const judged = judgeContents(suspicion, contents, needs, atMs, GRACE);
    suspicion = judged.next;
    doomed = judged.doomed;
  }
  return doomed;
}

test("what nobody needs goes after the grace, in enough scans, and not before", (t) => {
  const held = holding({ blobs: [entry("a")], stages: ["s"], partial: ["p"] });
  const all = { blobs: [entry("a")], stages: ["s"], partial: [{ digest: "p", upToVersion: 50 }] };
  const none = { blobs: [], stages: [], partial: [] };
  t.deepEqual(judge([[0, held]]), none);
  t.deepEqual(judge([0, 50, 99].map((at) => [at, held])), none, "the grace is not over");
  t.deepEqual(judge([0, 50, 100].map((at) => [at, held])), all);
  t.deepEqual(judge([0, 50, 50.1].map((at) => [at, held])), none);
  t.deepEqual(judge([0, 101, 150].map((at) => [at, held])), none, "nobody looked for too long");
  const later = { ...held, version: 70 };
  t.deepEqual(
    judge([
      [0, held],
      [50, later],
      [100, later],
    ]).partial,
    all.partial,
    "up to where it was when seen first",
  );
});

test("what was written under a digest that is no blob, after what went there, goes a grace later", (t) => {
  const held = holding({ partial: ["p"] });
  const later = { ...held, version: 70 };
  const turns = [0, 50].map((at): [number, Contents] => [at, held]);
  const further = [100, 150, 199].map((at): [number, Contents] => [at, later]);
  t.deepEqual(judge([...turns, ...further]).partial, []);
  t.deepEqual(judge([...turns, ...further, [250, later]]).partial, [{ digest: "p", upToVersion: 70 }]);
});

test("what is needed, touched or staged by a fold under way begins anew", (t) => {
  const held = holding({ blobs: [entry("a"), entry("b", 2, "fold")], stages: ["fold"] });
  const needs = { digests: new Set(["a"]), stages: new Set(["fold"]) };
  t.deepEqual(judge([0, 50, 100].map((at) => [at, held, needs])), { blobs: [], stages: [], partial: [] });
  const inBetween = judge([
    [0, held],
    [50, held, needs],
    [100, held],
    [150, held],
  ]);
  t.deepEqual(inBetween, { blobs: [], stages: [], partial: [] });
  const touched = holding({ blobs: [entry("a", 9), entry("b", 2, "fold")], stages: ["fold"] });
  t.deepEqual(
    judge([
      [0, held],
      [50, touched],
      [100, touched],
    ]),
    {
      blobs: [entry("b", 2, "fold")],
      stages: ["fold"],
      partial: [],
    },
  );
});

test("whatever happens, only goes what was useless and untouched in all scans of a whole grace", (t) => {
  const step = fc.record({
    pauseMs: fc.integer({ min: 1, max: 80 }),
    version: fc.integer({ min: 1, max: 2 }),
    isNeeded: fc.boolean(),
    isThere: fc.boolean(),
  });
  const often = fc.array(fc.oneof({ weight: 5, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary: step }), {
    maxLength: 40,
  });
  let collected = 0;
  fc.assert(
    fc.property(often, (steps) => {
      let suspicion: Suspicion | undefined;
      let nowMs = 0;
      let uselessSince: { atMs: number; version: number; scans: number } | undefined;
      let last = { version: 1, isNeeded: false, isThere: true };
      for (const change of steps) {
        const pauseMs = change?.pauseMs ?? 30;
        nowMs += pauseMs;
        last = change ?? { ...last, isNeeded: false, isThere: true };
        const { version, isNeeded, isThere } = last;
        const contents = holding({ blobs: isThere ? [entry("a", version)] : [] });
        const needs = { ...NOTHING, digests: new Set(isNeeded ? ["a"] : []) };
        const judged = judgeContents(suspicion, contents, needs, nowMs, GRACE);
        suspicion = judged.next;
        if (!isThere || isNeeded) uselessSince = undefined;
        else if (uselessSince === undefined || uselessSince.version !== version || pauseMs > GRACE.mostPauseMs)
          uselessSince = { atMs: nowMs, version, scans: 1 };
        else uselessSince.scans++;
        const { atMs, scans } = uselessSince ?? { atMs: nowMs, scans: 0 };
        const isDue = scans >= GRACE.leastScans && nowMs - atMs >= GRACE.graceMs;
        t.is(judged.doomed.blobs.length, isDue ? 1 : 0);
        collected += judged.doomed.blobs.length;
      }
    }),
  );
  t.true(collected > 0);
});
