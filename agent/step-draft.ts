import type { AssignedTask } from "#proto/shoal/v1/device_wire.js";
import { goTogether } from "./overlap.js";
import { roundOf, type AgentState, type Effect, type Entry, type Spooled } from "./state.js";

/** A private copy of the state that one step changes, and what it wants done. */
export class Draft {
  readonly state: AgentState;
  readonly effects: Effect[] = [];

  constructor(state: AgentState) {
    this.state = {
      ...state,
      entries: state.entries.map((entry) => ({ ...entry, status: { ...entry.status } })),
      spooled: state.spooled.map((spooled) => ({ ...spooled })),
      work: state.work === undefined ? undefined : { ...state.work },
      overlap: state.overlap === undefined ? undefined : { ...state.overlap },
      heartbeat: { ...state.heartbeat },
      exit: { ...state.exit },
    };
  }

  entry(round: string): Entry | undefined {
    return this.state.entries.find((entry) => roundOf(entry.task) === round);
  }

  spooled(round: string): Spooled | undefined {
    return this.state.spooled.find((spooled) => spooled.round === round);
  }

  /** Beats now, or once more after the one under way, whose request is older than what there is to say. */
  beat(): void {
    if (this.state.heartbeat.inFlight) {
      this.state.heartbeat.again = true;
      return;
    }
    this.state.heartbeat.inFlight = true;
    this.effects.push({ type: "heartbeat" });
  }

  abort(): void {
    const { work } = this.state;
    if (work === undefined || work.aborting) return;
    if (work.held !== undefined) {
      // It has not begun.
      this.state.work = undefined;
      return;
    }
    work.aborting = true;
    this.effects.push({ type: "abort", work: work.id });
  }

  /** Beside a work of the same job steps ahead go on, but for training, which begins from them; any other has them end. */
  begin(kind: "fetch" | "read" | "train", task: AssignedTask): void {
    const { overlap } = this.state;
    const id = this.state.nextWorkId++;
    const begins: Effect = { type: kind, work: id, task };
    const together = overlap === undefined || goTogether(overlap.task, task);
    if (!together) this.abortOverlap();
    const isHeld = overlap !== undefined && (kind === "train" || !together);
    this.state.work = { id, kind, round: roundOf(task), aborting: false, held: isHeld ? begins : undefined };
    if (!isHeld) this.effects.push(begins);
  }

  beginSpool(kind: "upload" | "discard", round: string): void {
    const id = this.state.nextWorkId++;
    this.state.work = { id, kind, round, aborting: false, held: undefined };
    this.effects.push({ type: kind, work: id, round });
  }

  /** Steps of the next round of the task's job, beside all that follows. */
  beginOverlap(task: AssignedTask): void {
    const id = this.state.nextWorkId++;
    this.state.overlap = { id, task, aborting: false };
    this.effects.push({ type: "overlap", work: id, task });
  }

  abortOverlap(): void {
    const { overlap } = this.state;
    if (overlap === undefined || overlap.aborting) return;
    overlap.aborting = true;
    this.effects.push({ type: "abort", work: overlap.id });
  }

  /** What waited for the steps ahead begins. */
  endOverlap(): void {
    const { work } = this.state;
    this.state.overlap = undefined;
    if (work?.held === undefined) return;
    this.effects.push(work.held);
    work.held = undefined;
  }
}
