import { UpdateManifest, type Assignment, type MemberUpdate, type Verdict } from "#proto/shoal/v1/round.js";
import { chunkCount, updateBytes } from "../tensor/chunk.js";
import type { Codec } from "../tensor/codec.js";
import { isCount, refuse, shown, type Refusal } from "./refusal.js";
import { isSiteUpdate, summariseMembers } from "./site.js";

/** A commit as the log holds it; device and round come from the authenticated subject. */
export interface Commit {
  seq: number;
  device: string;
  round: string;
  manifest: UpdateManifest | undefined;
}

/** What a commit of a round is held against. */
export interface AcceptContext {
  round: string;
  /** False once the fold set is frozen or the round has failed: whatever comes then is late. */
  open: boolean;
  /** Asynchronous jobs: so many later rounds take an update of this one, and it is open until the last of them is frozen. */
  maxStaleness?: number;
  evaluationOnly: boolean;
  assignments: readonly Assignment[];
  /** Devices of which an update was accepted already. */
  acceptedDevices: ReadonlySet<string>;
  /** Values of an update: those of the model, or of the round's fragment of it. */
  values: number;
  codec: Codec;
  /** Uid of the round's job. */
  jobUid: string;
  /** Digest of the weights the round starts from. */
  baseDigest: string;
  /** Tokens per sequence, which bounds the tokens a device may claim. */
  seqLen: number;
  /** Local steps of the reference device: a device that was planned again may bring the work of its first plan. */
  referenceSteps: number;
  /** Updates with a greater L2 norm are refused; 0 sets only NORM_CEILING. */
  maxUpdateNorm: number;
  /** The site whose gateway committed; undefined if no gateway did. */
  gatewaySite: string | undefined;
  /** How a gateway may weigh the updates it folds; empty if it must hand on each by itself. */
  siteWeighting: string;
}

/** A manifest as verdicts keep it. */
export function withoutChunks(manifest: UpdateManifest): UpdateManifest {
  return { ...manifest, chunkSeqs: [] };
}

/** What reading the chunks of a commit has shown. */
export type PayloadFacts = { ok: true; digest: string; norm: number } | { ok: false; refusal: Refusal };

/** No honest update is this long, and below it no fold can overflow fp32 weights. */
export const NORM_CEILING = 2 ** 100;
/** Most characters in which a gateway says why it refused an update. */
const MOST_REFUSAL_TEXT = 240;
/** "sha256:" and 64 digits. */
const MOST_DIGEST_TEXT = 71;
const MOST_CODEC_TEXT = 16;

/** Whether this device's commit must bring an update, and not an evaluation alone. */
function expectsPayload(context: Pick<AcceptContext, "evaluationOnly">, assignment: Assignment): boolean {
  return !context.evaluationOnly && assignment.localSteps > 0;
}

function judgeNumbers(
  losses: Readonly<Record<string, number>>,
  counts: Readonly<Record<string, number>>,
): Refusal | undefined {
  for (const [name, value] of Object.entries(losses)) {
    if (!Number.isFinite(value)) return refuse("NotFinite", `${name} is ${value}`);
    if (value < 0) return refuse("BadPayload", `${name} is ${value}, below zero`);
  }
  for (const [name, value] of Object.entries(counts)) {
    if (!isCount(value)) return refuse("BadPayload", `${name} is ${value}, not a whole number from 0`);
  }
  return undefined;
}

/** Of what a device is free to write nothing may be long: a tally keeps it, and must fit one message of the store. */
function judgeTexts({ digest, codec }: { digest: string; codec?: string }): Refusal | undefined {
  if (digest.length > MOST_DIGEST_TEXT) return refuse("BadPayload", `"${shown(digest)}" is no digest`);
  if ((codec ?? "").length <= MOST_CODEC_TEXT) return undefined;
  return refuse("WrongShape", `"${shown(codec ?? "")}" is no codec`);
}

function judgeManifestNumbers(manifest: UpdateManifest): Refusal | undefined {
  const { trainLoss, evalLossSum } = manifest;
  const { values, sizeBytes, tokens, localSteps, evalTokens, bytesDown, fetchMs, trainMs } = manifest;
  const counts = { values, sizeBytes, tokens, localSteps, evalTokens, bytesDown, fetchMs, trainMs };
  return judgeNumbers({ trainLoss, evalLossSum }, counts);
}

function judgeShape(commit: Commit, manifest: UpdateManifest, context: AcceptContext): Refusal | undefined {
  const { codec, values } = context;
  if (manifest.values !== values) {
    return refuse("WrongShape", `${manifest.values} values where the round's updates have ${values}`);
  }
  if (manifest.codec !== codec.name) {
    return refuse("WrongShape", `codec "${shown(manifest.codec)}" where the round uses "${codec.name}"`);
  }
  const chunks = chunkCount(values, codec);
  if (manifest.chunkSeqs.length !== chunks) {
    return refuse("WrongShape", `${manifest.chunkSeqs.length} chunks where ${chunks} are due`);
  }
  const bytes = updateBytes(values, codec);
  if (manifest.sizeBytes !== bytes) return refuse("WrongShape", `${manifest.sizeBytes} bytes where ${bytes} are due`);
  const stray = manifest.chunkSeqs.find((seq) => !(isCount(seq) && seq >= 1 && seq < commit.seq));
  return stray === undefined
    ? undefined
    : refuse("BadPayload", `chunk sequence ${stray} does not lie before the commit ${commit.seq}`);
}

type Work = Pick<UpdateManifest, "localSteps" | "tokens">;

function judgeWork(work: Work, assignment: Assignment, context: AcceptContext): Refusal | undefined {
  const mostSteps = Math.max(assignment.localSteps, context.referenceSteps);
  if (work.localSteps < 1 || work.localSteps > mostSteps) {
    return refuse("BadPayload", `${work.localSteps} local steps where 1 to ${mostSteps} are possible`);
  }
  const most = work.localSteps * assignment.batchSize * context.seqLen;
  if (work.tokens < 1 || work.tokens > most) {
    return refuse("BadPayload", `${work.tokens} tokens where 1 to ${most} fit the local steps`);
  }
  return undefined;
}

function judgeEvaluation(manifest: UpdateManifest): Refusal | undefined {
  const { values, sizeBytes, tokens, localSteps } = manifest;
  if (values === 0 && sizeBytes === 0 && tokens === 0 && localSteps === 0 && manifest.chunkSeqs.length === 0) {
    return undefined;
  }
  return refuse("WrongShape", "an update where only an evaluation was assigned");
}

function judgeMemberWork(member: MemberUpdate, assignment: Assignment, context: AcceptContext): Refusal | undefined {
  const { trainLoss, evalLossSum, norm, tokens, localSteps, evalTokens, sizeBytes, bytesDown, fetchMs, trainMs } =
    member;
  const counts = { tokens, localSteps, evalTokens, sizeBytes, bytesDown, fetchMs, trainMs };
  const numbers = judgeTexts(member) ?? judgeNumbers({ trainLoss, evalLossSum, norm }, counts);
  if (numbers !== undefined) return numbers;
  if (expectsPayload(context, assignment)) return judgeWork(member, assignment, context);
  if (tokens === 0 && localSteps === 0) return undefined;
  return refuse("WrongShape", "work where only an evaluation was assigned");
}

function judgeMember(member: MemberUpdate, site: string, context: AcceptContext): Refusal | undefined {
  const assignment = context.assignments.find((each) => each.device === member.device);
  if (assignment?.site !== site) return refuse("NotAssigned", `the device has no assignment at site "${shown(site)}"`);
  if (context.acceptedDevices.has(member.device)) return refuse("Duplicate", "an update of this device counts already");
  if (member.refusal === "") return judgeMemberWork(member, assignment, context);
  const isShort =
    shown(member.refusal) === member.refusal &&
    member.message.length <= MOST_REFUSAL_TEXT &&
    judgeTexts(member) === undefined;
  return isShort ? undefined : refuse("BadPayload", "the reason of its refusal is too long");
}

function judgeBase(manifest: UpdateManifest, context: AcceptContext): Refusal | undefined {
  if (manifest.baseDigest === context.baseDigest) return judgeTexts(manifest);
  return refuse("WrongBase", `it starts from the weights "${shown(manifest.baseDigest)}"`);
}

/** A device's own commit. */
function screenDevice(commit: Commit, manifest: UpdateManifest, context: AcceptContext): Refusal | undefined {
  const assignment = context.assignments.find((each) => each.device === commit.device);
  if (assignment === undefined) return refuse("NotAssigned", "the device has no assignment in this round");
  if (context.acceptedDevices.has(commit.device)) {
    return refuse("Duplicate", "an update of this device counts already");
  }
  const refusal = judgeBase(manifest, context) ?? judgeManifestNumbers(manifest);
  if (refusal !== undefined) return refusal;
  if (!expectsPayload(context, assignment)) return judgeEvaluation(manifest);
  return judgeShape(commit, manifest, context) ?? judgeWork(manifest, assignment, context);
}

const SUMMARY = ["tokens", "localSteps", "trainLoss", "evalLossSum", "evalTokens"] as const;

/** A gateway's commit: from the gateway of a site, for devices of that site that are in the round, each of them once. */
function screenSite(commit: Commit, manifest: UpdateManifest, context: AcceptContext): Refusal | undefined {
  const { members, site } = manifest;
  if (site === "" || site !== context.gatewaySite) {
    return refuse("NotAssigned", `the device is no gateway of site "${shown(site)}"`);
  }
  if (members.length === 0 || members.length > context.assignments.length) {
    return refuse("BadPayload", `${members.length} members where 1 to ${context.assignments.length} are possible`);
  }
  if (new Set(members.map(({ device }) => device)).size < members.length) {
    return refuse("Duplicate", "a member is named twice");
  }
  const refusal = judgeBase(manifest, context) ?? judgeManifestNumbers(manifest);
  if (refusal !== undefined) return refusal;
  for (const member of members) {
    const judged = judgeMember(member, site, context);
    if (judged !== undefined) return refuse(judged.reason, `member "${shown(member.device)}": ${judged.message}`);
  }
  const summary = summariseMembers(members);
  const off = SUMMARY.find((field) => manifest[field] !== summary[field]);
  if (off !== undefined) {
    return refuse("BadPayload", `${off} is ${manifest[off]} where the members come to ${summary[off]}`);
  }
  const trained = members.filter(({ refusal, localSteps }) => refusal === "" && localSteps > 0);
  if (trained.length === 0) return judgeEvaluation(manifest);
  if (trained.length > 1 && context.siteWeighting === "") {
    return refuse("BadPayload", `${trained.length} updates folded into one where each is due by itself`);
  }
  if (trained.length === 1 && trained[0]?.digest !== manifest.digest) {
    return refuse("WrongDigest", "the only update in it is not what the device sent");
  }
  return judgeShape(commit, manifest, context);
}

function refuseClosed({ maxStaleness = 0 }: AcceptContext): Refusal {
  if (maxStaleness === 0) return refuse("Late", "the round no longer waits for updates");
  return refuse("TooStale", `no round takes it any more: one of the next ${maxStaleness} of the job would have`);
}

/**
 * All that can be said of a commit without reading its chunks: so nothing a manifest claims can make the reader
 * fetch more than one honest update.
 * @returns why it is refused; undefined if its chunks decide.
 */
export function screen(commit: Commit, context: AcceptContext): Refusal | undefined {
  const { manifest } = commit;
  if (!context.open) return refuseClosed(context);
  if (manifest === undefined) return refuse("BadPayload", "the commit is not a manifest");
  if (commit.round !== context.round || manifest.round !== context.round) {
    return refuse("WrongRound", `the manifest is of round "${shown(manifest.round)}"`);
  }
  // An agent that does not say it, from before the field was, is held to the round's weights alone.
  if (manifest.jobUid !== "" && manifest.jobUid !== context.jobUid) {
    return refuse("WrongRound", `it is of another job that had this name, with the uid "${shown(manifest.jobUid)}"`);
  }
  if (manifest.device !== commit.device) {
    return refuse("BadPayload", `the manifest names the device "${shown(manifest.device)}"`);
  }
  return isSiteUpdate(manifest) ? screenSite(commit, manifest, context) : screenDevice(commit, manifest, context);
}

function judgePayload(digest: string, facts: PayloadFacts, maxUpdateNorm: number): Refusal | undefined {
  if (!facts.ok) return facts.refusal;
  if (facts.digest !== digest) return refuse("WrongDigest", `the chunks are ${facts.digest}`);
  if (!Number.isFinite(facts.norm)) return refuse("NotFinite", `the norm is ${facts.norm}`);
  const limit = maxUpdateNorm > 0 ? Math.min(maxUpdateNorm, NORM_CEILING) : NORM_CEILING;
  return facts.norm > limit ? refuse("NormExceeded", `the norm is ${facts.norm}, above ${limit}`) : undefined;
}

/** The verdict on a refused commit. It keeps nothing of the manifest, whose size the device chooses. */
function refusedVerdict(commit: Commit, refusal: Refusal): Verdict {
  return {
    commitSeq: commit.seq,
    accepted: false,
    reason: refusal.reason,
    message: refusal.message,
    norm: 0,
    staleness: 0,
    shardSums: [],
    shardChecksums: [],
    manifest: UpdateManifest.fromPartial({ device: commit.device, round: commit.round }),
  };
}

/**
 * The verdict on one commit. An accepted one keeps the manifest without the sequences of the chunks, whose number grows with
 * the model: whoever reads the chunks reads the commit. Pure and total: two replicas with the same context judge alike.
 * @param payload what its chunks hold; undefined where the manifest alone refuses it or no update is due.
 */
export function accept(commit: Commit, context: AcceptContext, payload: PayloadFacts | undefined): Verdict {
  const refusal = screen(commit, context);
  const { manifest } = commit;
  if (refusal !== undefined || manifest === undefined) {
    return refusedVerdict(commit, refusal ?? refuse("BadPayload", "the commit is not a manifest"));
  }
  if (manifest.values > 0) {
    const unread = refuse("BadPayload", "its chunks were not read");
    const judged = payload === undefined ? unread : judgePayload(manifest.digest, payload, context.maxUpdateNorm);
    if (judged !== undefined) return refusedVerdict(commit, judged);
  }
  const norm = payload?.ok === true ? payload.norm : 0;
  const empty = { reason: "", message: "", staleness: 0, shardSums: [], shardChecksums: [] };
  return { commitSeq: commit.seq, accepted: true, ...empty, norm, manifest: withoutChunks(manifest) };
}
