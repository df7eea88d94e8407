import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { NatsLink } from "#common/adapters/nats/connection.js";
import { credsPaths } from "#common/adapters/nats/keys.js";
import { STREAMS } from "#common/adapters/nats/streams.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { SystemClock } from "#common/adapters/memory/clock.js";

const WATCHED = [STREAMS.updates, STREAMS.resources, STREAMS.blobs];

interface Jsz {
  data?: {
    meta_cluster?: { leader?: string; cluster_size?: number; replicas?: { offline?: boolean; current?: boolean }[] };
  };
}

/** What a run knows of its NATS cluster: who leads, and whether every copy is up to date. */
export class Cluster {
  private constructor(
    private readonly service: NatsLink,
    private readonly system: NatsLink,
  ) {}

  static async connect(dir: string, natsUrls: string): Promise<Cluster> {
    const link = (creds: string): Promise<NatsLink> =>
      NatsLink.connect({
        servers: natsUrls.split(","),
        creds: readFileSync(creds, "utf8"),
        name: "chaos",
        log: new MemoryLog(),
        clock: new SystemClock(),
      });
    const paths = credsPaths(join(dir, "keys"));
    return new Cluster(await link(paths.service), await link(paths.system));
  }

  async #metaLeader(): Promise<string | undefined> {
    const reply = await this.system.nc.request("$SYS.REQ.SERVER.PING.JSZ", "", { timeout: 2000 });
    return reply.json<Jsz>().data?.meta_cluster?.leader;
  }

  /** Name of the server that leads one of the streams or the cluster itself, by index; undefined if nobody does now. */
  async leader(index: number): Promise<string | undefined> {
    try {
      const stream = WATCHED[index % (WATCHED.length + 1)];
      if (stream === undefined) return await this.#metaLeader();
      return (await (await this.service.manager()).streams.info(stream)).cluster?.leader;
    } catch {
      return undefined;
    }
  }

  /** Whether every stream has a leader and all copies are current. */
  async #isWhole(): Promise<boolean> {
    const { streams } = await this.service.manager();
    for (const stream of WATCHED) {
      const { cluster } = await streams.info(stream);
      const replicas = cluster?.replicas ?? [];
      if (cluster?.leader === undefined || replicas.length === 0) return false;
      if (replicas.some((replica) => !replica.current || replica.offline)) return false;
    }
    return (await this.#metaLeader()) !== undefined;
  }

  /** Waits until the loss of one server leaves a majority; false if that takes too long. */
  async whole(withinMs: number): Promise<boolean> {
    const until = Date.now() + withinMs;
    while (Date.now() < until) {
      if (await this.#isWhole().catch(() => false)) return true;
      await sleep(200);
    }
    return false;
  }

  async close(): Promise<void> {
    await Promise.all([this.service.nc.close(), this.system.nc.close()]);
  }
}
