import test from "ava";
import fc from "fast-check";
import { subjects } from "#common/domain/subjects.js";
import { MemoryUpdateLog } from "#common/adapters/memory/update-log.js";
import { accept } from "#common/domain/accept.js";
import { createRng } from "#common/domain/rng.js";
import { decodeUpdate, encodeUpdate } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { sha256Digest } from "#common/tensor/digest.js";
import { l2Norm } from "#common/tensor/flat.js";
import { SiteRound } from "#proto/shoal/v1/device_wire.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";
import { foldSite, MemberDamage, type FoldedSite } from "#agent/site/fold.js";
import { judgeMembers } from "#agent/site/judge.js";
import type { MemberCommit } from "#agent/site/state.js";

const signal = new AbortController().signal;
const STEPS = 10;
const SEQ_LEN = 64;

interface Given {
  device: string;
  tokens: number;
  delta: Float32Array;
}

function roundOf(given: readonly Given[], codecName: string, over: Record<string, unknown> = {}): SiteRound {
  return SiteRound.fromPartial({
    task: {
      job: "tiny",
      round: "tiny-1",
      seqLen: SEQ_LEN,
      referenceSteps: STEPS,
      parameters: given[0]?.delta.length ?? 0,
      weights: { digest: "sha256:base", sizeBytes: 1 },
      codec: { name: codecName, errorFeedback: codecName !== "fp32" },
      siteWeighting: "tokens",
      ...over,
    },
    assignments: given.map(({ device }) => ({ device, site: "pier", localSteps: STEPS, batchSize: 4, seed: 5 })),
  });
}

async function send(
  log: MemoryUpdateLog,
  { device, tokens, delta }: Given,
  codec: Codec,
  change: Partial<UpdateManifest> = {},
): Promise<void> {
  const chunks = encodeUpdate(delta, codec);
  const chunkSeqs: number[] = [];
  const id = `${device}-${Object.keys(change).join()}`;
  for (const [i, chunk] of chunks.entries()) {
    chunkSeqs.push((await log.uplink(device).appendChunk("tiny-1", `${id}-${i}`, chunk)).seq);
  }
  const manifest = UpdateManifest.fromPartial({
    device,
    round: "tiny-1",
    codec: codec.name,
    values: delta.length,
    sizeBytes: chunks.reduce((sum, { length }) => sum + length, 0),
    digest: sha256Digest(...chunks),
    chunkSeqs,
    tokens,
    localSteps: STEPS,
    trainLoss: 2 + tokens / 1000,
    evalLossSum: 3,
    evalTokens: 2,
    baseDigest: "sha256:base",
    ...change,
  });
  await log.uplink(device).appendCommit("tiny-1", `${id}-commit`, manifest);
}

interface Site {
  log: MemoryUpdateLog;
  round: SiteRound;
  commits: MemberCommit[];
  codec: Codec;
}

async function siteOf(given: readonly Given[], codecName = "fp32", over: Record<string, unknown> = {}): Promise<Site> {
  const codec = codecByName(codecName) as Codec;
  const log = new MemoryUpdateLog();
  for (const one of given) await send(log, one, codec);
  const round = roundOf(given, codecName, over);
  return { log, round, codec, commits: await judgeMembers(log, round, new Map(), signal) };
}

const fold = ({ log, round, commits }: Site, residual?: Float32Array): Promise<FoldedSite> =>
  foldSite(log, round, commits, { gateway: "gate", site: "pier", key: "tiny-1+0", residual, bytesDown: 0 });

const decoded = ({ draft }: FoldedSite, codec: Codec): Float32Array =>
  decodeUpdate(draft.chunks, draft.manifest.values, codec);

function draw(length: number, seed: number, size: number): Float32Array {
  const rng = createRng(seed);
  return Float32Array.from({ length }, () => size * rng.normal());
}

/** sum w_k x_k / sum w_k, in float64. */
function mean(vectors: readonly Float32Array[], weights: readonly number[]): Float64Array {
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return Float64Array.from(
    vectors[0] ?? [],
    (_, i) => vectors.reduce((sum, vector, k) => sum + (vector[i] as number) * (weights[k] as number), 0) / total,
  );
}

const devices = fc.array(
  fc.record({
    site: fc.integer({ min: 0, max: 3 }),
    tokens: fc.integer({ min: 1, max: STEPS * 4 * SEQ_LEN }),
    seed: fc.nat(),
    scale: fc.integer({ min: -20, max: 20 }),
  }),
  { minLength: 1, maxLength: 8 },
);

for (const weighting of ["tokens", "equal"]) {
  test(`folded by sites in any grouping the mean is the flat one but for one rounding, weighted by ${weighting}`, async (t) => {
    await fc.assert(
      fc.asyncProperty(devices, async (drawn) => {
        const given = drawn.map(({ tokens, seed, scale }, i) => ({
          device: `d${i}`,
          tokens,
          delta: draw(40, seed, 2 ** scale),
        }));
        const weightOf = ({ tokens }: Given): number => (weighting === "equal" ? 1 : tokens);
        const flat = mean(
          given.map(({ delta }) => delta),
          given.map(weightOf),
        );
        const sites = [...new Set(drawn.map(({ site }) => site))].map((site) =>
          given.filter((_, i) => drawn[i]?.site === site),
        );
        const folded = await Promise.all(
          sites.map(async (members) =>
            decoded(
              await fold(await siteOf(members, "fp32", { siteWeighting: weighting })),
              codecByName("fp32") as Codec,
            ),
          ),
        );
        const weights = sites.map((members) => members.reduce((sum, one) => sum + weightOf(one), 0));
        const byParts = mean(folded, weights);
        // Half a unit in the last place of fp32 for each site's mean, which is no larger than its largest update.
        byParts.forEach((value, i) => {
          const largest = Math.max(...given.map(({ delta }) => Math.abs(delta[i] as number)));
          t.true(Math.abs(value - (flat[i] as number)) <= 2 ** -24 * largest * (1 + 2 ** -20) + 2 ** -149);
        });
      }),
      { numRuns: 60 },
    );
  });
}

test("the only update of a site goes out as it came in, whatever the codec lost", async (t) => {
  const given = { device: "ann", tokens: 7, delta: draw(300_000, 1, 0.01) };
  const site = await siteOf([given], "int8");
  const { draft, residual } = await fold(site, new Float32Array(300_000).fill(1));
  t.deepEqual(draft.chunks, encodeUpdate(given.delta, site.codec));
  t.is(draft.manifest.digest, site.commits[0]?.manifest.digest ?? "");
  t.is(residual, undefined, "what is kept stays");
});

test("what the codec loses of the site's mean is sent with the next one", async (t) => {
  const given = [1, 2].map((seed) => ({ device: `d${seed}`, tokens: 100 * seed, delta: draw(5000, seed, 0.01) }));
  const site = await siteOf(given, "int4");
  const exact = mean(
    given.map(({ delta }) => decodeUpdate(encodeUpdate(delta, site.codec), 5000, site.codec)),
    [100, 200],
  );
  let residual: Float32Array | undefined;
  const sent = new Float64Array(5000);
  for (let round = 1; round <= 20; round++) {
    const folded = await fold(site, residual);
    residual = folded.residual;
    decoded(folded, site.codec).forEach((value, i) => (sent[i] = (sent[i] as number) + value));
  }
  const error = (vector: Float64Array, rounds: number): number =>
    l2Norm(vector.map((value, i) => value - rounds * (exact[i] as number)));
  t.true(error(sent, 20) < 0.2 * l2Norm(exact), "the loss of 20 rounds is that of one");
  t.true(error(sent, 20) > 0);
});

test("the aggregator accepts what a gateway makes, with the members' figures", async (t) => {
  const given = ["ann", "bob", "cyd"].map((device, i) => ({
    device,
    tokens: 64 * (i + 1),
    delta: draw(700_000, i, 0.01),
  }));
  const site = await siteOf(given, "int8", { jobUid: "uid-1" });
  const { draft } = await fold(site);
  const { assignments, task } = site.round;
  t.is(draft.manifest.jobUid, "uid-1");
  const manifest = { ...draft.manifest, chunkSeqs: draft.chunks.map((_, i) => i + 1) };
  t.true(draft.chunks.length > 1);
  const verdict = accept(
    { seq: 99, device: "gate", round: "tiny-1", manifest },
    {
      round: "tiny-1",
      open: true,
      evaluationOnly: false,
      assignments,
      acceptedDevices: new Set(),
      values: task?.parameters ?? 0,
      codec: site.codec,
      jobUid: "uid-1",
      baseDigest: "sha256:base",
      seqLen: SEQ_LEN,
      referenceSteps: STEPS,
      maxUpdateNorm: 0,
      gatewaySite: "pier",
      siteWeighting: "tokens",
    },
    { ok: true, digest: sha256Digest(...draft.chunks), norm: 1 },
  );
  t.true(verdict.accepted, verdict.message);
  t.is(manifest.tokens, 384);
  t.deepEqual(
    manifest.members.map(({ device, tokens }) => [device, tokens]),
    [
      ["ann", 64],
      ["bob", 128],
      ["cyd", 192],
    ],
  );
  t.is(manifest.members[1]?.norm, site.commits[1]?.norm);
});

test("a gateway judges as the aggregator would: a bad update is refused, a better one of the device counts", async (t) => {
  const given = ["ann", "bob", "cyd"].map((device, i) => ({ device, tokens: 64, delta: draw(50, i, 0.01) }));
  const codec = codecByName("fp32") as Codec;
  const log = new MemoryUpdateLog();
  const [ann, bob, cyd] = given as [Given, Given, Given];
  await send(log, ann, codec, { baseDigest: "sha256:old" });
  await send(log, bob, codec, { digest: "sha256:other" });
  await send(log, { ...cyd, delta: cyd.delta.map(() => 1e6) }, codec);
  await send(log, { ...ann, device: "mal" }, codec);
  const round = roundOf(given, "fp32", { maxUpdateNorm: 100 });
  const judged = await judgeMembers(log, round, new Map(), signal);
  t.deepEqual(
    judged.map(({ device, refusal }) => [device, refusal]),
    [
      ["ann", "WrongBase"],
      ["bob", "WrongDigest"],
      ["cyd", "NormExceeded"],
    ],
  );
  await send(log, bob, codec);
  const known = new Map(judged.map((commit) => [commit.device, commit]));
  const again = await judgeMembers(log, round, known, signal);
  t.deepEqual(
    again.map(({ device, refusal }) => [device, refusal]),
    [["bob", ""]],
  );
  await send(log, bob, codec, { trainMs: 1 });
  const counted = new Map([...known, ["bob", again[0] as MemberCommit] as const]);
  t.deepEqual(await judgeMembers(log, round, counted, signal), [], "the first that counts is the one");
  const { draft } = await foldSite(log, round, [...counted.values()], {
    gateway: "gate",
    site: "pier",
    key: "tiny-1+0",
    residual: undefined,
    bytesDown: 0,
  });
  t.deepEqual(
    draft.manifest.members.map(({ device, refusal }) => [device, refusal]),
    [
      ["ann", "WrongBase"],
      ["bob", ""],
      ["cyd", "NormExceeded"],
    ],
  );
  t.is(draft.manifest.tokens, 64);
});

test("an update that is not any more what was judged is not folded", async (t) => {
  const given = [1, 2].map((seed) => ({ device: `d${seed}`, tokens: 10, delta: draw(50, seed, 0.01) }));
  const site = await siteOf(given);
  const [first, second] = site.commits as [MemberCommit, MemberCommit];
  const changed = { ...second, manifest: { ...second.manifest, digest: first.manifest.digest } };
  const error = await t.throwsAsync(fold({ ...site, commits: [first, changed] }), { code: "LOG_CORRUPT" });
  t.true(error instanceof MemberDamage);
  t.is(error instanceof MemberDamage ? error.commit.device : "", "d2", "it says whose, so that the others go on");
});

test("a member that floods the site's log hides nobody's update", async (t) => {
  const given = ["ann", "bob"].map((device) => ({ device, tokens: 64, delta: draw(50, 1, 0.01) }));
  const log = new MemoryUpdateLog();
  for (let i = 0; i < 40; i++) {
    await log.append(subjects.updateCommit("ann", "tiny-1"), `junk-${i}`, new Uint8Array(200_000).fill(255));
  }
  await send(log, given[1] as Given, codecByName("fp32") as Codec);
  const judged = await judgeMembers(log, roundOf(given, "fp32"), new Map(), signal);
  t.is(judged.filter(({ device }) => device === "ann").length, 16);
  t.deepEqual(judged.at(-1)?.device, "bob");
});

for (const codecName of ["int8", "int4", "topk"]) {
  test(`what a site sends in ${codecName} is never longer than the bound, and the rest follows later`, async (t) => {
    const size = 5000;
    const codec = codecByName(codecName) as Codec;
    const bound = 1;
    const means = new Float64Array(size);
    const sent = new Float64Array(size);
    let residual: Float32Array | undefined = draw(size, 77, 0.2);
    const before = residual.slice();
    t.true(l2Norm(before) > 10 * bound, "a residual from when the job's bound was not met");
    for (let number = 0; number < 6; number++) {
      const given = [1, 2, 3].map((k) => {
        const delta = draw(size, 10 * number + k, 0.01);
        return { device: `d${k}`, tokens: 10 * k, delta };
      });
      const site: Site = await siteOf(given, codecName, { maxUpdateNorm: bound });
      t.deepEqual(
        site.commits.map(({ refusal }) => refusal),
        ["", "", ""],
      );
      const members = await Promise.all(
        site.commits.map(async ({ manifest }) => {
          const chunks = await Promise.all(manifest.chunkSeqs.map((seq) => site.log.readChunk(seq)));
          return decodeUpdate(
            chunks.map((chunk) => chunk?.bytes ?? new Uint8Array()),
            size,
            codec,
          );
        }),
      );
      mean(members, [10, 20, 30]).forEach((value, i) => (means[i] = (means[i] as number) + value));
      const folded: FoldedSite = await fold(site, residual);
      const update = decoded(folded, codec);
      t.true(l2Norm(update) <= bound, `${l2Norm(update)}`);
      t.true(l2Norm(update) > 0.8 * bound, "as much as may be sent");
      update.forEach((value, i) => (sent[i] = (sent[i] as number) + value));
      residual = folded.residual;
    }
    const off = sent.map((value, i) => value + (residual?.[i] ?? 0) - (means[i] as number) - (before[i] as number));
    t.true(l2Norm(off) < 1e-4, `nothing is lost: ${l2Norm(off)}`);
  });
}

test("devices that only evaluate bring their sums and no values", async (t) => {
  const log = new MemoryUpdateLog();
  const nothing = { values: 0, sizeBytes: 0, chunkSeqs: [], digest: "", tokens: 0, localSteps: 0, trainLoss: 0 };
  const given = ["ann", "bob"].map((device) => ({ device, tokens: 0, delta: new Float32Array(0) }));
  for (const one of given) await send(log, one, codecByName("fp32") as Codec, nothing);
  const round = roundOf(given, "fp32", { parameters: 50, referenceSteps: 0 });
  round.assignments = round.assignments.map((one) => ({ ...one, localSteps: 0 }));
  const commits = await judgeMembers(log, round, new Map(), signal);
  const { draft } = await foldSite(log, round, commits, {
    gateway: "gate",
    site: "pier",
    key: "k",
    residual: undefined,
    bytesDown: 0,
  });
  t.deepEqual(draft.chunks, []);
  t.is(draft.manifest.evalLossSum, 6);
  t.is(draft.manifest.evalTokens, 4);
});
