import { jwtAuthenticator, type NatsConnection } from "nats";
import { CodedError, codeOf, messageOf } from "#common/adapters/coded-error.js";
import { attemptPace } from "#common/adapters/nats/attempt-pace.js";
import { connect } from "#common/adapters/nats/transport.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";

export interface DialOptions {
  readonly servers: readonly string[];
  /** Asked at every connection, so that a renewed JWT is used from the next one on. */
  readonly jwt: () => string;
  readonly seed: string;
  readonly inboxPrefix: string;
  readonly name: string;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

// Not AUTHENTICATION_TIMEOUT: a slow link or a busy server says nothing about the credential.
const REFUSED = new Set(["AUTHORIZATION_VIOLATION", "AUTHENTICATION_EXPIRED", "BAD_CREDS"]);
const LOG_EVERY_MS = 10_000;
const RETRY_MS = 500;

/** Whether NATS refused the credential, so that trying again is pointless. */
export function isCredentialRefused(error: unknown): boolean {
  return REFUSED.has(codeOf(error) ?? "");
}

/**
 * Connects, waiting as long as it takes with a log line now and then, and reconnects forever. Throws code
 * "CREDENTIAL_REFUSED" if the credential is not accepted, "ABORTED" on the signal.
 */
export async function dial(options: DialOptions): Promise<NatsConnection> {
  const { clock, log, signal, servers } = options;
  let loggedAtMs = -Infinity;
  while (!signal.aborted) {
    try {
      return await connect({
        servers: [...servers],
        name: options.name,
        inboxPrefix: options.inboxPrefix,
        authenticator: jwtAuthenticator(options.jwt, new TextEncoder().encode(options.seed)),
        maxReconnectAttempts: -1,
        // The client would give up at the second refusal in a row; how many count is decided by who follows the status.
        ignoreAuthErrorAbort: true,
        // A whole fleet comes back at once when a server restarts.
        reconnectDelayHandler: attemptPace(clock, RETRY_MS, 1_000),
        pingInterval: 15_000,
        // A stack for every request costs more than a small request itself; failures are told by code and subject.
        noAsyncTraces: true,
        maxPingOut: 2,
        timeout: 5_000,
      });
    } catch (error) {
      if (isCredentialRefused(error)) {
        throw new CodedError("CREDENTIAL_REFUSED", "NATS refused the credential", { cause: error });
      }
      if (clock.monotonicMs() - loggedAtMs >= LOG_EVERY_MS) {
        log.warn("waiting for the control plane", { servers, error: messageOf(error) });
        loggedAtMs = clock.monotonicMs();
      }
      await clock.sleep(RETRY_MS, signal);
    }
  }
  throw new CodedError("ABORTED", "stopped while waiting for the control plane");
}
