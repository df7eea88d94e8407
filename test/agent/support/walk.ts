import {
  assignmentStatuses,
  initialState,
  roundOf,
  type AgentEvent,
  type AgentState,
  type Effect,
} from "#agent/state.js";
import { step } from "#agent/step.js";
import { makeTask } from "./tasks.js";

/** Feeds events and keeps the effects of the last one. */
export class Walk {
  state: AgentState = initialState;
  effects: Effect[] = [];

  do(event: AgentEvent): this {
    const next = step(this.state, event);
    this.state = next.state;
    this.effects = next.effects;
    return this;
  }

  /** Effects as "type round". */
  get names(): string[] {
    return this.effects.map((effect) =>
      "task" in effect
        ? `${effect.type} ${roundOf(effect.task)}`
        : "round" in effect
          ? `${effect.type} ${effect.round}`
          : effect.type,
    );
  }

  get work(): number {
    return this.state.work?.id ?? -1;
  }

  /** The plane lists assignments whose jobs overlap two steps. */
  replyAhead(...rounds: string[]): this {
    const tasks = rounds.map((round) => makeTask(round, { overlapSteps: 2 }));
    return this.do({ type: "heartbeatReplied", tasks, nextHeartbeatMs: 500, cordoned: false });
  }

  reply(...rounds: string[]): this {
    return this.do({
      type: "heartbeatReplied",
      tasks: rounds.map((round) => makeTask(round)),
      nextHeartbeatMs: 500,
      cordoned: false,
    });
  }

  phases(): string[] {
    return assignmentStatuses(this.state).map(({ round, phase }) => `${round} ${phase}`);
  }
}

/** After the start of an agent that finds these rounds on its disk. */
export const started = (committed: string[] = [], spooled: { round: string; commitSent: boolean }[] = []): Walk =>
  new Walk().do({ type: "started", committed, spooled });
