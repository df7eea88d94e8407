import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { messageOf } from "#common/adapters/coded-error.js";
import { track } from "../children.js";
import { CliError, EXIT } from "../exit.js";
import { afterExit, type ProcessRecord } from "./decision.js";
import { isReady, waitReady } from "./health.js";
import { endProcess, signalTo, startTimeOf } from "./process-table.js";
import type { Unit } from "./units.js";

/** What the supervisor tells while it works. */
export interface SupervisorEvents {
  /** A line for people. */
  say(line: string): void;
  /**
   * The processes that now live, in the order of the units; called before anything else happens. A throw, as of a full
   * disk, is told, and the call is made again until it succeeds.
   */
  processes(records: readonly ProcessRecord[]): void;
}

/** Longest wait for a unit to be ready at the first start. */
const READY_MS = 60_000;
/** How often a unit is asked whether it lives, and how often in a row it may leave that unanswered. */
const PATIENCE = { everyMs: 2_000, mostSilent: 5 };
/** Time a unit is given to drain before it is killed. */
const DRAIN_MS = 10_000;
/** Time after which the processes are noted again if it failed. */
const NOTE_AGAIN_MS = 2_000;

/** Lines of a log that are shown with a failure, since a demo's log goes with its folder. */
const SHOWN_LINES = 8;

function lastLines(log: string): string {
  return readFileSync(log, "utf8").trimEnd().split("\n").slice(-SHOWN_LINES).join("\n");
}

interface Running {
  readonly unit: Unit;
  child: ChildProcess | undefined;
  record: ProcessRecord | undefined;
  failures: number;
  startedAtMs: number;
}

/** Keeps units alive: starts them stage by stage, restarts those that die, ends them in reverse. */
export class Supervisor {
  readonly #stages: Running[][];
  readonly #stopping = new AbortController();
  #noteAgain: NodeJS.Timeout | undefined;

  constructor(
    stages: readonly (readonly Unit[])[],
    private readonly logsDir: string,
    private readonly events: SupervisorEvents,
    private readonly patience = PATIENCE,
  ) {
    const idle = { child: undefined, record: undefined, failures: 0, startedAtMs: 0 };
    this.#stages = stages.map((units) => units.map((unit) => ({ ...idle, unit })));
  }

  /**
   * Starts every stage once the one before it is ready.
   * @throws CliError if a unit does not become ready; those that were started still run until `stop`
   */
  async start(): Promise<void> {
    for (const stage of this.#stages) {
      if (this.#isStopping()) return;
      for (const running of stage) this.#spawn(running);
      await Promise.all(stage.map((running) => this.#ready(running)));
      for (const running of stage) void this.#watch(running);
    }
  }

  /** Kills a unit that answered and does not any more: it stands still, and asking it to end might be in vain. */
  async #watch(running: Running): Promise<void> {
    const { name, alive } = running.unit;
    if (alive === undefined) return;
    let watched: string | undefined;
    let silent = 0;
    while (await this.#pause(this.patience.everyMs)) {
      const { record } = running;
      const answers = await isReady(alive);
      if (record === undefined || record !== running.record) continue;
      if (answers) {
        watched = record.startTime;
        silent = 0;
      } else if (watched === record.startTime && ++silent >= this.patience.mostSilent) {
        silent = 0;
        this.events.say(`${name} stands still; killing it`);
        signalTo(record, "SIGKILL");
      }
    }
  }

  /** Waits; false if stopping began. */
  async #pause(ms: number): Promise<boolean> {
    return sleep(ms, true, { signal: this.#stopping.signal }).catch(() => false);
  }

  async #ready({ unit }: Running): Promise<void> {
    if (await waitReady(unit.health, READY_MS, this.#stopping.signal)) return;
    if (this.#isStopping()) return;
    const log = join(this.logsDir, `${unit.name}.log`);
    const message = `${unit.name} did not become ready in ${READY_MS / 1000} s: see ${log}, which ends with`;
    throw new CliError(`${message}\n${lastLines(log)}`, EXIT.unavailable);
  }

  /** Makes `start` return early, so that `stop` can follow. */
  interrupt(): void {
    this.#stopping.abort();
  }

  /** Pids by unit name. */
  pids(): Record<string, number> {
    return Object.fromEntries(this.#records().map(({ name, pid }) => [name, pid]));
  }

  /** Ends the stages in reverse order, each when the one after it has drained. */
  async stop(): Promise<void> {
    this.interrupt();
    for (const stage of [...this.#stages].reverse()) await Promise.all(stage.map((running) => this.#end(running)));
    clearTimeout(this.#noteAgain);
  }

  async #end(running: Running): Promise<void> {
    if (running.record === undefined) return;
    await endProcess(running.record, DRAIN_MS);
    running.record = undefined;
    this.#note();
  }

  #isStopping(): boolean {
    return this.#stopping.signal.aborted;
  }

  #records(): ProcessRecord[] {
    return this.#stages.flat().flatMap(({ record }) => (record === undefined ? [] : [record]));
  }

  /** Notes the processes. What is supervised goes on when it cannot be written down, and it is said once. */
  #note(): void {
    const failedBefore = this.#noteAgain !== undefined;
    clearTimeout(this.#noteAgain);
    this.#noteAgain = undefined;
    try {
      this.events.processes(this.#records());
      if (failedBefore) this.events.say("the processes are noted again");
    } catch (error) {
      if (!failedBefore) {
        const why = `the processes cannot be noted (${messageOf(error)}): free space on the disk`;
        this.events.say(`${why}; everything goes on, but a new "up" would not find what a killed one leaves`);
      }
      this.#noteAgain = setTimeout(() => this.#note(), NOTE_AGAIN_MS);
    }
  }

  /** Where a unit's output goes; nowhere if its log cannot be opened: a full disk must not keep it from running. */
  #openLog(unit: Unit): number | undefined {
    try {
      return openSync(join(this.logsDir, `${unit.name}.log`), "a");
    } catch (error) {
      this.events.say(`${unit.name} runs without a log (${messageOf(error)})`);
      return undefined;
    }
  }

  #spawn(running: Running): void {
    const { unit } = running;
    const log = this.#openLog(unit);
    const output = log ?? "ignore";
    // Its own process group: Ctrl-C in the terminal reaches `up` alone, which then drains in order.
    const child = spawn(unit.command, [...unit.args], {
      env: { ...process.env, ...unit.env },
      stdio: ["ignore", output, output],
      detached: true,
    });
    if (log !== undefined) closeSync(log);
    track(child);
    running.child = child;
    running.startedAtMs = Date.now();
    const startTime = child.pid === undefined ? undefined : startTimeOf(child.pid);
    running.record =
      child.pid === undefined || startTime === undefined ? undefined : { name: unit.name, pid: child.pid, startTime };
    this.#note();
    child.once("error", (error) => this.events.say(`${unit.name} cannot be started: ${error.message}`));
    child.once("close", (code, signal) => void this.#restart(running, code, signal));
  }

  async #restart(running: Running, code: number | null, signal: NodeJS.Signals | null): Promise<void> {
    if (this.#isStopping()) return;
    running.record = undefined;
    const { failures, delayMs } = afterExit(running.failures, Date.now() - running.startedAtMs);
    running.failures = failures;
    const how = signal === null ? `with code ${code ?? "?"}` : `by ${signal}`;
    this.events.say(`${running.unit.name} ended ${how}; starting it again in ${delayMs} ms`);
    if (await this.#pause(delayMs)) this.#spawn(running);
  }
}
