import test, { type ExecutionContext } from "ava";
import type { Round, RoundResult, UpdateTally } from "#proto/shoal/v1/round.js";
import { roundName } from "#common/domain/resources.js";
import { fromBytes } from "#common/tensor/flat.js";
import { AggregatorApi } from "#services/aggregator/aggregator-api.js";
import { replayRound } from "#services/aggregator/replay.js";
import { JOB, Simulation, type Scenario } from "./fleet.js";

const ROUNDS = 9;
const BUFFER = 3;
const RETAINED = 3;
const MAX_STALENESS = 4;
const RATE = 0.8;

function scenario(seed: number, over: Partial<Scenario> = {}): Scenario {
  return {
    seed,
    crashPercent: 0,
    retainRounds: RETAINED,
    devices: {
      ann: { ticks: 2 },
      bob: { ticks: 3 },
      cyd: { ticks: 4 },
      dan: { ticks: 11 },
      eve: { ticks: 23 },
      // Always too stale.
      fay: { ticks: 150 },
    },
    spec: {
      rounds: ROUNDS,
      cohort: { min: 2 },
      local: { steps: 5, batchSize: 2, stepPolicy: "fixed" },
      strategy: { name: "fedbuff", bufferSize: BUFFER, maxStaleness: MAX_STALENESS, outerLearningRate: RATE },
      codec: { name: "fp32" },
    },
    ...over,
  };
}

interface Closed {
  number: number;
  round: Round;
  /** Undefined if nobody committed to it: all it folded began earlier. */
  tally: UpdateTally | undefined;
  result: RoundResult;
}

async function closedRounds({ store }: Simulation): Promise<Closed[]> {
  const closed: Closed[] = [];
  for (let number = 1; number <= ROUNDS; number++) {
    const name = roundName(JOB, number);
    const [round, tally, result] = await Promise.all([
      store.get("Round", name),
      store.get("UpdateTally", name),
      store.get("RoundResult", name),
    ]);
    if (round === undefined || result === undefined) throw new Error(`round ${number} is not whole`);
    closed.push({ number, round, tally, result });
  }
  return closed;
}

/** Every accepted update is folded once, or told as come too late; none is folded that was not accepted. */
function checkCounting(t: ExecutionContext, rounds: readonly Closed[], sent: Simulation["sent"]): void {
  const folded = rounds.flatMap(({ round }) => round.status?.foldSet.map(({ commitSeq }) => commitSeq) ?? []);
  t.is(new Set(folded).size, folded.length, "each update once");
  const accepted = rounds.flatMap(({ tally }) => (tally?.verdicts ?? []).filter((verdict) => verdict.accepted));
  const late = rounds.flatMap(({ result }) =>
    result.refused.filter(({ reason }) => reason === "TooStale" || reason === "Late").map(({ commitSeq }) => commitSeq),
  );
  const known = new Set([...folded, ...late]);
  for (const { commitSeq } of accepted) t.true(known.has(commitSeq), `commit ${commitSeq} is lost`);
  const isAccepted = new Set(accepted.map(({ commitSeq }) => commitSeq));
  t.true(folded.every((seq) => isAccepted.has(seq) && sent.has(seq)));
}

function checkFoldSets(t: ExecutionContext, rounds: readonly Closed[], sent: Simulation["sent"]): void {
  for (const { number, round, result } of rounds) {
    const foldSet = round.status?.foldSet ?? [];
    for (const [i, { commitSeq, staleness, device }] of foldSet.entries()) {
      t.like(sent.get(commitSeq), { device, round: roundName(JOB, number - staleness) });
      t.true(staleness <= MAX_STALENESS && commitSeq > (foldSet[i - 1]?.commitSeq ?? 0));
      t.is(result.folded[i]?.staleness, staleness);
    }
    t.true(foldSet.length >= 2);
    t.false(round.status?.awaitsStragglers, "nobody is waited for in the end");
  }
}

/** w += (rate / K) sum Delta_k / sqrt(1 + s_k) in float64, on what the devices said they sent. */
async function checkWeights(
  t: ExecutionContext,
  { blobs, sent }: Simulation,
  rounds: readonly Closed[],
): Promise<void> {
  const read = async (digest = ""): Promise<Float32Array> => fromBytes((await blobs.get(digest)) ?? new Uint8Array());
  for (const { round, result } of rounds) {
    const start = await read(round.spec?.task?.weights?.digest);
    const next = await read(result.weights?.digest);
    const foldSet = round.status?.foldSet ?? [];
    const worst = start.reduce((most, w, i) => {
      let sum = 0;
      for (const { commitSeq, staleness } of foldSet)
        sum += (sent.get(commitSeq)?.delta[i] ?? NaN) / Math.sqrt(1 + staleness);
      return Math.max(most, Math.abs(w + (RATE / foldSet.length) * sum - (next[i] ?? NaN)));
    }, 0);
    t.true(worst < 1e-6, `the weights differ by ${worst}`);
  }
}

/** Everything that is retained can be folded again, the rounds from which it took updates included. */
async function checkLineage(t: ExecutionContext, simulation: Simulation, rounds: readonly Closed[]): Promise<void> {
  const ports = simulation.ports();
  for (const { number, result } of rounds.slice(-RETAINED + 1)) {
    const { weightsDigest } = await replayRound(ports, roundName(JOB, number));
    t.is(weightsDigest, result.weights?.digest ?? "");
  }
  const asked = { job: JOB, firstRound: 0, lastRound: 0, replay: true };
  const answered = await new AggregatorApi(ports).verifyJob(asked, new AbortController().signal);
  if (!answered.ok) throw new Error(JSON.stringify(answered.refusal));
  for await (const { part } of answered.value) {
    if (part?.$case !== "round") continue;
    const bad = part.value.checks.filter(({ outcome }) => outcome === "Broken");
    t.deepEqual(bad, [], `round ${part.value.number}`);
  }
}

const stalenesses = (rounds: readonly Closed[]): number[] =>
  rounds.flatMap(({ round }) => round.status?.foldSet.map(({ staleness }) => staleness) ?? []);

test("slow devices' updates count in later rounds, weighed by their staleness", async (t) => {
  const simulation = new Simulation(scenario(1));
  await simulation.run(400);
  const rounds = await closedRounds(simulation);
  checkCounting(t, rounds, simulation.sent);
  checkFoldSets(t, rounds, simulation.sent);
  await checkWeights(t, simulation, rounds);
  await checkLineage(t, simulation, rounds);
  t.true(Math.max(...stalenesses(rounds)) >= 2, `staleness ${stalenesses(rounds).join(" ")}`);
  for (const { number, round } of rounds.slice(0, -1)) t.is(round.status?.foldSet.length, BUFFER, `round ${number}`);
  // Whoever begins has the newest weights, not only when a round does.
  for (const { device, round, newest } of simulation.sent.values()) t.is(round, roundName(JOB, newest), device);
  const fay = [...simulation.sent.values()].filter(({ device }) => device === "fay");
  t.true(
    fay.every(({ round }) => round === roundName(JOB, ROUNDS + 1)),
    "fay is called back, again and again",
  );
  const reasons = rounds[0]?.round.status?.withdrawn.find(({ device }) => device === "fay")?.reasons.join() ?? "";
  t.regex(reasons, /round 5 was folded, the last that would take its update/);
});

test("killed at any call, devices off for a while: every update counts once, and every fold can be repeated", async (t) => {
  let crashes = 0;
  const seen: number[] = [];
  for (let seed = 2; seed <= 4; seed++) {
    const base = scenario(seed);
    const devices = {
      ...base.devices,
      bob: { ticks: 3, off: [20, 70] as const },
      eve: { ticks: 9, off: [30, 55] as const },
    };
    const simulation = new Simulation({ ...base, devices, crashPercent: 3 });
    await simulation.run(900);
    const rounds = await closedRounds(simulation);
    checkCounting(t, rounds, simulation.sent);
    checkFoldSets(t, rounds, simulation.sent);
    await checkWeights(t, simulation, rounds);
    await checkLineage(t, simulation, rounds);
    crashes += simulation.crashes;
    seen.push(...stalenesses(rounds));
  }
  t.true(crashes > 50, `${crashes} crashes`);
  t.true(Math.max(...seen) >= 2);
});
