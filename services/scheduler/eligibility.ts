import type { Dataset } from "#proto/shoal/v1/model.js";
import type { Device, Lease } from "#proto/shoal/v1/device.js";
import type { TrainingJob } from "#proto/shoal/v1/job.js";
import type { Exclusion, Round } from "#proto/shoal/v1/round.js";
import { findCondition } from "#common/domain/condition.js";
import { evaluatePolicy, minuteOfDay } from "#common/domain/policy.js";
import { gatewaySiteOf } from "#common/domain/site.js";
import type { ModelConfig } from "#common/graph/config.js";
import { AGENT_BYTES, mayRecompute, stepDemand } from "./demand.js";

/** One device as the planner sees it. */
export interface Candidate {
  device: Device;
  lease: Lease | undefined;
  /** Open round of another job that it works for. */
  busyWith: string | undefined;
  /** Why its commit to this round was refused; undefined if there is none. */
  refusedUpdate: string | undefined;
  /** Milliseconds a local step took in earlier rounds of the job, newest last. */
  msPerStep: readonly number[];
}

/** What else counts in a round of an asynchronous job. */
export interface BufferView {
  /** Devices at work for this round. */
  readonly working: number;
  /** Devices at work from the weights of an earlier round. */
  readonly trailing: ReadonlySet<string>;
  /** Devices of which an update of an earlier round waits to be folded. */
  readonly waiting: ReadonlySet<string>;
  /** The greatest quorum that any of those was promised. */
  readonly quorum: number;
}

/** Everything planning depends on, frozen. The order of candidates does not matter. */
export interface Snapshot {
  nowMs: number;
  candidates: readonly Candidate[];
  /** Passport of the job's dataset, if it has one. */
  dataset: Dataset | undefined;
  /** The model to be trained. */
  config: ModelConfig;
  /** Unset unless the job is asynchronous. */
  buffer?: BufferView;
}

const mib = (bytes: number): string => `${Math.ceil(bytes / (1024 * 1024))} MiB`;

export const nameOf = (candidate: Candidate): string => candidate.device.metadata?.name ?? "";

function checkAlive({ lease }: Candidate, nowMs: number): string[] {
  if (lease === undefined) return ["has never sent a heartbeat; start its agent"];
  if (lease.expiresAtMs > nowMs) return [];
  const since = new Date(lease.renewedAtMs).toISOString();
  return [`has been silent since ${since}; it is asked again when it is back`];
}

function checkOperator({ device }: Candidate, selector: Readonly<Record<string, string>>): string[] {
  const reasons: string[] = [];
  if (device.spec?.draining === true) reasons.push("is being drained by an operator; uncordon it to use it again");
  else if (device.spec?.cordoned === true) reasons.push("is cordoned by an operator; uncordon it to use it again");
  for (const [key, wanted] of Object.entries(selector).sort(([a], [b]) => (a < b ? -1 : 1))) {
    const held = device.metadata?.labels[key];
    if (held === wanted) continue;
    reasons.push(`label ${key} is ${held === undefined ? "missing" : `"${held}"`}; the job selects "${wanted}"`);
  }
  return reasons;
}

function checkData({ device }: Candidate, name: string, leastTokens: number): string[] {
  const offers = device.status?.datasets ?? [];
  const offer = offers.find((dataset) => dataset.name === name);
  if (offer === undefined) {
    const names = offers.map((dataset) => dataset.name).sort();
    return [`offers no dataset "${name}"${names.length === 0 ? "" : `; it offers ${names.join(", ")}`}`];
  }
  if (offer.problem !== "") return [`dataset "${name}" cannot be used: ${offer.problem}`];
  if (offer.tokens >= leastTokens) return [];
  return [`has ${offer.tokens} training tokens of "${name}"; the job needs ${leastTokens}`];
}

/** A device with absurd facts or policy cannot be planned with: what it really has, or allows, is unknown. */
function checkFacts({ device }: Candidate): string[] {
  const ready = findCondition(device.status?.conditions ?? [], "Ready");
  if (ready?.status !== "False" || ready.reason !== "AbsurdFacts") return [];
  return [`says of itself what cannot be: ${ready.message}`];
}

function checkMachine({ device }: Candidate, peakBytes: (cores: number) => number): string[] {
  const facts = device.status?.facts;
  if (facts === undefined || facts.gflops <= 0)
    return ["has not been calibrated yet; it is once its agent has started"];
  const needed = peakBytes(facts.cores) + AGENT_BYTES;
  if (facts.memoryBytes >= needed) return [];
  return [
    `has ${mib(facts.memoryBytes)} of memory for the agent; the job needs ${mib(needed)}: lower batchSize or seqLen, raise accumulate, or keep the base in int8 or int4`,
  ];
}

/** What the device says of this very round: a refusal or failure stands until it no longer reports it. */
function checkRefusal({ device, refusedUpdate }: Candidate, round: string): string[] {
  if (refusedUpdate !== undefined) return [refusedUpdate];
  const report = (device.status?.assignments ?? []).find((assignment) => assignment.round === round);
  if (report?.phase !== "Refused" && report?.phase !== "Failed") return [];
  return [`${report.phase.toLowerCase()} this round: ${report.reasons.join("; ") || "it gave no reason"}`];
}

interface Demands {
  readonly leastTokens: number;
  /** Memory of a round on a device of so many cores. */
  readonly peakBytes: (cores: number) => number;
}

/** The task's demands on devices: the smallest number of training tokens and the memory of a round. */
function demands(job: TrainingJob, config: ModelConfig): Demands {
  const seqLen = job.spec?.data?.seqLen ?? 0;
  // One sequence and the token after it is the least that can be learned from.
  const leastTokens = Math.max(job.spec?.data?.minTokens ?? 0, seqLen + 1);
  const frugal = mayRecompute(job) || job.spec?.training?.recompute === "always";
  return { leastTokens, peakBytes: (cores) => stepDemand(job, config, frugal, cores).peakBytes };
}

/** Whether a device must compute blocks again in the backward pass, for want of memory or because the job says so. */
export function mustRecompute({ device }: Candidate, job: TrainingJob, config: ModelConfig): boolean {
  if (!mayRecompute(job)) return job.spec?.training?.recompute === "always";
  const { memoryBytes = 0, cores = 1 } = device.status?.facts ?? {};
  return memoryBytes < stepDemand(job, config, false, cores).peakBytes + AGENT_BYTES;
}

/** A gateway has no text and no training speed; one reason says more than what it lacks. */
function checkRole({ device }: Candidate): string[] {
  const site = gatewaySiteOf(device);
  return site === undefined ? [] : [`is the gateway of site ${site}: it folds its site's updates and does not train`];
}

function objections(snapshot: Snapshot, job: TrainingJob, round: Round): (candidate: Candidate) => string[] {
  const { leastTokens, peakBytes } = demands(job, snapshot.config);
  const judge = (candidate: Candidate): string[] => [
    ...checkAlive(candidate, snapshot.nowMs),
    ...checkOperator(candidate, job.spec?.cohort?.selector ?? {}),
    ...checkData(candidate, job.spec?.data?.dataset ?? "", leastTokens),
    ...checkFacts(candidate),
    ...checkMachine(candidate, peakBytes),
    ...checkRefusal(candidate, round.metadata?.name ?? ""),
    ...(candidate.busyWith === undefined ? [] : [`works for round ${candidate.busyWith}; it is free after that`]),
  ];
  return (candidate) => {
    const role = checkRole(candidate);
    return role.length > 0 ? role : judge(candidate);
  };
}

function policyObjections({ device }: Candidate, job: TrainingJob, snapshot: Snapshot, cohortSize: number): string[] {
  const policy = device.status?.policy;
  if (policy === undefined) return [];
  const request = {
    purpose: job.spec?.data?.purpose ?? "",
    modelFamily: snapshot.config.family,
    cohortSize,
  };
  const facts = { roundsToday: device.status?.roundsToday ?? 0, minuteOfDay: minuteOfDay(snapshot.nowMs) };
  const decision = evaluatePolicy(policy, request, facts);
  return decision.allowed ? [] : decision.reasons.map((reason) => `policy: ${reason}`);
}

export interface Eligibility {
  /** Devices that may be invited, in order of name. */
  eligible: Candidate[];
  /** The others, in order of name, with all their reasons. */
  exclusions: Exclusion[];
}

/**
 * Who may be invited. A policy may ask for a smallest cohort, and leaving its device out makes the cohort smaller for the
 * others: this is repeated until nobody more falls out, which it does after at most one pass per device.
 * @param kept devices that are in the round already; they count for the cohort and are not judged again
 * @param sizeOf number of devices that will be in the round when so many are eligible besides the kept ones
 */
export function findEligible(
  snapshot: Snapshot,
  job: TrainingJob,
  round: Round,
  kept: ReadonlySet<string>,
  sizeOf: (eligible: number) => number,
): Eligibility {
  const judge = objections(snapshot, job, round);
  const others = snapshot.candidates
    .filter((candidate) => !kept.has(nameOf(candidate)))
    .sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1));
  const judged = others.map((candidate) => ({ candidate, reasons: judge(candidate) }));
  const exclusions = new Map<string, string[]>();
  let eligible: Candidate[] = [];
  for (const { candidate, reasons } of judged) {
    const all = [...reasons, ...policyObjections(candidate, job, snapshot, Infinity)];
    if (all.length === 0) eligible.push(candidate);
    else exclusions.set(nameOf(candidate), all);
  }
  for (;;) {
    const size = sizeOf(eligible.length);
    const reasons = new Map(eligible.map((one) => [nameOf(one), policyObjections(one, job, snapshot, size)]));
    const staying = eligible.filter((one) => reasons.get(nameOf(one))?.length === 0);
    if (staying.length === eligible.length) break;
    for (const [name, why] of reasons) if (why.length > 0) exclusions.set(name, why);
    eligible = staying;
  }
  const sorted = [...exclusions].sort(([a], [b]) => (a < b ? -1 : 1));
  return { eligible, exclusions: sorted.map(([device, reasons]) => ({ device, reasons })) };
}
