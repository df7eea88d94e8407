import type { Round, UpdateTally, Verdict } from "#proto/shoal/v1/round.js";
import { updateLength } from "#common/domain/fragment.js";
import { gatewaySiteOf, isSiteUpdate } from "#common/domain/site.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { accept, screen, type AcceptContext, type Commit } from "#common/domain/accept.js";
import { cutOffDevices } from "#common/domain/cut-off.js";
import { openChunks, type Chunk } from "#common/runtime/chunk-reader.js";
import { takePayload } from "#common/runtime/payload.js";
import { codecOf, shardsOf, taskOf } from "./fold-round.js";
import { openShardSums, type Shard } from "./shards.js";
import { acceptedDevices, emptyTally, withVerdict } from "./tally.js";

/** What judging reads and writes. */
export interface JudgePorts {
  store: ResourceStore;
  log: UpdateLog;
}

/** Most verdicts that are written together: a tally is rewritten whole, and a large cohort commits at the same moment. */
const VERDICTS_PER_WRITE = 64;
/** Once an update counts and so many chunks were read, the verdicts are written: the round waits for them. */
const CHUNKS_PER_WRITE = 16;

/**
 * Phases in which a commit may count. Planning is one: a round that is planned again takes what comes meanwhile, and the
 * scheduler plans nothing before every commit has its verdict.
 */
const OPEN: ReadonlySet<string> = new Set(["Planning", "Training"]);

/** What all commits of a round are held against. */
type SharedContext = Omit<AcceptContext, "gatewaySite">;

function contextOf(round: Round, name: string, maxUpdateNorm: number, tally: UpdateTally): SharedContext | undefined {
  if (round.spec === undefined) return undefined;
  const task = taskOf(round.spec);
  return {
    round: name,
    open: OPEN.has(round.status?.phase ?? "Planning"),
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

/** Hands out the chunks of a commit, by their index in its manifest. */
type ReadChunk = (index: number) => Promise<Chunk | undefined>;

/**
 * Reads the chunks of several commits as one sequence, so that the first chunk of the next update is under way while the last
 * of this one is looked at. Commits that no reading can save are left out.
 */
function openCommits(
  log: UpdateLog,
  commits: readonly Commit[],
  context: SharedContext,
): (commit: Commit) => ReadChunk {
  const seqs: number[] = [];
  const offsets = new Map<number, number>();
  for (const commit of commits) {
    // Whether a site's gateway may speak for it is asked later: a commit of one is read ahead by nobody.
    if (screen(commit, { ...context, gatewaySite: undefined }) !== undefined) continue;
    offsets.set(commit.seq, seqs.length);
    seqs.push(...(commit.manifest?.chunkSeqs ?? []));
  }
  const chunks = openChunks(log, seqs);
  return (commit) => {
    const offset = offsets.get(commit.seq);
    if (offset !== undefined) return (index) => chunks.read(offset + index);
    const own = openChunks(log, commit.manifest?.chunkSeqs ?? []);
    return (index) => own.read(index);
  };
}

/** The verdict on a commit, with the checksums that a fold by shards holds its chunks against. */
async function judgeOne(
  store: ResourceStore,
  commit: Commit,
  shared: SharedContext,
  shards: readonly Shard[],
  read: ReadChunk,
): Promise<Verdict> {
  const { manifest } = commit;
  const context = { ...shared, gatewaySite: await gatewaySiteFor(store, commit) };
  if (manifest === undefined || manifest.values === 0 || screen(commit, context) !== undefined) {
    return accept(commit, context, undefined);
  }
  const sums = openShardSums(shards);
  const facts = await takePayload(read, manifest, context.codec, (start, bytes) => {
    sums.add(start, bytes);
  });
  const verdict = accept(commit, context, facts);
  return verdict.accepted ? { ...verdict, shardSums: sums.finish() } : verdict;
}

/**
 * Judges commits in log order, as many as go into one write. Commits of devices that are cut off cost nothing and are
 * passed over, however many there are.
 */
async function judgeBatch(
  { store, log }: JudgePorts,
  commits: readonly Commit[],
  context: SharedContext,
  shards: readonly Shard[],
  tally: UpdateTally,
): Promise<{ tally: UpdateTally; verdicts: Verdict[]; unseen: Commit[] }> {
  const cutOff = cutOffDevices(tally);
  const batch = commits.filter(({ device }) => !cutOff.has(device)).slice(0, VERDICTS_PER_WRITE);
  const inBatch = new Set(batch);
  const chunksOf = openCommits(log, batch, context);
  const verdicts: Verdict[] = [];
  const unseen: Commit[] = [];
  let next = tally;
  let chunksRead = 0;
  for (const commit of commits) {
    if (cutOffDevices(next).has(commit.device)) {
      unseen.push(commit);
      next = { ...next, lastSeq: commit.seq };
      continue;
    }
    if (!inBatch.has(commit)) break;
    const current = { ...context, acceptedDevices: acceptedDevices(next) };
    const verdict = await judgeOne(store, commit, current, shards, chunksOf(commit));
    next = withVerdict(next, verdict);
    verdicts.push(verdict);
    chunksRead += verdict.accepted ? (commit.manifest?.chunkSeqs.length ?? 0) : 0;
    if (chunksRead >= CHUNKS_PER_WRITE) break;
  }
  return { tally: next, verdicts, unseen };
}

/**
 * Gives every commit of a round that has none yet its verdict, in log order, by compare-and-set on the round's tally.
 * Two replicas that race judge alike, and one of them writes; the loser goes on from what was written.
 * @param maxUpdateNorm greatest L2 norm of an update; 0 is off.
 * @param onVerdicts called with verdicts once they are durable, and with commits that were refused unseen.
 * @returns the tally; undefined if nothing was ever committed.
 */
export async function judgeCommits(
  ports: JudgePorts,
  name: string,
  maxUpdateNorm: number,
  onVerdicts: (verdicts: readonly Verdict[], unseen: readonly Commit[]) => void,
): Promise<UpdateTally | undefined> {
  const { store, log } = ports;
  let commits: Commit[] = [];
  for (;;) {
    const stored = await store.get("UpdateTally", name);
    // Read for every write: what comes after the round has closed is late.
    const round = await store.get("Round", name);
    if (round?.spec === undefined) return stored;
    const tally = stored ?? emptyTally(name, round.spec.job);
    // A tally that vanished was deleted with its round's log: what was read from that log must not bring it back.
    commits = stored === undefined ? [] : commits.filter((commit) => commit.seq > tally.lastSeq);
    if (commits.length === 0) commits = await log.commits(name, tally.lastSeq);
    const context = contextOf(round, name, maxUpdateNorm, tally);
    if (commits.length === 0 || context === undefined) return stored;
    const judged = await judgeBatch(ports, commits, context, shardsOf(round.spec), tally);
    const written =
      stored === undefined
        ? await store.create("UpdateTally", judged.tally)
        : await store.update("UpdateTally", judged.tally);
    if (!written.ok) continue;
    onVerdicts(judged.verdicts, judged.unseen);
    // A stream of them must not keep the round here: the caller asks for another look, which goes on behind them.
    if (judged.verdicts.length === 0) return written.resource;
  }
}
