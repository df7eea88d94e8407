import { CodedError } from "#common/adapters/coded-error.js";
import { writeAtomically, type Disk } from "../disk.js";

/** What makes this machine a device of a fleet. The seed is a secret that never leaves it. */
export interface Identity {
  /** Name of the Device; empty while its request to join is unanswered. */
  readonly device: string;
  /** Seed of its nkey. */
  readonly seed: string;
  readonly jwt: string;
  /** NATS servers. */
  readonly servers: readonly string[];
  /** Id of the join token it came with. */
  readonly tokenId: string;
  /** True once the control plane did not accept it any more. */
  readonly rejected: boolean;
}

const FILE = "identity.json";

/** The stored identity; undefined if there is none. Throws code "IDENTITY_UNREADABLE" for a damaged one. */
export async function loadIdentity(disk: Disk, folder: string): Promise<Identity | undefined> {
  const bytes = await disk.read(`${folder}/${FILE}`);
  if (bytes === undefined) return undefined;
  try {
    const value = JSON.parse(new TextDecoder().decode(bytes)) as Partial<Identity>;
    const { device, seed, jwt, servers, tokenId, rejected } = value;
    const texts = [device, seed, jwt, tokenId].every((text) => typeof text === "string");
    if (texts && Array.isArray(servers)) {
      return { device, seed, jwt, servers, tokenId, rejected: rejected === true } as Identity;
    }
  } catch {
    // Reported below with the remedy.
  }
  const message = `${folder}/${FILE} is damaged; remove it and join again with a new token`;
  throw new CodedError("IDENTITY_UNREADABLE", message);
}

/** Stores the identity, whole or not at all, readable by its owner only. */
export async function storeIdentity(disk: Disk, folder: string, identity: Identity): Promise<void> {
  const bytes = new TextEncoder().encode(`${JSON.stringify(identity)}\n`);
  await writeAtomically(disk, folder, FILE, [bytes], 0o600);
}
