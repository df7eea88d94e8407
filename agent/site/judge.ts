import { accept, screen, type AcceptContext } from "#common/domain/accept.js";
import { MOST_REFUSALS } from "#common/domain/cut-off.js";
import { updateLength, updateVectors } from "#common/domain/fragment.js";
import type { CommitRecord, UpdateLog } from "#common/ports/update-log.js";
import { readPayload } from "#common/runtime/payload.js";
import { forVectors } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { CodedError } from "#common/adapters/coded-error.js";
import type { SiteRound } from "#proto/shoal/v1/device_wire.js";
import type { RoundTask } from "#proto/shoal/v1/round.js";
import type { MemberCommit } from "./state.js";

/** The codec of a round's updates. Throws code "BadTask" if this agent does not know it. */
export function codecOf(task: RoundTask): Codec {
  const { codec } = task;
  const found = codecByName(codec?.name ?? "", codec?.topk);
  if (found !== undefined) return forVectors(found, updateVectors(task));
  throw new CodedError("BadTask", `codec "${codec?.name ?? ""}" is not known to this agent, or not with these sizes`);
}

/** The task of a round. Throws code "BadTask" if there is none. */
export function taskOf({ task }: SiteRound): RoundTask {
  if (task === undefined)
    throw new CodedError("BadTask", "the round has no task; the control plane is of another version");
  return task;
}

function contextOf(round: SiteRound, known: ReadonlyMap<string, MemberCommit>): AcceptContext {
  const task = taskOf(round);
  const counted = [...known.values()].filter(({ refusal }) => refusal === "").map(({ device }) => device);
  return {
    round: task.round,
    open: true,
    // Where all evaluate, no assignment has local steps.
    evaluationOnly: false,
    assignments: round.assignments,
    acceptedDevices: new Set(counted),
    values: updateLength(task),
    codec: codecOf(task),
    jobUid: task.jobUid,
    baseDigest: task.weights?.digest ?? "",
    seqLen: task.seqLen,
    referenceSteps: task.referenceSteps,
    maxUpdateNorm: task.maxUpdateNorm,
    // No gateway is behind a gateway.
    gatewaySite: undefined,
    siteWeighting: "",
  };
}

async function judgeOne(
  log: UpdateLog,
  commit: CommitRecord,
  context: AcceptContext,
): Promise<MemberCommit | undefined> {
  const { manifest, device, seq } = commit;
  const due = manifest !== undefined && manifest.values > 0 && screen(commit, context) === undefined;
  const verdict = accept(commit, context, due ? await readPayload(log, manifest, context.codec) : undefined);
  // A verdict keeps no sequences of chunks, which folding needs.
  const kept = verdict.accepted ? manifest : verdict.manifest;
  if (kept === undefined) return undefined;
  const { norm, reason: refusal, message } = verdict;
  return { device, seq, manifest: kept, norm, refusal, message };
}

/**
 * Judges the commits of a round in the site's log by the aggregator's own rules, in log order, for the devices that the
 * round waits for. A later commit of a device counts only if those before were refused, and so many were not.
 * @param known what was judged before
 * @returns what is new; nothing once the signal aborts. Throws on IO failures and code "BadTask".
 */
export async function judgeMembers(
  log: UpdateLog,
  round: SiteRound,
  known: ReadonlyMap<string, MemberCommit>,
  signal: AbortSignal,
): Promise<MemberCommit[]> {
  const judged = new Map(known);
  const awaited = new Set(round.assignments.map(({ device }) => device));
  const fresh: MemberCommit[] = [];
  const refusals = new Map<string, number>();
  for (let afterSeq = 0, page = await log.commits(taskOf(round).round); page.length > 0;) {
    for (const commit of page) {
      if (signal.aborted) return [];
      const { device, seq } = commit;
      const before = judged.get(device);
      if (!awaited.has(device) || (before !== undefined && before.seq >= seq) || before?.refusal === "") continue;
      if ((refusals.get(device) ?? 0) >= MOST_REFUSALS) continue;
      const member = await judgeOne(log, commit, contextOf(round, judged));
      if (member === undefined) continue;
      judged.set(device, member);
      fresh.push(member);
      if (member.refusal !== "") refusals.set(device, (refusals.get(device) ?? 0) + 1);
    }
    afterSeq = page.at(-1)?.seq ?? afterSeq;
    page = await log.commits(taskOf(round).round, afterSeq);
  }
  return fresh;
}
