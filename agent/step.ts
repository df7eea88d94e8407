import { AssignmentStatus } from "#proto/shoal/v1/device.js";
import type { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import { overlapSteps } from "./overlap.js";
import { isOtherLife, jobKey, jobKeyOfRound } from "./round-key.js";
import { roundOf, type AgentEvent, type AgentState, type Effect, type Entry, type Retry } from "./state.js";
import { Draft } from "./step-draft.js";

/** Exit code of an agent whose credential is not accepted (EX_NOPERM). */
export const EXIT_REJECTED = 77;

const FIRST_RETRY_MS = 1_000;
const LONGEST_RETRY_MS = 30_000;
const LONGEST_HEARTBEAT_RETRY_MS = 8_000;

const backoffMs = (failures: number, longestMs: number): number =>
  Math.min(FIRST_RETRY_MS * 2 ** Math.min(failures, 16), longestMs);

function newEntry(draft: Draft, task: AssignedTask): Entry {
  const round = roundOf(task);
  const committed = draft.state.committed.has(round);
  const known = committed || draft.spooled(round) !== undefined;
  if (!known) draft.effects.push({ type: "guard", task });
  const phase = committed ? "Committed" : known ? "Uploading" : "Accepted";
  const steps = task.assignment?.localSteps ?? 0;
  const status = AssignmentStatus.fromPartial({ round: task.task?.round ?? "", phase, steps, step: known ? steps : 0 });
  return { task, status, allowed: known ? true : undefined, final: committed, failures: 0, waiting: false };
}

/** Takes over the registry's list; what is missing in it has been withdrawn. */
function adoptTasks(draft: Draft, tasks: readonly AssignedTask[]): void {
  const { state } = draft;
  const wanted = new Set(tasks.map(roundOf));
  const jobs = tasks.flatMap(({ task }) => (task === undefined ? [] : [jobKey(task)]));
  state.entries = tasks.map((task) => {
    const entry = draft.entry(roundOf(task));
    return entry === undefined ? newEntry(draft, task) : { ...entry, task };
  });
  for (const spooled of state.spooled) {
    // A commit for a deleted job would reach the log of its successor, whose rounds have the same names.
    const deleted = jobs.some((job) => isOtherLife(job, jobKeyOfRound(spooled.round)));
    spooled.withdrawn = deleted || (!wanted.has(spooled.round) && !spooled.commitSent);
  }
  endVainOverlap(draft, jobs);
  const { work } = state;
  if (work === undefined || work.kind === "discard") return;
  const unwanted = work.kind === "upload" ? draft.spooled(work.round)?.withdrawn : !wanted.has(work.round);
  if (unwanted === true) draft.abort();
}

/** Steps ahead have no next round where the update before it is taken back, the job is gone, or the device gets no more. */
function endVainOverlap(draft: Draft, jobs: readonly string[]): void {
  const { overlap, cordoned } = draft.state;
  if (overlap === undefined) return;
  const round = roundOf(overlap.task);
  const isOver = jobs.some((job) => isOtherLife(job, jobKeyOfRound(round)));
  if (cordoned || isOver || draft.spooled(round)?.withdrawn === true) draft.abortOverlap();
}

/** Begins steps ahead once an update is spooled, unless there is something to do that was asked for. */
function overlap(draft: Draft, { task }: Entry): void {
  const { lifecycle, cordoned, entries } = draft.state;
  const others = entries.some((entry) => entry.task !== task && entry.allowed !== false && !entry.final);
  if (lifecycle !== "running" || cordoned || others || overlapSteps(task) === 0) return;
  draft.beginOverlap(task);
}

/** Starts the next work if none is under way: outbox first, then the oldest assignment. */
function schedule(draft: Draft): void {
  const { state } = draft;
  if (state.lifecycle === "stopping" && state.work === undefined && state.overlap === undefined) {
    state.lifecycle = "stopped";
    draft.effects.push({ type: "exit", ...state.exit });
  }
  if (state.lifecycle !== "running" || state.work !== undefined) return;
  const withdrawn = state.spooled.find((spooled) => spooled.withdrawn && !spooled.waiting);
  if (withdrawn !== undefined) {
    draft.beginSpool("discard", withdrawn.round);
    return;
  }
  const first = state.spooled[0];
  if (first !== undefined) {
    if (first.waiting) return;
    setPhase(draft, first.round, "Uploading");
    draft.beginSpool("upload", first.round);
    return;
  }
  const next = state.entries.find((entry) => entry.allowed === true && !entry.final && !entry.waiting);
  if (next === undefined) return;
  setPhase(draft, roundOf(next.task), "Fetching");
  draft.begin("fetch", next.task);
}

function setPhase(draft: Draft, round: string, phase: string, reasons: readonly string[] = []): void {
  const entry = draft.entry(round);
  if (entry === undefined) return;
  entry.status = { ...entry.status, phase, reasons: [...reasons] };
}

function refuse(draft: Draft, entry: Entry, reasons: readonly string[]): void {
  entry.allowed = false;
  entry.final = true;
  entry.status = { ...entry.status, phase: "Refused", reasons: [...reasons] };
  draft.beat();
}

function retryLater(draft: Draft, round: string, failures: number, retry: Retry): void {
  const ms = retry === "later" ? LONGEST_RETRY_MS : backoffMs(failures, LONGEST_RETRY_MS);
  draft.effects.push({ type: "sleep", timer: "retry", round, ms });
}

function fail(
  draft: Draft,
  round: string,
  kind: string,
  event: { reason: string; message: string; retry: Retry },
): void {
  const reasons = [`${event.reason}: ${event.message}`];
  const entry = draft.entry(round);
  const spooled = draft.spooled(round);
  if ((kind === "upload" || kind === "discard") && spooled !== undefined) {
    if (event.retry === "never") {
      // The entry is unusable and set aside; unless its commit may be in the log, the round can be trained again.
      draft.state.spooled = draft.state.spooled.filter((other) => other !== spooled);
      if (draft.state.overlap !== undefined && roundOf(draft.state.overlap.task) === round) draft.abortOverlap();
      if (entry !== undefined && spooled.commitSent) finishFailed(draft, entry, reasons);
      return;
    }
    spooled.waiting = true;
    if (entry !== undefined) entry.status = { ...entry.status, reasons };
    retryLater(draft, round, spooled.failures++, event.retry);
    return;
  }
  if (entry === undefined) return;
  if (event.retry === "never") {
    finishFailed(draft, entry, reasons);
    return;
  }
  entry.waiting = true;
  retryLater(draft, round, entry.failures++, event.retry);
  entry.status = { ...entry.status, reasons };
  if (event.retry === "later") {
    entry.status = { ...entry.status, phase: "Failed" };
    draft.beat();
  }
}

function finishFailed(draft: Draft, entry: Entry, reasons: string[]): void {
  entry.final = true;
  entry.status = { ...entry.status, phase: "Failed", reasons };
  draft.beat();
}

function retryNow(draft: Draft, round: string): void {
  const entry = draft.entry(round);
  const spooled = draft.spooled(round);
  if (entry?.waiting === true) {
    entry.waiting = false;
    setPhase(draft, round, "Accepted");
  }
  if (spooled !== undefined) spooled.waiting = false;
}

type Ending = Extract<
  AgentEvent,
  { type: "fetched" | "read" | "refused" | "trained" | "committed" | "discarded" | "failed" | "aborted" }
>;

function spool(draft: Draft, round: string): void {
  const withdrawn = draft.entry(round) === undefined;
  draft.state.spooled.push({ round, commitSent: false, withdrawn, failures: 0, waiting: false });
}

function endWork(draft: Draft, event: Ending): void {
  const { state } = draft;
  const { work } = state;
  if (work?.id !== event.work) return;
  const { round } = work;
  const entry = draft.entry(round);
  state.work = undefined;
  // What is on disk is there, whether its round was withdrawn meanwhile or not.
  if (event.type === "trained") spool(draft, round);
  if (event.type === "committed" || event.type === "discarded") {
    state.spooled = state.spooled.filter((spooled) => spooled.round !== round);
  }
  if (event.type === "committed") state.committed = new Set([...state.committed, round]);
  if (event.type === "committed" && entry !== undefined) {
    entry.final = true;
    setPhase(draft, round, "Committed");
    draft.beat();
  }
  if (work.aborting) return;
  if (event.type === "failed") fail(draft, round, work.kind, event);
  if (entry === undefined) return;
  if (event.type === "refused") refuse(draft, entry, event.reasons);
  if (event.type === "fetched") draft.begin("read", entry.task);
  if (event.type === "read") {
    setPhase(draft, round, "Training");
    draft.begin("train", entry.task);
  }
  if (event.type === "trained") {
    entry.failures = 0;
    overlap(draft, entry);
  }
}

function onReply(draft: Draft, event: Extract<AgentEvent, { type: "heartbeatReplied" }>): void {
  const { heartbeat } = draft.state;
  heartbeat.inFlight = false;
  // The control plane is back: what could not be uploaded need not wait for its timer.
  if (heartbeat.failures > 0) for (const spooled of draft.state.spooled) spooled.waiting = false;
  heartbeat.failures = 0;
  draft.state.cordoned = event.cordoned;
  adoptTasks(draft, event.tasks);
  if (heartbeat.again) {
    heartbeat.again = false;
    draft.beat();
    return;
  }
  draft.effects.push({ type: "sleep", timer: "heartbeat", ms: event.nextHeartbeatMs });
}

function onHeartbeatFailed(draft: Draft): void {
  const { heartbeat } = draft.state;
  heartbeat.inFlight = false;
  heartbeat.again = false;
  const ms = backoffMs(heartbeat.failures++, LONGEST_HEARTBEAT_RETRY_MS);
  draft.effects.push({ type: "sleep", timer: "heartbeat", ms });
}

function onStarted(draft: Draft, event: Extract<AgentEvent, { type: "started" }>): void {
  draft.state.lifecycle = "running";
  draft.state.committed = new Set(event.committed);
  draft.state.spooled = event.spooled.map((spooled) => ({ ...spooled, withdrawn: false, failures: 0, waiting: false }));
  draft.beat();
}

function stop(draft: Draft, code: number, message: string): void {
  draft.state.lifecycle = "stopping";
  draft.state.exit = { code, message };
  draft.abort();
  draft.abortOverlap();
}

function onProgress(draft: Draft, event: Extract<AgentEvent, { type: "trainingProgress" }>): void {
  const { work } = draft.state;
  if (work?.id !== event.work) return;
  const entry = draft.entry(work.round);
  if (entry !== undefined) entry.status = { ...entry.status, step: event.step, loss: event.loss };
}

function onUpload(draft: Draft, event: Extract<AgentEvent, { type: "uploadProgress" | "commitSending" }>): void {
  const { work } = draft.state;
  if (work?.id !== event.work) return;
  const spooled = draft.spooled(work.round);
  if (spooled === undefined) return;
  if (event.type === "uploadProgress") spooled.failures = 0;
  // An aborted upload does not send: it looks at its signal after this event.
  else if (!work.aborting) spooled.commitSent = true;
}

function onGuarded(draft: Draft, event: Extract<AgentEvent, { type: "guarded" }>): void {
  const entry = draft.entry(event.round);
  if (entry === undefined || entry.allowed !== undefined) return;
  if (event.reasons.length > 0) refuse(draft, entry, event.reasons);
  else entry.allowed = true;
}

function apply(draft: Draft, event: Exclude<AgentEvent, { type: "stop" | "rejected" }>): void {
  switch (event.type) {
    case "started":
      onStarted(draft, event);
      break;
    case "heartbeatReplied":
      onReply(draft, event);
      break;
    case "heartbeatFailed":
      onHeartbeatFailed(draft);
      break;
    case "nudged":
      draft.beat();
      break;
    case "timer":
      if (event.timer === "heartbeat") draft.beat();
      else retryNow(draft, event.round);
      break;
    case "guarded":
      onGuarded(draft, event);
      break;
    case "trainingProgress":
      onProgress(draft, event);
      break;
    case "uploadProgress":
    case "commitSending":
      onUpload(draft, event);
      break;
    case "overlapped":
      if (draft.state.overlap?.id === event.work) draft.endOverlap();
      break;
    default:
      endWork(draft, event);
  }
}

/**
 * The agent's whole behaviour as a pure function: what it knows, one thing that happened -> what it knows then, and what
 * is to be done. Never changes its arguments.
 *
 * One work at a time: an aborted work is waited for before the next begins. A spooled update goes before any training;
 * assignments follow oldest first, each only after the guard allowed it; a committed round is never trained again. Beside a work
 * there may be steps ahead of a job's next round: never while another training runs, and no longer than they may be of use.
 */
export function step(state: AgentState, event: AgentEvent): { state: AgentState; effects: Effect[] } {
  const draft = new Draft(state);
  const { lifecycle } = state;
  if (lifecycle === "stopped") return { state, effects: [] };
  if (event.type === "stop") {
    if (lifecycle !== "stopping") stop(draft, 0, "stopped");
  } else if (event.type === "rejected") {
    if (lifecycle !== "stopping") stop(draft, EXIT_REJECTED, event.message);
  } else if (lifecycle !== "stopping") {
    apply(draft, event);
  } else if ("work" in event) {
    apply(draft, event);
  }
  schedule(draft);
  return { state: draft.state, effects: lifecycle === "stopping" ? onlyExit(draft.effects) : draft.effects };
}

const onlyExit = (effects: readonly Effect[]): Effect[] => effects.filter((effect) => effect.type === "exit");
