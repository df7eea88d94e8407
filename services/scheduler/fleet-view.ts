import type { Device, Lease } from "#proto/shoal/v1/device.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Round, UpdateTally } from "#proto/shoal/v1/round.js";
import { refusedUpdates, type RoundFacts } from "#common/domain/round.js";
import { ownRecord } from "#common/domain/own-record.js";
import { CLOSED, FROZEN } from "#common/domain/round-phase.js";
import { roundName } from "#common/domain/resources.js";
import {
  type Carried,
  carriedTo,
  devicesAtWork,
  devicesIn,
  type EarlierRound,
  isAsynchronous,
} from "#common/domain/staleness.js";
import { cutOffDevices } from "#common/domain/cut-off.js";
import { memberUpdates } from "#common/domain/site.js";
import type { ResourceOf, ResourceStore } from "#common/ports/resource-store.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { readEarlier } from "#common/runtime/earlier-rounds.js";
import type { BufferView, Candidate, Snapshot } from "./eligibility.js";
import type { FleetHints } from "./fleet-hints.js";
import { configOf } from "./model-reading.js";

/** Earlier rounds whose timings predict the next. */
const HISTORY_ROUNDS = 5;
/** A device is given up during a round when its lease has been over this long while others were renewed. */
const VANISHED_AFTER_MS = 30_000;

const STOPPED = new Set(["Cancelled", "Failed"]);

const named = <T extends { metadata: { name: string } | undefined }>(items: readonly T[]): Map<string, T> =>
  new Map(items.map((item) => [item.metadata?.name ?? "", item]));

/** Whether a job takes no more rounds. A job that is gone is stopped; a completed one has no open round. */
export function isStopped(job: TrainingJob | undefined): boolean {
  return job === undefined || STOPPED.has(job.status?.phase ?? "");
}

/** Which device works for which open round of another job. */
async function busyDevices(store: ResourceStore, job: string): Promise<Map<string, string>> {
  const busy = new Map<string, string>();
  const { items } = await store.list("TrainingJob");
  for (const other of items) {
    const name = other.metadata?.name ?? "";
    const number = other.status?.currentRound ?? 0;
    if (name === job || number === 0) continue;
    const spec = { job: name, number, maxStaleness: other.spec?.strategy?.maxStaleness ?? 0 };
    for (const [device, round] of carriedTo(number, await readEarlier(store, spec), Infinity).atWork) {
      busy.set(device, round);
    }
    const round = await store.get("Round", roundName(name, number));
    if (round?.status?.phase !== "Training") continue;
    const tally = await store.get("UpdateTally", roundName(name, number));
    for (const device of devicesAtWork(round, ownRecord(round, tally))) busy.set(device, roundName(name, number));
  }
  return busy;
}

/** The earlier rounds that may bring something to this one; none unless its job is asynchronous and it is still open. */
async function earlierRounds(store: ResourceStore, { spec, status }: Round): Promise<EarlierRound[]> {
  return spec === undefined || FROZEN.has(status?.phase ?? "") ? [] : readEarlier(store, spec);
}

/** Milliseconds per local step of every device in the last rounds of the job, oldest first. */
async function stepTimes(store: ResourceStore, job: string, number: number): Promise<Map<string, number[]>> {
  const times = new Map<string, number[]>();
  for (let n = Math.max(1, number - HISTORY_ROUNDS); n < number; n++) {
    // The round's own: without that the job would not be here.
    const result = await store.get("RoundResult", roundName(job, n));
    const members = (result?.folded ?? []).flatMap(({ manifest }) => (manifest ? memberUpdates(manifest) : []));
    for (const { device, localSteps, trainMs } of members) {
      if (localSteps <= 0 || trainMs <= 0) continue;
      const known = times.get(device) ?? [];
      known.push(trainMs / localSteps);
      times.set(device, known);
    }
  }
  return times;
}

/** Freezes all that planning depends on; undefined while the job's Model is missing. */
export async function takeSnapshot(
  store: ResourceStore,
  job: TrainingJob,
  round: Round,
  tally: UpdateTally | undefined,
  nowMs: number,
): Promise<Snapshot | undefined> {
  const name = job.metadata?.name ?? "";
  const model = await store.get("Model", job.status?.model ?? "");
  if (model === undefined) return undefined;
  const [devices, leases, dataset, busy, times, earlier] = await Promise.all([
    store.list("Device"),
    store.list("Lease"),
    store.get("Dataset", job.spec?.data?.dataset ?? ""),
    busyDevices(store, name),
    stepTimes(store, name, round.spec?.number ?? 0),
    earlierRounds(store, round),
  ]);
  const carried = carriedTo(round.spec?.number ?? 0, earlier, job.spec?.rounds ?? 0);
  for (const [device, earlier] of carried.atWork) busy.set(device, earlier);
  const leaseOf = named(leases.items);
  const refused = refusedUpdates(tally);
  const candidates = devices.items.map((device): Candidate => {
    const key = device.metadata?.name ?? "";
    return {
      device,
      lease: leaseOf.get(key),
      busyWith: busy.get(key),
      refusedUpdate: refused.get(key),
      msPerStep: times.get(key) ?? [],
    };
  });
  return {
    nowMs,
    candidates,
    dataset,
    config: configOf(model),
    ...(isAsynchronous(round.spec) ? { buffer: bufferOf(carried, devicesAtWork(round, tally)) } : {}),
  };
}

/** @param own devices at work in the round itself */
function bufferOf({ waiting, atWork, quorum }: Carried, own: readonly string[]): BufferView {
  return {
    working: own.length,
    trailing: new Set(atWork.keys()),
    waiting: new Set(waiting.flatMap(devicesIn)),
    quorum,
  };
}

/** Why a device of the round will not commit; undefined if it may. */
function lossOf(
  round: string,
  device: Device | undefined,
  lease: Lease | undefined,
  aliveMs: number,
): string[] | undefined {
  if (device === undefined) return ["was removed from the fleet"];
  if (device.spec?.draining === true) return ["is being drained by an operator"];
  const report = (device.status?.assignments ?? []).find((one) => one.round === round);
  if (report?.phase === "Refused" || report?.phase === "Failed") {
    const why = report.reasons.join("; ") || "it gave no reason";
    return [`${report.phase.toLowerCase()}: ${why}`];
  }
  if (lease !== undefined && aliveMs - lease.expiresAtMs > VANISHED_AFTER_MS) {
    return [`vanished: silent since ${new Date(lease.renewedAtMs).toISOString()}`];
  }
  return undefined;
}

/** Commits that wait for their verdict, those of cut-off devices aside: how many on the first page that has any. */
async function countUnjudged(updates: UpdateLog, round: string, tally: UpdateTally | undefined): Promise<number> {
  const cutOff = cutOffDevices(tally);
  let afterSeq = tally?.lastSeq ?? 0;
  for (;;) {
    const page = await updates.commits(round, afterSeq);
    const last = page.at(-1);
    const count = page.filter(({ device }) => !cutOff.has(device)).length;
    if (count > 0 || last === undefined) return count;
    afterSeq = last.seq;
  }
}

/** What is known of a round's devices. */
interface CohortView {
  deviceOf: ReadonlyMap<string, Device>;
  leaseOf: ReadonlyMap<string, Lease>;
  /** The last sign of life of any device: silence is measured against it, so that nobody vanishes while the registry is down. */
  aliveMs: number;
}

/** Reads the devices of a round: each by itself where they are few of a large fleet, else all. */
async function viewCohort(store: ResourceStore, round: Round, hints: FleetHints): Promise<CohortView> {
  const names = [...new Set((round.status?.assignments ?? []).map(({ device }) => device))];
  const areFew = hints.areFew(names.length);
  const readAll = async <K extends "Device" | "Lease">(kind: K): Promise<ResourceOf[K][]> => {
    if (!areFew) return (await store.list(kind)).items;
    const found = await Promise.all(names.map((name) => store.get(kind, name)));
    return found.flatMap((one) => one ?? []);
  };
  const [devices, leases] = await Promise.all([readAll("Device"), readAll("Lease")]);
  const aliveMs = leases.reduce(
    (latest, { renewedAtMs }) => Math.max(latest, renewedAtMs),
    areFew ? hints.lastRenewalMs() : 0,
  );
  return { deviceOf: named(devices), leaseOf: named(leases), aliveMs };
}

/** Where the facts of a round come from. */
export interface FactSources {
  store: ResourceStore;
  updates: UpdateLog;
  hints: FleetHints;
}

/** Gathers what `advance` decides on. */
export async function gatherFacts(
  { store, updates, hints }: FactSources,
  job: TrainingJob | undefined,
  round: Round,
  nowMs: number,
): Promise<RoundFacts> {
  const name = round.metadata?.name ?? "";
  const [storedTally, storedResult, { deviceOf, leaseOf, aliveMs }] = await Promise.all([
    store.get("UpdateTally", name),
    store.get("RoundResult", name),
    viewCohort(store, round, hints),
  ]);
  const tally = ownRecord(round, storedTally);
  const result = ownRecord(round, storedResult);
  const earlier = await earlierRounds(store, round);
  // After the tallies: a commit in between then counts as unjudged, never as absent.
  let unjudged = await countUnjudged(updates, name, tally);
  for (const one of earlier) unjudged += await countUnjudged(updates, one.round.metadata?.name ?? "", one.tally);
  const rounds = job?.spec?.rounds ?? 0;
  const lost = new Map<string, string[]>();
  const silent = new Set<string>();
  for (const { device } of round.status?.assignments ?? []) {
    const lease = leaseOf.get(device);
    const why = lossOf(name, deviceOf.get(device), lease, aliveMs);
    if (why !== undefined) lost.set(device, why);
    if (lease === undefined || lease.expiresAtMs <= nowMs) silent.add(device);
  }
  return {
    tally,
    unjudged,
    lost,
    silent,
    hasResult: result !== undefined,
    jobStopped: isStopped(job),
    carried: carriedTo(round.spec?.number ?? 0, earlier, rounds),
    rounds,
    completedRounds: job?.status?.completedRounds ?? 0,
  };
}

/** Whether nothing can happen to the round any more. */
export function isFinal({ status }: Round): boolean {
  return CLOSED.has(status?.phase ?? "") && status?.awaitsStragglers !== true;
}
