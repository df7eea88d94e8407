import { CodedError } from "#common/adapters/coded-error.js";
import { synchronisedRanges, updateLength, updateVectors } from "#common/domain/fragment.js";
import { createRng } from "#common/domain/rng.js";
import { deriveSeed } from "#common/domain/seed.js";
import { memberOf, summariseMembers } from "#common/domain/site.js";
import type { UpdateLog } from "#common/ports/update-log.js";
import { openChunks } from "#common/runtime/chunk-reader.js";
import { ownBytes } from "#common/runtime/payload.js";
import { chunkCount, chunkRange, encodeWithFeedback, withResidual } from "#common/tensor/chunk.js";
import type { Codec } from "#common/tensor/codec.js";
import { openDigest, sha256Digest } from "#common/tensor/digest.js";
import { inspectChunk, openChunkFold } from "#common/tensor/kernels/kernels.js";
import { gather, scatter } from "#common/tensor/stretches.js";
import type { SiteRound } from "#proto/shoal/v1/device_wire.js";
import { MemberUpdate, type RoundTask, UpdateManifest } from "#proto/shoal/v1/round.js";
import type { UpdateDraft } from "../outbox/draft.js";
import { jobKey } from "../round-key.js";
import { codecOf, taskOf } from "./judge.js";
import type { MemberCommit } from "./state.js";

/** Who folds, under which name. */
export interface Folder {
  readonly gateway: string;
  readonly site: string;
  /** Name of the update in the outbox. */
  readonly key: string;
  /** What the codec lost of earlier updates of the job [parameters]. */
  readonly residual: Float32Array | undefined;
  /** Bytes that came over the wide area for this update. */
  readonly bytesDown: number;
}

export interface FoldedSite {
  readonly draft: UpdateDraft;
  /** To keep for the job's next update; undefined to keep what there is. */
  readonly residual: Float32Array | undefined;
}

/** The update of a member is not any more what was judged: the others can be folded without it. */
export class MemberDamage extends CodedError {
  constructor(readonly commit: MemberCommit) {
    super("LOG_CORRUPT", `the update of ${commit.device} in the site's log is not what it was`);
  }
}

const corrupt = (commit: MemberCommit): MemberDamage => new MemberDamage(commit);

/** Hands on chunk after chunk of all updates side by side, and checks at the end that they were what was judged. */
async function readColumns(
  log: UpdateLog,
  codec: Codec,
  values: number,
  commits: readonly MemberCommit[],
  onChunk: (index: number, column: readonly Uint8Array[]) => void,
): Promise<void> {
  const digests = commits.map(openDigest);
  const chunks = chunkCount(values, codec);
  const seqs = Array.from({ length: chunks }, (_, chunk) =>
    commits.map(({ manifest }) => manifest.chunkSeqs[chunk] ?? 0),
  );
  const reader = openChunks(log, seqs.flat());
  for (let chunk = 0; chunk < chunks; chunk++) {
    const column: Uint8Array[] = [];
    for (const [i, commit] of commits.entries()) {
      const own = ownBytes(await reader.read(chunk * commits.length + i), commit.manifest, chunk);
      if (!own.ok) throw corrupt(commit);
      digests[i]?.add(own.bytes);
      column.push(own.bytes);
    }
    onChunk(chunk, column);
  }
  for (const [i, commit] of commits.entries()) {
    if (digests[i]?.finish() !== commit.manifest.digest) throw corrupt(commit);
  }
}

interface Payload {
  chunks: Uint8Array[];
  residual: Float32Array | undefined;
}

/**
 * Passes after which a mean that is still too long is sent as it is. The first shortens it to 2^-20 below the bound, each further
 * one by eight times as much: scales of blocks are rounded, and may stay what they were after too small a step.
 */
const MOST_PASSES = 8;

/**
 * The mean of the members' updates, not longer than the job's bound on an update. With error feedback what is sent is
 * Q(v), v = m + d r: of the members' mean m no update is longer than the bound M, so neither is m (the triangle inequality, as
 * the weights sum to 1); but v may be, by what the codec lost before, and so may Q(v), by what it rounds. Then Q(s v) is sent with
 * s = M / |Q(v)|, and r' = v - Q(s v) keeps all of the rest: as ever, the sum of all that was sent and of r' is the sum of the means.
 * Shortened again if rounding makes it longer. A lossless codec has no residual: there only the fp32 rounding of m is lost.
 */
async function foldBounded(
  log: UpdateLog,
  task: RoundTask,
  round: SiteRound,
  commits: readonly MemberCommit[],
  kept: Float32Array | undefined,
): Promise<Payload> {
  const bound = task.maxUpdateNorm;
  if (bound <= 0) return foldMean(log, task, round, commits, kept, 1);
  let scale = 1;
  for (let pass = 1; ; pass++) {
    const payload = await foldMean(log, task, round, commits, kept, scale);
    const norm = normOf(payload.chunks, codecOf(task), updateLength(task));
    if (norm <= bound || pass === MOST_PASSES) return payload;
    scale *= (bound / norm) * (1 - 2 ** (3 * pass - 23));
  }
}

/** The L2 norm of an encoded update, added up as its judge does. */
function normOf(chunks: readonly Uint8Array[], codec: Codec, values: number): number {
  let squares = 0;
  for (const [index, bytes] of chunks.entries()) {
    const { start, end } = chunkRange(values, codec, index);
    const inspected = inspectChunk(codec, bytes, end - start);
    squares += inspected.ok ? inspected.squares : 0;
  }
  return Math.sqrt(squares);
}

/**
 * mean = sum n_k Delta_k / sum n_k (McMahan 2017) of several updates, summed in float64 in the order given, rounded to fp32
 * once and written with the job's codec. Holds a chunk of each update, never a whole one.
 * @param scale of what is sent, in (0, 1]; the rest is in the residual.
 */
async function foldMean(
  log: UpdateLog,
  task: RoundTask,
  round: SiteRound,
  commits: readonly MemberCommit[],
  kept: Float32Array | undefined,
  scale: number,
): Promise<Payload> {
  const codec = codecOf(task);
  const values = updateLength(task);
  const weights = commits.map(({ manifest }) => (task.siteWeighting === "equal" ? 1 : manifest.tokens));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const sums = openChunkFold(codec);
  const feedback = task.codec?.errorFeedback === true && !codec.lossless;
  const whole = kept?.length === updateVectors(task) * task.parameters ? kept : undefined;
  const ranges = synchronisedRanges(task);
  const before = feedback && whole && ranges ? gather(whole, ranges) : whole;
  const residual = feedback ? new Float32Array(values) : undefined;
  const rng = createRng(deriveSeed(round.assignments[0]?.seed ?? 0, "site", task.round));
  const random = task.codec?.stochasticRounding === true ? (): number => rng.uniform() : undefined;
  const chunks: Uint8Array[] = [];
  await readColumns(log, codec, values, commits, (index, column) => {
    const { start, end } = chunkRange(values, codec, index);
    sums.begin(end - start);
    const wrong = sums.add(column.map((bytes, k) => ({ bytes, factor: weights[k] as number })));
    if (wrong !== undefined) throw corrupt(commits[wrong.index] as MemberCommit);
    const mean = Float32Array.from(sums.mean(total));
    if (residual === undefined) {
      chunks.push(codec.encode(scaled(mean, scale), random));
      return;
    }
    const decay = task.codec?.errorDecay || 1;
    const lost = before?.subarray(start, end);
    const encoded = encodeWithFeedback(scaled(mean, scale), lost && scaled(lost, scale), codec, decay, random);
    chunks.push(...encoded.chunks);
    residual.set(encoded.residual, start);
    if (scale === 1) return;
    const whole = withResidual(mean, lost, decay) ?? mean;
    for (let i = 0; i < whole.length; i++) {
      residual[start + i] = (residual[start + i] as number) + (1 - scale) * (whole[i] as number);
    }
  });
  if (residual === undefined || ranges === undefined) return { chunks, residual };
  // What other fragments lost waits for their rounds.
  const all = whole?.slice() ?? new Float32Array(task.parameters);
  scatter(residual, ranges, all);
  return { chunks, residual: all };
}

const scaled = (values: Float32Array, by: number): Float32Array =>
  by === 1 ? values : values.map((value) => value * by);

/** What the site sends: nothing if all evaluated, the only update as it is, or the mean. */
async function payloadOf(
  log: UpdateLog,
  round: SiteRound,
  trained: readonly MemberCommit[],
  residual: Float32Array | undefined,
): Promise<Payload> {
  const task = taskOf(round);
  if (trained.length > 1) return foldBounded(log, task, round, trained, residual);
  const chunks: Uint8Array[] = [];
  if (trained.length === 0) return { chunks, residual: undefined };
  await readColumns(log, codecOf(task), updateLength(task), trained, (_index, column) => {
    chunks.push(...column);
  });
  return { chunks, residual: undefined };
}

function memberUpdate({ device, seq, manifest, norm, refusal, message }: MemberCommit): MemberUpdate {
  if (refusal === "") return memberOf(manifest, seq, norm);
  return MemberUpdate.fromPartial({ device, commitSeq: seq, refusal, message: message.slice(0, 200) });
}

/**
 * Folds the members' updates, in the order given, into the site's own. Throws on IO failures, a MemberDamage if an update is
 * not any more what was judged, code "BadTask".
 */
export async function foldSite(
  log: UpdateLog,
  round: SiteRound,
  commits: readonly MemberCommit[],
  folder: Folder,
): Promise<FoldedSite> {
  const task = taskOf(round);
  const trained = commits.filter(({ refusal, manifest }) => refusal === "" && manifest.values > 0);
  const { chunks, residual } = await payloadOf(log, round, trained, folder.residual);
  const members = commits.map(memberUpdate);
  const manifest = UpdateManifest.fromPartial({
    device: folder.gateway,
    site: folder.site,
    round: task.round,
    codec: codecOf(task).name,
    values: trained.length > 0 ? updateLength(task) : 0,
    sizeBytes: chunks.reduce((sum, chunk) => sum + chunk.length, 0),
    digest: sha256Digest(...chunks),
    baseDigest: task.weights?.digest ?? "",
    jobUid: task.jobUid,
    bytesDown: folder.bytesDown,
    trainMs: Math.max(0, ...members.map(({ trainMs }) => trainMs)),
    members,
    ...summariseMembers(members),
  });
  return { draft: { job: jobKey(task), key: folder.key, manifest, chunks }, residual };
}
