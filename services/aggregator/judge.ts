import type { StrategySpec } from "#proto/shoal/v1/job.js";
import type { Round, RoundSpec, UpdateTally, Verdict } from "#proto/shoal/v1/round.js";
import { updateLength } from "#common/domain/fragment.js";
import { roundName } from "#common/domain/resources.js";
import { ACCEPTING, FROZEN } from "#common/domain/round-phase.js";
import { gatewaySiteOf, isSiteUpdate } from "#common/domain/site.js";
import { isAsynchronous, isJobOver, lastTaker } from "#common/domain/staleness.js";
import { ownRecord } from "#common/domain/own-record.js";
import type { BlobStore } from "#common/ports/blob-store.js";
import type { Digests } from "#common/ports/digests.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { accept, screen, type AcceptContext, type Commit } from "#common/domain/accept.js";
import { cutOffDevices } from "#common/domain/cut-off.js";
import { openCommits, type CommitsReader } from "./commit-reader.js";
import { clearEarlier } from "./earlier-record.js";
import { codecOf, readBases, shardsOf, taskOf } from "./fold-round.js";
import type { RoundSums, RunningSums } from "./running-sums.js";
import type { Shard } from "./shards.js";
import { foldBytes, isStreamed } from "./summed-fold.js";
import { acceptedDevices, emptyTally, withVerdict } from "./tally.js";

/** What judging reads and writes. */
export interface JudgePorts {
  store: ResourceStore;
  log: UpdateLog;
  blobs: BlobStore;
  sums: RunningSums;
  /** Of updates, and of the blobs that they lead to. */
  digests: Digests;
}

/** Most verdicts that are written together: a tally is rewritten whole, and a large cohort commits at the same moment. */
const VERDICTS_PER_WRITE = 256;
/** Once an update counts and so many chunks were read, the verdicts are written: the round waits for them. */
const CHUNKS_PER_WRITE = 128;

/** Whether a commit to this round may count, there or, in an asynchronous job, in a later one. */
async function isTaking(store: ResourceStore, { spec, status }: Round): Promise<boolean> {
  if (ACCEPTING.has(status?.phase ?? "Planning")) return true;
  if (spec === undefined || !isAsynchronous(spec)) return false;
  const job = await store.get("TrainingJob", spec.job);
  if (isJobOver(job)) return false;
  const last = lastTaker(spec, job?.spec?.rounds ?? 0);
  if (last === spec.number) return false;
  return !FROZEN.has((await store.get("Round", roundName(spec.job, last)))?.status?.phase ?? "");
}

/** What all commits of a round are held against. */
type SharedContext = Omit<AcceptContext, "gatewaySite">;

async function contextOf(
  store: ResourceStore,
  round: Round & { spec: RoundSpec },
  name: string,
  maxUpdateNorm: number,
  tally: UpdateTally,
): Promise<SharedContext> {
  const task = taskOf(round.spec);
  return {
    round: name,
    open: await isTaking(store, round),
    maxStaleness: round.spec.maxStaleness,
    evaluationOnly: round.spec.evaluationOnly,
    assignments: round.status?.assignments ?? [],
    acceptedDevices: acceptedDevices(tally),
    values: updateLength(task),
    codec: codecOf(task),
    jobUid: task.jobUid,
    baseDigest: task.weights?.digest ?? "",
    seqLen: task.seqLen,
    referenceSteps: task.referenceSteps,
    maxUpdateNorm,
    siteWeighting: task.siteWeighting,
  };
}

/** The site of a commit's gateway, as its Device says now; undefined for a device's own commit. */
async function gatewaySiteFor(store: ResourceStore, { device, manifest }: Commit): Promise<string | undefined> {
  if (manifest === undefined || !isSiteUpdate(manifest)) return undefined;
  return gatewaySiteOf(await store.get("Device", device));
}

/** The verdict on a commit, with the checksums that a fold by shards holds its chunks against. */
async function judgeOne(
  store: ResourceStore,
  commit: Commit,
  shared: SharedContext,
  reader: CommitsReader,
  sums: RoundSums | undefined,
): Promise<Verdict> {
  const { manifest } = commit;
  const context = { ...shared, gatewaySite: await gatewaySiteFor(store, commit) };
  if (manifest === undefined || manifest.values === 0 || screen(commit, context) !== undefined) {
    return accept(commit, context, undefined);
  }
  const { facts, shardChecksums } = await reader.look(commit, context);
  const verdict = accept(commit, context, facts);
  sums?.end(commit.seq, verdict.accepted);
  return verdict.accepted ? { ...verdict, shardChecksums } : verdict;
}

/** What a batch of commits comes to. */
interface Batch {
  tally: UpdateTally;
  verdicts: Verdict[];
  /** Refused without a look. */
  unseen: Commit[];
}

/**
 * Judges commits in log order, as many as go into one write. Commits of devices that are cut off cost nothing and are
 * passed over, however many there are.
 */
async function judgeBatch(
  ports: JudgePorts,
  commits: readonly Commit[],
  context: SharedContext,
  shards: readonly Shard[],
  tally: UpdateTally,
  sums: RoundSums | undefined,
): Promise<Batch> {
  const cutOff = cutOffDevices(tally);
  const due = commits.filter(({ device }) => !cutOff.has(device)).slice(0, VERDICTS_PER_WRITE);
  const isDue = new Set(due);
  const reader = openCommits(ports, due, context, shards, sums);
  const batch: Batch = { tally, verdicts: [], unseen: [] };
  let chunksRead = 0;
  try {
    for (const commit of commits) {
      if (cutOffDevices(batch.tally).has(commit.device)) {
        batch.unseen.push(commit);
        batch.tally = { ...batch.tally, lastSeq: commit.seq };
        continue;
      }
      if (!isDue.has(commit)) break;
      if (chunksRead >= CHUNKS_PER_WRITE && !reader.isPassed(commit)) break;
      const current = { ...context, acceptedDevices: acceptedDevices(batch.tally) };
      const verdict = await judgeOne(ports.store, commit, current, reader, sums);
      batch.tally = withVerdict(batch.tally, verdict);
      batch.verdicts.push(verdict);
      chunksRead += verdict.accepted ? (commit.manifest?.chunkSeqs.length ?? 0) : 0;
    }
  } finally {
    await reader.close();
  }
  return batch;
}

/** The commits of a tally whose updates have values and count, in the order of their verdicts. */
const summedSeqs = ({ verdicts }: UpdateTally): number[] =>
  verdicts.flatMap(({ accepted, manifest, commitSeq }) => (accepted && manifest?.values ? [commitSeq] : []));

function takeSums(
  ports: JudgePorts,
  { metadata, spec }: Round & { spec: RoundSpec },
  options: StrategySpec,
  { values, codec }: SharedContext,
  tally: UpdateTally,
): RoundSums | undefined {
  const round = {
    ...{ uid: metadata?.uid ?? "", values, codec, options },
    foldBytes: foldBytes(spec, options),
    readBases: () => readBases(ports, spec, options),
    isStreamed: isStreamed(spec, options),
  };
  return ports.sums.take(round, summedSeqs(tally));
}

/** Judges a batch and writes its verdicts. @returns undefined if another replica wrote first. */
async function judgeAndWrite(
  ports: JudgePorts,
  round: Round & { spec: RoundSpec },
  stored: UpdateTally | undefined,
  options: StrategySpec | undefined,
  commits: readonly Commit[],
): Promise<Batch | undefined> {
  const { name = "", uid = "" } = round.metadata ?? {};
  const tally = stored ?? emptyTally(round);
  const context = await contextOf(ports.store, round, name, options?.maxUpdateNorm ?? 0, tally);
  // A buffer holds the round's own updates and no others only by chance.
  const isSummed = context.open && !isAsynchronous(round.spec);
  const sums = options && isSummed ? takeSums(ports, round, options, context, tally) : undefined;
  let durable = false;
  try {
    const batch = await judgeBatch(ports, commits, context, shardsOf(round.spec), tally, sums);
    const { store } = ports;
    const written =
      stored === undefined
        ? await store.create("UpdateTally", batch.tally)
        : await store.update("UpdateTally", batch.tally);
    durable = written.ok;
    if (!written.ok && stored === undefined) await clearEarlier(store, "UpdateTally", name, round);
    return written.ok ? { ...batch, tally: written.resource } : undefined;
  } finally {
    if (sums !== undefined) ports.sums.put(uid, sums, durable);
  }
}

/**
 * Gives every commit of a round that has none yet its verdict, in log order, by compare-and-set on the round's tally.
 * Two replicas that race judge alike, and one of them writes; the loser goes on from what was written. A tally that an earlier
 * round of the name left gives way.
 * @param current the round, as it was read with its job.
 * @param options of the job's strategy; undefined for a job that is gone.
 * @param onVerdicts called with verdicts once they are durable, and with commits that were refused unseen.
 * @returns the tally; undefined if nothing was ever committed, or the round gave way to another of its name.
 */
export async function judgeCommits(
  ports: JudgePorts,
  current: Round,
  options: StrategySpec | undefined,
  onVerdicts: (verdicts: readonly Verdict[], unseen: readonly Commit[]) => void,
): Promise<UpdateTally | undefined> {
  const { store, log } = ports;
  const { name = "", uid } = current.metadata ?? {};
  let commits: Commit[] = [];
  for (;;) {
    // Read for every write: what comes after the round has closed is late.
    const [found, round] = await Promise.all([store.get("UpdateTally", name), store.get("Round", name)]);
    // Another round of the name is judged as its own job says.
    if (round?.spec === undefined || round.metadata?.uid !== uid) return ownRecord(current, found);
    const stored = ownRecord(round, found);
    const lastSeq = stored?.lastSeq ?? 0;
    // A tally that vanished was deleted with its round's log: what was read from that log must not bring it back.
    commits = stored === undefined ? [] : commits.filter((commit) => commit.seq > lastSeq);
    if (commits.length === 0) commits = await log.commits(name, lastSeq);
    if (commits.length === 0) return stored;
    const batch = await judgeAndWrite(ports, { ...round, spec: round.spec }, stored, options, commits);
    if (batch === undefined) continue;
    onVerdicts(batch.verdicts, batch.unseen);
    // A stream of them must not keep the round here: the caller asks for another look, which goes on behind them.
    if (batch.verdicts.length === 0) return batch.tally;
  }
}
