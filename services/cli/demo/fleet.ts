import { spawn, type ChildProcess } from "node:child_process";
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { Clients } from "../calls.js";
import { track } from "../children.js";
import { CliError, EXIT } from "../exit.js";
import { listDevices } from "../lists.js";
import { DEMO, speedOf } from "./settings.js";
import type { DemoShard } from "./shards.js";

const CLI = fileURLToPath(new URL("../main.js", import.meta.url));
const READY_MS = 60_000;
const LOOK_MS = 200;
const GRACE_MS = 5_000;

/** A device of the demo with its folder of texts. */
export interface DemoDevice {
  readonly name: string;
  readonly speed: { readonly name: string; readonly throttle: number };
  readonly dataDir: string;
}

/** Writes every shard to a folder of its own, one file an address. */
export function writeShards(shards: readonly DemoShard[], root: string): DemoDevice[] {
  return shards.map((shard, i) => {
    const dataDir = join(root, shard.device, "data");
    mkdirSync(dataDir, { recursive: true });
    for (const [n, text] of shard.texts.entries()) {
      writeFileSync(join(dataDir, `${String(n).padStart(3, "0")}.txt`), text);
    }
    return { name: shard.device, speed: speedOf(i), dataDir };
  });
}

/** The demo's agents, each a process. */
export class Fleet {
  readonly #children: { name: string; child: ChildProcess }[] = [];

  constructor(
    private readonly devices: readonly DemoDevice[],
    private readonly root: string,
  ) {}

  /**
   * Starts the agents, each when the one before it beats and has said what text it has: a device that measures its speed
   * beside seven others that do finds out which of them the processor favours.
   * @throws CliError if an agent ends or one does not come in time
   */
  async start(token: string, clients: Clients, signal: AbortSignal): Promise<void> {
    for (const [before, device] of this.devices.entries()) {
      this.#spawn(device, token);
      await this.#ready(before + 1, clients, signal);
    }
  }

  // The join token goes in by standard input, where no process list shows it.
  #spawn({ name, speed, dataDir }: DemoDevice, token: string): void {
    const place = join(this.root, name);
    const log = openSync(join(place, "agent.log"), "a");
    const options = {
      "--join": "-",
      "--name": name,
      "--dataset": `${DEMO.dataset}=${dataDir}`,
      "--state-dir": join(place, "state"),
      "--threads": "1",
      "--throttle": String(speed.throttle),
      "--label": `speed=${speed.name}`,
    };
    const child = spawn(process.execPath, [CLI, "agent", ...Object.entries(options).flat()], {
      stdio: ["pipe", log, log],
      detached: true,
    });
    closeSync(log);
    track(child);
    child.stdin?.on("error", () => undefined);
    child.stdin?.end(`${token}\n`);
    this.#children.push({ name, child });
  }

  /** Agents that ended although nobody asked them to. */
  ended(): string[] {
    return this.#children
      .filter(({ child }) => child.exitCode !== null || child.signalCode !== null)
      .map(({ name }) => name);
  }

  async #ready(count: number, clients: Clients, signal: AbortSignal): Promise<void> {
    const endMs = Date.now() + READY_MS;
    while (!signal.aborted) {
      const here = (await listDevices(clients)).filter(
        ({ device, alive }) => alive && hasText(device?.status?.datasets),
      );
      if (here.length >= count) return;
      const [ended] = this.ended();
      if (ended !== undefined) {
        const words = readFileSync(join(this.root, ended, "agent.log"), "utf8")
          .trim()
          .split("\n")
          .slice(-5);
        throw new CliError(`the agent ${ended} ended; its last words:\n${words.join("\n")}`);
      }
      if (Date.now() > endMs) {
        throw new CliError(`${here.length} of ${count} devices came in ${READY_MS / 1000} s`, EXIT.temporary);
      }
      await sleep(LOOK_MS);
    }
    throw new CliError("interrupted");
  }

  /** Ends all agents and waits for them. */
  async stop(): Promise<void> {
    const running = this.#children.filter(({ child }) => child.exitCode === null && child.signalCode === null);
    const gone = Promise.all(running.map(({ child }) => new Promise((resolve) => child.once("close", resolve))));
    for (const { child } of running) child.kill("SIGTERM");
    const timer = new AbortController();
    const forced = sleep(GRACE_MS, undefined, { signal: timer.signal }).then(
      () => running.forEach(({ child }) => child.kill("SIGKILL")),
      () => undefined,
    );
    await gone;
    timer.abort();
    await forced;
  }
}

function hasText(datasets: readonly { tokens: number; problem: string }[] | undefined): boolean {
  return datasets?.some(({ tokens, problem }) => tokens > 0 && problem === "") ?? false;
}
