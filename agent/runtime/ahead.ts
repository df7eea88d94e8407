import { messageOf } from "#common/adapters/coded-error.js";
import type { Log } from "#common/ports/log.js";
import type { Assignment, RoundTask } from "#proto/shoal/v1/round.js";
import { jobKey } from "../round-key.js";
import { runOverlap, type OverlapTools, type RoundEnd } from "../train/overlap.js";
import type { StepsAhead } from "../train/starting-point.js";

/**
 * Steps ahead of a job's next round, and from what they begin. In memory alone: a device that dies goes on from what its last
 * round left on the disk, as if there had been none.
 */
export class Ahead {
  #end: RoundEnd | undefined;
  #taken: { job: string; steps: StepsAhead } | undefined;

  /** A round's update is spooled: steps may begin from here, and those that were part of it are spent. */
  spooled(end: RoundEnd | undefined): void {
    this.#taken = undefined;
    this.#end = end;
  }

  /** Nobody wants steps from where the last round ended. */
  forgetEnd(): void {
    this.#end = undefined;
  }

  /** Takes the steps. Never throws: what fails here, the round that follows does without. */
  async run(tools: OverlapTools, log: Log): Promise<void> {
    const end = this.#end;
    this.#end = undefined;
    if (end === undefined) return;
    try {
      const steps = await runOverlap(end, tools);
      if (steps === undefined) return;
      this.#taken = { job: jobKey(end.task), steps };
      log.info("worked ahead of the next round", { job: end.task.job, steps: steps.count });
    } catch (error) {
      log.error("steps ahead of the next round failed", { job: end.task.job, detail: messageOf(error) });
    }
  }

  /** A round that began with the steps came to nothing: they are not tried again. */
  forgetSteps(): void {
    this.#taken = undefined;
  }

  /** What a round may begin with; an evaluation leaves it as it is. Work for another job needs the memory that it lies in. */
  for(task: RoundTask, { localSteps }: Assignment): StepsAhead | undefined {
    if (this.#taken?.job !== jobKey(task)) this.forgetSteps();
    return localSteps > 0 ? this.#taken?.steps : undefined;
  }
}
