import type { AssignmentStatus } from "#proto/shoal/v1/device.js";
import type { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import { roundKey } from "./round-key.js";

// A `round` in state, events and effects is the key of a round (round-key.ts); only heartbeats carry its bare name.

/**
 * The one piece of work under way; beside it there may be an `Overlap`. Every work ends with exactly one of: its result,
 * "refused", "failed", "aborted".
 */
export interface Work {
  /** Tells results of this work from late ones of earlier work. */
  readonly id: number;
  readonly kind: "fetch" | "read" | "train" | "upload" | "discard";
  readonly round: string;
  /** Its end is awaited and its result ignored. */
  aborting: boolean;
  /** How it begins, while it waits for the end of steps ahead. */
  held: Effect | undefined;
}

/** Steps of a job's next round, taken from what this one left while its update travels. */
export interface Overlap {
  readonly id: number;
  /** The assignment whose update travels. */
  readonly task: AssignedTask;
  /** Its end is awaited and what it came to dropped. */
  aborting: boolean;
}

/** An assignment of the last heartbeat reply. */
export interface Entry {
  task: AssignedTask;
  status: AssignmentStatus;
  /** The guard's answer; undefined while it is asked. */
  allowed: boolean | undefined;
  /** Nothing more will be tried. */
  final: boolean;
  /** Failures in a row. */
  failures: number;
  /** A retry timer runs. */
  waiting: boolean;
}

/** An update in the outbox. */
export interface Spooled {
  readonly round: string;
  /** The commit may have reached the log, so the update is not taken back any more. */
  commitSent: boolean;
  /** The round does not want it any more. */
  withdrawn: boolean;
  failures: number;
  waiting: boolean;
}

export interface AgentState {
  lifecycle: "starting" | "running" | "stopping" | "stopped";
  /** In the order of the last heartbeat reply, oldest first. */
  entries: Entry[];
  /** Oldest first. */
  spooled: Spooled[];
  /** Rounds with a durable committed marker. */
  committed: ReadonlySet<string>;
  work: Work | undefined;
  overlap: Overlap | undefined;
  /** As the control plane said last: there will be no new assignments. */
  cordoned: boolean;
  nextWorkId: number;
  heartbeat: { inFlight: boolean; again: boolean; failures: number };
  exit: { code: number; message: string };
}

/** "soon": a passing trouble, the phase stays; "later": reported as failed, tried again; "never": reported, final. */
export type Retry = "soon" | "later" | "never";

export type AgentEvent =
  | { type: "started"; committed: readonly string[]; spooled: readonly { round: string; commitSent: boolean }[] }
  | { type: "heartbeatReplied"; tasks: readonly AssignedTask[]; nextHeartbeatMs: number; cordoned: boolean }
  | { type: "heartbeatFailed" }
  | { type: "rejected"; message: string }
  | { type: "nudged" }
  | { type: "timer"; timer: "heartbeat" }
  | { type: "timer"; timer: "retry"; round: string }
  | { type: "guarded"; round: string; reasons: readonly string[] }
  | { type: "fetched"; work: number }
  | { type: "read"; work: number }
  | { type: "refused"; work: number; reasons: readonly string[] }
  | { type: "trainingProgress"; work: number; step: number; loss: number }
  | { type: "trained"; work: number }
  | { type: "uploadProgress"; work: number }
  | { type: "commitSending"; work: number }
  | { type: "committed"; work: number }
  | { type: "discarded"; work: number }
  | { type: "failed"; work: number; reason: string; message: string; retry: Retry }
  | { type: "aborted"; work: number }
  | { type: "overlapped"; work: number }
  | { type: "stop" };

export type Effect =
  | { type: "heartbeat" }
  | { type: "sleep"; timer: "heartbeat"; ms: number }
  | { type: "sleep"; timer: "retry"; round: string; ms: number }
  | { type: "guard"; task: AssignedTask }
  | { type: "fetch"; work: number; task: AssignedTask }
  | { type: "read"; work: number; task: AssignedTask }
  | { type: "train"; work: number; task: AssignedTask }
  | { type: "overlap"; work: number; task: AssignedTask }
  | { type: "upload"; work: number; round: string }
  | { type: "discard"; work: number; round: string }
  | { type: "abort"; work: number }
  | { type: "exit"; code: number; message: string };

export const initialState: AgentState = {
  lifecycle: "starting",
  entries: [],
  spooled: [],
  committed: new Set(),
  work: undefined,
  overlap: undefined,
  cordoned: false,
  nextWorkId: 1,
  heartbeat: { inFlight: false, again: false, failures: 0 },
  exit: { code: 0, message: "" },
};

/** Key of the round of a task. */
export function roundOf(task: AssignedTask): string {
  return task.task === undefined ? "" : roundKey(task.task);
}

/** What a heartbeat says of the assignments. */
export function assignmentStatuses(state: AgentState): AssignmentStatus[] {
  return state.entries.filter((entry) => entry.allowed !== undefined).map((entry) => entry.status);
}
