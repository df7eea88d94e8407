import { setTimeout as sleep } from "node:timers/promises";
import { messageOf } from "#common/adapters/coded-error.js";
import type { Fleet } from "../fleet/fleet.js";
import type { Entry } from "./books.js";
import type { Fault } from "./faults.js";
import { resourceOf, strikeOnce, type Field, type Struck } from "./strikes.js";

/** Faults that last at the same time. */
const AT_ONCE = 4;
const WATCH_MS = 1000;

/** Strikes one fault after another, several lasting at the same time, while jobs run one after another. */
export class Run {
  readonly entries: Entry[] = [];
  readonly jobs: string[] = [];
  /** Agents that ended without being told to, with their exit codes. */
  readonly unasked: string[] = [];
  readonly #lasting = new Map<Promise<void>, string>();
  #completed = 0;
  readonly #done = new AbortController();

  /** @param manifest of the job of this number, counted from one */
  constructor(
    private readonly field: Field,
    private readonly manifest: (name: string, number: number) => string,
  ) {}

  get #fleet(): Fleet {
    return this.field.fleet;
  }

  /** Name of the round under way, as far as the control plane told. */
  get #round(): string {
    return `${this.jobs.at(-1) ?? "none"}-${this.#completed + 1}`;
  }

  /** Strikes all faults; `untilMs` ends it early. */
  async strikeAll(faults: readonly Fault[], untilMs: number): Promise<void> {
    await this.#nextJob();
    const watching = Promise.all([this.#restartUnasked(), this.#followJobs()]);
    for (const [i, fault] of faults.entries()) {
      await sleep(fault.pauseMs);
      if (Date.now() > untilMs) break;
      await this.#strike(fault, `${i + 1}/${faults.length}`);
    }
    await this.#healAll();
    this.#done.abort();
    await watching;
  }

  /** Waits for every job; names of those that did not complete. */
  async finish(withinMs: number): Promise<string[]> {
    const failed: string[] = [];
    for (const name of this.jobs) {
      const job = await this.#fleet.waitForJob(name, withinMs);
      if (job.status?.phase !== "Completed") failed.push(`${name} ended ${job.status?.phase ?? "unknown"}`);
    }
    return failed;
  }

  async #strike(fault: Fault, progress: string): Promise<void> {
    const resource = resourceOf(fault, this.#fleet.devices.size);
    if (resource === "everything") await this.#healAll();
    // Two of one kind on one target wait for each other.
    for (const [lasting, held] of this.#lasting) if (held === resource) await lasting;
    while (this.#lasting.size >= AT_ONCE) await Promise.race(this.#lasting.keys());
    const round = this.#round;
    const struck = await strikeOnce(this.field, fault).catch((error: unknown) => {
      console.error(`${fault.kind} cannot be done: ${messageOf(error)}`);
      return undefined;
    });
    if (struck === undefined) {
      process.stdout.write(`${progress} ${fault.kind}: nothing to strike at\n`);
      return;
    }
    const { heal } = struck;
    const holds = heal === undefined ? "" : ` for ${fault.holdMs} ms`;
    process.stdout.write(`${progress} ${fault.kind}: ${struck.target}${holds}, ${round}\n`);
    const lasting = this.#last(fault, struck, round);
    const ended = lasting.then(() => void this.#lasting.delete(ended));
    if (heal !== undefined) this.#lasting.set(ended, resource ?? "");
  }

  async #last(fault: Fault, { heal }: Struck, round: string): Promise<void> {
    let healed = true;
    if (heal !== undefined) {
      await sleep(fault.holdMs);
      try {
        await heal();
      } catch (error) {
        healed = false;
        console.error(`${fault.kind} does not heal: ${String(error)}`);
      }
    }
    this.entries.push({ kind: fault.kind, rounds: [...new Set([round, this.#round])], healed });
  }

  async #healAll(): Promise<void> {
    await Promise.all(this.#lasting.keys());
  }

  /** Beside the faults, since an answer may take long while one lasts. */
  async #followJobs(): Promise<void> {
    while (!this.#done.signal.aborted) {
      await this.#look();
      await sleep(WATCH_MS);
    }
  }

  async #look(): Promise<void> {
    const last = this.jobs.at(-1) ?? "";
    const job = await this.#fleet.job(last).catch(() => undefined);
    if (job?.status === undefined) return;
    this.#completed = job.status.completedRounds;
    if (["Completed", "Failed", "Cancelled"].includes(job.status.phase)) await this.#nextJob();
  }

  /** Applying the same manifest twice is applying it once. */
  async #nextJob(): Promise<void> {
    const number = this.jobs.length + 1;
    const name = `chaos-${number}`;
    for (let attempt = 1; !this.#done.signal.aborted; attempt++) {
      try {
        await this.#fleet.apply(this.manifest(name, number));
        this.jobs.push(name);
        this.#completed = 0;
        return;
      } catch (error) {
        if (attempt === 60) throw error;
        await sleep(500);
      }
    }
  }

  /** A service manager starts an agent again; that it ended by itself is in the report. */
  async #restartUnasked(): Promise<void> {
    while (!this.#done.signal.aborted) {
      for (const [name, { process: agent }] of this.#fleet.devices) {
        if (agent.exitCode === null) continue;
        this.unasked.push(`${name} with code ${agent.exitCode} in ${this.#round}`);
        console.error(`unasked: ${this.unasked.at(-1) ?? ""}`);
        this.#fleet.restartDevice(name);
      }
      await sleep(WATCH_MS);
    }
  }
}
