import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { accountOf, createSiteTrustRoot, type TrustRoot } from "#common/adapters/nats/credentials.js";
import { NatsBus } from "#common/adapters/nats/bus.js";
import { NatsLink } from "#common/adapters/nats/connection.js";
import { natsServerConfig } from "#common/adapters/nats/server-config.js";
import { ensureSiteLog } from "#common/adapters/nats/streams.js";
import { NatsUpdateLog } from "#common/adapters/nats/update-log.js";
import { messageOf } from "#common/adapters/coded-error.js";
import type { Bus } from "#common/ports/bus.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { CollectableLog } from "#common/ports/update-log.js";
import { writeAtomically, type Disk } from "../disk.js";
import { startTime } from "../runtime/claim.js";

export interface SiteServerOptions {
  /** Path of the nats-server program. */
  readonly program: string;
  /** Where members connect. */
  readonly host: string;
  readonly port: number;
  /** The gateway's own JWT, which names the fleet's account of devices. */
  readonly jwt: string;
  /** Most bytes of the site's log; what it has already if absent. */
  readonly logBytes?: number | undefined;
  /** Folder of its own. */
  readonly folder: string;
  readonly disk: Disk;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** The NATS server of a site, as its gateway uses it. */
export interface SiteServer {
  /** What members ask. */
  readonly bus: Bus;
  /** What members sent. */
  readonly updates: CollectableLog;
  close(): Promise<void>;
}

const TRUST = "trust.json";
const CONFIG = "nats.conf";
const PID = "nats.pid";
const RESTART_MS = 1_000;
const STOP_MS = 5_000;
/** How often the log is asked whether it works, and after how many failures in a row the server is started anew. */
const CHECK_MS = 2_000;
const MOST_FAILURES = 3;
/** What nobody purged, because its round was forgotten, goes after this. */
const LOG_AGE_MS = 14 * 86_400_000;

const encode = (text: string): Uint8Array[] => [new TextEncoder().encode(text)];

/** The keys of the site's server. A fleet that was set up anew has another account, and then the site starts anew too. */
async function trustRoot({ disk, folder, jwt }: SiteServerOptions): Promise<TrustRoot> {
  const account = accountOf(jwt);
  const bytes = await disk.read(`${folder}/${TRUST}`);
  const known = bytes && (JSON.parse(new TextDecoder().decode(bytes)) as TrustRoot);
  if (known?.deviceAccount === account) return known;
  const root = await createSiteTrustRoot(account);
  await writeAtomically(disk, folder, TRUST, encode(JSON.stringify(root)), 0o600);
  return root;
}

/** Ends the server that a killed gateway left running: two of them cannot share a log. */
async function stopOrphan({ disk, folder, clock, log }: SiteServerOptions): Promise<void> {
  const [pid, started] = new TextDecoder()
    .decode(await disk.read(`${folder}/${PID}`))
    .trim()
    .split(" ");
  const isIt = async (): Promise<boolean> => started !== undefined && (await startTime(Number(pid))) === started;
  if (!(await isIt())) return;
  log.info("ending the site's server that an earlier gateway left", { pid });
  process.kill(Number(pid), "SIGTERM");
  const untilMs = clock.monotonicMs() + STOP_MS;
  while ((await isIt()) && clock.monotonicMs() < untilMs) await clock.sleep(20);
  if (await isIt()) process.kill(Number(pid), "SIGKILL");
}

/** Keeps the server running until it is told to stop. */
class Keeper {
  #child: ChildProcess | undefined;
  #stopping = false;
  #lastWords = "";

  constructor(private readonly options: SiteServerOptions) {}

  async start(): Promise<void> {
    const { program, folder, clock, log } = this.options;
    const child = spawn(program, ["-c", `${folder}/${CONFIG}`], { stdio: ["ignore", "ignore", "pipe"] });
    this.#child = child;
    child.stderr.on("data", (data: Buffer) => (this.#lastWords = (this.#lastWords + data.toString()).slice(-500)));
    child.on("error", (error) => (this.#lastWords = messageOf(error)));
    void once(child, "close").then(
      () => this.#restart(),
      () => this.#restart(),
    );
    if (child.pid === undefined) return;
    log.debug("the site's server runs", { pid: child.pid, atMs: clock.nowMs() });
    if (!(await this.#notePid(child))) void this.#notePidLater(child);
  }

  /** Notes which process it is, for a gateway that finds it orphaned; false if the disk does not take it. */
  async #notePid({ pid = 0 }: ChildProcess): Promise<boolean> {
    const { disk, folder, log } = this.options;
    try {
      await writeAtomically(disk, folder, PID, encode(`${pid} ${(await startTime(pid)) ?? ""}\n`));
      return true;
    } catch (error) {
      log.warn("the process of the site's server cannot be noted; trying again", { error: messageOf(error) });
      return false;
    }
  }

  async #notePidLater(child: ChildProcess): Promise<void> {
    const { clock, signal } = this.options;
    do await clock.sleep(CHECK_MS, signal);
    while (!this.#stopping && !signal.aborted && this.#child === child && !(await this.#notePid(child)));
  }

  #isOver(): boolean {
    return this.#stopping || this.options.signal.aborted;
  }

  async #restart(): Promise<void> {
    const { clock, log, signal } = this.options;
    if (this.#isOver()) return;
    log.error("the site's server ended; starting it again", { said: this.#lastWords });
    await clock.sleep(RESTART_MS, signal);
    if (this.#isOver()) return;
    try {
      await this.start();
    } catch (error) {
      this.#lastWords = messageOf(error);
      await this.#restart();
    }
  }

  /**
   * Starts the server anew when its log does not work, until the signal aborts: after a full disk nats-server goes on without
   * JetStream, and takes no update until it is started again.
   */
  async watch(check: () => Promise<unknown>, until: AbortSignal): Promise<void> {
    const { clock, log } = this.options;
    const isOver = (): boolean => until.aborted || this.#stopping;
    for (let failures = 0; !isOver();) {
      await clock.sleep(CHECK_MS, until);
      if (isOver()) return;
      const fault = await check().then(
        () => undefined,
        (error: unknown) => messageOf(error),
      );
      failures = fault === undefined ? 0 : failures + 1;
      if (failures < MOST_FAILURES || isOver()) continue;
      failures = 0;
      log.error("the site's log does not work; starting its server again", { error: fault });
      await this.#end();
    }
  }

  /** Ends the process, which is then started again unless it is to stop. */
  async #end(): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit").then(() => true);
    child.kill("SIGTERM");
    const { clock } = this.options;
    if (await Promise.race([ended, clock.sleep(STOP_MS).then(() => false)])) return;
    child.kill("SIGKILL");
    await ended;
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    await this.#end();
  }
}

/**
 * Starts the NATS server of a site and connects to it. Members come with the credentials that the fleet gave them; their
 * updates go to a log on this machine, and what else they ask comes to the gateway. Throws code "ABORTED" on the signal.
 */
export async function startSiteServer(options: SiteServerOptions): Promise<SiteServer> {
  const { disk, folder, host, port, clock, log, signal } = options;
  await disk.makeFolder(folder);
  const root = await trustRoot(options);
  await stopOrphan(options);
  // The server's streams belong to the account: those of another fleet stay out of the way.
  const dataDir = `${folder}/nats-${root.account.slice(1, 13)}`;
  const config = natsServerConfig({ root, dataDir, host, port, serverName: "site" });
  await writeAtomically(disk, folder, CONFIG, encode(config), 0o600);
  const keeper = new Keeper(options);
  await keeper.start();
  const local = host === "0.0.0.0" || host === "::" ? "127.0.0.1" : host;
  try {
    const servers = [`nats://${local.includes(":") ? `[${local}]` : local}:${port}`];
    const link = await NatsLink.connect({ servers, creds: root.serviceCreds, name: "gateway", log, clock, signal });
    await ensureSiteLog(link, LOG_AGE_MS, options.logBytes);
    const updates = new NatsUpdateLog(link);
    const closed = new AbortController();
    void keeper.watch(() => updates.usage(), closed.signal);
    return {
      bus: new NatsBus(link.nc, log),
      updates,
      close: async () => {
        closed.abort();
        await link.close();
        await keeper.stop();
      },
    };
  } catch (error) {
    await keeper.stop();
    throw error;
  }
}
