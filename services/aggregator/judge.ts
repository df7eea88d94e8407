import type { Round, UpdateTally, Verdict } from "#proto/shoal/v1/round.js";
import { updateLength } from "#common/domain/fragment.js";
import { gatewaySiteOf, isSiteUpdate } from "#common/domain/site.js";
import type { ResourceStore } from "#common/ports/resource-store.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { accept, screen, type AcceptContext, type Commit } from "#common/domain/accept.js";
import { readPayload } from "#common/runtime/payload.js";
import { codecOf, shardsOf, taskOf } from "./fold-round.js";
import { openShardSums, type Shard } from "./shards.js";
import { acceptedDevices, emptyTally, withVerdict } from "./tally.js";

/** What judging reads and writes. */
export interface JudgePorts {
  store: ResourceStore;
  log: UpdateLog;
}

/** Refusals that are written together; an accepted update is written at once, because the round waits for it. */
const REFUSALS_PER_WRITE = 64;

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
  { store, log }: JudgePorts,
  commit: Commit,
  shared: SharedContext,
  shards: readonly Shard[],
): Promise<Verdict> {
  const { manifest } = commit;
  const context = { ...shared, gatewaySite: await gatewaySiteFor(store, commit) };
  if (manifest === undefined || manifest.values === 0 || screen(commit, context) !== undefined) {
    return accept(commit, context, undefined);
  }
  const sums = openShardSums(shards);
  const facts = await readPayload(log, manifest, context.codec, (start, bytes) => {
    sums.add(start, bytes);
  });
  const verdict = accept(commit, context, facts);
  return verdict.accepted ? { ...verdict, shardSums: sums.finish() } : verdict;
}

/** Judges commits in log order up to and with the first one that counts, or as many refusals as go into one write. */
async function judgeBatch(
  ports: JudgePorts,
  commits: readonly Commit[],
  context: SharedContext,
  shards: readonly Shard[],
  tally: UpdateTally,
): Promise<{ tally: UpdateTally; verdicts: Verdict[] }> {
  const verdicts: Verdict[] = [];
  let next = tally;
  for (const commit of commits.slice(0, REFUSALS_PER_WRITE)) {
    const verdict = await judgeOne(ports, commit, context, shards);
    next = withVerdict(next, verdict);
    verdicts.push(verdict);
    if (verdict.accepted) break;
  }
  return { tally: next, verdicts };
}

/**
 * Gives every commit of a round that has none yet its verdict, in log order, by compare-and-set on the round's tally.
 * Two replicas that race judge alike, and one of them writes; the loser goes on from what was written.
 * @param maxUpdateNorm greatest L2 norm of an update; 0 is off.
 * @param onVerdicts called with verdicts once they are durable.
 * @returns the tally; undefined if nothing was ever committed.
 */
export async function judgeCommits(
  ports: JudgePorts,
  name: string,
  maxUpdateNorm: number,
  onVerdicts: (verdicts: readonly Verdict[]) => void,
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
    if (written.ok) onVerdicts(judged.verdicts);
  }
}
