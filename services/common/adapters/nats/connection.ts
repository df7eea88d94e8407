import { credsAuthenticator, Events, type JetStreamClient, type JetStreamManager, type NatsConnection } from "nats";
import type { Clock } from "../../ports/clock.js";
import type { Log } from "../../ports/log.js";
import { CodedError, codeOf, messageOf } from "../coded-error.js";
import { attemptPace } from "./attempt-pace.js";
import { ReadWindow } from "./read-window.js";
import { SlabLedger } from "./slab-ledger.js";
import { MOST_SLAB_BYTES } from "./read-slab.js";
import { connect, type SlabOptions } from "./transport.js";

export interface NatsOptions {
  servers: string[];
  /** Text of a creds file. */
  creds: string;
  /** Shown in the server's list of connections. */
  name: string;
  /** For users that may read their own inboxes only. */
  inboxPrefix?: string;
  /** For runs of the update log alone: what they have read is used again. Nothing else may be subscribed to or asked for. */
  isForRuns?: boolean;
  log: Log;
  clock: Clock;
  /** Gives up waiting for the first connection. */
  signal?: AbortSignal;
}

/** Codes with which waiting for the server is pointless: the credential is refused. */
const REFUSED = new Set(["AUTHORIZATION_VIOLATION", "AUTHENTICATION_EXPIRED", "ACCOUNT_EXPIRED", "BAD_CREDS"]);

const READY_MS = 5000;

/** A server on a slow or busy disk may take seconds to answer; the library gives up after five. */
const JETSTREAM_MS = 15_000;

/** Half of what nats-server lets wait for a client ("max_pending"), before it drops the connection as a slow consumer. */
const READ_WINDOW_BYTES = 32 * 1024 ** 2;

/** A NATS connection that tells its users when it was re-established. */
export class NatsLink {
  /** For readers of large messages. */
  readonly readWindow = new ReadWindow(READ_WINDOW_BYTES);
  private readonly listeners = new Set<() => void>();
  private up = true;

  private constructor(
    readonly nc: NatsConnection,
    readonly log: Log,
    readonly clock: Clock,
    /** Is told who reads what, if what was read is used again. */
    readonly slabs: SlabLedger | undefined,
  ) {
    void this.follow();
  }

  /**
   * Connects and reconnects forever. The first connection is waited for, with a log line every few seconds; a refused
   * credential throws (code "AUTHORIZATION_VIOLATION" or alike), as does the signal (code "ABORTED").
   */
  static async connect(options: NatsOptions): Promise<NatsLink> {
    const { clock, signal, log } = options;
    const slabs = options.isForRuns === true ? new SlabLedger(MOST_SLAB_BYTES) : undefined;
    const settings: SlabOptions = {
      slabs,
      servers: options.servers,
      name: options.name,
      authenticator: credsAuthenticator(new TextEncoder().encode(options.creds)),
      maxReconnectAttempts: -1,
      reconnectDelayHandler: attemptPace(clock, 500, 250),
      pingInterval: 15_000,
      // A stack for every request costs more than a small request itself; failures are told by code and subject.
      noAsyncTraces: true,
      maxPingOut: 2,
      timeout: 5000,
      ...(options.inboxPrefix === undefined ? {} : { inboxPrefix: options.inboxPrefix }),
    };
    let loggedAtMs = -Infinity;
    for (;;) {
      if (signal?.aborted === true) throw new CodedError("ABORTED", "stopped while waiting for NATS");
      try {
        return new NatsLink(await connect(settings), log, clock, slabs);
      } catch (error) {
        if (REFUSED.has(codeOf(error) ?? ""))
          throw new CodedError(codeOf(error) ?? "", `NATS refused the credential: ${messageOf(error)}`, {
            cause: error,
          });
        if (clock.monotonicMs() - loggedAtMs >= 5000) {
          log.warn("waiting for NATS", { servers: options.servers, error: messageOf(error) });
          loggedAtMs = clock.monotonicMs();
        }
        await clock.sleep(500, signal);
      }
    }
  }

  /** Whether the connection stands at this moment. */
  get connected(): boolean {
    return this.up && !this.nc.isClosed();
  }

  /**
   * Makes a request when the connection stands, waiting for it some seconds at most. One that was under way when the
   * connection broke is lost: it fails with code "DISCONNECT" at the reconnect, not only after its whole timeout.
   */
  async call<T>(request: () => Promise<T>): Promise<T> {
    await this.ready();
    let forget = (): void => undefined;
    const broken = new Promise<never>((_resolve, reject) => {
      forget = this.onReconnect(() =>
        reject(new CodedError("DISCONNECT", "the connection to NATS broke during a request")),
      );
    });
    const requested = request();
    requested.catch(() => undefined);
    try {
      return await Promise.race([requested, broken]);
    } finally {
      forget();
    }
  }

  /** Waits some seconds at most until the connection stands. */
  async ready(): Promise<void> {
    if (this.connected || this.nc.isClosed()) return;
    const done = new AbortController();
    const forget = this.onReconnect(() => done.abort());
    await this.clock.sleep(READY_MS, done.signal);
    forget();
  }

  jetstream(): JetStreamClient {
    return this.nc.jetstream({ timeout: JETSTREAM_MS });
  }

  /** Does not ask the server whether JetStream is there, so it works while it starts. */
  manager(): Promise<JetStreamManager> {
    return this.nc.jetstreamManager({ checkAPI: false, timeout: JETSTREAM_MS });
  }

  /** Calls the listener after every reconnect until the returned function is called. */
  onReconnect(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }

  /** Sends what waits, then closes; closes at once if the server is away. */
  async close(): Promise<void> {
    if (this.nc.isClosed()) return;
    await (this.connected ? this.nc.drain() : this.nc.close());
  }

  private async follow(): Promise<void> {
    for await (const status of this.nc.status()) {
      if (status.type === Events.Disconnect) {
        this.up = false;
        this.log.warn("disconnected from NATS; reconnecting", { server: describe(status.data) });
      } else if (status.type === Events.Reconnect) {
        this.up = true;
        this.log.info("reconnected to NATS", { server: describe(status.data) });
        for (const listener of this.listeners) listener();
      } else if (status.type === Events.Error) {
        this.log.warn("NATS reports an error", { error: describe(status.data) });
      }
    }
  }
}

function describe(data: unknown): string {
  return typeof data === "string" ? data : JSON.stringify(data);
}
