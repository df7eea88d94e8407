import { ownRecord } from "#common/domain/own-record.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { CollectableLog, LogPart } from "#common/ports/update-log.js";
import { readCommits } from "./logged-commits.js";
import type { LogMeters } from "./meters.js";
import {
  dispensableRounds,
  inventiveDevices,
  needOf,
  planPurges,
  pressureOf,
  type Purge,
  type RoundNeed,
} from "./retention.js";

/** The world of the log's collection. */
export interface CollectorPorts {
  store: ResourceStore;
  log: CollectableLog;
  journal: Log;
  meters: LogMeters;
  /** Rounds of a job whose updates stay in the log; 0 keeps all while there is space. */
  retainRounds: number;
}

/** A device may append under thousands of names: so many are looked at at once. */
const AT_ONCE = 32;

async function inBatches<T>(all: readonly T[], work: (one: T) => Promise<void>): Promise<void> {
  for (let first = 0; first < all.length; first += AT_ONCE) {
    await Promise.all(all.slice(first, first + AT_ONCE).map(work));
  }
}

async function needsOf(store: ResourceStore, parts: readonly LogPart[]): Promise<Map<string, RoundNeed>> {
  const names = new Set(parts.map(({ round }) => round));
  const rounds = await store.list("Round");
  const jobs = new Map((await store.list("TrainingJob")).items.map((job) => [job.metadata?.name ?? "", job]));
  const needs = new Map<string, RoundNeed>();
  const listed = new Map(rounds.items.map((round) => [round.metadata?.name ?? "", round]));
  await inBatches([...names], async (name) => {
    // A list may come from a copy of the store that lags. That there is no round, or another than the tally's, would cost
    // updates: it is asked once more.
    const seen = listed.get(name) ?? (await store.get("Round", name));
    if (seen === undefined) return;
    const tally = await store.get("UpdateTally", name);
    const isOwn = tally === undefined || ownRecord(seen, tally) !== undefined;
    const round = isOwn ? seen : await store.get("Round", name);
    if (round === undefined) return;
    needs.set(name, needOf(round, jobs.get(round.spec?.job ?? ""), ownRecord(round, tally)));
  });
  return needs;
}

/** The sequences of these commits and of their chunks; undefined if the log does not say all of them. */
async function updatesAt(
  log: CollectableLog,
  round: string,
  seqs: ReadonlySet<number>,
): Promise<Set<number> | undefined> {
  const commits = await readCommits(log, round, [...seqs]);
  const whole = new Set(seqs);
  for (const seq of seqs) {
    const manifest = commits.get(seq)?.manifest;
    if (manifest === undefined) return undefined;
    for (const chunk of manifest.chunkSeqs) whole.add(chunk);
  }
  return whole;
}

async function carryOut({ log, meters, journal }: CollectorPorts, { why, keep, ...selection }: Purge): Promise<void> {
  const kept = selection.part === "commit" ? keep : keep && (await updatesAt(log, selection.round, keep));
  if (keep !== undefined && kept === undefined) {
    journal.warn("the log is not relieved where it does not hold what was accepted", { why, ...selection });
    return;
  }
  const purged = await log.purge(kept === undefined ? selection : { ...selection, keep: kept });
  if (purged === 0) return;
  meters.purged(why, purged);
  const { round, device, part } = selection;
  journal.info("the update log was relieved", { why, round, device, part, messages: purged });
}

/** Gives up retained rounds, the oldest first, until there is room again. */
async function relieve(
  ports: CollectorPorts,
  parts: readonly LogPart[],
  needs: ReadonlyMap<string, RoundNeed>,
  lastSeq: number,
): Promise<void> {
  const { log, journal } = ports;
  let usage = await log.usage();
  if (pressureOf(usage) === "high") {
    for (const round of dispensableRounds(parts, needs)) {
      if (pressureOf(usage) === "none") break;
      await carryOut(ports, { why: "Pressure", round, upToSeq: lastSeq });
      usage = await log.usage();
    }
  }
  ports.meters.holds(usage);
  if (pressureOf(usage) !== "high") return;
  const { bytes, maxBytes } = usage;
  const remedy = "raise SHOAL_UPDATES_MAX_BYTES or run fewer devices and jobs at once";
  journal.warn(`the update log is nearly full with rounds that are open; ${remedy}`, { bytes, maxBytes });
}

/**
 * Drops from the update log what nobody needs any more, and more of it when space is short. Level-triggered and safe to
 * run beside itself and to be killed anywhere: a purge names what it means by subject and sequence.
 */
export async function collectLog(ports: CollectorPorts): Promise<void> {
  const { store, log } = ports;
  // What lies there first, the rounds afterwards: whatever was appended for a round by then, that round is in the list.
  const { parts, strays, lastSeq } = await log.parts();
  const needs = await needsOf(store, parts);
  const inventive = inventiveDevices(parts, needs);
  for (const device of inventive) {
    const purged = await log.purgeDevice(device, lastSeq, new Set(needs.keys()));
    ports.meters.purged("NoRound", purged);
    ports.journal.warn("a device invents names of rounds", { device, messages: purged });
  }
  const rest = parts.filter(({ device, round }) => needs.has(round) || !inventive.has(device));
  for (const purge of planPurges(rest, lastSeq, needs, ports.retainRounds)) await carryOut(ports, purge);
  if (strays > 0) ports.meters.purged("NoRound", await log.purgeStrays(lastSeq));
  await relieve(ports, parts, needs, lastSeq);
}

const LOOK_MS = 5_000;

/** Collects every `resyncMs`, and as soon as space is short, until the signal aborts. Failures are logged. */
export async function keepCollecting(
  ports: CollectorPorts & { clock: Clock; resyncMs: number },
  signal: AbortSignal,
): Promise<void> {
  const { clock, log, journal, meters, resyncMs } = ports;
  const isOver = (): boolean => signal.aborted;
  let collectedAtMs = -Infinity;
  while (!isOver()) {
    try {
      const usage = await log.usage();
      meters.holds(usage);
      if (clock.monotonicMs() - collectedAtMs >= resyncMs || pressureOf(usage) === "high") {
        await collectLog(ports);
        collectedAtMs = clock.monotonicMs();
      }
    } catch (error) {
      if (!isOver()) journal.warn("the update log could not be collected; it is tried again", { error });
    }
    await clock.sleep(Math.min(LOOK_MS, resyncMs), signal);
  }
}
