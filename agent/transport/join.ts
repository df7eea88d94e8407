import type { NatsConnection } from "nats";
import { createUser, fromSeed } from "nkeys.js";
import { requestError } from "#common/adapters/nats/bus.js";
import { CodedError, codeOf, messageOf } from "#common/adapters/coded-error.js";
import { joinInbox, subjects } from "#common/domain/subjects.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { DeviceFacts } from "#proto/shoal/v1/device.js";
import { JoinReply, JoinRequest, type JoinBundle } from "#proto/shoal/v1/device_wire.js";
import { dial } from "./dial.js";

/** What the registry granted, and the seed it is bound to. */
export interface Joined {
  readonly device: string;
  readonly seed: string;
  readonly jwt: string;
  readonly servers: readonly string[];
}

export interface JoinOptions {
  readonly bundle: JoinBundle;
  /** Wished name. */
  readonly name: string;
  readonly labels: Record<string, string>;
  readonly facts: DeviceFacts;
  /** Seed of an earlier attempt whose answer did not arrive: the registry knows the key and answers again. */
  readonly seed: string | undefined;
  /** Stores a seed before it is used. */
  readonly keep: (seed: string) => Promise<void>;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

const TIMEOUT_MS = 5_000;
const RETRY_MS = 1_000;
/** Refusals that pass. */
const PASSING = new Set(["Busy"]);
const UNANSWERED = new Set(["TIMEOUT", "NO_RESPONDERS"]);

async function keyPair(options: JoinOptions): Promise<{ seed: string; publicKey: string }> {
  if (options.seed !== undefined) {
    return { seed: options.seed, publicKey: fromSeed(new TextEncoder().encode(options.seed)).getPublicKey() };
  }
  const pair = createUser();
  const seed = new TextDecoder().decode(pair.getSeed());
  await options.keep(seed);
  return { seed, publicKey: pair.getPublicKey() };
}

async function ask(nc: NatsConnection, subject: string, request: JoinRequest): Promise<JoinReply | undefined> {
  try {
    const answer = await nc.request(subject, JoinRequest.encode(request).finish(), { timeout: TIMEOUT_MS });
    return JoinReply.decode(answer.data);
  } catch (error) {
    const failure = requestError(error, subject, TIMEOUT_MS);
    if (UNANSWERED.has(codeOf(failure) ?? "")) return undefined;
    throw failure;
  }
}

/**
 * Enrols this machine with a join token: its own nkey is made here and only the public half is sent. Waits for an absent
 * control plane. Throws code "JOIN_REFUSED" with the registry's remedy, "CREDENTIAL_REFUSED" for a token that NATS does
 * not accept, "ABORTED" on the signal.
 */
export async function joinFleet(options: JoinOptions): Promise<Joined> {
  const { bundle, clock, log, signal } = options;
  const { seed, publicKey } = await keyPair(options);
  const nc = await dial({
    servers: bundle.servers,
    jwt: () => bundle.bootstrapJwt,
    seed: bundle.bootstrapSeed,
    inboxPrefix: joinInbox(bundle.tokenId),
    name: `join ${options.name}`,
    clock,
    log,
    signal,
  });
  const request = JoinRequest.fromPartial({
    secret: bundle.secret,
    publicKey,
    device: options.name,
    labels: options.labels,
    facts: options.facts,
  });
  try {
    while (!signal.aborted) {
      const reply = await ask(nc, subjects.join(bundle.tokenId), request);
      if (reply !== undefined && reply.refusal === undefined) {
        const servers = reply.servers.length > 0 ? reply.servers : bundle.servers;
        return { device: reply.device, seed, jwt: reply.jwt, servers };
      }
      const refusal = reply?.refusal;
      if (refusal !== undefined && !PASSING.has(refusal.reason)) {
        throw new CodedError("JOIN_REFUSED", `${refusal.reason}: ${refusal.message}`);
      }
      log.info("the registry does not answer yet; asking again", { refusal: refusal?.reason });
      await clock.sleep(RETRY_MS, signal);
    }
    throw new CodedError("ABORTED", "stopped while joining");
  } finally {
    await nc.close().catch((error: unknown) => log.debug("closing failed", { error: messageOf(error) }));
  }
}
