import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { credsAuthenticator, type NatsConnection } from "nats";
import { connect } from "#common/adapters/nats/transport.js";

/** What nats-server has counted for a device's connection: bytes of messages since it was opened. */
interface Counted {
  /** Received from the device. */
  up: number;
  /** Sent to it. */
  down: number;
}

interface Sample extends Counted {
  atMs: number;
}

interface Connections {
  data?: { connections?: { name?: string; in_bytes: number; out_bytes: number }[] };
}

const SAMPLE_MS = 50;

/** Reads nats-server's own counters of the devices' connections, again and again. */
export class WireMeter {
  readonly #devices = new Map<string, Sample[]>();
  #stopped = false;
  #sampling: Promise<void> | undefined;

  private constructor(private readonly system: NatsConnection) {}

  /** @param credsFile of the system account's user */
  static async open(natsUrl: string, credsFile: string): Promise<WireMeter> {
    const authenticator = credsAuthenticator(readFileSync(credsFile));
    const meter = new WireMeter(await connect({ servers: natsUrl, authenticator }));
    meter.#sampling = meter.#run();
    return meter;
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      await this.#sample();
      await sleep(SAMPLE_MS);
    }
  }

  async #sample(): Promise<void> {
    const options = JSON.stringify({ limit: 1024 });
    const reply = await this.system.request("$SYS.REQ.SERVER.PING.CONNZ", options, { timeout: 20_000 });
    const atMs = performance.now();
    for (const { name = "", in_bytes: up, out_bytes: down } of reply.json<Connections>().data?.connections ?? []) {
      if (!name.startsWith("device-")) continue;
      const samples = this.#devices.get(name) ?? [];
      const last = samples.at(-1);
      if (last !== undefined && (up < last.up || down < last.down)) {
        throw new Error(`${name} has another connection: its bytes cannot be told from those of the last one`);
      }
      samples.push({ atMs, up, down });
      this.#devices.set(name, samples);
    }
  }

  /** Bytes of all devices together in a span of time. */
  total(fromMs: number, untilMs: number): Counted {
    const sum = { up: 0, down: 0 };
    for (const samples of this.#devices.values()) {
      const [first, last] = [at(samples, fromMs), at(samples, untilMs)];
      sum.up += last.up - first.up;
      sum.down += last.down - first.down;
    }
    return sum;
  }

  /** Most bytes that passed on any one device's link within any window of the given length, both ways together and each. */
  worstWindow(fromMs: number, untilMs: number, windowMs: number): Counted & { both: number } {
    const worst = { up: 0, down: 0, both: 0 };
    for (const samples of this.#devices.values()) {
      const inside = samples.filter(({ atMs }) => atMs >= fromMs && atMs <= untilMs);
      let first = 0;
      for (const last of inside) {
        while (last.atMs - (inside[first]?.atMs ?? last.atMs) > windowMs) first++;
        const start = inside[first] ?? last;
        worst.up = Math.max(worst.up, last.up - start.up);
        worst.down = Math.max(worst.down, last.down - start.down);
        worst.both = Math.max(worst.both, last.up - start.up + last.down - start.down);
      }
    }
    return worst;
  }

  async close(): Promise<void> {
    this.#stopped = true;
    await this.#sampling;
    await this.system.close();
  }
}

/** The last sample until a time, or the first one of all. */
function at(samples: readonly Sample[], atMs: number): Counted {
  return samples.findLast((sample) => sample.atMs <= atMs) ?? samples[0] ?? { up: 0, down: 0 };
}
