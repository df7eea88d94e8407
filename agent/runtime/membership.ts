import { CodedError, codeOf } from "#common/adapters/coded-error.js";
import type { Clock } from "#common/ports/clock.js";
import type { Log } from "#common/ports/log.js";
import type { DeviceFacts } from "#proto/shoal/v1/device.js";
import type { JoinBundle } from "#proto/shoal/v1/device_wire.js";
import type { Disk } from "../disk.js";
import { EXIT_REJECTED } from "../step.js";
import { joinFleet } from "../transport/join.js";
import { loadIdentity, storeIdentity, type Identity } from "../transport/identity.js";
import type { Exit } from "./loop.js";

export interface MembershipOptions {
  readonly disk: Disk;
  readonly stateDir: string;
  readonly bundle: JoinBundle | undefined;
  readonly name: string;
  readonly labels: Record<string, string>;
  readonly facts: DeviceFacts;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** Folder of the outbox in the state folder. */
export const outboxFolder = (stateDir: string): string => `${stateDir}/outbox`;

/**
 * The identity of the state folder, or a new one by joining. A rejected identity joins again only with another token than
 * the one it came with: a device that was deleted on purpose must not come back because its service restarts.
 * Throws codes "NO_TOKEN", "CREDENTIAL_REFUSED", "JOIN_REFUSED", "IDENTITY_UNREADABLE", "ABORTED".
 */
export async function establishIdentity(options: MembershipOptions): Promise<Identity> {
  const { disk, stateDir, bundle, log } = options;
  const known = await loadIdentity(disk, stateDir);
  const enrolled = known !== undefined && known.device !== "";
  if (enrolled && !known.rejected) return known;
  if (bundle === undefined) {
    const message = enrolled
      ? "this device was removed from its fleet; start the agent with --join and a new token"
      : `${stateDir} holds no identity; start the agent with --join TOKEN`;
    throw new CodedError(enrolled ? "CREDENTIAL_REFUSED" : "NO_TOKEN", message);
  }
  if (enrolled && known.tokenId === bundle.tokenId) {
    const message = "this device was removed from its fleet; it needs a token that was issued after that";
    throw new CodedError("CREDENTIAL_REFUSED", message);
  }
  const pending = known !== undefined && !enrolled && known.tokenId === bundle.tokenId ? known.seed : undefined;
  // Updates and optimizer state of another life of this machine belong to nobody.
  await disk.remove(outboxFolder(stateDir));
  const { tokenId } = bundle;
  const draft = { device: "", jwt: "", servers: bundle.servers, tokenId, rejected: false };
  const joined = await joinFleet({
    ...options,
    bundle,
    seed: pending,
    keep: (seed) => storeIdentity(disk, stateDir, { ...draft, seed }),
  });
  const identity = { ...joined, tokenId, rejected: false };
  await storeIdentity(disk, stateDir, identity);
  log.info("joined the fleet", { device: identity.device });
  return identity;
}

/**
 * Runs as the identity, and remembers it if the control plane does not accept it any more. Throws code
 * "CREDENTIAL_REFUSED" then.
 */
export async function runAs(
  identity: Identity,
  { disk, stateDir }: Pick<MembershipOptions, "disk" | "stateDir">,
  run: () => Promise<Exit>,
): Promise<Exit> {
  try {
    const exit = await run();
    if (exit.code === EXIT_REJECTED) throw new CodedError("CREDENTIAL_REFUSED", exit.message);
    return exit;
  } catch (error) {
    if (codeOf(error) === "CREDENTIAL_REFUSED") await storeIdentity(disk, stateDir, { ...identity, rejected: true });
    throw error;
  }
}
